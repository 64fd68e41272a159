"""A problem in the user's own file, such as ``my_problem.py:MyProblem``: loaded, and checked as far as that is fast."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from sibcl_ray.data.sandbox import CallFailed, Sandbox
from sibcl_ray.isolation import is_guest
from sibcl_ray.messages import choose, nearest
from sibcl_ray.problems import PROBLEMS, check, tabulated
from sibcl_ray.problems.problem import RENAMED, BadProblem, Problem, SolverFailed
from sibcl_ray.storage.folders import expanded
from sibcl_ray.user_module.module import TooLarge, UserModule, classes, line_of, read

TABULATED = "tabulated"
TRIED = 5.0  # seconds after which inputs that are drawn for a check are not waited for
MISSING = "install what it needs, or put it beside the file"
_importing: list[str] = []  # files that are being imported now
SPELLED = re.compile(r"(?P<file>.*\.py)(:(?P<kind>.*))?", re.DOTALL)


def find(name: str, data: str | None = None) -> Problem:
    """The problem of a name, as for ``--problem`` and ``--data``.

    Args:
        name: of `PROBLEMS`; ``FILE.py:CLASS``; or ``"tabulated"``.
        data: for the last, the folder of arrays.

    Raises:
        ValueError: there is none, or it cannot be used.
    """
    if data is not None and name != TABULATED:
        raise ValueError(f"--data is for --problem {TABULATED}, and the problem is {name}; leave one of them out")
    if SPELLED.fullmatch(name):
        problem, where = load(expanded(name)), name
    elif name == TABULATED:
        if data is None:
            raise ValueError(f"--problem {TABULATED} needs --data FOLDER, with arrays and the problem.toml naming them")
        problem, where = tabulated.load(Path(expanded(data))), "problem.toml"
    else:
        return choose("problem", name, {**PROBLEMS, TABULATED: None})
    if problem.name in (*PROBLEMS, TABULATED):
        raise BadProblem(f"the name {problem.name!r} in {where} is that of another problem; give a name of its own")
    return problem


def load(name: str) -> Problem:
    """The problem of ``FILE.py:CLASS``; a few inputs are drawn, and no label is made.

    Raises:
        BadProblem: it cannot be used.
    """
    spelled = SPELLED.fullmatch(name)
    assert spelled
    return _instance(_read_module(Path(spelled["file"])), spelled["kind"] or "", {})


def from_file(problem: Problem) -> Problem:
    """The same problem, of a class that is loaded from its file, so that its labels are named by the code in there.

    One of the library, or of a class with a ``version``, is returned as it is.

    Raises:
        BadProblem: it cannot be used, or is in no file but, for example, in a notebook.
    """
    kind: Any = type(problem)
    if kind.source is not None or not is_guest(kind) or "version" in vars(kind):
        return problem
    try:
        file = Path(inspect.getfile(kind))
        there = {n.name for n in ast.walk(ast.parse(file.read_bytes())) if isinstance(n, ast.ClassDef)}
    except (TypeError, OSError, ValueError, SyntaxError):
        there = set()
    if kind.__qualname__ not in there:
        raise BadProblem(
            f"{kind.__name__} is not a class at the top of a file, so labels of an edited one could not be told apart "
            f"from its own; write it to a file, and give 'FILE.py:{kind.__name__}'"
        )
    if _importing:
        raise BadProblem(
            f'{file.name} runs a study when it is imported; put what runs it below if __name__ == "__main__":'
        )
    values = {field.name: getattr(problem, field.name) for field in fields(kind) if field.init}
    return _instance(_read_module(file), kind.__name__, values)


def _instance(source: UserModule, name: str, values: dict[str, Any]) -> Problem:
    """A problem of a class in a module, checked."""
    _importing.append(source.file)
    try:
        with _explaining_errors(source, source.file, MISSING):
            module = source.module()
    finally:
        _importing.pop()
    kind = _find_class(module, source.file, name)
    me = f"{source.file}: {kind.__name__}"
    with _explaining_errors(source, f"{me}()", "it is made without arguments, so give every field a value"):
        problem = kind(**values)
    check.declared(problem, me)
    for before, now in RENAMED.items():
        if any(before in vars(k) for k in kind.__mro__ if is_guest(k)):
            print(f"note: {me}.{before} is now called {now}; the old name still works", file=sys.stderr, flush=True)
    with Sandbox(problem) as sandbox:
        inputs = [_draw_twice(sandbox, me, method) for method in ("sample", "sample_surrogate")]
    if inputs[0] is not None:
        with _explaining_errors(source, me, "mend it"):
            check.training(problem, me, torch.from_numpy(inputs[0]))
    return problem


def _read_module(path: Path) -> UserModule:
    try:
        return read(path)
    except TooLarge as error:
        raise BadProblem(str(error)) from None
    except FileNotFoundError:
        there = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        advice = nearest(path.name, there) if there else "give FILE.py:CLASS, with the path of the file"
        raise BadProblem(f"there is no file {path}; {advice}") from None
    except (UnicodeDecodeError, SyntaxError):
        raise BadProblem(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise BadProblem(f"{path} cannot be read ({error.strerror}); give a Python file") from None


def _find_class(module: ModuleType, file: str, wanted: str) -> type[Problem]:
    own = classes(module)
    problems = [name for name, kind in own.items() if issubclass(kind, Problem)]
    if not wanted:
        advice = f"give {file}:{problems[0]}" if problems else "write a subclass of sibcl_ray's Simulation in it"
        raise BadProblem(f"{file} was given without the name of a class; {advice}")
    if wanted not in own:
        raise BadProblem(f"{file} has no class {wanted!r}; {nearest(wanted, problems or own)}")
    if wanted not in problems:
        raise BadProblem(f"{file}: {wanted} is no Problem; derive it from sibcl_ray.problems.simulation.Simulation")
    kind: Any = own[wanted]
    if inspect.isabstract(kind):
        raise BadProblem(f"{file}: {wanted} lacks {', '.join(sorted(kind.__abstractmethods__))}; write what is missing")
    return kind


@contextmanager
def _explaining_errors(module: UserModule, what: str, advice: str) -> Iterator[None]:
    """Turns errors of the user's file into a message of one line that says where."""
    try:
        yield
    except BadProblem:
        raise
    except (Exception, SystemExit) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        if "non-frozen dataclass from a frozen one" in reason:
            advice = "write @dataclass(frozen=True) above the class"
        elif not isinstance(error, ImportError) and advice == MISSING:
            advice = "mend it"
        raise BadProblem(
            f"{what} raises {type(error).__name__}{line_of(error, module)}: {reason[:200]}; {advice}"
        ) from None


def _draw_twice(sandbox: Sandbox, me: str, method: str) -> np.ndarray | None:
    """Two inputs of a family; None if that takes long: they are checked when they are needed."""
    what = f"{me}.{method}"
    draws: list[np.ndarray] = []
    try:
        for _ in range(2):
            drawn, _ = sandbox(method, 2, np.random.default_rng(0), seconds=TRIED)
            draws.append(check.sample(sandbox.problem, drawn, 2, what).inputs)
    except SolverFailed as failed:
        raise BadProblem(f"{me}: {failed}") from None
    except CallFailed as failed:
        if failed.too_long:
            return None
        raise BadProblem(f"{what} raises {failed}; mend it") from None
    same = np.array_equal(draws[0], draws[1])
    check.require(same, what, "not decided by its generator", "draws from rng and from nothing else")
    return draws[0]
