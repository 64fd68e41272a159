"""Numbered datasets of an HDF5 file as one array, as many published files have them: ``mpbcal/DOS/*``.

The star stands for the number of a sample. Rows are ordered by it; numbers may begin anywhere and leave some out.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sibcl_ray.messages import nearest
from sibcl_ray.problems.tabulated import hdf5
from sibcl_ray.problems.tabulated.packing import packing
from sibcl_ray.problems.tabulated.tables import BadData, Stored, rows_at_once

STAR = "*"
CACHE = 2**20  # bytes in which HDF5 keeps what it knows of datasets; by itself it takes more with every one


def _opened(path: Path) -> Any:
    file = hdf5.opened(path)
    cache = file.id.get_mdc_config()
    cache.set_initial_size = True
    cache.initial_size = cache.min_size = cache.max_size = CACHE
    file.id.set_mdc_config(cache)
    return file


def open_numbered(path: Path, names: Sequence[str], titles: Sequence[str]) -> list[Stored]:
    """The arrays ``names`` of an HDF5 file, with the rows whose number all of them have; BadData if there is none."""
    with _opened(path) as file:
        found = [_numbers(file, name, title) for name, title in zip(names, titles, strict=True)]
        common = sorted(set.intersection(*map(set, found)))
        if not common:
            first, last = (f"{min(table)} to {max(table)}" for table in (found[0], found[-1]))
            raise BadData(
                f"{titles[0]} and {names[-1]!r} have no number in common: they have {first} and {last}; each input "
                "needs its label"
            )
        return [
            _open(path, file, title, [table[number] for number in common], np.array(common))
            for title, table in zip(titles, found, strict=True)
        ]


def _numbers(file: Any, name: str, title: str) -> dict[int, str]:
    """The paths of the datasets, by number."""
    before, _, after = name.partition(STAR)
    if not re.fullmatch(r"([^*]*/)?\*(/[^*]*)?", name):
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


def _open(path: Path, opened: Any, title: str, datasets: list[str], numbers: np.ndarray) -> Stored:
    missing: dict[str, None] = {}
    shape = hdf5.shape_of(opened[datasets[0]])
    at_once = rows_at_once(8 * math.prod(shape))

    def row(file: Any, name: str) -> np.ndarray:  # one type, though a 0 may be stored as an integer
        data, what = file[name], f"{title} dataset {name!r},"
        hdf5.refuse_unusable(what, file, data)
        if (came := hdf5.shape_of(data)) != shape:
            raise BadData(
                f"{title} has shape {came} in {name!r}, and {shape} in {datasets[0]!r}; all must be of one shape"
            )
        return np.asarray(packing(what, data)(np.asarray(data[()]), missing), np.float64)

    def read() -> Iterator[np.ndarray]:
        with _opened(path) as file:
            for start in range(0, len(datasets), at_once):
                yield np.stack([row(file, name) for name in datasets[start : start + at_once]])

    row(opened, datasets[0])
    return Stored(title, len(datasets), shape, read, numbers, missing=missing)
