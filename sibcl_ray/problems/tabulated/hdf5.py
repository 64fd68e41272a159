"""Datasets of HDF5 files as arrays: of h5py's, of netCDF's from version 4 on, and of MATLAB's from version 7.3 on."""

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sibcl_ray.problems.tabulated.packing import packing
from sibcl_ray.problems.tabulated.tables import COMPLEX, BadData, Stored, axes, require_numbers, rows_at_once

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether a file is of this kind, which may begin with a block of the user's."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + len(SIGNATURE) <= size:
            file.seek(at)
            if file.read(len(SIGNATURE)) == SIGNATURE:
                return True
            at = max(512, 2 * at)
    return False


def opened(path: Path) -> Any:
    """The file, for reading."""
    try:
        import h5py
    except ImportError:
        raise BadData(f"{path.name!r} needs h5py; pip install 'sibcl_ray[hdf5]', or write npz or Parquet") from None
    return h5py.File(path, "r")


def names(path: Path, wanted: str) -> Iterable[str]:
    """The arrays of a file; of datasets that are numbered, one with a star."""
    found: dict[str, None] = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "dtype") and not name.startswith("#"):  # where MATLAB keeps what others refer to
            found[re.sub(r"(^|/)\d+(?=/|$)", r"\1*", name, count=1)] = None  # see per_sample

    with opened(path) as file:
        with suppress(KeyError):  # also of a link that leads nowhere
            if hasattr(file[wanted], "dtype"):
                return [wanted]  # by a link, perhaps, which a visit does not follow
        file.visititems(visit)
    return found


def open_array(path: Path, name: str, title: str) -> Stored:
    """A dataset of a file."""
    with opened(path) as file:
        data = file[name]
        refuse_unusable(title, file, data)
        unpacked = packing(title, data)
        rows, row = axes(title, shape_of(data))
        at_once = rows_at_once(math.prod(row) * data.dtype.base.itemsize)
        if data.chunks:  # a chunk is unpacked whole, so it should not be read in parts
            at_once = max(1, round(at_once / data.chunks[0])) * data.chunks[0]
        writer = _writer(path, data)
    missing: dict[str, None] = {}

    def read() -> Iterator[np.ndarray]:
        with opened(path) as file:
            for first in range(0, rows, at_once):
                yield unpacked(file[name][first : first + at_once], missing)

    return Stored(title, rows, row, read, writer=writer, missing=missing)


def shape_of(data: Any) -> tuple[int, ...]:
    """The shape of a dataset, whose values may be arrays themselves."""
    return (*(data.shape or ()), *data.dtype.shape)


def refuse_unusable(title: str, file: Any, data: Any) -> None:
    """BadData where a dataset holds no numbers, or they are not all in its file, or cannot be unpacked here."""
    _require_numbers(title, data)
    if data.is_virtual or data.external or data.file.filename != file.filename:
        raise BadData(f"{title} only points to other files; copy the numbers into this one")
    if data.size and _unwritten(data):
        rows = f"for {data.shape[0]:,} rows, of which some" if data.shape else "for a number, which"
        raise BadData(f"{title} was made {rows} were never written; write them, or fewer")
    for code, name in _filters_needed(data):
        advice = "install its plug-in, or write the file again where it is (h5repack -f GZIP=4)"
        if code in PLUGINS:
            advice = "pip install hdf5plugin"
        raise BadData(f"{title} is compressed by HDF5's filter {code} ({name}), which is missing here: {advice}")


def _unwritten(data: Any) -> bool:
    """Whether parts of an HDF5 array were given room but no numbers: zeros would be read from them."""
    if data.chunks:
        return data.id.get_num_chunks() < math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
    return data.id.get_storage_size() < data.size * data.dtype.itemsize


_MATLABS_NUMBERS = ("double", "single", "logical", *(f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)))


def _require_numbers(title: str, data: Any) -> None:
    import h5py

    dtype, attributes = data.dtype, data.attrs
    kind = np.asarray(attributes.get("MATLAB_class", b"")).astype(str).item() if len(attributes) else ""
    if h5py.check_ref_dtype(dtype) is not None:
        raise BadData(
            f"{title} holds references to other datasets, as cell arrays of MATLAB do; store all samples in one array "
            "of numbers, as cat(3, C{:}) makes of images"
        )
    if kind and attributes.get("MATLAB_empty", 0):
        raise BadData(f"{title} is empty; there is nothing to learn from it")
    if kind and kind not in _MATLABS_NUMBERS:
        raise BadData(f"{title} holds what MATLAB calls a {kind}; store numbers, as double(X) makes them")
    if h5py.check_string_dtype(dtype) is not None:
        raise BadData(f"{title} holds text; store numbers")
    if h5py.check_vlen_dtype(dtype) is not None:
        raise BadData(f"{title} holds rows of different lengths; all rows must be of one length")
    if dtype.names is not None and set(dtype.names) in ({"real", "imag"}, {"re", "im"}):
        raise BadData(f"{title} holds {COMPLEX}")
    require_numbers(title, dtype.base)


PLUGINS = {  # filters that the package hdf5plugin brings
    307: "bzip2",
    32000: "LZF",
    32001: "Blosc",
    32004: "LZ4",
    32008: "Bitshuffle",
    32013: "ZFP",
    32015: "Zstandard",
    32017: "SZ",
    32018: "FCIDECOMP",
    32022: "BitGroom",
    32023: "Granular BitRound",
    32024: "SZ3",
    32026: "Blosc2",
    32028: "SPERR",
}


def _filters_needed(data: Any) -> Iterator[tuple[int, str]]:
    """The number and the name of each filter without which a dataset cannot be read, and that is not to be had."""
    import h5py

    if not data.chunks:
        return
    pipeline = data.id.get_create_plist()
    for position in range(pipeline.get_nfilters()):
        code, _, _, name = pipeline.get_filter(position)
        masks = (data.id.get_chunk_info(chunk).filter_mask for chunk in range(data.id.get_num_chunks()))
        # It is left out of chunks where it gains nothing.
        if h5py.h5z.filter_avail(code) or all(mask >> position & 1 for mask in masks):
            continue
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401  registers its filters

            if h5py.h5z.filter_avail(code):
                continue
        yield code, PLUGINS.get(code) or name.decode(errors="replace") or "of no known name"


_BEGINNINGS = {b"MATLAB 7.3": "MATLAB", b"HDF5-based Julia": "Julia"}  # of a file that its writer marks
_MARKS = {"MATLAB_class": "MATLAB", "rhdf5-NA.OK": "R", "OCTAVE_NEW_FORMAT": "Octave"}  # attributes


def _writer(path: Path, data: Any) -> str:
    """Who wrote a dataset with its axes in reverse; empty where nothing says so."""
    with path.open("rb") as file:
        head = file.read(64)
    by_head = [who for beginning, who in _BEGINNINGS.items() if head.startswith(beginning)]
    by_mark = [who for mark, who in _MARKS.items() if mark in data.attrs or mark in data.parent.attrs]
    return [*by_head, *by_mark, ""][0]
