"""A problem in a file of the user: it goes wherever Ray goes, without the file, and is named by what it computes."""

import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import ray.cloudpickle
import torch
from own_files import before, written
from processes import ROOT, SCRIPT, environment
from servers import wait_until
from test_generate import make
from test_problems import cpu_seconds

from sibcl_ray.data import shards
from sibcl_ray.data.dataset import SHARD, SURROGATE, TARGET, UNLABELLED, Dataset
from sibcl_ray.data.definitions import LEARNED, deciding, version_of
from sibcl_ray.data.sandbox import CallFailed, Sandbox
from sibcl_ray.data.shards import make_shard
from sibcl_ray.problems.problem import Problem, SolverFailed
from sibcl_ray.problems.simulation import Simulation
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Store
from sibcl_ray.user_module import loading
from sibcl_ray.user_module.loading import BadProblem

EXAMPLE = ROOT / "studies" / "my_problem.py"


def loaded(folder: Path, *changes: tuple[str, str]) -> Problem:
    """The problem, when its file is gone."""
    name = written(folder, *changes)
    problem = loading.load(name)
    (folder / "mine.py").unlink()
    return problem


# It goes everywhere


@pytest.mark.parametrize("pickler", [pytest.param(pickle, marks=pytest.mark.thorough), ray.cloudpickle])
def test_another_process_needs_no_file(pickler, tmp_path):
    """Nor a name for it: the problem makes its module, and keeps it when it goes on from there."""
    problem = loaded(tmp_path)
    program = f"""
import pickle, sys
import ray.cloudpickle
problem = pickle.load(sys.stdin.buffer)
assert pickle.loads({pickler.__name__}.dumps(problem)) == problem
sys.stdout.buffer.write({pickler.__name__}.dumps((problem, problem.solve(problem.sample_inputs))))
""".replace("problem.sample_inputs", "__import__('numpy').ones((2, 8, 8), 'f4')")
    done = subprocess.run(
        [sys.executable, "-c", program], input=pickler.dumps(problem), capture_output=True, check=True, cwd=ROOT
    )
    there, labels = pickle.loads(done.stdout)
    assert there == problem and type(there) is type(problem) and labels.tolist() == [[1.0], [1.0]]


def test_workers_make_its_labels_without_its_file(cluster, tmp_path):
    problem = loaded(tmp_path / "user", before("assert os.getpid() != " + str(os.getpid())))
    dataset = Dataset(problem, 3, Store(str(tmp_path / "runs")))
    make(dataset, {TARGET: SHARD, UNLABELLED: SHARD})
    split = dataset.read(TARGET, SHARD)
    np.testing.assert_allclose(split.labels[:, 0], split.inputs.mean((1, 2)), rtol=1e-6)


def test_labels_that_are_dear_are_solved_and_stored_one_by_one(cluster, tmp_path):
    """And none that nobody asked for."""
    alone = ("labels_per_task = 50", "labels_per_task = 1"), before("assert len(inputs) == 1")
    problem = loaded(tmp_path / "user", *alone)
    assert problem.labels_per_task == Simulation.labels_per_task
    dataset = Dataset(problem, 3, Store(str(tmp_path / "runs")))
    assert len(dataset.missing({TARGET: 7, UNLABELLED: 7})) == 8
    make(dataset, {TARGET: 7, UNLABELLED: 7})
    split = dataset.read(TARGET, 7)
    assert len(list((tmp_path / "runs").glob("datasets/*/*.parquet"))) == 8 and len(split.inputs.unique(dim=0)) == 7
    np.testing.assert_allclose(split.labels[:, 0], split.inputs.mean((1, 2)), rtol=1e-6)


def test_an_input_alone_is_drawn_anew_a_few_times(tmp_path):
    alone = ("labels_per_task = 50", "labels_per_task = 1"), before("assert inputs[0, 0, 0] > THRESHOLD, 'too small'")
    for threshold, ends in ((0.5, False), (1.0, True)):
        problem = loaded(tmp_path / str(ends), *alone, ("SHIFT = 0.0", f"SHIFT, THRESHOLD = 0.0, {threshold}"))
        dataset = Dataset(problem, 3, Store(str(tmp_path / "runs")))
        shards = dataset.missing({TARGET: 4})
        if ends:
            with pytest.raises(SolverFailed, match="failed 6 times on 1 input of target shard 0"):
                make_shard(dataset, shards[0])
        else:
            assert any([make_shard(dataset, shard).failures for shard in shards])
            assert (dataset.read(TARGET, 4).inputs[:, 0, 0] > threshold).all()


