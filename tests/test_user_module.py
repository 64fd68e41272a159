"""A user's file is a real module, wherever it is needed, and what it does to its process reaches nobody else."""

import locale
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from own_files import before, written
from processes import ROOT

from sibcl_ray.data import sandbox
from sibcl_ray.data.sandbox import Sandbox
from sibcl_ray.problems.problem import BadProblem, Problem, Sample
from sibcl_ray.user_module import loading
from sibcl_ray.user_module.module import read

INPUTS = np.random.default_rng(0).uniform(0.1, 1, (3, 8, 8)).astype(np.float32)
MEANS = INPUTS.mean((1, 2))[:, None]
IMPORTED = "import os, time"  # a line of the file


def solved(problem: Problem, inputs: np.ndarray = INPUTS) -> np.ndarray:
    with Sandbox(problem) as apart:
        return apart("solve", inputs)


def solver(*body: str, top: str = "") -> list[tuple[str, str]]:
    """Changes of the file: how it solves, and what stands above its class."""
    return [before("\n        ".join(body)), (IMPORTED, f"{IMPORTED}\n{top}")]


ONE = "def one(x):\n    return [float(x.mean())]"
POOLS = {
    "futures": (
        "from concurrent.futures import ProcessPoolExecutor as P",
        "with P(2) as p: return np.array([*p.map(one, inputs)])",
    ),
    "spawn": (
        "import multiprocessing as mp",
        "with mp.get_context('spawn').Pool(1) as p: return np.array(p.map(one, list(inputs)))",
    ),
    "forkserver": (
        "import multiprocessing as mp",
        "with mp.get_context('forkserver').Pool(1) as p: return np.array(p.map(one, list(inputs)))",
    ),
    "a program": (
        "import subprocess, sys, pickle",
        "return np.array(pickle.loads(subprocess.run([sys.executable, '-c', 'import sys, pickle; "
        "sys.path[:] = pickle.load(sys.stdin.buffer); f, x = pickle.load(sys.stdin.buffer); "
        "sys.stdout.buffer.write(pickle.dumps([f(i) for i in x]))'], stdout=-1, check=True, "
        "input=pickle.dumps(sys.path) + pickle.dumps((one, inputs))).stdout))",
    ),
}


LONG = ("futures", "spawn")  # nearly shown by the others


@pytest.mark.parametrize(
    ("top", "body"),
    [pytest.param(*pool, id=name, marks=[pytest.mark.thorough] * (name in LONG)) for name, pool in POOLS.items()],
)
def test_processes_that_a_solver_starts_can_import_it(top, body, tmp_path):
    problem = loading.load(written(tmp_path, *solver(body, top=f"{top}\n{ONE}")))
    np.testing.assert_allclose(solved(problem), MEANS, rtol=1e-6)


