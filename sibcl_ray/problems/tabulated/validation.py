"""Validation of a folder of arrays, before anything is computed.

What `problem.toml` says, names, shapes and counts are checked first, then the numbers in one pass through
each array.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sibcl_ray.problems.tabulated import declaration
from sibcl_ray.problems.tabulated.arrangement import Arrangement, arrangement, common_shape, doubt, require_pairs
from sibcl_ray.problems.tabulated.declaration import SYMMETRIES, Declaration, EachChannel, Input, Labelled, Part
from sibcl_ray.problems.tabulated.files import open_array
from sibcl_ray.problems.tabulated.labels import judged, known, over_scale, precision, refuse_immoderate
from sibcl_ray.problems.tabulated.per_sample import is_numbered, open_numbered
from sibcl_ray.problems.tabulated.statistics import Rule, Survey, distinct, refuse_repeated, refuse_shared, survey
from sibcl_ray.problems.tabulated.tables import BadData, Stored, find, readable
from sibcl_ray.symmetry import Group, Scaling
from sibcl_ray.symmetry.orbits import Orbits

ALIKE = 1e-6  # deviation over mean, below which float32 sees no difference
BLURRED = 1e-2  # of the deviation from row to row, from which a rounding to float32 hides what inputs are
CONSTANT = 1e-14  # of the mean, up to which float64 differs by rounding


@dataclass(frozen=True)
class Source:
    """Where the arrays lie, and the size and time of change of their files when they were checked."""

    folder: Path
    declared: Declaration
    files: Mapping[str, tuple[int, int]]

    def take(self, role: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Inputs (count, *grid), float32, and labels (count, numbers) over their scale, float64, of these rows.

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
    labels: str | None  # of all labels over their scale, as float64


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
    precision: str  # the type that holds labels


@dataclass(frozen=True)
class _Role:
    """The arrays of a role, and what a pass through them found."""

    inputs: Survey
    labels: Survey | None


def take_in(folder: Path, note: Callable[[str], None]) -> Intake:
    """Check a folder, in one pass through all of its arrays; ``note`` is told what can be used and may yet be wrong.

    Raises:
        BadData: anything in it is not as it should be; says what, where and what to do.
    """
    declared = declaration.read(folder)
    files = {part.file: _stamp(folder, part.file) for part in declared.parts.values()}
    opened = {role: _open(folder, part) for role, part in declared.parts.items()}
    for inputs, labels in opened.values():
        require_pairs(inputs, labels)
        if doubtful := doubt(inputs, labels):
            note(doubtful)
    arrangements = {role: arrangement(declared.input, inputs) for role, (inputs, _) in opened.items()}
    outputs = common_shape([labels for _, labels in opened.values() if labels], lambda labels: labels.shape, "labels")
    grids = {inputs: arrangements[role].grid for role, (inputs, _) in opened.items()}
    grid = common_shape(list(grids), grids.__getitem__, "inputs")
    if (rows := opened["target"][0].rows) <= declared.drawn:
        raise BadData(
            f"{opened['target'][0].title} has {rows:,} rows, of which test = {declared.drawn:,} in [target] "
            "leaves none to learn from; ask for fewer"
        )
    groups = _groups(declared, grid)
    rules = [distinct(np.float32), *(_inside(group) for _, group in groups if isinstance(group, Scaling))]
    orbits = Orbits(groups, grid)
    scaled, exact = partial(over_scale, scale=declared.label.scale), distinct(np.float64)
    judge = [exact, judged(declared.label.metric)]
    roles = {
        role: _Role(
            survey(inputs, arrangements[role], rules, hash_rows=True, orbits=orbits),
            survey(labels, scaled, judge if role != "surrogate" else [exact], hash_rows=False) if labels else None,
        )
        for role, (inputs, labels) in opened.items()
    }
    for role, found in roles.items():
        _refuse_blurred(found.inputs, arrangements[role])
    _refuse_leaks({role: found.inputs for role, found in roles.items()}, declared.drawn)
    surveyed = {role: found.labels for role, found in roles.items() if found.labels}
    offset = known(declared.label, surveyed, math.prod(outputs))
    refuse_immoderate(declared.label, surveyed, np.array(offset))
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
        known=offset,
        precision=precision(surveyed),
    )


def _stamp(folder: Path, file: str) -> tuple[int, int]:
    path = find(folder, file)
    with readable(repr(file)):
        about = path.stat()
    return about.st_size, about.st_mtime_ns


def _open(folder: Path, part: Part) -> tuple[Stored, Stored | None]:
    names = (part.inputs, part.labels) if isinstance(part, Labelled) else (part.inputs,)
    numbered = [is_numbered(folder, part.file, name) for name in names]
    if any(numbered) != all(numbered):
        raise BadData(
            f"{declaration.FILE}: of {names[0]!r} and {names[-1]!r} one has a star, for the number that says "
            "which label is whose; store both under numbers, or both as one array"
        )
    if all(numbered):
        stored = open_numbered(folder, part.file, names)
    else:
        stored = [open_array(folder, part.file, name) for name in names]
    return stored[0], stored[1] if len(stored) > 1 else None


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


def _refuse_blurred(inputs: Survey, arrange: Arrangement) -> None:
    """BadData where float32, which networks see, hides how rows differ."""
    shape = inputs.mean.shape
    channels = shape[0] if len(shape) == 3 else 1

    def each(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, shape).reshape(channels, -1)

    def placed(values: np.ndarray) -> np.ndarray:  # they are in the order of stored rows
        return each(arrange.place(values[None])[0] if values.ndim else values)

    moved = np.sqrt(placed(inputs.rounding.square).mean(1) / inputs.count)
    apart, mean = placed(inputs.rounding.apart).max(1), each(inputs.mean).mean(1)
    deviation = np.sqrt(np.square(each(inputs.deviation)).mean(1))
    for channel in np.flatnonzero((moved > BLURRED * deviation) & (apart > CONSTANT * np.abs(mean))):
        where = f" of channel {channel}" if len(shape) == 3 else ""
        raise BadData(
            f"{inputs.title} has rows{where} that differ by at most {apart[channel]:.2g} around {mean[channel]:.6g}, "
            "which float32 cannot hold; store them less an offset near their mean"
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