def test_it_is_named_by_what_the_file_computes(tmp_path):
    names = {
        what: fingerprint(problem, problem.version)
        for what, *changes in (
            ("as it is",),
            ("a comment", before("# another")),
            ("a docstring", ('"""A mean."""', '"""The mean."""')),
            ("a constant", ("SHIFT = 0.0", "SHIFT = 1e-3")),
            ("a function", ("return 1.0", "return 1.1")),
            ("the solver", before("inputs = inputs**2")),
        )
        for problem in [loaded(tmp_path / what, *changes)]
    }
    same = {what for what, name in names.items() if name == names["as it is"]}
    assert same == {"as it is", "a comment", "a docstring"}
    assert len(set(names.values())) == 4


def test_a_changed_solver_makes_labels_anew(tmp_path):
    store = Store(str(tmp_path / "runs"))
    first, again, changed = (
        Dataset(loading.load(written(tmp_path / "user", *changes)), 0, store)
        for changes in ([], [before("# faster")], [before("inputs = inputs + 1")])
    )
    make_shard(first, first.missing({TARGET: SHARD})[0])
    assert not again.missing({TARGET: SHARD}) and changed.missing({TARGET: SHARD})


# Its solver: resources, timeouts, retries


def hanging(folder: Path, *more: tuple[str, str], timeout: float = 3.0) -> Problem:
    """One that hangs on some inputs."""
    declared = ("label_shape = (8, 8), (1,)", f"label_shape = (8, 8), (1,)\n    timeout = {timeout}")
    return loaded(folder, declared, *(more or [before("time.sleep(1000 * (inputs[:, 0, 0] > 0.96).any())")]))


def test_a_solver_that_hangs_is_ended_and_its_input_drawn_anew(cluster, tmp_path):
    problem = hanging(tmp_path / "user", timeout=1.0)
    dataset, said = Dataset(problem, 1, Store(str(tmp_path / "runs"))), []
    began = time.monotonic()
    make(dataset, {TARGET: SHARD}, said.append)
    inputs = dataset.read(TARGET, SHARD).inputs
    drawn = torch.from_numpy(problem.sample(SHARD, dataset.rng(TARGET, 0)).inputs)
    hung = drawn[:, 0, 0] > 0.96
    assert 0 < hung.sum() < 10 and torch.equal(inputs[~hung], drawn[~hung])
    assert (inputs[:, 0, 0] <= 0.96).all() and time.monotonic() - began < 100
    assert len(said) == 1 and "no end after 1 s, the timeout of mean" in said[0] and "drawn anew" in said[0]


@pytest.mark.thorough
def test_a_solver_that_always_hangs_ends_the_study_with_its_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "FAILURES", 2)
    alone = ("labels_per_task = 50", "labels_per_task = 1"), before("time.sleep(1000)")
    problem = hanging(tmp_path / "user", *alone, timeout=0.1)
    dataset = Dataset(problem, 1, Store(str(tmp_path / "runs")))
    with pytest.raises(SolverFailed, match=r"failed 3 times on 1 input .* first with no end after 0.1 s"):
        make_shard(dataset, dataset.missing({TARGET: SHARD})[0])


ENDINGS = {
    "hangs": ("time.sleep(1000)", "no end after 2 s"),
    "hangs and holds Python's lock": ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", "no end after 2 s"),
    "ends its process": ("os._exit(3)", r"takes its process down \(exit code 3\)"),
    "is killed": ("os.kill(os.getpid(), 9)", r"takes its process down \(SIGKILL\)"),
    "raises": ("raise ArithmeticError('no convergence')", "^ArithmeticError: no convergence"),
}


@pytest.mark.thorough
@pytest.mark.parametrize(("how", "expected"), ENDINGS.values(), ids=ENDINGS)
def test_whatever_becomes_of_a_call_the_next_one_is_answered(how, expected, tmp_path):
    problem = hanging(tmp_path, before(f"if inputs[0, 0, 0] > 0.5: {how}"))
    inputs = problem.sample(1, np.random.default_rng(0)).inputs
    bad, good = inputs.copy(), inputs.copy()
    bad[0, 0, 0], good[0, 0, 0] = 0.9, 0.1
    with Sandbox(problem) as sandbox:
        for _ in range(2):
            with pytest.raises(CallFailed, match=expected):
                sandbox("solve", bad, seconds=2.0)
            assert sandbox("solve", good, seconds=2.0)[0, 0] == good.mean()


