"""The kinds of files that hold arrays, told apart by what is in them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sibcl_ray.messages import nearest
from sibcl_ray.problems.tabulated import hdf5, npz, parquet
from sibcl_ray.problems.tabulated.tables import BadData, Stored, find, readable, usable


@dataclass(frozen=True)
class Format:
    """A kind of file: what is in it, and one array of it."""

    names: Callable[[Path, str], Iterable[str]]  # of the file and the wanted name, which may be another for one of them
    open: Callable[[Path, str, str], Stored]  # of the file, the array's name and the title for messages


_NPZ = Format(npz.names, npz.open_array)
_HDF5 = Format(hdf5.names, hdf5.open_array)
_PARQUET = Format(parquet.names, parquet.open_array)
FORMATS = {".npz": _NPZ, ".h5": _HDF5, ".hdf5": _HDF5, ".parquet": _PARQUET}
_BEGINNINGS = {b"PK\x03\x04": _NPZ, b"PAR1": _PARQUET}

_OLD_NETCDF = "is netCDF of version 3; nccopy -k nc4 makes version 4 of it, which is read"
_PICKLE = "is a pickle, which is never opened; store its arrays by np.savez"
_PAGE = "is a web page; download the file itself"
_OTHERS = {  # what else a file may begin with, and what it is then
    b"MATLAB 5.0": "is MATLAB's of version 5; save it there with '-v7.3', or np.savez what scipy.io.loadmat reads",
    **dict.fromkeys((b"CDF\x01", b"CDF\x02", b"CDF\x05"), _OLD_NETCDF),
    b"\x93NUMPY": "is a single array of np.save; store it by np.savez, under a name",
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), _PICKLE),
    b"ARROW1": "is Arrow's or Feather's; write Parquet",
    b"PARE": "is encrypted; write Parquet that is not",
    b"\x1f\x8b": "is compressed by gzip; gunzip it",
    b"BZh": "is compressed by bzip2; bunzip2 it",
    b"\xfd7zXZ": "is compressed by xz; unxz it",
    b"version https://git-lfs": "is a pointer of Git LFS and not the file itself, which git lfs pull fetches",
    **dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html", b"<?xml"), _PAGE),
}


def _format(path: Path, file: str) -> Format:
    """The kind of a file, by its first bytes or, where these are damaged, by its name."""
    with path.open("rb") as opened:
        head = opened.read(64)
    if by_content := [kind for beginning, kind in _BEGINNINGS.items() if head.startswith(beginning)]:
        return by_content[0]
    if hdf5.is_hdf5(path):
        return _HDF5
    for beginning, what in _OTHERS.items():
        if head.startswith(beginning):
            raise BadData(f"{file!r} {what}")
    if not head:
        raise BadData(f"{file!r} is empty; copy or write it again")
    if path.suffix.lower() not in FORMATS:
        raise BadData(
            f"{file!r} is of no known kind; write {', '.join(FORMATS)} (.mat is read if saved with '-v7.3', .nc if it "
            "is netCDF of version 4)"
        )
    return FORMATS[path.suffix.lower()]


def open_array(folder: Path, file: str, name: str) -> Stored:
    """The array ``name`` of a file in ``folder``.

    Raises:
        BadData: the file or the array is missing, damaged, empty, or holds anything but real numbers.
    """
    path, title = find(folder, file), f"{file!r}, array {name!r},"
    with readable(repr(file)):
        kind = _format(path, file)
        known = list(kind.names(path, name))
    if name not in known:
        raise BadData(f"{file!r} has no array {name!r}; {nearest(name, known)}")
    with readable(title):
        return usable(kind.open(path, name, title))