def with_file(folder: Path, name: str, text: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


FACTOR = "def factor():\n    return 3.0\n"
BESIDE = {
    "a module beside it": ("import helper", "return helper.factor() * MEAN", {"helper.py": FACTOR}),
    "of a name that is taken here": ("import toy", "return toy.factor() * MEAN", {"toy.py": FACTOR}),
    "imported late": ("", "import helper; return helper.factor() * MEAN", {"helper.py": FACTOR}),
    "of a package": (
        "from parts.inner import factor as f",
        "return f() * MEAN",
        {"parts/__init__.py": "", "parts/inner.py": "from .deep import factor", "parts/deep.py": FACTOR},
    ),
    "of a folder without __init__": ("import parts.inner as i", "return i.factor() * MEAN", {"parts/inner.py": FACTOR}),
    "by texts that begin with dots": (
        "from importlib import import_module\nONE, TWO = '.one', '.two'",
        "return import_module('parts' + ONE).factor() * MEAN",
        {"parts/one.py": FACTOR},
    ),
    "relative": ("from .helper import factor as f", "return f() * MEAN", {"helper.py": FACTOR}),
    "in a package": (
        "from . import helper as h",
        "return h.factor() * MEAN",
        {"helper.py": "from .other import factor", "other.py": FACTOR, "__init__.py": ""},
    ),
    "data": (
        "from pathlib import Path\nimport numpy as np\nTABLE = np.loadtxt(Path(__file__).with_name('table.txt'))",
        "return TABLE * MEAN",
        {"table.txt": "3.0"},
    ),
    "data read late": ("", "return np.loadtxt(os.path.dirname(__file__) + '/table.txt') * MEAN", {"table.txt": "3.0"}),
    "data in a folder": (
        "from pathlib import Path",
        "return np.loadtxt(Path(__file__).parent / 'tables' / 'a.txt') * MEAN",
        {"tables/a.txt": "3.0"},
    ),
    "a dataclass with postponed types": (
        "from dataclasses import dataclass, field\n@dataclass(frozen=True)\nclass Grid:\n"
        "    factor: 'float' = 3.0\n    names: 'dict' = field(default_factory=dict)",
        "import copy; return copy.deepcopy(pickle.loads(pickle.dumps(Grid()))).factor * MEAN",
        {},
    ),
}


@pytest.mark.parametrize(("top", "body", "files"), BESIDE.values(), ids=BESIDE)
def test_what_lies_beside_it_is_found(top, body, files, tmp_path):
    folder = tmp_path / "mine"
    for name, text in files.items():
        with_file(folder, name, text)
    changes = solver(body.replace("MEAN", "inputs.mean((1, 2))[:, None]"), top=f"import pickle\n{top}")
    problem = loading.load(written(folder, *changes))
    np.testing.assert_allclose(solved(problem), 3 * MEANS, rtol=1e-6)
    assert not list(folder.rglob("__pycache__"))


FURTHER = [pytest.param(case, marks=pytest.mark.thorough) for case in ("relative", "in a package")]


@pytest.mark.parametrize("case", ["of a package", "data", *FURTHER])
def test_what_it_needs_travels_with_it(case, tmp_path):
    """Another machine has neither the file nor what lies beside it, nor this one's temporary folder."""
    top, body, files = BESIDE[case]
    folder = tmp_path / "mine"
    for name, text in files.items():
        with_file(folder, name, text)
    changes = solver(body.replace("MEAN", "inputs.mean((1, 2))[:, None]"), top=f"import pickle\n{top}")
    sent = pickle.dumps((loading.load(written(folder, *changes)), INPUTS))
    folder.rename(tmp_path / "elsewhere")
    there = tmp_path / "there"
    there.mkdir()
    program = (
        "import pickle, sys; p, x = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(p.solve(x)))"
    )
    environment = {**os.environ, "TMPDIR": str(there), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], input=sent, stdout=subprocess.PIPE, check=True, cwd=there, env=environment
    )
    np.testing.assert_allclose(pickle.loads(done.stdout), 3 * MEANS, rtol=1e-6)


def test_what_it_imports_and_reads_names_it(tmp_path):
    def version(helper: str, table: str) -> int:
        with_file(tmp_path, "helper.py", helper)
        with_file(tmp_path, "table.txt", table)
        return loading.load(written(tmp_path, *solver(top="import helper\nTABLE = __file__, 'table.txt'"))).version

    first = version(FACTOR, "3.0")
    assert version(FACTOR + "\n# a comment", "3.0") == first
    assert len({first, version(FACTOR.replace("3.0", "4.0"), "3.0"), version(FACTOR, "4.0")}) == 3


@pytest.mark.parametrize("name", ["queue.py", "random.py", "numpy.py", "test.py", "my problem.py", "2d-gap.v3.py"])
def test_any_name_of_a_file_will_do(name, tmp_path):
    np.testing.assert_allclose(solved(loading.load(written(tmp_path, file=name))), MEANS, rtol=1e-6)


