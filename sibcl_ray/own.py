"""A problem in the user's own file: ``my_problem.py:MyProblem``.

The file is read once. What is made of it takes the file's text along wherever it is pickled to, so that neither
workers on other machines nor the processes of solvers need the file; and it is named by what the text computes,
so that a changed solver makes labels anew.
"""

import copyreg
import hashlib
import linecache
import math
import re
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import isabstract
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from sibcl_ray.problems.problem import BadProblem, Problem, Sample, SolverFailed
from sibcl_ray.problems.tabulated.tables import nearest
from sibcl_ray.solving import CallFailed, Solver
from sibcl_ray.store import describe, source_version

LARGEST = 2**20  # bytes of a file; it goes along with every job
TRIED = 5.0  # seconds in which a first label should come, to be looked at
MODERATE = (1e-2, 1e2)  # root mean square of what networks learn: they start from outputs of order one
SPELLED = re.compile(r"(?P<file>.*\.py)(:(?P<kind>.*))?", re.DOTALL)
MISTAKES = ("NameError", "TypeError", "AttributeError", "NotImplementedError")  # of the program, not of an input
RESOURCES = ("num_cpus", "num_gpus", "memory", "resources")  # as Ray's options name them


_loading = threading.RLock()


@dataclass(frozen=True)
class _Text:
    """A Python file, by its name and content."""

    file: str
    content: str

    @property
    def module_name(self) -> str:
        """Another for another content, and that of no module there is."""
        digest = hashlib.sha256(self.content.encode()).hexdigest()[:16]
        return f"own_{re.sub(r'[^A-Za-z0-9]', '_', self.file.removesuffix('.py'))}_{digest}"

    def module(self) -> ModuleType:
        """The file as a module, run once in a process; raises whatever it raises."""
        with _loading:
            if self.module_name in sys.modules:
                return sys.modules[self.module_name]
            module = sys.modules[self.module_name] = ModuleType(self.module_name)
            # For tracebacks, and for libraries that look at the source of functions.
            linecache.cache[self.file] = len(self.content), None, self.content.splitlines(keepends=True), self.file
            try:
                exec(compile(self.content, self.file, "exec"), vars(module))
            except BaseException:
                del sys.modules[self.module_name]
                raise
            version = int(source_version(self.content), 16)
            for kind in _classes(module).values():
                if issubclass(kind, Problem):
                    kind.version = version
                if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
                    copyreg.pickle(kind, self._reduce)
            return module

    def _reduce(self, thing: Any) -> tuple:
        reduced: Any = object.__reduce_ex__(thing, 2)
        _, (kind, *arguments), *state = reduced
        return _remade, (self, kind.__qualname__, *arguments), *state


def _classes(module: ModuleType) -> dict[str, type]:
    return {n: k for n, k in vars(module).items() if isinstance(k, type) and k.__module__ == module.__name__}


def _remade(text: _Text, name: str, *arguments: Any) -> Any:
    """In whichever process: an object of a class in the file, still without its state."""
    kind = attrgetter(name)(text.module())
    return kind.__new__(kind, *arguments)


def is_own(name: str) -> bool:
    """Whether a problem is named by a file."""
    return SPELLED.fullmatch(name) is not None


def load(name: str) -> Problem:
    """The problem of ``FILE.py:CLASS``, all of it tried that is cheap.

    Raises:
        BadProblem: it cannot be used.
    """
    spelled = SPELLED.fullmatch(name)
    assert spelled
    text = _read(Path(spelled["file"]))
    with _telling(
        text, text.file, "it must run by itself on any machine: install what it needs, or put it in the file"
    ):
        module = text.module()
    kind = _kind(module, text.file, spelled["kind"] or "")
    me = f"{text.file}: {kind.__name__}"
    with _telling(text, f"{me}()", "it is made without arguments, so give every field a value"):
        problem = kind()
    _declared(problem, me)
    with _telling(text, me, "mend it"):
        draws = _drawn(problem, me)
        _judged(problem, me, torch.from_numpy(draws[False].inputs))
    _solved(problem, me, draws)
    return problem


