"""Arrays in npz, HDF5 and Parquet files, a block of rows at a time, so that a file need not fit in memory.

Only numbers are read. Whatever is wrong with a file ends in one kind of error, of one line.
"""

import difflib
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sibcl_ray.problems.problem import BadProblem

BLOCK = 4 * 2**20  # bytes of a block, about
LARGEST_ROW = 2**24  # values; what is larger is no image but a mistake, and would not fit in a block


class BadData(BadProblem):
    """Arrays that cannot be used, or what is said of them."""


@dataclass(frozen=True)
class Stored:
    """An array in a file. Its first axis are rows; ``shape`` is that of one row."""

    title: str  # the file and the array's name, for messages
    rows: int
    shape: tuple[int, ...]
    read: Callable[[], Iterator[np.ndarray]]  # blocks of consecutive rows, (some, *shape)
    numbers: np.ndarray | None = field(default=None, compare=False)  # of the rows, where the file has given them some

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of rows, each with the number of its first row; BadData where the file ends too soon."""
        first = 0
        with readable(self.title):
            for block in self.read():
                yield first, block
                first += len(block)
        if first != self.rows:
            raise BadData(f"{self.title} has {first:,} rows where {self.rows:,} were expected; write the file again")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, in their order, from one pass through the file."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        taken = None
        for first, block in self.blocks():
            low, high = np.searchsorted(ascending, (first, first + len(block)))
            taken = np.empty((len(rows), *self.shape), block.dtype) if taken is None else taken
            taken[order[low:high]] = block[ascending[low:high] - first]
            if high == len(rows):
                return taken
        raise BadData(f"{self.title} has {self.rows:,} rows, and row {ascending[-1]:,} was asked for")


@dataclass(frozen=True)
class _Format:
    """A kind of file: what is in it, and one array of it."""

    names: Callable[[Path, str], Iterable[str]]  # of the file and the wanted name, which may be another for one of them
    open: Callable[[Path, str, str], Stored]  # of the file, the array's name and the title for messages


@contextmanager
def readable(title: str) -> Iterator[None]:
    """Turns whatever a damaged file raises into BadData: its parts may have no checksum, so it can be anything."""
    try:
        yield
    except BadData:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadData(f"{title} cannot be read ({reason}); is the file whole? copy or write it again") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Advice on a name that is not there."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean {near[0]!r}?"
    listed = ", ".join(map(repr, known[:12])) + (", …" if len(known) > 12 else "")
    return f"there is {listed}" if known else "there is nothing"


def find(folder: Path, file: str) -> Path:
    """The path of a file named in the description, which has to lie in ``folder`` itself or below it."""
    parts = PurePosixPath(file.replace("\\", "/")).parts
    if PureWindowsPath(file).drive or PurePosixPath(file).is_absolute() or file.startswith("\\") or ".." in parts:
        raise BadData(f"the file {file!r} lies outside the folder; put it, or a link to it, inside, and give its name")
    with readable(repr(file)):
        path = folder / file
        if path.is_file():
            return path
        if path.exists():
            raise BadData(f"{file!r} in {str(folder)!r} is no file; give the name of one")
        known = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    raise BadData(f"{file!r} is not in {str(folder)!r}; {nearest(path.name, known)}")


def open_array(folder: Path, file: str, name: str) -> Stored:
    """The array ``name`` of a file in ``folder``.

    Raises:
        BadData: the file or the array is missing, damaged, empty, or holds anything but real numbers.
    """
    path, title = find(folder, file), f"{file!r}, array {name!r},"
    if path.suffix.lower() not in FORMATS:
        raise BadData(f"{file!r} is of no known kind; write {', '.join(FORMATS)}")
    kind = FORMATS[path.suffix.lower()]
    with readable(repr(file)):
        known = list(kind.names(path, name))
    if name not in known:
        raise BadData(f"{file!r} has no array {name!r}; {nearest(name, known)}")
    with readable(title):
        return usable(kind.open(path, name, title))


def usable(stored: Stored) -> Stored:
    """The array, unless its shape is that of no data."""
    title = stored.title
    if not stored.rows or 0 in stored.shape:
        raise BadData(f"{title} is empty, of shape {(stored.rows, *stored.shape)}; there is nothing to learn from it")
    if math.prod(stored.shape) > LARGEST_ROW:
        raise BadData(f"{title} has rows of shape {stored.shape}; no network here takes so many values")
    return stored


_NOT_NUMBERS = {
    "c": "complex numbers; store real and imaginary parts as two channels, or what is measured",
    "O": "Python objects, which are never unpickled; store numbers, as np.asarray(values, dtype=float)",
    "V": "records; store each of their fields as an array of its own",
    "M": "dates; store numbers",
    "m": "time spans; store numbers",
}


def require_numbers(title: str, dtype: np.dtype) -> None:
    if dtype.kind not in "biuf":
        what = _NOT_NUMBERS.get(dtype.kind, "text; store numbers")
        raise BadData(f"{title} holds {what}")


def rows_at_once(row_bytes: float) -> int:
    return int(min(max(1, BLOCK // max(1, row_bytes)), 2**20))


def _axes(title: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The number of rows and the shape of a row."""
    if not shape:
        raise BadData(f"{title} is a single number; its first axis must be rows")
    return shape[0], shape[1:]