def test_old_bytecode_decides_nothing(tmp_path):
    """Of a file of the same size, changed within the same second."""
    import py_compile

    name = written(tmp_path, *solver("return 2 * inputs.mean((1, 2))[:, None]"))
    stamp = os.stat(tmp_path / "mine.py")
    py_compile.compile(tmp_path / "mine.py")
    written(tmp_path, *solver("return 5 * inputs.mean((1, 2))[:, None]"))
    os.utime(tmp_path / "mine.py", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    np.testing.assert_allclose(solved(loading.load(name)), 5 * MEANS, rtol=1e-6)


def test_another_file_of_the_same_name_is_another(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for number, folder in enumerate(folders):
        with_file(folder, "helper.py", f"factor = {number + 1}")
    problems = [
        loading.load(written(f, *solver("return helper.factor * inputs", top="import helper"))) for f in folders
    ]
    assert [float(solved(p)[0, 0, 0] / INPUTS[0, 0, 0]) for p in problems] == [1, 2]


STATE = {
    "type": ("torch.set_default_dtype(torch.float64)", torch.get_default_dtype),
    "device": ("torch.set_default_device('meta')", torch.get_default_device),
    "gradients": ("torch.set_grad_enabled(False)", torch.is_grad_enabled),
    "threads": ("torch.set_num_threads(7)", torch.get_num_threads),
    "determinism": ("torch.use_deterministic_algorithms(True)", torch.are_deterministic_algorithms_enabled),
    "errors": ("np.seterr(all='raise')", np.geterr),
    "warnings": ("import warnings; warnings.simplefilter('error')", lambda: list(warnings.filters)),
    "logging": ("import logging; logging.basicConfig(level=1, force=True)", lambda: logging.root.level),
    "handlers": ("import logging; logging.root.handlers.clear()", lambda: list(logging.root.handlers)),
    "log": ("import logging; logging.disable()", lambda: logging.root.manager.disable),
    "folder": ("os.chdir('/')", os.getcwd),
    "signal": (
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)",
        lambda: signal.getsignal(signal.SIGTERM),
    ),
    "alarm": ("import signal; signal.signal(signal.SIGALRM, print)", lambda: signal.getsignal(signal.SIGALRM)),
    "variable": ("os.environ['OMP_NUM_THREADS'] = '99'", lambda: os.environ.get("OMP_NUM_THREADS")),
    "no variables": ("os.environ.pop('PATH', None)", lambda: os.environ.get("PATH")),
    "path": ("import sys; sys.path.clear()", lambda: list(sys.path)),
    "output": ("import sys, io; sys.stdout = io.StringIO()", lambda: sys.stdout),
    "anomalies": ("torch.autograd.set_detect_anomaly(True)", torch.is_anomaly_enabled),
    "processes": (
        "import multiprocessing; multiprocessing.set_start_method('spawn', force=True)",
        lambda: multiprocessing.get_start_method(allow_none=True),
    ),
    "locale": (
        "import locale; locale.setlocale(locale.LC_ALL, 'C.UTF-8' if locale.setlocale(locale.LC_ALL) == 'C' else 'C')",
        lambda: locale.setlocale(locale.LC_ALL),
    ),
    "recursion": ("import sys; sys.setrecursionlimit(99999)", sys.getrecursionlimit),
}


@pytest.mark.parametrize("when", ["imported", "called"])
def test_what_it_does_to_its_process_stays_there(when, tmp_path):
    """All at once, where it is imported for training, and where training calls it; each by its name."""
    doing = [statement for statement, _ in STATE.values()]
    top = "import numpy as np, torch\n" + "\n".join(doing) if when == "imported" else "import torch"
    calls = [
        "return inputs.mean((1, 2))[:, None]",
        *(
            f"\n    def {name}(self, *x):\n        "
            + "\n        ".join(doing if when == "called" else ["pass"])
            + f"\n        {how}"
            for name, how in {
                "features": "return x[0][:, None]",
                "label_loss": "return (x[0] - x[1]).square().mean()",
                "error": "return (x[0] - x[1]).flatten(1).abs().sum(1)",
            }.items()
        ),
        "\n    @property\n    def offset(self):\n        "
        + (doing[0] if when == "called" else "pass")
        + "\n        return np.zeros(1, 'f4')",
    ]
    states = {name: state() for name, (_, state) in STATE.items()}
    problem = loading.load(written(tmp_path, *solver(*calls, top=top)))
    x = torch.rand(2, 8, 8)
    problem.features(x), problem.label_loss(x, x), problem.error(x, x), problem.offset, problem.symmetries
    after = {name: state() for name, (_, state) in STATE.items()}
    assert after == states


def test_a_solver_of_double_precision_has_it_and_training_does_not(tmp_path):
    top = "import torch\ntorch.set_default_dtype(torch.float64)"
    body = "return (torch.zeros(len(inputs), 1) + torch.tensor(inputs.mean((1, 2)))[:, None]).numpy()"
    labels = solved(loading.load(written(tmp_path, *solver(body, top=top))))
    assert labels.dtype == np.float64 and torch.get_default_dtype() == torch.float32


IN_PLACE = """
    def features(self, inputs):
        inputs -= 1
        return inputs[:, None]
    def label_loss(self, prediction, label):
        label *= 0
        return (prediction - label).square().mean()
    def error(self, prediction, label):
        prediction -= label
        label *= 0
        return prediction.flatten(1).abs().sum(1)
    def estimate(self, inputs):
        inputs *= 0
        return inputs.mean((1, 2))[:, None]
"""


def test_what_it_changes_in_place_is_a_copy(tmp_path):
    from toy import ARCHITECTURE

    from sibcl_ray.learning import baseline
    from sibcl_ray.learning.model import Model, new_network

    problem = loading.load(
        written(tmp_path, ("    def solve(", IN_PLACE + "\n    def solve("), before("inputs -= 1; inputs += 1"))
    )
    x, label = torch.from_numpy(INPUTS.copy()), torch.ones(3, 1)
    prediction = torch.full((3, 1), 3.0, requires_grad=True)
    problem.features(x)
    problem.label_loss(prediction, label).backward()
    assert problem.error(prediction.detach(), label).tolist() == [2, 2, 2]
    model = Model(new_network(problem, ARCHITECTURE, 0), problem)
    first, second = (model.predict(x) for _ in range(2))
    baseline.known(problem, x, delta=True)
    assert torch.equal(first, second) and torch.equal(x, torch.from_numpy(INPUTS))
    assert torch.equal(label, torch.ones(3, 1)) and torch.equal(prediction.grad, torch.full((3, 1), 2.0))


def test_a_symmetry_that_works_in_place_moves_a_copy(tmp_path):
    group = """
from sibcl_ray.symmetry import Group
class Sign(Group):
    def draw(self, x, generator): return torch.ones(len(x))
    def identity(self, x): return torch.ones(len(x))
    def compose(self, g, h): return g * h
    def inverse(self, g): return g
    def act(self, g, x):
        x *= -1
        return x
"""
    problem = loading.load(
        written(
            tmp_path,
            *solver(top="import torch\n" + group),
            ("(8, 8), (1,)", '(8, 8), (1,)\n    symmetries = {"sign": Sign()}'),
        )
    )
    x = torch.ones(2, 8, 8)
    (sign,) = problem.symmetries.values()
    assert torch.equal(sign.act(sign.identity(x), x), -torch.ones(2, 8, 8)) and torch.equal(x, torch.ones(2, 8, 8))


REFUSED = {
    "a module that is not there": (
        "import heper",
        r"raises ModuleNotFoundError in line \d+: No module named 'heper'; install",
    ),
    "an error in a module beside it": ("import wrong", r"mine.py raises ZeroDivisionError in line \d+"),
    "dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass Other(Simulation): pass",
        r"@dataclass\(frozen=True\)",
    ),
}