def _read(path: Path) -> _Text:
    try:
        if path.stat().st_size > LARGEST:
            raise BadProblem(f"{path} has more than {LARGEST:,} bytes; a problem is a page of Python, so keep data out")
        return _Text(path.name, path.read_text("utf-8-sig"))
    except FileNotFoundError:
        there = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        advice = nearest(path.name, there) if there else "give FILE.py:CLASS, with the path of the file"
        raise BadProblem(f"there is no file {path}; {advice}") from None
    except UnicodeDecodeError:
        raise BadProblem(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise BadProblem(f"{path} cannot be read ({error.strerror}); give a Python file") from None


def _kind(module: ModuleType, file: str, wanted: str) -> type[Problem]:
    own = _classes(module)
    problems = [name for name, kind in own.items() if issubclass(kind, Problem)]
    if not wanted:
        advice = f"give {file}:{problems[0]}" if problems else "write a subclass of sibcl_ray's Simulation in it"
        raise BadProblem(f"{file} was given without the name of a class; {advice}")
    if wanted not in own:
        raise BadProblem(f"{file} has no class {wanted!r}; {nearest(wanted, problems or own)}")
    if wanted not in problems:
        raise BadProblem(f"{file}: {wanted} is no Problem; derive it from sibcl_ray.problems.simulation.Simulation")
    kind: Any = own[wanted]
    if isabstract(kind):
        raise BadProblem(f"{file}: {wanted} lacks {', '.join(sorted(kind.__abstractmethods__))}; write what is missing")
    return kind


@contextmanager
def _telling(text: _Text, what: str, advice: str) -> Iterator[None]:
    """Whatever the user's file raises becomes one line that says where."""
    try:
        yield
    except BadProblem:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == text.file]
        if isinstance(error, SyntaxError) and error.filename == text.file:
            lines.append(error.lineno)
        where = f" in line {lines[-1]}" if lines else ""
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        raise BadProblem(f"{what} raises {type(error).__name__}{where}: {reason[:200]}; {advice}") from None


# What a problem has to be


def _require(fine: bool, what: str, came: object, expected: str) -> None:
    if not fine:
        raise BadProblem(f"{what} is {came}; give {expected}")


