"""Looks at a folder of arrays before anything is computed: whatever cannot be used is found here.

What `problem.toml` says, names, shapes and counts are checked first, then the numbers in one pass through
each array.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sibcl_ray.problems.tabulated import declaration
from sibcl_ray.problems.tabulated.declaration import (
    METRICS,
    SURROGATE_MEAN,
    SYMMETRIES,
    Declaration,
    EachChannel,
    Input,
    Labelled,
    Metric,
    Part,
)
from sibcl_ray.problems.tabulated.numbered import is_numbered, open_numbered
from sibcl_ray.problems.tabulated.survey import DISTINCT, Rule, Survey, refuse_repeated, refuse_shared, survey
from sibcl_ray.problems.tabulated.tables import BadData, Stored, find, open_array, readable
from sibcl_ray.symmetry import Group, Scaling

MODERATE = (1e-2, 1e2)  # root mean square of what networks learn: they start from outputs of order one
ALIKE = 1e-6  # deviation over mean, below which float32 sees no difference


@dataclass(frozen=True)
class Arrangement:
    """How a row becomes an image, (n, m) pixels or (channels, n, m)."""

    shape: tuple[int, ...]  # of a row
    channels_last: bool

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of the image."""
        return (self.shape[-1], *self.shape[:-1]) if self.channels_last else self.shape

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Raw rows as float32, (rows, *grid). Zeros lose their sign, so that equal inputs have equal bytes."""
        rows = raw.reshape(len(raw), *self.shape)
        rows = np.moveaxis(rows, -1, 1) if self.channels_last else rows
        with np.errstate(all="ignore"):  # what becomes infinite is refused by name
            return np.ascontiguousarray(rows, np.float32) + np.float32(0)


def over_scale(raw: np.ndarray, scale: float) -> np.ndarray:
    """Raw labels over their scale, float32 (rows, numbers)."""
    with np.errstate(all="ignore"):
        return (raw.reshape(len(raw), -1).astype(np.float64) / scale).astype(np.float32)


@dataclass(frozen=True)
class Source:
    """Where the arrays lie, and the size and time of change of their files when they were checked."""

    folder: Path
    declared: Declaration
    files: Mapping[str, tuple[int, int]]

    def take(self, role: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Inputs (count, *grid), and labels (count, numbers) over their scale, of these rows, float32.

        Raises:
            BadData: the files are not there, or are not those that were checked.
        """
        for file, stamp in self.files.items():
            if _stamp(self.folder, file) != stamp:
                raise BadData(f"{file!r} has changed since it was checked; start again with what is there now")
        inputs, labels = _open(self.folder, self.declared.parts[role])
        arrange = arrangement(self.declared.input, inputs)
        given = None if labels is None else over_scale(labels.take(rows), self.declared.label.scale)
        return arrange(inputs.take(rows)), given