def running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


PROGRAMS = """
        import subprocess
        program = subprocess.Popen(["sleep", "1000"])
        open(os.environ["NUMBERS"], "w").write(f"{os.getpid()} {program.pid}")
        if inputs[0, 0, 0] < 2: program.wait()
""".strip()


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["in time", "killed"])
def test_programs_that_the_solver_started_end_with_it(how, tmp_path, monkeypatch):
    """Also where whoever asked for the label is killed, and can end nothing."""
    numbers = tmp_path / "numbers"
    monkeypatch.setenv("NUMBERS", str(numbers))
    problem = hanging(tmp_path, before(PROGRAMS), timeout=2.0 if how == "in time" else 500.0)
    program = (
        "import pickle, sys, numpy; from sibcl_ray.data.sandbox import Sandbox; p = pickle.load(sys.stdin.buffer); "
        + (
            "s = Sandbox(p)\n"
            "try: s('solve', p.sample(1, numpy.random.default_rng(0)).inputs, seconds=p.timeout)\n"
            "except Exception: s.close()"
        )
    )
    asker = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=ROOT)
    asker.communicate(pickle.dumps(problem)) if how == "in time" else asker.stdin.write(pickle.dumps(problem))
    if how == "killed":
        asker.stdin.close()
        wait_until(lambda: numbers.exists() and len(numbers.read_text().split()) == 2, 60, lambda: "no start")
        asker.kill()
        asker.wait()
    wait_until(lambda: not any(running(int(n)) for n in numbers.read_text().split()), 10, lambda: "still there")


@pytest.mark.parametrize(("retries", "redrawn"), [(0, True), (1, False)])
def test_an_input_is_tried_again_as_often_as_was_declared(retries, redrawn, tmp_path):
    """Each fails the first time that it is tried alone."""
    flaky = before(
        "key = inputs.tobytes(); seen = globals().setdefault('SEEN', set())\n"
        "        if key not in seen: seen.add(key); raise OSError('the licence server is busy')"
    )
    declared = ("label_shape = (8, 8), (1,)", f"label_shape = (8, 8), (1,)\n    retries = {retries}")
    dataset = Dataset(loaded(tmp_path / "user", declared, flaky), 1, Store(str(tmp_path / "runs")))
    if redrawn:
        with pytest.raises(SolverFailed, match="licence server"):
            make_shard(dataset, dataset.missing({TARGET: SHARD})[0])
    else:
        assert not make_shard(dataset, dataset.missing({TARGET: SHARD})[0]).failures


def test_the_solver_has_the_resources_it_declares(cluster, tmp_path):
    declared = ("label_shape = (8, 8), (1,)", 'label_shape = (8, 8), (1,)\n    resources = {"num_cpus": 2}')
    asked = before("import torch; assert torch.get_num_threads() == 2")  # as many as Ray has given
    dataset = Dataset(loaded(tmp_path / "user", declared, asked), 1, Store(str(tmp_path / "runs")))
    make(dataset, {TARGET: SHARD, UNLABELLED: SHARD})
    assert len(dataset.read(TARGET, SHARD).inputs) == SHARD


@pytest.mark.parametrize(
    ("resources", "says"),
    [
        ('{"num_cpus": 64}', r"mean needs 64 CPU, and the cluster's nodes have at most 2 CPU; ask for less"),
        ('{"num_gpus": 1}', r"needs 1 GPU, .* at most 0 GPU"),
        ('{"resources": {"licence": 1}}', r"needs 1 licence, .* at most 0 licence"),
    ],
)
def test_what_no_node_has_is_refused_and_not_waited_for(resources, says, cluster, tmp_path):
    declared = ("label_shape = (8, 8), (1,)", f"label_shape = (8, 8), (1,)\n    resources = {resources}")
    dataset = Dataset(loaded(tmp_path / "user", declared), 1, Store(str(tmp_path / "runs")))
    with pytest.raises(ValueError, match=says):
        make(dataset, {TARGET: SHARD})
    assert not dataset.store.names("datasets")


# The example


@pytest.fixture(scope="module")
def drum():
    return loading.load(f"{EXAMPLE}:Drum")


def test_the_example_is_short(drum):
    lines = [line for line in EXAMPLE.read_text().split("class Drum")[1].splitlines() if line.strip()]
    assert len(lines) <= 45