@pytest.mark.parametrize(("top", "says"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_by_name(top, says, tmp_path):
    with_file(tmp_path, "wrong.py", "1 / 0")
    changes = [("SHIFT = 0.0", f"SHIFT = 0.0\n{top}")]
    with pytest.raises(BadProblem, match=says):
        loading.load(written(tmp_path, *changes))


def test_a_sample_of_another_kind_is_told(tmp_path):
    assert isinstance(sandbox.call(loading.load(written(tmp_path)), "sample", 2, np.random.default_rng(0))[0], Sample)


def test_files_elsewhere_are_neither_taken_along_nor_do_they_name_labels(tmp_path):
    """They may be logs, which change whenever the solver runs."""
    log, above = tmp_path / "elsewhere" / "log", tmp_path / "above.txt"
    log.parent.mkdir()
    file = tmp_path / "problem" / "mine.py"
    file.parent.mkdir()
    file.write_text(f"LOG, ABOVE = {str(log)!r}, '../above.txt'\n")
    versions = set()
    for content in ("first", "second"):
        for path in (log, above):
            path.write_text(content)
        before = [path.stat().st_mtime_ns for path in (log, above)]
        module = read(file)
        module.module()
        versions.add(module.version)
        assert [path.stat().st_mtime_ns for path in (log, above)] == before and not module.data
    assert len(versions) == 1


def test_a_module_in_another_place_is_not_written_to(tmp_path):
    """Its user may have edited it since it was read."""
    with_file(tmp_path, "lib/helper.py", FACTOR)
    with_file(tmp_path, "p/mine.py", f"import sys\nsys.path.append({str(tmp_path / 'lib')!r})\nimport helper")
    module = read(tmp_path / "p" / "mine.py")
    with_file(tmp_path, "lib/helper.py", "edited = True")
    module.module()
    assert (tmp_path / "lib" / "helper.py").read_text() == "edited = True"


def test_a_problem_may_come_from_a_module_beside_it(tmp_path):
    written(tmp_path, file="base.py")
    with_file(tmp_path, "mine.py", "from base import Mean as Theirs")
    problem = loading.load(f"{tmp_path / 'mine.py'}:Theirs")
    assert pickle.loads(pickle.dumps(problem)) == problem and problem.version
    np.testing.assert_allclose(solved(problem), MEANS, rtol=1e-6)


def test_a_program_that_is_no_python_of_this_version_may_be_named(tmp_path):
    (tmp_path / "old.py").write_bytes(b"print 'caf\xe9'\n")
    problem = loading.load(written(tmp_path, (IMPORTED, f'{IMPORTED}\nPROGRAM = "old.py"')))
    assert [path for path, _ in problem.source.data] == ["old.py"]
