"""What the attributes of an HDF5 dataset say of its numbers, by the conventions of netCDF and CF.

Values are stored less ``add_offset`` and over ``scale_factor``; some stand for no value at all
(https://cfconventions.org, sections 2.5 and 8.1; NetCDF Users' Guide, appendix A).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sibcl_ray.problems.tabulated.tables import BadData

# An HDF5 fill value of this size or larger stands for no number. Smaller ones, such as 0 or 1, may be a background.
SENTINEL = 999
_ALIKE = ("fill_value", "FillValue", "MissingValue")  # of others than netCDF; where they are no numbers, something else
_MISSING = ("_FillValue", "missing_value", *_ALIKE)
_PACKED = ("scale_factor", "add_offset")
_VALID = ("valid_range", "valid_min", "valid_max")


@dataclass(frozen=True)
class _Absent:
    """A reason for which values count as missing."""

    says: str
    of: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of stored and of unpacked values a mask


@dataclass(frozen=True)
class Packing:
    """How to read the numbers of a dataset."""

    stored: np.dtype  # as which the bytes are to be understood
    scale: float | None  # None where numbers are stored as they are
    offset: float
    absent: tuple[_Absent, ...]

    def __call__(self, raw: np.ndarray, missing: dict[str, None]) -> np.ndarray:
        """The numbers themselves, float64 where they were packed, and NaN where one is missing.

        ``missing`` is told by what it was.
        """
        raw = raw.view(self.stored)
        values = raw if self.scale is None else raw.astype(np.float64) * self.scale + self.offset
        for reason in self.absent:
            if (mask := reason.of(raw, values)).any():
                missing[reason.says] = None
                values = np.where(mask, np.nan, values)
        return values


def packing(title: str, data: Any) -> Packing:
    """What a dataset says of its numbers.

    Raises:
        BadData: an attribute that should be a number is none.
    """
    attributes, own = data.attrs, data.dtype.base
    there = set(attributes)  # in one look, as there may be a dataset for every sample
    said = {name: np.asarray(attributes[name]) for name in (*_MISSING, *_PACKED, *_VALID) if name in there}
    stored = _signed(own, attributes["_Unsigned"]) if "_Unsigned" in there else own
    numbers = {
        name: _numbers(title, name, given) for name, given in said.items() if name not in _ALIKE or _is_number(given)
    }
    packed = {name: _one(title, name, numbers[name]) for name in _PACKED if name in numbers}
    absent = [
        _Absent(f"{name} = {_shown(given)}", _among(_as(given, own, stored)))
        for name, given in numbers.items()
        if name in _MISSING
    ]
    absent += _limits(numbers, own, stored, bool(packed))
    if (fill := _fill(data)) is not None and not any(name in numbers for name in _MISSING):
        absent.append(_Absent(f"its HDF5 fill value {_shown(fill)}", _among(_as(fill, own, stored))))
    scale = packed.get("scale_factor", 1.0) if packed else None
    return Packing(stored, scale, packed.get("add_offset", 0.0), tuple(absent))


def _signed(own: np.dtype, unsigned: Any) -> np.dtype:
    """The type that bytes are meant to have: netCDF's older kinds have no unsigned integers but an attribute."""
    said = unsigned.decode() if isinstance(unsigned, bytes) else str(unsigned).strip("[]'\"b")
    kind = {"true": "u", "false": "i"}.get(said.lower())
    return np.dtype(f"{own.byteorder}{kind}{own.itemsize}") if kind and own.kind in "iu" else own


def _is_number(given: np.ndarray) -> bool:
    return given.dtype.kind in "biuf" and given.size > 0


def _numbers(title: str, name: str, given: np.ndarray) -> np.ndarray:
    wanted = "two numbers" if name == "valid_range" else "a number"
    if not _is_number(given) or (name == "valid_range" and given.size != 2):
        raise BadData(f"{title} has the attribute {name} = {str(given)[:40]}; make it {wanted}, or remove it")
    return given.ravel()


def _one(title: str, name: str, given: np.ndarray) -> float:
    if given.size > 1 or not np.isfinite(given).all() or (name == "scale_factor" and not given.any()):
        raise BadData(f"{title} has the attribute {name} = {_shown(given)}; make it one finite number, or remove it")
    return float(given[0])


def _as(given: np.ndarray, own: np.dtype, stored: np.dtype) -> np.ndarray:
    """Numbers of an attribute as values of the dataset have them: rounded, or with another sign."""
    if stored.kind == "f":
        with np.errstate(over="ignore"):
            return given.astype(stored)
    return given.astype(own).view(stored) if stored != own and given.dtype.kind in "iu" else given


def _among(given: np.ndarray) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda raw, values: np.isin(raw, given)


def _limits(numbers: Mapping[str, np.ndarray], own: np.dtype, stored: np.dtype, packed: bool) -> list[_Absent]:
    """Reasons by the range in which values are valid.

    It is that of the stored numbers, unless only the unpacked ones can be meant, as it is of floats and they of
    integers.
    """
    given = dict(numbers)
    if "valid_range" in given:
        given["valid_min"], given["valid_max"] = np.split(given["valid_range"], 2)
    reasons = []
    for name, outside in (("valid_min", np.less), ("valid_max", np.greater)):
        if name not in given:
            continue
        source = "valid_range" if "valid_range" in numbers else name
        unpacked = packed and stored.kind in "iu" and given[name].dtype.kind == "f"
        limit = (given[name] if unpacked else _as(given[name], own, stored))[0]
        reasons.append(_Absent(f"{source} = {_shown(numbers[source])}", _beyond(outside, limit, unpacked)))
    return reasons


def _beyond(outside: Callable, limit: Any, unpacked: bool) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda raw, values: outside(values if unpacked else raw, limit)


def _fill(data: Any) -> np.ndarray | None:
    """The value of parts of a dataset that were never written, if its author chose one that is no number.

    NetCDF's own default, 9.97e36 or the like, is one of them.
    """
    import h5py

    if data.id.get_create_plist().fill_value_defined() != h5py.h5d.FILL_VALUE_USER_DEFINED:
        return None
    fill = np.asarray(data.fillvalue).ravel()
    return fill if fill.dtype.kind in "iuf" and abs(float(fill[0])) >= SENTINEL else None


def _shown(given: np.ndarray) -> str:
    listed = ", ".join(str(value) for value in given.ravel()[:4].tolist())
    return listed if given.size == 1 else f"[{listed}]"