def test_the_example_is_right(drum):
    """A bare membrane has the frequencies of the textbook, a membrane of fourfold density half of them; discs lower
    them, and all of its labels are those of finite differences."""
    from scipy.sparse import diags, eye, kron
    from scipy.sparse.linalg import eigsh

    bare = drum.solve(np.ones((1, 32, 32), np.float32))
    np.testing.assert_allclose(bare[0], np.sqrt([1, 2.5, 2.5]), rtol=1e-6)
    np.testing.assert_allclose(drum.solve(np.full((1, 32, 32), 4, np.float32)), bare / 2, rtol=1e-6)
    inputs = drum.sample(3, np.random.default_rng(0)).inputs
    fine = 4  # points along each side of a pixel
    n = 32 * fine
    # Points in the middle of cells: the wall is half a step away, where the mirrored value has the other sign.
    ends = np.zeros(n)
    ends[[0, -1]] = 1
    one = (diags([2 + ends, -np.ones(n - 1), -np.ones(n - 1)], [0, 1, -1])) * n**2
    laplacian = kron(one, eye(n)) + kron(eye(n), one)
    for density, label in zip(inputs, drum.solve(inputs), strict=True):
        mass = diags(np.kron(density, np.ones((fine, fine))).ravel())
        values = eigsh(laplacian.tocsc(), 3, mass.tocsc(), sigma=0, return_eigenvectors=False)
        np.testing.assert_allclose(label, np.sqrt(np.sort(values) / (2 * np.pi**2)), rtol=1e-2)


def test_the_example_has_the_symmetry_that_it_declares(drum):
    inputs = torch.from_numpy(drum.sample(12, np.random.default_rng(0)).inputs)
    (group,) = drum.symmetries.values()
    moved = group.act(group.draw(inputs, torch.Generator().manual_seed(0)), inputs)
    labels = torch.from_numpy(drum.solve(inputs.numpy()))
    assert not torch.equal(moved, inputs)
    assert drum.error(torch.from_numpy(drum.solve(moved.numpy())), labels).max() < 1e-6


def test_the_estimate_of_the_example_is_cheap_and_near(drum):
    inputs = drum.sample(20, np.random.default_rng(0)).inputs
    labels, estimates = (torch.from_numpy(solve(inputs)) for solve in (drum.solve, drum.estimate))
    assert drum.error(estimates, labels).mean() < 0.1
    assert cpu_seconds(drum.estimate, inputs) < cpu_seconds(drum.solve, inputs) / 10


@pytest.mark.thorough
def test_a_study_of_the_example_runs_though_its_file_is_gone(tmp_path):
    """From labels to the matrix, on Ray's tasks and in Ray Train's workers."""
    file = tmp_path / "my_problem.py"
    file.write_bytes(EXAMPLE.read_bytes())
    storage = tmp_path / "runs"
    command = [sys.executable, SCRIPT, "--scale", "smoke", "--problem", "my_problem.py:Drum", "--storage", str(storage)]
    command += ["--methods", "SL,SIB-CL", "--budgets", "10", "--seeds", "1"]
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, env=environment())
    try:
        wait_until(lambda: any(storage.glob("datasets/*/*")), 120, (tmp_path / "log").read_text)
        file.unlink()
        assert driver.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        driver.kill()
    matrix = pd.read_parquet(storage / "studies" / "drum-smoke-0" / "matrix.parquet")
    assert set(matrix.state) == {"done"} and set(matrix.method) == {"SL", "SIB-CL"}
    assert matrix.error.between(0, 1).all()


# What is refused; the rest is in test_bad_input.py


def test_without_a_surrogate_nothing_is_made_for_one(tmp_path):
    from sibcl_ray import recipes

    problem = loaded(tmp_path)
    study = recipes.smoke(problem)
    assert [m.name for m in study.methods] == ["SL"] and study.sizes[SURROGATE] == 0
    with pytest.raises(ValueError, match=r"TL needs surrogate labels; give Mean an estimate.*; or leave TL out"):
        from dataclasses import replace

        from sibcl_ray.search.methods import METHODS

        replace(study, methods=(METHODS["TL"],))


