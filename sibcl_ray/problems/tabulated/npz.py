"""Arrays of npz files."""

import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sibcl_ray.problems.tabulated.tables import BadData, Stored, axes, require_numbers, rows_at_once


def names(path: Path, wanted: str) -> Iterable[str]:
    """The arrays of a file."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _header(file: Any, title: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, and type."""
    version = np.lib.format.read_magic(file)
    try:
        if version == (1, 0):
            return np.lib.format.read_array_header_1_0(file)
        if version == (2, 0):
            return np.lib.format.read_array_header_2_0(file)
    except ValueError as error:
        described = str(error).partition("valid dtype descriptor: ")[2]
        if not described:
            raise
        raise BadData(
            f"{title} holds values of type {described[:40]}, which numpy does not know; store float8, bfloat16 and the "
            "like as float32"
        ) from None
    raise ValueError(f"npy version {version} holds no plain numbers")


def open_array(path: Path, name: str, title: str) -> Stored:
    """An array of a file."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape, by_columns, dtype = _header(file, title)
        start = file.tell()
        size = archive.getinfo(f"{name}.npy").file_size - start
    require_numbers(title, dtype)
    rows, row = axes(title, shape)
    row_bytes = math.prod(row) * dtype.itemsize
    if size != rows * row_bytes:
        raise BadData(f"{title} has {size:,} bytes where its shape {shape} needs {rows * row_bytes:,}; write it again")

    def read() -> Iterator[np.ndarray]:
        # Rows of an array in Fortran order are scattered over all of it: it is read whole.
        at_once = rows if by_columns else rows_at_once(row_bytes)
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            file.read(start)
            for first in range(0, rows, at_once):
                count = min(at_once, rows - first)
                flat = np.frombuffer(file.read(count * row_bytes), dtype)
                whole = flat.reshape((count, *row), order="F" if by_columns else "C")
                yield from np.array_split(whole, -(-count // rows_at_once(row_bytes)))

    return Stored(title, rows, row, read)