# npz


def _npz_names(path: Path, wanted: str) -> Iterable[str]:
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


_NPY_HEADERS: dict[Any, Callable[[BinaryIO], tuple]] = {
    (1, 0): np.lib.format.read_array_header_1_0,  # type: ignore[dict-item]
    (2, 0): np.lib.format.read_array_header_2_0,  # type: ignore[dict-item]
}


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in _NPY_HEADERS:
        raise ValueError(f"npy version {version} holds no plain numbers")
    return _NPY_HEADERS[version](file)


def _open_npz(path: Path, name: str, title: str) -> Stored:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, by_columns, dtype = _npy_header(file)
        size = archive.getinfo(f"{name}.npy").file_size - file.tell()
    require_numbers(title, dtype)
    rows, row = _axes(title, shape)
    row_bytes = math.prod(row) * dtype.itemsize
    if size != rows * row_bytes:
        raise BadData(f"{title} has {size:,} bytes where its shape {shape} needs {rows * row_bytes:,}; write it again")

    def read() -> Iterator[np.ndarray]:
        # Rows of an array in Fortran order are scattered over all of it: it is read whole.
        at_once = rows if by_columns else rows_at_once(row_bytes)
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            _npy_header(file)
            for first in range(0, rows, at_once):
                count = min(at_once, rows - first)
                flat = np.frombuffer(file.read(count * row_bytes), dtype)
                whole = flat.reshape((count, *row), order="F" if by_columns else "C")
                yield from np.array_split(whole, -(-count // rows_at_once(row_bytes)))

    return Stored(title, rows, row, read)


# HDF5


def hdf5_file(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise BadData(f"{path.name!r} needs h5py; pip install 'sibcl_ray[hdf5]', or write npz or Parquet") from None
    return h5py.File(path, "r")


def _hdf5_names(path: Path, wanted: str) -> Iterable[str]:
    names: dict[str, None] = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "dtype"):
            names[re.sub(r"(^|/)\d+(?=/|$)", r"\1*", name, count=1)] = None  # see numbered

    with hdf5_file(path) as file:
        with suppress(KeyError):  # also of a link that leads nowhere
            if hasattr(file[wanted], "dtype"):
                return [wanted]  # by a link, perhaps, which a visit does not follow
        file.visititems(visit)
    return names


def _open_hdf5(path: Path, name: str, title: str) -> Stored:
    with hdf5_file(path) as file:
        data = file[name]
        require_numbers(title, data.dtype)
        rows, row = _axes(title, data.shape or ())
        refuse_unusable(title, file, data)
        at_once = rows_at_once(math.prod(row) * data.dtype.itemsize)
        if data.chunks:  # a chunk is unpacked whole, so it should not be read in parts
            at_once = max(1, round(at_once / data.chunks[0])) * data.chunks[0]

    def read() -> Iterator[np.ndarray]:
        with hdf5_file(path) as file:
            for first in range(0, rows, at_once):
                yield file[name][first : first + at_once]

    return Stored(title, rows, row, read)


def refuse_unusable(title: str, file: Any, data: Any) -> None:
    """BadData where the numbers of an HDF5 dataset are not all in its file."""
    if data.is_virtual or data.external or data.file.filename != file.filename:
        raise BadData(f"{title} only points to other files; copy the numbers into this one")
    if data.size and _unwritten(data):
        rows = f"for {data.shape[0]:,} rows, of which some" if data.shape else "for a number, which"
        raise BadData(f"{title} was made {rows} were never written; write them, or fewer")


def _unwritten(data: Any) -> bool:
    """Whether parts of an HDF5 array were given room but no numbers: zeros would be read from them."""
    if data.chunks:
        return data.id.get_num_chunks() < math.prod(-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True))
    return data.id.get_storage_size() < data.size * data.dtype.itemsize


# Parquet


def _parquet(path: Path) -> pq.ParquetFile:
    # Through a buffer, so that a row group that does not fit in memory is read page by page.
    return pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False, page_checksum_verification=True)


