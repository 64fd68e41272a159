"""A folder of arrays becomes a problem, once all of it is checked.

What `problem.toml` says, names, shapes and counts are checked first, then the numbers in one pass through
each array.
"""

import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from sibcl_ray.problems.tabulated import declaration
from sibcl_ray.problems.tabulated.arrangement import FLAT, arranged, as_float32, require_common_shape, require_pairs
from sibcl_ray.problems.tabulated.declaration import Declaration, Input
from sibcl_ray.problems.tabulated.files import open_part
from sibcl_ray.problems.tabulated.labels import judged, known, over_scale, precision, refuse_immoderate
from sibcl_ray.problems.tabulated.problem import Content, Source, Tabulated, divided, stamp_of
from sibcl_ray.problems.tabulated.statistics import Rule, Statistics, distinct, refuse_repeated, refuse_shared
from sibcl_ray.problems.tabulated.tables import BadData, Stored
from sibcl_ray.symmetry import Group, Scaling
from sibcl_ray.symmetry.orbits import Orbits

ALIKE = 1e-6  # deviation over mean, below which float32 sees no difference
BLURRED = 1e-2  # of the deviation from row to row, from which a rounding to float32 hides what inputs are
CONSTANT = 1e-14  # of the mean, up to which float64 differs by rounding


