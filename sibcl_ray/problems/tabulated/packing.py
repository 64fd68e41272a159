"""What the attributes of an HDF5 dataset say of its numbers, by the conventions of netCDF and CF.

Values are stored less ``add_offset`` and over ``scale_factor``; some stand for no value at all
(https://cfconventions.org, sections 2.5 and 8.1; NetCDF Users' Guide, appendix A).
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from sibcl_ray.problems.tabulated.tables import BadData

# An HDF5 fill value of this size or larger stands for no number. Smaller ones, such as 0 or 1, may be a background.
SENTINEL = 999
_ALIKE = ("fill_value", "FillValue", "MissingValue")  # of others than netCDF; where they are no numbers, something else
_MISSING = ("_FillValue", "missing_value", *_ALIKE)
_PACKED = ("scale_factor", "add_offset")
_VALID = ("valid_range", "valid_min", "valid_max")

# A reason for which values count as missing: what says so, a test of values and a limit, and whether it is of the
# unpacked values instead of the stored ones.
Absent = tuple[str, Callable[[np.ndarray, Any], np.ndarray], Any, bool]


def packing(title: str, data: Any) -> Callable[[np.ndarray, dict[str, None]], np.ndarray]:
    """How to read the numbers of a dataset; BadData where an attribute that should be a number is none.

    Returns:
        A function from stored numbers to those that are meant: float64 where they were packed, and NaN where one is
        missing. Its second argument is told by what it was.
    """
    attributes, own = data.attrs, data.dtype.base
    there = set(attributes)  # in one look, as there may be a dataset for every sample
    numbers = {}
    for name in (*_MISSING, *_PACKED, *_VALID):
        if name in there and (_is_number(given := np.asarray(attributes[name])) or name not in _ALIKE):
            numbers[name] = _checked(title, name, given)
    stored = _signed(own, attributes["_Unsigned"]) if "_Unsigned" in there else own
    alike = {name: _as(given, own, stored) for name, given in numbers.items()}
    packed = {name: _one(title, name, numbers[name]) for name in _PACKED if name in numbers}
    absent: list[Absent] = [
        (f"{name} = {_shown(numbers[name])}", np.isin, alike[name], False) for name in _MISSING if name in numbers
    ]
    fill = None if absent else _fill(data)
    absent += _limits(numbers, alike, unpacked=bool(packed) and stored.kind in "iu")
    if fill is not None:
        absent.append((f"its HDF5 fill value {_shown(fill)}", np.isin, _as(fill, own, stored), False))

    def unpacked(raw: np.ndarray, missing: dict[str, None]) -> np.ndarray:
        values = raw = raw.view(stored)
        if packed:
            values = raw.astype(np.float64) * packed.get("scale_factor", 1.0) + packed.get("add_offset", 0.0)
        for says, is_absent, limit, of_unpacked in absent:
            if (mask := is_absent(values if of_unpacked else raw, limit)).any():
                missing[says] = None
                values = np.where(mask, np.nan, values)
        return values

    return unpacked


def _signed(own: np.dtype, unsigned: Any) -> np.dtype:
    """The type that bytes are meant to have: netCDF's older kinds have no unsigned integers but an attribute."""
    said = unsigned.decode() if isinstance(unsigned, bytes) else str(unsigned).strip("[]'\"b")
    kind = {"true": "u", "false": "i"}.get(said.lower())
    return np.dtype(f"{own.byteorder}{kind}{own.itemsize}") if kind and own.kind in "iu" else own


def _is_number(given: np.ndarray) -> bool:
    return given.dtype.kind in "biuf" and given.size > 0


def _checked(title: str, name: str, given: np.ndarray) -> np.ndarray:
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


def _limits(numbers: Mapping[str, np.ndarray], alike: Mapping[str, np.ndarray], unpacked: bool) -> Iterator[Absent]:
    """Reasons by the range in which values are valid.

    It is that of the stored numbers, unless only the unpacked ones can be meant, as it is of floats and they of
    integers.
    """
    for place, (name, outside) in enumerate((("valid_min", np.less), ("valid_max", np.greater))):
        source, place = ("valid_range", place) if "valid_range" in numbers else (name, 0)
        if source in numbers:
            of_unpacked = unpacked and numbers[source].dtype.kind == "f"
            limit = (numbers if of_unpacked else alike)[source][place]
            yield f"{source} = {_shown(numbers[source])}", outside, limit, of_unpacked


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
