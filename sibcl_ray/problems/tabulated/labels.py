"""Labels of a folder of arrays: in which numbers they are kept, and whether networks can learn them.

Networks learn (label − offset) / scale in float32, which should be of order one and vary from sample to sample.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from sibcl_ray.problems.problem import FAINT, learnable
from sibcl_ray.problems.tabulated.declaration import METRICS, SURROGATE_MEAN, Label
from sibcl_ray.problems.tabulated.statistics import Rule, Statistics
from sibcl_ray.problems.tabulated.tables import BadData

PLAIN = 0.03  # of deviation (see `FAINT`), is what advice leads to, if anything does
LOST = 1e-6  # of the labels' deviation, from which a rounding to float32 loses digits of them
LEARNED = ("target", "surrogate")


def over_scale(raw: np.ndarray, scale: float) -> np.ndarray:
    """Raw labels over their scale, float64 (rows, numbers)."""
    with np.errstate(all="ignore"):  # what becomes infinite is refused by name
        return raw.reshape(len(raw), -1).astype(np.float64) / scale


def judged(metric: str) -> Rule:
    """What a label may not be if it is to be judged by a metric, in which it has no error of 0 then."""

    def undefined(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            label = torch.from_numpy(values.astype(np.float32))
        return METRICS[metric](label, label).isnan().numpy()

    return Rule(
        undefined,
        f"zeros, which metric = {metric!r} would divide by,",
        'give metric = "absolute" in [label], or remove these rows',
    )


def known(label: Label, labels: Mapping[str, Statistics], entries: int) -> tuple[float, ...]:
    """The offset over the scale, entry by entry."""
    if label.offset != SURROGATE_MEAN:
        return (float(label.offset) / label.scale,) * entries
    surrogate = labels["surrogate"]
    return tuple(_rounded(*moments) for moments in zip(surrogate.mean, surrogate.deviation, strict=True))


def _rounded(mean: float, deviation: float) -> float:
    """A mean, so that the rounding of another processor does not name another problem.

    To nine digits, or, where these are too few beside the deviation, to a thousandth of that.
    """
    digits = math.ceil(math.log10(abs(mean) / deviation)) + 4 if mean and deviation else 0
    return float(f"{mean:.{min(15, max(9, digits))}g}")


def precision(labels: Mapping[str, Statistics]) -> str:
    """The type in which labels over their scale are kept: float32 only if it loses nothing that can be learned."""
    exact = any(_size(found.deviation) * LOST < found.rounding.largest for found in labels.values())
    return "float64" if exact else "float32"


def refuse_immoderate(label: Label, labels: Mapping[str, Statistics], offset: np.ndarray) -> None:
    """BadData where networks cannot learn the labels of a role; ``offset`` is the known one, over the scale."""
    for role, found in labels.items():
        title = found.stored.title
        # By no more than the rounding of the numbers that they are stored as labels do not differ.
        least = max(found.resolution, 4 * np.finfo(np.float64).eps) * np.abs(found.mean)
        if found.stored.rows > 1 and (found.rounding.apart <= least).all():
            raise BadData(f"{title} is the same in all rows; there is nothing to learn")
        size, deviation = _learned(found, offset)
        if not _fits(role, size, deviation):
            raise BadData(
                f"{title} less the offset and over the scale is {size:.2g} in root mean square and deviates by "
                f"{deviation:.2g}, and networks learn numbers of order one; {_advice(role, label, labels, offset)}"
            )


def _learned(found: Statistics, offset: np.ndarray | float, scale: float = 1.0) -> tuple[float, float]:
    """Root mean square, and deviation from sample to sample, of what networks would learn of labels.

    With an offset and a scale in units of the present scale.
    """
    return math.sqrt(found.square_about(offset).mean()) / scale, _size(found.deviation) / scale


def _fits(role: str, size: float, deviation: float, faint: float = FAINT) -> bool:
    """Whether the labels of a role are of order one and, where they are learned from, vary by enough."""
    return learnable(size, deviation if role in LEARNED else math.inf, faint)


def _size(values: np.ndarray) -> float:
    return math.sqrt(np.square(values).mean())


def _advice(role: str, label: Label, labels: Mapping[str, Statistics], offset: np.ndarray) -> str:
    """An offset and a scale with which all labels can be learned, if there are such."""
    unit = "" if role == "target" else "is it in the unit of [target]? if so "
    for faint in (PLAIN, FAINT):
        for new, scale, text in _choices(labels[role], label, offset):
            if all(_fits(other, *_learned(found, new, scale), faint) for other, found in labels.items()):
                return f"{unit}give {text} in [label]"
    return f"{unit}no offset and scale suit all labels: store each array less an offset of its own, and in one unit"


def _choices(found: Statistics, label: Label, offset: np.ndarray) -> Iterator[tuple[np.ndarray | float, float, str]]:
    """Offsets and scales in units of the present scale, the least change first, and how to declare them."""
    size, deviation = (value * label.scale for value in _learned(found, offset))
    near = _near(float(found.mean.mean()) * label.scale, deviation)
    yield offset, _power(size) / label.scale, f"scale = {_power(size):g}"
    yield near / label.scale, 1.0, f"offset = {near!r}"
    yield near / label.scale, _power(deviation) / label.scale, f"offset = {near!r} and scale = {_power(deviation):g}"


def _power(value: float) -> float:
    """The nearest power of ten; one that can be declared."""
    return 10.0 ** max(-30, min(29, round(math.log10(value)))) if value > 0 else 1.0


def _near(mean: float, deviation: float) -> float:
    """A number with few digits that is less than a deviation from the mean."""
    return round(mean, -math.floor(math.log10(deviation))) if deviation > 0 else mean
