"""The kinds of files that hold arrays, told apart by what is in them."""

from pathlib import Path
from types import ModuleType

from sibcl_ray.messages import nearest
from sibcl_ray.problems.tabulated import hdf5, npz, parquet, per_sample
from sibcl_ray.problems.tabulated.declaration import FILE, Labelled, Part
from sibcl_ray.problems.tabulated.tables import BadData, Stored, find, readable

# Each kind has ``names(path, wanted)``, the arrays of a file, of which the wanted one may be another name, and
# ``open_array(path, name, title)``.
FORMATS: dict[str, ModuleType] = {".npz": npz, ".h5": hdf5, ".hdf5": hdf5, ".parquet": parquet}
_BEGINNINGS = {b"PK\x03\x04": npz, b"PAR1": parquet}
_PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
_OTHERS = {  # what else a file may begin with, and what it is then
    (b"MATLAB 5.0",): "is MATLAB's of version 5; save it there with '-v7.3', or np.savez what scipy.io.loadmat reads",
    (b"CDF\x01", b"CDF\x02", b"CDF\x05"): "is netCDF of version 3; nccopy -k nc4 makes version 4 of it, which is read",
    (b"\x93NUMPY",): "is a single array of np.save; store it by np.savez, under a name",
    _PICKLES: "is a pickle, which is never opened; store its arrays by np.savez",
    (b"ARROW1",): "is Arrow's or Feather's; write Parquet",
    (b"PARE",): "is encrypted; write Parquet that is not",
    (b"\x1f\x8b",): "is compressed by gzip; gunzip it",
    (b"BZh",): "is compressed by bzip2; bunzip2 it",
    (b"\xfd7zXZ",): "is compressed by xz; unxz it",
    (b"version https://git-lfs",): "is a pointer of Git LFS and not the file itself, which git lfs pull fetches",
    (b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml"): "is a web page; download the file itself",
}


def _format(path: Path, file: str) -> ModuleType:
    """The kind of a file, by its first bytes or, where these are damaged, by its name."""
    with path.open("rb") as opened:
        head = opened.read(64)
    for beginning, kind in _BEGINNINGS.items():
        if head.startswith(beginning):
            return kind
    if hdf5.is_hdf5(path):
        return hdf5
    for beginnings, what in _OTHERS.items():
        if head.startswith(beginnings):
            raise BadData(f"{file!r} {what}")
    if not head:
        raise BadData(f"{file!r} is empty; copy or write it again")
    if path.suffix.lower() not in FORMATS:
        raise BadData(
            f"{file!r} is of no known kind; write {', '.join(FORMATS)} (.mat is read if saved with '-v7.3', .nc if it "
            "is netCDF of version 4)"
        )
    return FORMATS[path.suffix.lower()]


def open_part(folder: Path, part: Part) -> tuple[Stored, Stored | None]:
    """Inputs and, if there are some, labels from a file in ``folder``; or, with a star, from the datasets it numbers.

    BadData where one is missing, damaged, empty, or holds anything but real numbers.
    """
    file, path = part.file, find(folder, part.file)
    names = [part.inputs, part.labels] if isinstance(part, Labelled) else [part.inputs]
    titles = [f"{file!r}, array {name!r}," for name in names]
    starred = [per_sample.STAR in name for name in names]
    with readable(repr(file)):
        if any(starred) and hdf5.is_hdf5(path):  # in the names of other kinds of files a star is a letter
            if not all(starred):
                raise BadData(
                    f"{FILE}: of {names[0]!r} and {names[-1]!r} one has a star, for the number that says which label "
                    "is whose; store both under numbers, or both as one array"
                )
            stored = per_sample.open_numbered(path, names, titles)
        else:
            stored = [_open(path, file, name, title) for name, title in zip(names, titles, strict=True)]
    return stored[0], stored[1] if len(stored) > 1 else None


def _open(path: Path, file: str, name: str, title: str) -> Stored:
    kind = _format(path, file)
    known = list(kind.names(path, name))
    if name not in known:
        raise BadData(f"{file!r} has no array {name!r}; {nearest(name, known)}")
    with readable(title):
        return kind.open_array(path, name, title)
