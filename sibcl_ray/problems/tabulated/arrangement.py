"""Which axes of stored arrays are what: rows, pixels and channels."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from sibcl_ray.problems.tabulated.declaration import Input
from sibcl_ray.problems.tabulated.tables import BadData, Stored

MOST_AXES = 3  # of a grid
FLAT = 64  # numbers, 8 × 8, from which a row of them may be an image


def arranged(declared: Input, inputs: Stored) -> Stored:
    """The same with (*grid) or (channels, *grid) for a row, of a grid of one to three axes.

    BadData if networks take no such rows, or it is not certain what they are.
    """
    shape = declared.shape or inputs.shape
    if math.prod(shape) != math.prod(inputs.shape):
        advice = f"; {_COLUMNS}" if not inputs.shape else _hint(inputs) or "; mend one of them"
        raise BadData(
            f"{inputs.title} has rows of shape {inputs.shape}, {math.prod(inputs.shape):,} values, and shape = "
            f"{list(shape)} in [input] has {math.prod(shape):,}{advice}"
        )
    if advice := _advice_on_axes(declared, shape):
        raise BadData(f"{inputs.title} has rows of shape {shape}; {advice}")
    source = -1 if declared.channels == "last" else 1  # of the first axis of an image

    def read() -> Iterator[np.ndarray]:
        return (np.moveaxis(block.reshape(len(block), *shape), source, 1) for block in inputs.read())

    return replace(inputs, shape=(shape[-1], *shape[:-1]) if source < 0 else shape, read=read)


def as_float32(images: np.ndarray) -> np.ndarray:
    """Numbers as networks see them. Zeros lose their sign, so that equal inputs have equal bytes."""
    with np.errstate(all="ignore"):  # what becomes infinite is refused by name
        return np.ascontiguousarray(images, np.float32) + np.float32(0)


_COLUMNS = (
    "if each pixel has a column of its own, store them as one array: "
    'np.savez("data.npz", x=frame[pixels].to_numpy().reshape(-1, height, width), y=frame[label])'
)


def _advice_on_axes(declared: Input, shape: tuple[int, ...]) -> str:
    """What to do about rows of a shape that networks do not take, or that may be another's; empty if they do."""
    channels = declared.channels != "none"
    if not shape:
        return f"give shape = [1] in [input] if each input is one number; {_COLUMNS}"
    if channels and len(shape) == 1:
        return "channels in [input] are an axis besides those of the grid; leave it out, or give more axes"
    if len(shape) - channels > MOST_AXES:
        return f"networks take inputs with 1 to {MOST_AXES} axes, besides channels"
    if not channels and len(shape) > 1 and shape[0] == 1:
        return f'its first axis says nothing: give shape = {list(shape[1:])} in [input], or channels = "first"'
    if len(shape) == 3 and "channels" not in declared.model_fields_set:
        return (
            'if an axis is of channels, give channels = "first" or "last" in [input], and channels = "none" if they '
            "are volumes"
        )
    side = math.isqrt(shape[0])
    if len(shape) == 1 and not declared.shape and side**2 == shape[0] >= FLAT:
        return (
            f"give shape = {[side, side]} in [input] if they are images, and shape = {list(shape)} if they are vectors"
        )
    return ""


def require_common_shape(shapes: Mapping[Stored, tuple[int, ...]], what: str) -> None:
    """BadData where arrays have rows of different shapes."""
    (first, shape), *others = shapes.items()
    for other, its in others:
        if its != shape:
            raise BadData(
                f"{other.title} has {what} of shape {its} and {first.title} has {shape}; they must be of one shape"
                f"{_hint(other, first)}"
            )


# The order of axes. Where the first index runs fastest, as in MATLAB, an array of samples by height by width comes out
# of a file as width by height by samples.

_REVERSED = {  # of what writes axes in the other order, how to write them so that rows come first here
    "MATLAB": "permute(X, ndims(X):-1:1)",
    "Octave": "permute(X, ndims(X):-1:1)",
    "Julia": "permutedims(X, ndims(X):-1:1)",
    "R": "aperm(X)",
}


def _hint(*arrays: Stored | None) -> str:
    """Where the writer of one is known to reverse axes: that it does, and what to do."""
    for stored in arrays:
        if stored and stored.shape and stored.writer in _REVERSED:
            return (
                f"; {stored.writer} wrote this file, and its axes come in reverse, here {stored.whole_shape}: rows "
                f"must be first, so write {_REVERSED[stored.writer]} there, or np.savez the .T of each array"
            )
    return ""


def require_pairs(inputs: Stored, labels: Stored | None, note: Callable[[str], None]) -> None:
    """BadData where inputs and labels have not as many rows, or have so in reverse as well; a note where they may."""
    if labels is not None and labels.rows != inputs.rows:
        name = labels.title.partition(", array ")[2].rstrip(",")
        transposed = ". Are its rows along the last axis? Then transpose it" if labels.rows in inputs.shape[-1:] else ""
        raise BadData(
            f"{inputs.title} has {inputs.rows:,} rows and {name} has {labels.rows:,}; each input needs one "
            f"label, row by row{_hint(inputs, labels) or transposed}"
        )
    # Rows might as well be along the last axis, with labels that are stored like the inputs or are not.
    fit_in_reverse = inputs.shape and inputs.shape[-1] in (inputs.rows, *(labels.shape[-1:] if labels else ()))
    if fit_in_reverse and (hint := _hint(inputs, labels)):
        raise BadData(f"{inputs.title} may have its rows along the first or the last axis{hint}")
    if fit_in_reverse and not inputs.writer:
        note(
            f"{inputs.title.rstrip(',')} of shape {inputs.whole_shape} is read with rows along its first axis, and "
            "they might as well be along the last: if MATLAB, Julia, Fortran or R wrote it, transpose it"
        )
