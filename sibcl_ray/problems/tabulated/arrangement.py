"""Which axes of stored arrays are what: rows, pixels and channels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sibcl_ray.problems.tabulated.declaration import Input
from sibcl_ray.problems.tabulated.tables import BadData, Stored


@dataclass(frozen=True)
class Arrangement:
    """How a row becomes an image, (n, m) pixels or (channels, n, m)."""

    shape: tuple[int, ...]  # of a row
    channels_last: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the image."""
        return (self.shape[-1], *self.shape[:-1]) if self.channels_last else self.shape

    def place(self, raw: np.ndarray) -> np.ndarray:
        """Raw rows as images, (rows, *grid)."""
        rows = raw.reshape(len(raw), *self.shape)
        return np.moveaxis(rows, -1, 1) if self.channels_last else rows

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """The same as float32. Zeros lose their sign, so that equal inputs have equal bytes."""
        with np.errstate(all="ignore"):  # what becomes infinite is refused by name
            return np.ascontiguousarray(self.place(raw), np.float32) + np.float32(0)


def arrangement(declared: Input, inputs: Stored) -> Arrangement:
    """How rows of ``inputs`` become images.

    Raises:
        BadData: networks take no rows of this shape.
    """
    shape = declared.shape or inputs.shape
    if math.prod(shape) != math.prod(inputs.shape):
        advice = f"; {_COLUMNS}" if not inputs.shape else _hint(inputs) or "; mend one of them"
        raise BadData(
            f"{inputs.title} has rows of shape {inputs.shape}, {math.prod(inputs.shape):,} values, and shape = "
            f"{list(shape)} in [input] has {math.prod(shape):,}{advice}"
        )
    channels = declared.channels != "none"
    if len(shape) != 2 + channels:
        raise BadData(f"{inputs.title} has rows of shape {shape}; {_advice_on_axes(shape, channels)}")
    return Arrangement(shape, declared.channels == "last")


_COLUMNS = (
    "if each pixel has a column of its own, store them as one array: "
    'np.savez("data.npz", x=frame[pixels].to_numpy().reshape(-1, height, width), y=frame[label])'
)


def _advice_on_axes(shape: tuple[int, ...], channels: bool) -> str:
    side = math.isqrt(shape[0]) if shape else 0
    if not shape:
        return f"networks take 2D images and no inputs with 0 axes; {_COLUMNS}"
    if len(shape) == 1 and side > 1:
        example = [side, side] if side**2 == shape[0] else ["height", "width"]
        return f"networks take 2D images: give shape = {example} in [input], if that is what they are"
    if channels:
        return "channels in [input] are an axis besides those of 2D images; leave it out, or give three axes"
    if len(shape) == 3:
        return 'networks take 2D images: if an axis is of channels, give channels = "first" or "last" in [input]'
    return f"networks take 2D images and no inputs with {len(shape)} axes"


def common_shape(arrays: Sequence[Stored], shape: Callable[[Stored], tuple[int, ...]], what: str) -> tuple[int, ...]:
    """The shape that all arrays have; BadData where they differ."""
    first, *others = arrays
    for other in others:
        if shape(other) != shape(first):
            raise BadData(
                f"{other.title} has {what} of shape {shape(other)} and {first.title} has {shape(first)}; "
                f"they must be of one shape{_hint(other) or _hint(first)}"
            )
    return shape(first)


# The order of axes. Where the first index runs fastest, as in MATLAB, an array of samples by height by width comes out
# of a file as width by height by samples.

_REVERSED = {  # of what writes axes in the other order, how to write them so that rows come first here
    "MATLAB": "permute(X, ndims(X):-1:1)",
    "Octave": "permute(X, ndims(X):-1:1)",
    "Julia": "permutedims(X, ndims(X):-1:1)",
    "R": "aperm(X)",
}


def _hint(stored: Stored) -> str:
    """Where the file's writer is known to reverse axes: that it does, and what to do."""
    if stored.writer not in _REVERSED or not stored.shape:
        return ""
    return (
        f"; {stored.writer} wrote this file, and its axes come in reverse, here {(stored.rows, *stored.shape)}: rows "
        f"must be first, so write {_REVERSED[stored.writer]} there, or np.savez the .T of each array"
    )


def require_pairs(inputs: Stored, labels: Stored | None) -> None:
    """BadData where inputs and labels have not the same number of rows, or have so in reverse as well."""
    if labels is not None and labels.rows != inputs.rows:
        transposed = ". Are its rows along the last axis? Then transpose it" if labels.rows in inputs.shape[-1:] else ""
        raise BadData(
            f"{inputs.title} has {inputs.rows:,} rows and {labels.name!r} has {labels.rows:,}; each input needs one "
            f"label, row by row{_hint(inputs) or _hint(labels) or transposed}"
        )
    if hint := _fit_in_reverse(inputs, labels) and (_hint(inputs) or (labels and _hint(labels))):
        raise BadData(f"{inputs.title} may have its rows along the first or the last axis{hint}")


def doubt(inputs: Stored, labels: Stored | None) -> str:
    """What may be wrong with the order of axes though everything fits; empty if nothing is."""
    if inputs.writer != "" or not _fit_in_reverse(inputs, labels):
        return ""
    return (
        f"{inputs.title.rstrip(',')} of shape {(inputs.rows, *inputs.shape)} is read with rows along its first axis, "
        "and they might as well be along the last: if MATLAB, Julia, Fortran or R wrote it, transpose it"
    )


def _fit_in_reverse(inputs: Stored, labels: Stored | None) -> bool:
    """Whether rows might as well be along the last axis, with labels that are stored like them or are not."""
    if not inputs.shape:
        return False
    return inputs.shape[-1] in (inputs.rows, *(labels.shape[-1:] if labels else ()))