@dataclass(frozen=True)
class Content:
    """The arrays of a role, named by what they hold."""

    role: str
    rows: int
    inputs: str  # digest of all inputs as float32
    labels: str | None  # of all labels over their scale, as float32


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A folder that can be used."""

    source: Source
    contents: tuple[Content, ...]
    grid: tuple[int, ...]
    outputs: tuple[int, ...]  # shape of a label
    groups: tuple[tuple[str, Group], ...]
    centre: tuple[float, ...]  # of the inputs, one a channel
    width: tuple[float, ...]
    known: tuple[float, ...]  # the label's offset over its scale, entry by entry


@dataclass(frozen=True)
class _Role:
    """The arrays of a role, and what a pass through them found."""

    inputs: Survey
    labels: Survey | None


def take_in(folder: Path) -> Intake:
    """Check a folder, in one pass through all of its arrays.

    Raises:
        BadData: anything in it is not as it should be; says what, where and what to do.
    """
    declared = declaration.read(folder)
    files = {part.file: _stamp(folder, part.file) for part in declared.parts.values()}
    opened = {role: _open(folder, part) for role, part in declared.parts.items()}
    arrangements = {role: arrangement(declared.input, inputs) for role, (inputs, _) in opened.items()}
    outputs = _common_shape([labels for _, labels in opened.values() if labels], lambda labels: labels.shape, "labels")
    grids = {inputs: arrangements[role].grid for role, (inputs, _) in opened.items()}
    grid = _common_shape(list(grids), grids.__getitem__, "inputs")
    if (rows := opened["target"][0].rows) <= declared.drawn:
        raise BadData(
            f"{opened['target'][0].title} has {rows:,} rows, of which test = {declared.drawn:,} in [target] "
            "leaves none to learn from; ask for fewer"
        )
    groups = _groups(declared, grid)
    rules = [DISTINCT, *(_inside(group) for _, group in groups if isinstance(group, Scaling))]
    scaled, judge = partial(over_scale, scale=declared.label.scale), _judged(declared.label.metric)
    roles = {
        role: _Role(
            survey(inputs, arrangements[role], rules, hash_rows=True),
            survey(labels, scaled, [judge] if role != "surrogate" else [], hash_rows=False) if labels else None,
        )
        for role, (inputs, labels) in opened.items()
    }
    _refuse_leaks({role: found.inputs for role, found in roles.items()}, declared.drawn)
    known = _known(declared, roles, math.prod(outputs))
    _refuse_immoderate(declared, roles, np.array(known))
    centre, width = _standard(declared.input, grid, roles.get("unlabelled", roles["target"]).inputs)
    return Intake(
        source=Source(folder.absolute(), declared, files),
        contents=tuple(
            Content(role, found.inputs.count, found.inputs.digest, found.labels.digest if found.labels else None)
            for role, found in roles.items()
        ),
        grid=grid,
        outputs=outputs or (1,),
        groups=groups,
        centre=centre,
        width=width,
        known=known,
    )


def _stamp(folder: Path, file: str) -> tuple[int, int]:
    path = find(folder, file)
    with readable(repr(file)):
        about = path.stat()
    return about.st_size, about.st_mtime_ns


def _open(folder: Path, part: Part) -> tuple[Stored, Stored | None]:
    names = (part.inputs, part.labels) if isinstance(part, Labelled) else (part.inputs,)
    numbered = [is_numbered(part.file, name) for name in names]
    if any(numbered) != all(numbered):
        raise BadData(
            f"{declaration.FILE}: of {names[0]!r} and {names[-1]!r} one has a star, for the number that says "
            "which label is whose; store both under numbers, or both as one array"
        )
    if all(numbered):
        stored = open_numbered(folder, part.file, names)
    else:
        stored = [open_array(folder, part.file, name) for name in names]
    inputs, *others = stored
    if not others:
        return inputs, None
    (labels,) = others
    if labels.rows != inputs.rows:
        hint = ". Are its rows along the last axis? Then transpose it" if labels.rows in inputs.shape[-1:] else ""
        raise BadData(
            f"{inputs.title} has {inputs.rows:,} rows and {names[-1]!r} has {labels.rows:,}; each input needs one "
            f"label, row by row{hint}"
        )
    return inputs, labels


def arrangement(declared: Input, inputs: Stored) -> Arrangement:
    """How rows of ``inputs`` become images.

    Raises:
        BadData: networks take no rows of this shape.
    """
    shape = declared.shape or inputs.shape
    if math.prod(shape) != math.prod(inputs.shape):
        raise BadData(
            f"{inputs.title} has rows of shape {inputs.shape}, {math.prod(inputs.shape):,} values, and shape = "
            f"{list(shape)} in [input] has {math.prod(shape):,}; mend one of them"
        )
    channels = declared.channels != "none"
    if len(shape) != 2 + channels:
        raise BadData(f"{inputs.title} has rows of shape {shape}; {_advice_on_axes(shape, channels)}")
    return Arrangement(shape, declared.channels == "last")


def _advice_on_axes(shape: tuple[int, ...], channels: bool) -> str:
    side = math.isqrt(shape[0]) if shape else 0
    if len(shape) == 1 and side > 1:
        example = [side, side] if side**2 == shape[0] else ["height", "width"]
        return f"networks take 2D images: give shape = {example} in [input], if that is what they are"
    if channels:
        return "channels in [input] are an axis besides those of 2D images; leave it out, or give three axes"
    if len(shape) == 3:
        return 'networks take 2D images: if an axis is of channels, give channels = "first" or "last" in [input]'
    return f"networks take 2D images and no inputs with {len(shape)} axes"


def _common_shape(arrays: Sequence[Stored], shape: Callable[[Stored], tuple[int, ...]], what: str) -> tuple[int, ...]:
    first, *others = arrays
    for other in others:
        if shape(other) != shape(first):
            raise BadData(
                f"{other.title} has {what} of shape {shape(other)} and {first.title} has {shape(first)}; "
                "they must be of one shape"
            )
    return shape(first)


def _groups(declared: Declaration, grid: tuple[int, ...]) -> tuple[tuple[str, Group], ...]:
    groups = []
    for name, said in declared.symmetry.items():
        symmetry = SYMMETRIES[name]
        if symmetry.square and grid[-2] != grid[-1]:
            raise BadData(
                f"{declaration.FILE}: {name} in [symmetry] needs square images, and inputs have shape {grid}; leave "
                'it out, or cut or resample them; or, if an axis is of channels, mend channels = "first" or "last"'
            )
        if symmetry.periodic and not declared.input.periodic:
            raise BadData(
                f"{declaration.FILE}: {name} in [symmetry] needs inputs without a boundary; give periodic = true in "
                "[input] if they repeat along both axes, and leave it out if not"
            )
        group = symmetry.group(grid[-1], said)
        groups.append((name, EachChannel(group) if symmetry.square and len(grid) == 3 else group))
    return tuple(groups)


def _inside(scaling: Scaling) -> Rule:
    low, high = np.float32(scaling.low), np.float32(scaling.high)
    return Rule(
        lambda raw, values: np.any((values < low) | (values > high), axis=tuple(range(1, values.ndim))),
        f"values outside {scaling.low:g} to {scaling.high:g}, the range of scaling in [symmetry],",
        "widen it, or leave scaling out",
    )


def _judged(name: str) -> Rule:
    metric: Metric = METRICS[name]
    return Rule(
        lambda raw, values: metric.undefined(torch.from_numpy(values)).numpy(),
        f"zeros, which metric = {name!r} would divide by,",
        'give metric = "absolute" in [label], or remove these rows',
    )


def _refuse_leaks(inputs: Mapping[str, Survey], drawn: int) -> None:
    """Rows that would be learned from and tested on, or count as two labels."""
    refuse_repeated(
        inputs["target"],
        "a label must count once, and be on one side of every split: keep one row of each, or the mean of their labels",
    )
    if "test" in inputs:
        refuse_repeated(inputs["test"], "each would count twice in the error: keep one row of each")
    tested = "target" if drawn else "test"
    why = "the test is drawn from the former" if drawn else "what is tested must not be learned from"
    for role in (role for role in inputs if role != tested):
        refuse_shared(
            inputs[tested],
            inputs[role],
            f"{why}: remove these rows from [{role}]" + ", or give a [test] that is apart from it" * bool(drawn),
        )


def _known(declared: Declaration, roles: Mapping[str, _Role], entries: int) -> tuple[float, ...]:
    label = declared.label
    if label.offset != SURROGATE_MEAN:
        return (float(label.offset) / label.scale,) * entries
    surrogate = roles["surrogate"].labels
    assert surrogate is not None
    return _rounded(surrogate.mean)


def _refuse_immoderate(declared: Declaration, roles: Mapping[str, _Role], known: np.ndarray) -> None:
    for role, labels in ((role, found.labels) for role, found in roles.items() if found.labels):
        if (np.sqrt(labels.square_about(labels.mean)) <= ALIKE * np.abs(labels.mean)).all():
            raise BadData(f"{labels.title} is the same in all rows; there is nothing to learn")
        size = math.sqrt(labels.square_about(known).mean())
        if not MODERATE[0] <= size <= MODERATE[1]:
            scale = 10.0 ** round(math.log10(size * declared.label.scale))
            unit = "" if role == "target" else "is it in the unit of [target]? if so "
            raise BadData(
                f"{labels.title} less the offset and over the scale is {size:.2g} in root mean square, and networks "
                f"learn numbers of order one; {unit}give scale = {scale:g}, or an offset near the labels, in [label]"
            )


def _standard(declared: Input, grid: tuple[int, ...], inputs: Survey) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale of each channel, as declared, or else from the inputs; no label has a part in them."""
    channels = grid[0] if len(grid) == 3 else 1
    if declared.offset or declared.scale:
        return _each("offset", declared.offset or (0.0,), channels), _each("scale", declared.scale or (1.0,), channels)
    mean = inputs.mean.reshape(channels, -1).mean(1)
    centres = mean.reshape(-1, *[1] * (inputs.mean.ndim - 1))
    deviation = np.sqrt(inputs.square_about(centres).reshape(channels, -1).mean(1))
    for channel in np.flatnonzero(deviation <= ALIKE * np.abs(mean)):
        where = f" in channel {channel}" if len(grid) == 3 else ""
        raise BadData(f"{inputs.title} is {mean[channel]:g} everywhere{where}; leave out what does not vary")
    return _rounded(mean), _rounded(deviation)


def _each(key: str, values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise BadData(
            f"{declaration.FILE}: {key} in [input] has {len(values)} numbers for {channels} channels; give one each"
        )
    return values if len(values) == channels else values * channels


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """To nine digits, so that the rounding of another processor does not name another problem."""
    return tuple(float(f"{value:.9g}") for value in np.ravel(values))