def _to_stderr(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def load(folder: Path, note: Callable[[str], None] = _to_stderr) -> Tabulated:
    """The problem in a folder, once all of it is checked; ``note`` is told what can be used and may yet be wrong.

    Raises:
        BadData: anything in the folder is not as it should be; says in one line what, where and what to do.
    """
    folder = Path(folder)
    declared = declaration.read(folder)
    label = declared.label
    files = {part.file: stamp_of(folder, part.file) for part in declared.parts.values()}
    arrays = _opened(folder, declared, note)
    grid = arrays["target"][0].shape
    groups = tuple(declared.groups(grid).items())
    inputs, labels = _statistics(declared, arrays, groups)
    outputs = labels["target"].stored.shape
    offset = known(label, labels, math.prod(outputs))
    refuse_immoderate(label, labels, np.array(offset))
    centre, width = _standard(
        declared.input, inputs.get("unlabelled", inputs["target"]), declared.standardised_parts(grid)
    )
    return Tabulated(
        name=declared.name,
        contents=tuple(
            Content(role, found.stored.rows, found.digest, labels[role].digest if role in labels else None)
            for role, found in inputs.items()
        ),
        drawn=declared.target.test,
        grid=grid,
        outputs=outputs or (1,),
        groups=groups,
        centre=centre,
        width=width,
        metric=label.metric,
        loss=label.loss,
        cheap_loss=label.surrogate_loss or label.loss,
        scale=label.scale,
        known=offset,
        precision=precision(labels),
        periodic=declared.input.periodic_axes(grid),
        input_units=declared.input.units,
        label_units=label.units + divided(label.scale),
        source=Source(folder.absolute(), declared, files),
    )


Arrays = Mapping[str, tuple[Stored, Stored | None]]  # images and labels by role


def _opened(folder: Path, declared: Declaration, note: Callable[[str], None]) -> Arrays:
    """BadData where names, shapes or counts are wrong."""
    stored = {role: open_part(folder, part) for role, part in declared.parts.items()}
    for inputs, labels in stored.values():
        require_pairs(inputs, labels, note)
    images = {role: arranged(declared.input, inputs) for role, (inputs, _) in stored.items()}
    require_common_shape({labels: labels.shape for _, labels in stored.values() if labels}, "labels")
    require_common_shape({inputs: images[role].shape for role, (inputs, _) in stored.items()}, "inputs")
    target, drawn = images["target"], declared.target.test
    if target.rows <= drawn:
        raise BadData(
            f"{target.title} has {target.rows:,} rows, of which test = {drawn:,} in [target] leaves none to learn "
            "from; ask for fewer"
        )
    if not declared.input.shape and len(target.shape) == 1 and target.shape[0] >= FLAT:
        note(
            f"{target.title.rstrip(',')} has rows of {target.shape[0]:,} numbers, which are read as lines; in [input] "
            f"give shape = [{target.shape[0]}] if that is right, and [height, width] if they are images"
        )
    return {role: (images[role], labels) for role, (_, labels) in stored.items()}


def _statistics(
    declared: Declaration, arrays: Arrays, groups: tuple[tuple[str, Group], ...]
) -> tuple[dict[str, Statistics], dict[str, Statistics]]:
    """What images and labels hold, by role; BadData where they cannot be used."""
    inputs: dict[str, Statistics] = {}
    labels: dict[str, Statistics] = {}
    ranges = [_inside(group) for _, group in groups if isinstance(group, Scaling)]
    orbits = Orbits(groups, arrays["target"][0].shape)
    scaled = partial(over_scale, scale=declared.label.scale)
    for role, (images, given) in arrays.items():
        inputs[role] = Statistics(images, as_float32, [distinct(np.float32), *ranges], orbits)
        if given:
            judge = [judged(declared.label.metric)] if role != "surrogate" else []
            labels[role] = Statistics(given, scaled, [distinct(np.float64), *judge])
    for found in inputs.values():
        _refuse_blurred(found, declared.standardised_parts(found.stored.shape))
    _refuse_leaks(inputs, declared.target.test)
    return inputs, labels


def _inside(scaling: Scaling) -> Rule:
    low, high = np.float32(scaling.low), np.float32(scaling.high)
    return Rule(
        lambda raw, values: np.any((values < low) | (values > high), axis=tuple(range(1, values.ndim))),
        f"values outside {scaling.low:g} to {scaling.high:g}, the range of scaling in [symmetry],",
        "widen it, or leave scaling out",
    )


def _refuse_leaks(inputs: Mapping[str, Statistics], drawn: int) -> None:
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


def _refuse_blurred(inputs: Statistics, parts: int) -> None:
    """BadData where float32, which networks see, hides how rows differ."""

    def each(values: np.ndarray) -> np.ndarray:  # nothing is summed of numbers that float32 holds
        return np.broadcast_to(values, inputs.stored.shape).reshape(parts, -1)

    moved = np.sqrt(each(inputs.rounding.square).mean(1) / inputs.stored.rows)
    apart, mean = each(inputs.rounding.apart).max(1), each(inputs.mean).mean(1)
    deviation = np.sqrt(np.square(each(inputs.deviation)).mean(1))
    for part in np.flatnonzero((moved > BLURRED * deviation) & (apart > CONSTANT * np.abs(mean))):
        where = f" of {_named(inputs, int(part))}" if parts > 1 else ""
        raise BadData(
            f"{inputs.stored.title} has rows{where} that differ by at most {apart[part]:.2g} around "
            f"{mean[part]:.6g}, which float32 cannot hold; store them less an offset near their mean"
        )


def _named(inputs: Statistics, part: int) -> str:
    return f"{'channel' if len(inputs.stored.shape) > 1 else 'number'} {part}"


def _standard(declared: Input, inputs: Statistics, parts: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offset and scale of each part, as declared, or else from the inputs; no label has a share in them."""
    if declared.offset or declared.scale:
        return _each("offset", declared.offset or (0.0,), parts), _each("scale", declared.scale or (1.0,), parts)
    mean = inputs.mean.reshape(parts, -1).mean(1)
    about = inputs.square_about(mean.reshape(-1, *[1] * (inputs.mean.ndim - 1)))
    deviation = np.sqrt(about.reshape(parts, -1).mean(1))
    for part in np.flatnonzero(deviation <= ALIKE * np.abs(mean)):
        where = f" in {_named(inputs, int(part))}" if parts > 1 else ""
        raise BadData(f"{inputs.stored.title} is {mean[part]:g} everywhere{where}; leave out what does not vary")
    return _rounded(mean), _rounded(deviation)


def _each(key: str, values: tuple[float, ...], parts: int) -> tuple[float, ...]:
    if len(values) not in (1, parts):
        raise BadData(
            f"{declaration.FILE}: {key} in [input] has {len(values)} numbers for {parts} channels; give one each"
        )
    return values * (parts // len(values))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """To nine digits, so that the rounding of another processor does not name another problem."""
    return tuple(float(f"{value:.9g}") for value in np.ravel(values))
