"""What a problem has to be, in as far as one look at it, at its inputs and at its labels can tell; else BadProblem."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sibcl_ray.problems.problem import MODERATE, BadProblem, Problem, Sample, learnable, periodic_axes
from sibcl_ray.storage.fingerprint import describe

STEPS = 50  # that float32 has to have within the deviation of labels
ENOUGH = 10  # labels of which some things can be told
RESOURCES = ("num_cpus", "num_gpus", "memory", "resources")  # as Ray's options name them


def require(fine: bool, what: str, came: object, expected: str) -> None:
    if not fine:
        raise BadProblem(f"{what} is {came}; give {expected}")


def declared(problem: Problem, me: str) -> None:
    """What it says of itself."""
    name = getattr(problem, "name", None)
    named = isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", name)
    require(bool(named), f"{me}.name", repr(name), 'small letters, digits and hyphens, such as "my-problem"')
    for what in ("input_shape", "label_shape"):
        shape = getattr(problem, what)
        fine = isinstance(shape, tuple) and shape and all(isinstance(n, int) and n > 0 for n in shape)
        require(bool(fine), f"{me}.{what}", repr(shape), "a tuple of whole numbers, such as (32, 32)")
    timeout, retries, resources = problem.timeout, problem.retries, problem.resources
    fine = timeout is None or (isinstance(timeout, (int, float)) and 0 < timeout < math.inf)
    require(fine, f"{me}.timeout", repr(timeout), "the seconds that a call of the solver may take, or None")
    scale, called = problem.label_scale, "spread" if hasattr(problem, "spread") else "label_scale"
    fine = isinstance(scale, (int, float)) and 0 < scale < math.inf
    require(fine, f"{me}.{called}", repr(scale), "a positive number, of about the labels' size less the offset")
    for what in ("label_seconds", "surrogate_seconds"):
        cost = getattr(problem, what)
        fine = cost is None or (isinstance(cost, (int, float)) and 0 <= cost < math.inf)
        require(fine, f"{me}.{what}", repr(cost), "the seconds of one core that a label takes, or None")
    units = problem.error_units
    fine = isinstance(units, str)
    require(fine, f"{me}.error_units", repr(units), 'text such as "eV", or "fraction" for what is shown in %')
    together = problem.labels_per_task
    fine = isinstance(together, int) and together >= 1
    require(fine, f"{me}.labels_per_task", repr(together), "a whole number, 1 or more")
    require(isinstance(retries, int) and retries >= 0, f"{me}.retries", repr(retries), "a whole number, 0 or more")
    fine = isinstance(resources, Mapping) and all(
        name in RESOURCES and _amounts(amount, name == "resources") for name, amount in resources.items()
    )
    require(fine, f"{me}.resources", repr(resources), f"amounts of {', '.join(RESOURCES)}, such as {{'num_cpus': 2}}")
    try:
        hash(problem)
        describe(problem)
    except TypeError as error:
        raise BadProblem(
            f"{me} cannot be named by its fields ({error}); make it a @dataclass(frozen=True) of plain values"
        ) from None


def _amounts(amount: Any, several: bool) -> bool:
    if several:
        return isinstance(amount, Mapping) and all(_amounts(each, False) for each in amount.values())
    return isinstance(amount, (int, float)) and 0 <= amount < math.inf


def _array(what: str, array: Any, shape: tuple[int, ...], *types: type) -> None:
    """Refuse all but finite numbers of these types and of that shape."""
    came = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
    plain = isinstance(array, np.ndarray) and not isinstance(array, np.ma.MaskedArray)
    fine = plain and array.dtype in types and array.shape == shape
    require(fine, what, came, f"an array of {' or '.join(t.__name__ for t in types)} of shape {shape}")
    require(bool(np.isfinite(array).all()), what, "not finite", "finite numbers")


def sample(problem: Problem, drawn: Any, count: int, what: str) -> Sample:
    """What was drawn, if it is inputs."""
    require(isinstance(drawn, Sample), what, f"a {type(drawn).__name__}", "Sample(inputs)")
    _array(f"what {what} draws", drawn.inputs, (count, *problem.input_shape), np.float32)
    given = drawn.parameters
    require(isinstance(given, Mapping), f"{what}, parameters", f"a {type(given).__name__}", "a dictionary of arrays")
    parameters = {}
    for name, values in given.items():
        fine = isinstance(name, str) and name not in ("input", "label")
        require(fine, f"{what}, the name of a parameter", repr(name), "a text, but not 'input' or 'label'")
        array, masked = np.asanyarray(values), np.ma.isMaskedArray(values)
        came = f"{'masked ' * masked}{array.dtype} of shape {array.shape}"
        fine = array.dtype.kind in "biufc" and array.shape[:1] == (count,) and array.size > 0 and not masked
        require(fine, f"{what}, parameter {name!r},", came, f"numbers, {count} rows of them")
        stored = {"?": np.uint8, "g": np.float64, "G": np.complex128}  # of types that Parquet has not
        parameters[name] = array.astype(stored.get(array.dtype.char, array.dtype))
    return Sample(drawn.inputs, parameters)


def _periodic(problem: Problem, me: str, grid: tuple[int, ...]) -> None:
    """Refuse shifts along axes that are not periodic."""
    said, dimensions = problem.periodic, len(grid)
    listed = isinstance(said, tuple) and len(said) == dimensions and all(isinstance(axis, bool) for axis in said)
    fine = said is None or isinstance(said, bool) or listed
    require(
        fine, f"{me}.periodic", repr(said), f"True, False or a tuple of {dimensions}, one for each axis of the grid"
    )
    if tuple(problem.input_shape[-dimensions:]) != tuple(grid):  # features are on another grid than inputs
        return
    periodic = periodic_axes(problem, dimensions)
    moving = {name: equivariance.group for name, equivariance in problem.equivariances.items()}
    for name, group in {**problem.symmetries, **moving}.items():
        for axis in group.shifted_axes:
            if -axis <= dimensions and not periodic[axis]:
                raise BadProblem(
                    f"{me}, {name!r} shifts inputs along axis {axis} (-1 is the last), and they do not "
                    "repeat along it; leave it out, or give periodic = True, or a tuple with one for each axis"
                )


def training(problem: Problem, me: str, inputs: torch.Tensor) -> None:
    """What training asks of it."""
    count = len(inputs)
    features = problem.features(inputs)
    came = f"{features.dtype} of shape {tuple(features.shape)}"
    fine = features.dtype == torch.float32 and len(features) == count and features.ndim in (3, 4, 5)
    require(fine, f"{me}.features", came, "float32 of shape (batch, channels, *grid), a grid of one to three axes")
    _periodic(problem, me, features.shape[2:])
    size = float(features.square().mean().sqrt())
    require(size <= MODERATE[1], f"{me}.features", f"{size:.2g} in root mean square", "networks numbers of order one")
    both = sorted(set(problem.symmetries) & set(problem.equivariances))
    require(not both, f"{me}, a name of an equivariance,", f"{both[:1]}, as of a symmetry", "another name")
    for name, group in problem.symmetries.items():
        moved = group.act(group.draw(inputs, torch.Generator().manual_seed(0)), inputs)
        fine = moved.shape == inputs.shape and moved.dtype == inputs.dtype
        require(fine, f"{me}, what the symmetry {name!r} makes of an input,", "of another shape or type", "its own")
    _array(f"{me}.offset", problem.offset, problem.label_shape, np.float32, np.float64)
    ones = torch.ones(2, *problem.label_shape)
    for judge, shape in ((problem.label_loss, ()), (problem.surrogate_loss, ()), (problem.error, (2,))):
        found = tuple(judge(ones, 2 * ones).shape)
        require(
            found == shape, f"{me}.{judge.__name__} of two samples", f"of shape {found}", f"a tensor of shape {shape}"
        )


KINDS = {
    "c": "complex numbers: give real and imaginary parts side by side, or what is measured, and mend label_shape",
    "O": "Python objects: give numbers, as np.asarray(labels, dtype=float)",
    "U": "text: give numbers",
    "S": "text: give numbers",
    "b": "truth values: give numbers, such as 0.0 and 1.0",
    "V": "records: give their numbers side by side, and mend label_shape",
    "M": "dates: give numbers",
    "m": "time spans: give numbers",
}


def labels(problem: Problem, given: np.ndarray, count: int, what: str) -> np.ndarray:
    """Labels as they are stored, float32 or float64, (count, *label_shape); NaN where there is none."""
    if isinstance(given, np.ma.MaskedArray) and given.mask.any():
        raise BadProblem(f"what {what} gives is masked: fill in the entries, or raise an exception where there is none")
    if given.dtype.kind in KINDS:
        raise BadProblem(f"what {what} gives is {given.dtype}, {KINDS[given.dtype.kind]}")
    expected = (count, *problem.label_shape)
    if given.shape != expected:
        raise BadProblem(f"what {what} gives is of shape {given.shape}; give {expected}, or mend label_shape")
    stored = np.array(given, np.float32 if given.dtype in (np.float16, np.float32) else np.float64)
    stored[~np.isfinite(stored).reshape(count, -1).all(1)] = np.nan
    return stored


def several(problem: Problem, given: np.ndarray, what: str, role: str) -> None:
    """What only several labels, (count, *label_shape), show: whether networks can learn them and errors judge them."""
    count = len(given)
    if count < 2:
        return
    gave, wide = f"the {count} {role} labels that {what} gave", given.astype(np.float64)
    mean, deviation = wide.mean(0), math.sqrt(wide.var(0).mean())
    if (wide == wide[0]).all():
        raise BadProblem(f"{gave} are all equal; there is nothing to learn from them")
    if given.dtype == np.float32 and deviation < STEPS * float(np.spacing(np.abs(given).max())):
        raise BadProblem(
            f"{gave} are float32 and deviate by {deviation:.2g} from {mean.flat[0]:.6g}, where float32 has steps of "
            "about as much; give float64, or labels less a constant"
        )
    learned = (wide - problem.offset) / problem.label_scale
    size, varies = math.sqrt(np.square(learned).mean()), deviation / problem.label_scale
    if not learnable(size, varies):
        far = size > 3 * varies and deviation > 0
        offset = f"an offset near {mean.mean():.6g}, their mean, and " if far else ""
        scale = deviation if far else size * problem.label_scale
        raise BadProblem(
            f"{gave}, less the offset and over label_scale, are {size:.2g} in root mean square and deviate by "
            f"{varies:.2g}; networks learn numbers of order one: give {offset}a label_scale near {scale:.1g}"
        )
    if role in ("target", "test"):
        tensors = torch.from_numpy(given)
        if bad := int((~torch.isfinite(problem.error(tensors, tensors))).sum()):
            zeros = int((wide.reshape(count, -1) == 0).all(1).sum())
            why = f" ({zeros} are zero, and the error divides by them)" if zeros else ""
            raise BadProblem(
                f"{type(problem).__name__}.error is not finite for {bad} of {gave}{why}; give it an error of its own "
                "that is defined for them, such as the absolute difference"
            )