def _declared(problem: Problem, me: str) -> None:
    """What it says of itself."""
    name = getattr(problem, "name", None)
    named = isinstance(name, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", name)
    _require(bool(named), f"{me}.name", repr(name), 'small letters, digits and hyphens, such as "my-problem"')
    for what in ("input_shape", "label_shape"):
        shape = getattr(problem, what)
        fine = isinstance(shape, tuple) and shape and all(isinstance(n, int) and n > 0 for n in shape)
        _require(bool(fine), f"{me}.{what}", repr(shape), "a tuple of whole numbers, such as (32, 32)")
    timeout, retries, resources = problem.timeout, problem.retries, problem.resources
    fine = timeout is None or (isinstance(timeout, (int, float)) and 0 < timeout < math.inf)
    _require(fine, f"{me}.timeout", repr(timeout), "the seconds that a call of the solver may take, or None")
    spread = problem.spread
    fine = isinstance(spread, (int, float)) and 0 < spread < math.inf
    _require(fine, f"{me}.spread", repr(spread), "a positive number, of about the labels' size less the offset")
    together = problem.labels_per_task
    fine = isinstance(together, int) and together >= 1
    _require(fine, f"{me}.labels_per_task", repr(together), "a whole number, 1 or more")
    _require(isinstance(retries, int) and retries >= 0, f"{me}.retries", repr(retries), "a whole number, 0 or more")
    fine = isinstance(resources, Mapping) and all(
        name in RESOURCES and _amounts(amount, name == "resources") for name, amount in resources.items()
    )
    _require(fine, f"{me}.resources", repr(resources), f"amounts of {', '.join(RESOURCES)}, such as {{'num_cpus': 2}}")
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


def _array(what: str, array: Any, shape: tuple[int, ...]) -> None:
    """Refuse all but finite float32 of that shape."""
    came = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
    fine = isinstance(array, np.ndarray) and array.dtype == np.float32 and array.shape == shape
    _require(fine, what, came, f"an array of float32 of shape {shape}")
    _require(bool(np.isfinite(array).all()), what, "not finite", "finite numbers")


def _drawn(problem: Problem, me: str) -> dict[bool, Sample]:
    """Two target inputs and, under True, two of the surrogate."""
    draws = {}
    for surrogate, draw in ((False, problem.sample), (True, problem.sample_surrogate)):
        what = f"{me}.{draw.__name__}"
        sample, again = (draw(2, np.random.default_rng(0)) for _ in range(2))
        _require(isinstance(sample, Sample), what, f"a {type(sample).__name__}", "Sample(inputs)")
        _array(f"what {what} draws", sample.inputs, (2, *problem.input_shape))
        for name, values in sample.parameters.items():
            _require(
                np.shape(values)[:1] == (2,), f"{what}, parameter {name!r},", "not one an input", "an array of rows"
            )
        same = np.array_equal(sample.inputs, again.inputs)
        _require(same, what, "not decided by its generator", "draws from rng and from nothing else")
        draws[surrogate] = sample
    return draws


def _judged(problem: Problem, me: str, inputs: torch.Tensor) -> None:
    """What training asks of it."""
    features = problem.features(inputs)
    came = f"{features.dtype} of shape {tuple(features.shape)}"
    fine = features.dtype == torch.float32 and len(features) == 2 and features.ndim in (4, 5)
    _require(fine, f"{me}.features", came, "float32 of shape (batch, channels, …), images in two or three dimensions")
    size = float(features.square().mean().sqrt())
    _require(size <= MODERATE[1], f"{me}.features", f"{size:.2g} in root mean square", "networks numbers of order one")
    for name, group in problem.symmetries.items():
        moved = group.act(group.draw(inputs, torch.Generator().manual_seed(0)), inputs)
        fine = moved.shape == inputs.shape and moved.dtype == inputs.dtype
        _require(fine, f"{me}, what the symmetry {name!r} makes of an input,", "of another shape or type", "its own")
    _array(f"{me}.offset", problem.offset, problem.label_shape)
    ones = torch.ones(2, *problem.label_shape)
    for judge, shape in ((problem.label_loss, ()), (problem.surrogate_loss, ()), (problem.error, (2,))):
        found = tuple(judge(ones, 2 * ones).shape)
        _require(
            found == shape, f"{me}.{judge.__name__} of two samples", f"of shape {found}", f"a tensor of shape {shape}"
        )


def _solved(problem: Problem, me: str, draws: Mapping[bool, Sample]) -> None:
    """Labels of two inputs, if they come soon. A failure may be the input's and is not refused."""
    with Solver(problem, TRIED, quiet=True) as solver:
        for surrogate, sample in draws.items():
            method = "solve_surrogate" if surrogate else "solve"
            try:
                labels = solver(sample, surrogate)
            except SolverFailed as failed:
                raise BadProblem(f"{me}: {failed}; it must run in a process of its own") from None
            except CallFailed as failed:
                if str(failed).startswith(MISTAKES):
                    raise BadProblem(f"{me}.{method} raises {failed}; mend it") from None
                continue
            expected, what = (2, *problem.label_shape), f"what {me}.{method} gives for two inputs"
            fine = labels.shape == expected and labels.dtype.kind in "fiu"
            _require(
                fine,
                what,
                f"{labels.dtype} of shape {labels.shape}",
                f"floats of shape {expected}, or mend label_shape",
            )
            size = float(np.sqrt(np.mean(np.square(labels - problem.offset, dtype=np.float64)))) / problem.spread
            _require(
                not math.isfinite(size) or MODERATE[0] <= size <= MODERATE[1],
                f"{what}, less the offset and over the spread,",
                f"{size:.2g} in root mean square",
                f"labels in a unit in which they are of order one, or a spread near {size * problem.spread:.0e}",
            )