SHAPE = ("label_shape = (8, 8), (1,)",)
REFUSED = {
    "float64": (
        (".astype(np.float32))", ")"),
        r"what mine.py: Mean.sample draws is float64 of shape \(2, 8, 8\); give",
    ),
    "no Sample": (("return Sample(", "return ("), r"Mean.sample is a ndarray; give Sample\(inputs\)"),
    "other rng": (("rng.uniform", "np.random.uniform"), r"Mean.sample is not decided by its generator"),
    "loss": (
        ("def solve", "def label_loss(self, p, t): return p\n    def solve"),
        r"label_loss of two .* shape \(2, 1\)",
    ),
    "timeout": ((*SHAPE, SHAPE[0] + "\n    timeout = -1"), r"Mean.timeout is -1; give the seconds"),
    "spread": ((*SHAPE, SHAPE[0] + "\n    spread = 0"), r"Mean.spread is 0; give a positive number"),
    "labels a task": (
        ("labels_per_task = 50", "labels_per_task = 0"),
        r"Mean.labels_per_task is 0; give a whole number",
    ),
    "retries": ((*SHAPE, SHAPE[0] + "\n    retries = 0.5"), r"Mean.retries is 0.5; give a whole number"),
    "resources": ((*SHAPE, SHAPE[0] + '\n    resources = {"cpus": 2}'), r"Mean.resources is .*; give amounts of num_c"),
    "features": (
        ("def solve", "def features(self, x): return x[:, None].double()\n    def solve"),
        r"torch.float64 of sh",
    ),
    "offset": (
        (*SHAPE, SHAPE[0] + "\n    offset = np.zeros(3, np.float32)"),
        r"Mean.offset is float32 of shape \(3,\)",
    ),
    "symmetry": (
        (*SHAPE, SHAPE[0] + '\n    from sibcl_ray.symmetry import PointGroup as P\n    symmetries = {"turns": P(3)}'),
        r"mine.py: Mean raises \w+Error",
    ),
}


@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_what_training_could_not_use_is_refused_in_a_line(change, says, tmp_path):
    with pytest.raises(BadProblem) as refused:
        loaded(tmp_path, change)
    assert re.search(says, str(refused.value)) and "\n" not in str(refused.value), refused.value


def test_attributes_by_their_old_names_count_and_that_is_told(tmp_path, capfd):
    """Also in what names a training."""
    found = {}
    for number, said in enumerate(("spread = 0.1", "spread = 0.2", "label_scale = 0.1", "")):
        problem = loaded(tmp_path / str(number), (*SHAPE, f"{SHAPE[0]}\n    {said}"))
        found[said] = problem.label_scale, version_of(deciding(problem, *LEARNED))
        told = "note: mine.py: Mean.spread is now called label_scale; the old name still works\n"
        assert capfd.readouterr().err == told * said.startswith("spread")
    assert [scale for scale, _ in found.values()] == [0.1, 0.2, 0.1, 1.0]
    assert found["spread = 0.1"][1] != found["spread = 0.2"][1]
    old = "def lacks(self, **needs): return 'all that it needs'\n    def solve"
    problem = loaded(tmp_path / "lacks", ("def solve", old))
    needs = dict.fromkeys(("contrastive", "surrogate", "invariant", "delta"), False)
    assert problem.missing_requirement(**needs) == "all that it needs"


def test_the_library_is_imported_from_its_top_or_from_its_modules(tmp_path):
    """Labels and trainings have the same names."""
    modules = (
        "from sibcl_ray.problems.problem import Sample\nfrom sibcl_ray.problems.simulation import Simulation\n",
        "from sibcl_ray.symmetry import PointGroup as P\n",
    )
    top = "from sibcl_ray import PointGroup as P, Sample, Simulation\n"
    text = EXAMPLE.read_text().replace("PointGroup(", "P(")
    line = next(line for line in text.splitlines(keepends=True) if line.startswith("from sibcl_ray import"))
    names = set()
    for number, imports in enumerate(("".join(modules), top)):
        (folder := tmp_path / str(number)).mkdir()
        (folder / "drum.py").write_text(text.replace(line, imports))
        problem = loading.load(f"{folder}/drum.py:Drum")
        names.add((version_of(deciding(problem, "sample", "solve")), version_of(deciding(problem, *LEARNED))))
    assert len(names) == 1


def test_no_label_is_made_to_look_at_it(tmp_path):
    assert loaded(tmp_path, before("os._exit(1)")).name == "mean"


def test_inputs_that_take_long_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "TRIED", 0.5)
    assert loaded(tmp_path, ("        return Sample(", "        time.sleep(1000); return Sample(")).name == "mean"
