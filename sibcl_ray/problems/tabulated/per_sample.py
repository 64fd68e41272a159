"""Numbered datasets of an HDF5 file as one array, as many published files have them: ``mpbcal/DOS/*``.

The star stands for the number of a sample. Rows are ordered by it; numbers may begin anywhere and leave some out.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sibcl_ray.messages import nearest
from sibcl_ray.problems.tabulated import hdf5
from sibcl_ray.problems.tabulated.packing import packing
from sibcl_ray.problems.tabulated.tables import BadData, Stored, find, readable, rows_at_once, usable

STAR = "*"
CACHE = 2**20  # bytes in which HDF5 keeps what it knows of datasets; by itself it takes more with every one


def is_numbered(folder: Path, file: str, name: str) -> bool:
    """Whether an array is spread over numbered datasets. In the names of other kinds of files a star is a letter."""
    if STAR not in name:
        return False
    path = find(folder, file)
    with readable(repr(file)):
        return hdf5.is_hdf5(path)


def _opened(path: Path) -> Any:
    file = hdf5.opened(path)
    cache = file.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = CACHE
    file.id.set_mdc_config(cache)
    return file


def open_numbered(folder: Path, file: str, names: tuple[str, ...]) -> list[Stored]:
    """The arrays ``names`` of an HDF5 file in ``folder``, with the rows whose number all of them have.

    Raises:
        BadData: the file is missing or damaged, no number has all of the names, or the first row is none.
    """
    path = find(folder, file)
    titles = [f"{file!r}, array {name!r}," for name in names]
    with readable(repr(file)), _opened(path) as opened:
        found = [_numbers(opened, name, title) for name, title in zip(names, titles, strict=True)]
        common = sorted(set.intersection(*map(set, found)))
        if not common:
            raise BadData(
                f"{titles[0]} and {names[-1]!r} have no number in common: they have {_some(found[0])} and "
                f"{_some(found[-1])}; each input needs its label"
            )
        numbers = np.array(common)
        return [
            usable(_open(path, opened, title, [table[number] for number in common], numbers))
            for title, table in zip(titles, found, strict=True)
        ]


def _some(table: dict[int, str]) -> str:
    return f"{min(table)} to {max(table)}"


def _numbers(file: Any, name: str, title: str) -> dict[int, str]:
    """The paths of the datasets, by number."""
    before, _, after = name.partition(STAR)
    if STAR in after or not (before.endswith("/") or not before) or not (after.startswith("/") or not after):
        raise BadData(f"{title} should have one star, in the place of a number, such as 'shapes/*/bandgap_1'")
    group = file.get(before.rstrip("/") or "/")
    if not hasattr(group, "keys"):
        raise BadData(f"{title} asks for a group {before.rstrip('/')!r}, which is not there; {_advice(file, before)}")
    table: dict[int, str] = {}
    for key in group:
        path = f"{before}{key}{after}"
        if not (key.isascii() and key.isdigit()):
            continue
        if (item := file.get(path)) is None and file.get(path, getlink=True) is not None:
            raise BadData(f"{title} dataset {path!r} is a link that leads nowhere; copy the numbers into this file")
        if hasattr(item, "dtype"):
            if int(key) in table:
                raise BadData(f"{title} has {table[int(key)]!r} and {path!r}, which are of one number; remove one")
            table[int(key)] = path
    if not table:
        raise BadData(f"{title} has no datasets of a number; in {before.rstrip('/')!r} {nearest(STAR, group)}")
    return table


def _advice(file: Any, before: str) -> str:
    parent = file
    for part in before.strip("/").split("/"):
        if part not in parent:
            return nearest(part, parent)
        parent = parent[part]
    return "name a group in which datasets are numbered"


def _open(path: Path, opened: Any, title: str, paths: list[str], numbers: np.ndarray) -> Stored:
    missing: dict[str, None] = {}
    shape = hdf5.shape_of(opened[paths[0]])
    at_once = rows_at_once(8 * math.prod(shape))

    def row(file: Any, name: str) -> np.ndarray:  # one type, though a 0 may be stored as an integer
        data, what = file[name], f"{title} dataset {name!r},"
        hdf5.refuse_unusable(what, file, data)
        if (came := hdf5.shape_of(data)) != shape:
            raise BadData(
                f"{title} has shape {came} in {name!r}, and {shape} in {paths[0]!r}; all must be of one shape"
            )
        return np.asarray(packing(what, data)(np.asarray(data[()]), missing), np.float64)

    def read() -> Iterator[np.ndarray]:
        with _opened(path) as file:
            for start in range(0, len(paths), at_once):
                yield np.stack([row(file, name) for name in paths[start : start + at_once]])

    row(opened, paths[0])
    return Stored(title, len(paths), shape, read, numbers, missing=missing)