def _parquet_names(path: Path, wanted: str) -> Iterable[str]:
    with _parquet(path) as file:
        return file.schema_arrow.names


def _open_parquet(path: Path, name: str, title: str) -> Stored:
    with _parquet(path) as file:
        if file.schema_arrow.names.count(name) > 1:
            raise BadData(f"{title} is there more than once; give every column a name of its own")
        rows = file.metadata.num_rows
        first = next(file.iter_batches(1, columns=[name]), None) if rows else None
        row = () if first is None else _dense(first.column(name), title, 0).shape[1:]
        at_once = rows_at_once(8 * math.prod(row))

    def read() -> Iterator[np.ndarray]:
        start = 0
        with _parquet(path) as file:
            for batch in file.iter_batches(at_once, columns=[name]):
                block = _dense(batch.column(name), title, start)
                if block.shape[1:] != row:
                    raise BadData(f"{title} has shape {block.shape[1:]} at row {start:,}, and {row} before; mend it")
                yield block
                start += len(block)

    return Stored(title, rows, row, read)


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)


def _dense(column: pa.Array, title: str, start: int, each: int = 1) -> np.ndarray:
    """Lists, however deep, as one array; ``start`` is the first row's number, ``each`` the entries of a row."""
    if column.null_count:
        empty = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
        raise BadData(
            f"{title} has nothing at row {start + empty[0] // each:,}, counted from 0; fill in or remove such rows"
        )
    if isinstance(column.type, pa.FixedShapeTensorType):
        return column.to_numpy_ndarray()
    if any(is_list(column.type) for is_list in _LISTS):
        lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
        if len(odd := np.flatnonzero(lengths != lengths[:1])):
            raise BadData(
                f"{title} has {lengths[odd[0]]} values at row {start + odd[0] // each:,}, counted from 0, and "
                f"{lengths[0]} before; all rows must be of one length"
            )
        length = int(lengths[0]) if len(lengths) else 0
        inner = _dense(column.flatten(), title, start, each * max(1, length))
        return inner.reshape(len(column), length, *inner.shape[1:])
    if not any(is_number(column.type) for is_number in _NUMBERS):
        raise BadData(f"{title} holds values of type {column.type}; store numbers, or lists of numbers of one length")
    return column.to_numpy(zero_copy_only=False)


_HDF5 = _Format(_hdf5_names, _open_hdf5)
FORMATS = {
    ".npz": _Format(_npz_names, _open_npz),
    ".h5": _HDF5,
    ".hdf5": _HDF5,
    ".parquet": _Format(_parquet_names, _open_parquet),
}
