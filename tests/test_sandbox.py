"""A solver is alone: in a process and a folder of its own, with copies; and its labels are looked at as they come."""

import os
import re
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from own_files import before, written
from processes import Driver
from servers import wait_until
from test_generate import make

from sibcl_ray.data import fork_server, sandbox
from sibcl_ray.data.dataset import SURROGATE, TARGET, TEST, UNLABELLED, Dataset
from sibcl_ray.data.sandbox import CallFailed, Sandbox, call
from sibcl_ray.data.shards import make_shard
from sibcl_ray.deadlines import Deadline, within
from sibcl_ray.problems import check
from sibcl_ray.problems.problem import BadProblem, Problem, SolverFailed
from sibcl_ray.storage.store import Store
from sibcl_ray.user_module import loading

DEAR = ("labels_per_task = 50", "labels_per_task = 1")
TIMEOUT = ("labels_per_task = 50", "labels_per_task = 1\n    timeout = 20.0")
INPUTS = np.random.default_rng(0).uniform(0.1, 1, (4, 8, 8)).astype(np.float32)


def loaded(folder: Path, *changes: tuple[str, str]) -> Problem:
    return loading.load(written(folder, *changes))


def a_dataset(folder: Path, *changes: tuple[str, str]) -> Dataset:
    folder.mkdir(exist_ok=True)
    return Dataset(loaded(folder / "user", *changes), 3, Store(str(folder / "runs")))


# Alone

FIXED = """
        import subprocess
        labels = []
        for x in inputs:
            assert not os.listdir()
            np.savetxt("input.dat", x)
            program = "read first rest < input.dat; sleep 0.02; echo $first > output.dat; mkdir -p scratch/deep"
            subprocess.run(["sh", "-c", program], check=True)
            labels.append([float(open("output.dat").read())])
            import shutil; shutil.rmtree("scratch"); os.remove("input.dat"); os.remove("output.dat")
        return np.array(labels, np.float32)
""".strip()


LONG = pytest.mark.thorough  # one label a call is also shown by test_own, a timeout by a solver that hangs


@pytest.mark.parametrize(
    "how", [pytest.param("one by one", marks=LONG), pytest.param("with a timeout", marks=LONG), "together"]
)
def test_programs_with_fixed_names_of_files_get_their_own(how, cluster, tmp_path, monkeypatch):
    """Two at a time on one machine; nothing is left where the driver, the workers or the folders of calls were."""
    monkeypatch.chdir(tmp_path)
    changes = {"one by one": [DEAR], "with a timeout": [TIMEOUT], "together": []}[how]
    dataset = a_dataset(tmp_path, before(FIXED), *changes)
    sizes = {TARGET: 12, TEST: 4} if how != "together" else {TARGET: 100}
    make(dataset, sizes)
    for role, count in sizes.items():
        split = dataset.read(role, count)
        np.testing.assert_allclose(split.labels[:, 0], split.inputs[:, 0, 0], rtol=1e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs", "user"]


def test_a_sandbox_that_is_collected_in_the_middle_of_a_request_does_not_stop_it(tmp_path, monkeypatch):
    """The garbage collector runs anywhere: while a sandbox is told how its process ended, it may end another one."""
    problem = loaded(tmp_path, before("import os; os._exit(5)"))
    forgotten = [Sandbox(problem), Sandbox(problem)]
    for each in forgotten:
        each("sample", 2, np.random.default_rng(0))
    receive = fork_server._receive

    def collecting(connection, seconds):
        if forgotten:
            forgotten.pop().close()
        return receive(connection, seconds)

    monkeypatch.setattr(fork_server, "_receive", collecting)

    def fail():
        with Sandbox(problem) as apart, pytest.raises(CallFailed, match="exit code 5"):
            apart("solve", INPUTS)

    within(Deadline(60), fail, grace=0)
    assert not forgotten


@pytest.mark.thorough  # loads the libraries once more
def test_an_answer_that_comes_late_is_none_to_the_next_request(tmp_path, monkeypatch):
    problem = loaded(tmp_path)
    with Sandbox(problem) as apart:
        apart("solve", INPUTS)
        monkeypatch.setattr(fork_server, "ENDING", 0.01)
        assert sandbox._SERVER.how_it_ended(apart._fork) == fork_server.UNKNOWN  # the server waits for its end
    with Sandbox(problem) as another:
        assert another("solve", INPUTS).shape == (4, 1)


def test_calls_leave_no_folder_and_a_failed_one_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    body = "open('scf.log', 'w').write('no convergence'); print('step 7', flush=True); os.system('echo energy -3.2')"
    problem = loaded(tmp_path, before(body + "\n        if inputs[0, 0, 0] > 0.5: raise ArithmeticError('diverged')"))
    with Sandbox(problem) as apart:
        good, bad = np.full((1, 8, 8), 0.4, np.float32), np.full((1, 8, 8), 0.6, np.float32)
        apart("solve", good)
        for _ in range(sandbox.KEPT + 2):
            with pytest.raises(CallFailed, match=r"^ArithmeticError: diverged \(line \d+ of mine.py\)$") as failed:
                apart("solve", bad)
        assert "step 7" in failed.value.left and "energy -3.2" in failed.value.left
        kept = Path(re.search(r"kept in (\S+)", failed.value.left)[1])
        assert (kept / "scf.log").read_text() == "no convergence"
        assert "energy" in kept.with_suffix(".log").read_text()
        assert len([p for p in kept.parent.iterdir() if p.is_dir()]) == sandbox.KEPT
        apart("solve", good)
    there = {p.name.split("-")[1].split(".")[0] for p in (tmp_path / "tmp").iterdir()}
    assert there <= {"modules", "failed"}, there


def test_what_a_solver_prints_before_it_dies_is_told(tmp_path):
    problem = loaded(tmp_path, before("import sys; print('licence expired', file=sys.stderr, flush=True); os._exit(5)"))
    with pytest.raises(CallFailed, match="exit code 5") as failed, Sandbox(problem) as apart:
        apart("solve", INPUTS)
    assert "licence expired" in failed.value.left


def test_a_file_of_the_user_is_not_found_by_a_relative_name_and_that_is_told(tmp_path):
    with pytest.raises(CallFailed, match=r"table.npy.*calls run in an empty folder: name a file beside yours by Path"):
        call(loaded(tmp_path, before("np.load('table.npy')")), "solve", INPUTS)


def test_programs_in_sessions_of_their_own_end_with_it(tmp_path):
    number = tmp_path / "number"
    start = "import subprocess; p = subprocess.Popen(['sleep', '1000'], start_new_session=True)"
    with Sandbox(loaded(tmp_path, before(f"{start}; open({str(number)!r}, 'w').write(str(p.pid))"))) as apart:
        apart("solve", INPUTS)
        assert psutil.pid_exists(int(number.read_text()))
    wait_until(lambda: not psutil.pid_exists(int(number.read_text())), 5, lambda: "it still runs")


def test_an_interrupted_call_is_not_answered_later(tmp_path):
    """By its answer to the next one."""
    problem = loaded(tmp_path, before("time.sleep(3 * (len(inputs) > 1))"))
    with Sandbox(problem) as apart:
        threading.Timer(0.5, os.kill, (os.getpid(), 2)).start()
        with pytest.raises(KeyboardInterrupt):
            apart("solve", INPUTS)
        assert apart("solve", INPUTS[:1]).shape == (1, 1)


# Copies

IN_PLACE = {
    "solve": before("labels = inputs.mean((1, 2))[:, None]; inputs -= labels[:, None]; return labels"),
    "sample kept": (
        "        return Sample(rng",
        "        kept = globals().setdefault('KEPT', [])\n"
        "        for old in kept: old *= 0\n"
        "        kept.append(rng.uniform(0.1, 1, (count, 8, 8)).astype(np.float32)); return Sample(kept[-1])\n"
        "        return Sample(rng",
    ),
    "labels kept": before(
        "kept = globals().setdefault('LABELS', [])\n"
        "        for old in kept: old *= 0\n"
        "        kept.append(inputs.mean((1, 2))[:, None]); return kept[-1]"
    ),
}


@pytest.mark.parametrize("change", IN_PLACE.values(), ids=IN_PLACE)
def test_what_a_solver_changes_in_place_is_not_what_is_stored(change, tmp_path):
    """With and without a timeout the same numbers are stored, those of a solver that changes nothing."""
    stored = []
    for name, changes in {"plain": [], "together": [change], "timeout": [change, TIMEOUT]}.items():
        dataset = a_dataset(tmp_path / name, *changes)
        for shard in dataset.missing({TARGET: 50}):
            make_shard(dataset, shard)
        if name != "timeout":  # shards of one are drawn from other generators
            stored.append(dataset.read(TARGET, 50))
        split = dataset.read(TARGET, 50)
        assert split.inputs.min() >= 0.1
        np.testing.assert_array_equal(split.labels[:, 0], split.inputs.numpy().mean((1, 2)))
    assert stored[0].inputs.equal(stored[1].inputs) and stored[0].labels.equal(stored[1].labels)


def test_a_timeout_changes_no_byte(tmp_path):
    columns = []
    for name, changes in {
        "without": [],
        "with": [("labels_per_task = 50", "labels_per_task = 50; timeout = 20")],
    }.items():
        dataset = a_dataset(tmp_path / name, *changes)
        make_shard(dataset, dataset.missing({TARGET: 50})[0])
        table = pq.read_table(dataset.store.path(dataset.shard_name(TARGET, 0)))
        columns.append([table[name].combine_chunks().flatten().to_numpy().tobytes() for name in ("input", "label")])
    assert columns[0] == columns[1]


# Labels are looked at as they come

WRONG = {
    "complex": ("return (inputs.mean((1, 2)) * 1j)[:, None]", "complex64, complex numbers: give real and"),
    "objects": ("return np.array([[None]] * len(inputs))", "object, Python objects"),
    "decimals": ("import decimal; return np.array([[decimal.Decimal(1)]] * len(inputs))", "object, Python objects"),
    "masked": ("return np.ma.masked_less(inputs.mean((1, 2))[:, None], 9)", "masked: fill in"),
    "text": ("return np.array([['1.5']] * len(inputs))", "text: give numbers"),
    "truth": ("return inputs.mean((1, 2))[:, None] > 0.5", "bool, truth values"),
    "records": ("return np.zeros((len(inputs), 1), 'f4,f4')", "records: give their numbers"),
    "dates": ("return np.array([['2020-01-01']] * len(inputs), 'M8[D]')", "dates: give numbers"),
    "no axis": ("return inputs.mean((1, 2))", r"of shape \(1,\); give \(1, 1\), or mend label_shape"),
    "two": ("return np.ones((len(inputs), 2))", r"of shape \(1, 2\); give \(1, 1\)"),
    "a number": ("return 3.0", r"of shape \(\); give"),
    "nothing": ("return None", r"object, Python objects"),
    "a generator": ("return ([x.mean()] for x in inputs)", "object, Python objects"),
    "a list of masked": ("return [[np.ma.masked]] * len(inputs)", "masked: fill in"),
}


@pytest.mark.parametrize(("body", "says"), WRONG.values(), ids=WRONG)
def test_labels_of_a_wrong_type_or_shape_are_refused_at_the_first(body, says, tmp_path):
    dataset = a_dataset(tmp_path, DEAR, before(body))
    with pytest.raises(BadProblem, match=f"what mean.solve gives is .*{says}") as refused:
        make_shard(dataset, dataset.missing({TARGET: 1})[0])
    assert "\n" not in str(refused.value) and not dataset.stored()


REAL = ("float16", "float32", "float64", "int8", "int64", "longdouble", "torch", "bfloat16", "list")


@pytest.mark.parametrize("type_", REAL)
def test_labels_of_any_real_type_are_taken(type_, tmp_path):
    how = {
        "torch": "import torch; return torch.ones(len(inputs), 1, requires_grad=True)",
        "bfloat16": "import torch; return torch.ones(len(inputs), 1, dtype=torch.bfloat16)",
        "list": "return [[1.0]] * len(inputs)",
    }
    dataset = a_dataset(tmp_path, DEAR, before(how.get(type_, f"return np.ones((len(inputs), 1), np.{type_})")))
    make_shard(dataset, dataset.missing({TARGET: 1})[0])
    assert dataset.read(TARGET, 1).labels.tolist() == [[1.0]]


def test_after_a_wrong_label_nothing_is_started(cluster, tmp_path):
    """One of two workers gives a complex number at once, the other would take long for its own."""
    begun, over = tmp_path / "begun", tmp_path / "over"
    begun.mkdir()
    body = (
        f"import tempfile; tempfile.mkstemp(dir={str(begun)!r})\n"
        f"        while len(os.listdir({str(begun)!r})) < 2: time.sleep(0.05)\n"
        f"        try: os.mkdir({str(tmp_path / 'second')!r})\n"
        "        except FileExistsError:\n"
        f"            while not os.path.exists({str(over)!r}): time.sleep(0.05)\n"
        "        return (inputs.mean((1, 2)) * 1j)[:, None]"
    )
    dataset = a_dataset(tmp_path, DEAR, before(body))
    try:
        with pytest.raises(BadProblem, match="complex64"):
            make(dataset, {TARGET: 30})
        time.sleep(1)
        assert len(list(begun.iterdir())) == 2
    finally:
        over.touch()


@pytest.mark.thorough
def test_after_a_wrong_label_the_command_ends_with_all_that_it_has_started(tmp_path):
    """A solver of a minute is under way."""
    name = written(
        tmp_path / "user",
        DEAR,
        before(
            f"number = len(os.listdir({str(tmp_path)!r})); import tempfile; tempfile.mkdtemp(dir={str(tmp_path)!r})\n"
            "        time.sleep(60 * (number > 4))\n"
            "        return (inputs.mean((1, 2)) * 1j)[:, None]"
        ),
        ("(8, 8), (1,)", "(32, 32), (1,)"),
        ("(count, 8, 8)", "(count, 32, 32)"),
    )
    (tmp_path / "tmp").mkdir()
    driver = Driver(
        tmp_path / "runs", tmp_path / "log", "--problem", name, "--methods", "SL", TMPDIR=str(tmp_path / "tmp")
    )
    try:
        assert driver.wait(120) == 2 and "complex64" in driver.printed().splitlines()[-1]
        assert not driver.leftovers()
    finally:
        driver.end()
    wait_until(lambda: not list((tmp_path / "tmp").glob("sibcl_ray-call-*")), 5, lambda: "folders of calls are left")


SHOWN = {
    "equal": (
        "return np.full((len(inputs), 1), 2.5)",
        "the 10 target labels that mean.solve gave are all equal; there is",
    ),
    "zero": (
        "return np.maximum(0, inputs.mean((1, 2)) - 0.55)[:, None]",
        r"Mean.error is not finite for \d+ of the 10 target labels .*zero, and the error divides.*give it an error",
    ),
    "large": (
        "return 1e6 * inputs.mean((1, 2))[:, None]",
        r"networks learn numbers of order one: give an? .*label_scale near",
    ),
    "far off": (
        "return (inputs.mean((1, 2)).astype(float) - 97208.0)[:, None]",
        r"an offset near -97207\.\d, their mean, and a label_scale near 0.0\d",
    ),
    "steps": (
        "return (inputs.mean((1, 2)) * 0.2 - 97208.0)[:, None].astype(np.float32)",
        "are float32 and deviate by 0.00.*from -97207.9, where float32 has steps of about as much; give float64",
    ),
    "small": (
        "return 1e-9 * inputs.mean((1, 2))[:, None]",
        r"an offset near 5\.\d*e-10, their mean, and a label_scale near [2-5]e-11",
    ),
}


@pytest.mark.parametrize(("body", "says"), SHOWN.values(), ids=SHOWN)
def test_what_only_several_labels_show_is_told(body, says, tmp_path):
    dataset = a_dataset(tmp_path, DEAR, before(body))
    inputs = [call(dataset.problem, "sample", 1, dataset.rng(TARGET, i))[0].inputs for i in range(10)]
    with Sandbox(dataset.problem) as apart, pytest.raises(BadProblem, match=says) as refused:
        check.several(dataset.problem, np.concatenate([apart("solve", x) for x in inputs]), "mean.solve", "target")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("body", "says"), [SHOWN["equal"], pytest.param(*SHOWN["zero"], marks=pytest.mark.thorough)], ids=["equal", "zero"]
)
def test_what_only_several_labels_show_ends_a_generation_at_ten(body, says, cluster, tmp_path):
    dataset = a_dataset(tmp_path, DEAR, before(body))
    with pytest.raises(BadProblem, match=says) as refused:
        make(dataset, {TARGET: 40, TEST: 20})
    time.sleep(0.5)  # for what was under way
    assert "\n" not in str(refused.value) and 10 <= len(dataset.stored()) <= 15
    with pytest.raises(BadProblem):  # also by whoever comes next, who makes no more
        make(dataset, {TARGET: 40, TEST: 20})
    assert len(dataset.stored()) <= 15


def test_what_all_labels_show_is_told_before_training(cluster, tmp_path):
    """Also by a command that finds all labels there."""
    last, _ = call(loaded(tmp_path / "plain"), "sample", 1, a_dataset(tmp_path).rng(TARGET, 59))
    body = f"x = inputs.mean((1, 2))[:, None]; return np.where(inputs[:, 0, :1] == {last.inputs[0, 0, 0]!r}, 1e4, x)"
    dataset = a_dataset(tmp_path, DEAR, before(body))
    for _ in range(2):
        with pytest.raises(BadProblem, match=r"are .* in root mean square"):
            make(dataset, {TARGET: 60, TEST: 10})
    assert len(dataset.stored()) == 70


# The test is apart

FEW = (
    "        return Sample(",
    "        few = rng.integers(1, VALUES, (count, 2, 2)).repeat(4, 1).repeat(4, 2).astype('f4')\n"
    "        return Sample(few)\n        return Sample(",
)
SYMMETRIC = (
    "(8, 8), (1,)",
    "(8, 8), (1,)\n    from sibcl_ray.symmetry import PointGroup, Translations\n"
    "    symmetries = {'translation': Translations(8), 'point_group': PointGroup(2)}",
)
SIZES = {TARGET: 30, TEST: 15, SURROGATE: 20, UNLABELLED: 20}
ALL = (TARGET, TEST, SURROGATE, UNLABELLED)


def orbit(x: np.ndarray) -> bytes:
    """The smallest of all images of 2 × 2 blocks: the independent check."""
    small = x[::4, ::4]
    turned = [np.rot90(m, k) for m in (small, small[:, ::-1]) for k in range(4)]
    return min(np.roll(t, s, (0, 1)).tobytes() for t in turned for s in ((0, 0), (0, 1), (1, 0), (1, 1)))


def orbits_of(dataset: Dataset, sizes: dict) -> dict:
    return {role: [orbit(x) for x in dataset.read(role, sizes[role]).inputs.numpy()] for role in sizes}


def few(folder: Path, values: int, *changes: tuple[str, str]) -> Dataset:
    return a_dataset(folder, FEW, SYMMETRIC, ("SHIFT = 0.0", f"SHIFT, VALUES = 0.0, {values}"), *changes)


def bytes_of(dataset: Dataset) -> dict[str, bytes]:
    names = [dataset.shard_name(shard.role, shard.index) for shard in dataset.stored()]
    return {name: dataset.store.read(name) for name in names}


def test_no_image_of_a_test_input_is_anywhere_else(cluster, tmp_path):
    dataset = few(tmp_path, 7, DEAR)
    make(dataset, SIZES)
    found = orbits_of(dataset, SIZES)
    for role in (TARGET, SURROGATE, UNLABELLED):
        assert not set(found[role]) & set(found[TEST])
    assert len(set(found[TARGET])) < len(found[TARGET]), "repeats in a role are allowed, and there are some here"
    undisturbed = [
        orbit(x)
        for shard in dataset.missing({}) or dataset.stored()
        for x in [call(dataset.problem, "sample", 1, dataset.rng(shard.role, shard.index))[0].inputs[0]]
        if shard.role == TARGET
    ]
    assert set(undisturbed) & set(found[TEST]), "nothing had to be drawn again, so nothing was shown"


def test_too_few_designs_are_refused_with_their_count(cluster, tmp_path):
    with pytest.raises(
        BadProblem, match=r"mean.sample draws test inputs again and again: \d+ of 1 in target shard"
    ) as no:
        make(few(tmp_path, 3, DEAR), SIZES)
    assert "\n" not in str(no.value)


def test_a_larger_test_yields_to_what_is_stored(cluster, tmp_path):
    dataset = few(tmp_path, 7, DEAR)
    make(dataset, {**SIZES, TEST: 5})
    before_ = bytes_of(dataset)
    make(dataset, SIZES)
    assert before_.items() <= bytes_of(dataset).items()
    found = orbits_of(dataset, SIZES)
    assert not set(found[TEST]) & {o for role in (TARGET, SURROGATE, UNLABELLED) for o in found[role]}


FRAGILE = before("assert (inputs[:, 0, 0] != 3).all(), 'no three'")


def test_a_replaced_test_input_yields_to_what_is_stored(cluster, tmp_path):
    dataset = few(tmp_path, 7, DEAR, FRAGILE)
    make(dataset, SIZES)
    found = orbits_of(dataset, SIZES)
    assert not set(found[TEST]) & {o for role in (TARGET, SURROGATE, UNLABELLED) for o in found[role]}
    assert any(b"no three" in data and "/test-" in name for name, data in bytes_of(dataset).items()), (
        "no test input was replaced, so nothing was shown"
    )


def test_nothing_depends_on_who_makes_what_when(cluster, tmp_path):
    """By two drivers of two workers each, and by one that makes one shard after the other, in another order."""
    both, alone = few(tmp_path / "both", 7, DEAR, FRAGILE), few(tmp_path / "alone", 7, DEAR, FRAGILE)
    drivers = [threading.Thread(target=make, args=(both, SIZES, lambda text: None)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    make(alone, SIZES, lambda text: None)
    assert bytes_of(both) == bytes_of(alone)


def test_what_an_earlier_version_stored_with_copies_is_refused(cluster, tmp_path):
    dataset = few(tmp_path, 7, DEAR)
    for role in (TEST, TARGET):
        for shard in dataset.missing({role: 30}):
            make_shard(dataset, shard)  # without regard to the others
    with pytest.raises(BadProblem, match=r"\d+ of the 30 stored test inputs of mean are also learned from"):
        make(dataset, {TARGET: 31, TEST: 30})


def test_a_group_whose_elements_are_not_known_is_named(cluster, tmp_path):
    group = """
import torch
from sibcl_ray.symmetry import Group
class Blur(Group):
    def draw(self, x, generator): return torch.rand(len(x), generator=generator)
    def identity(self, x): return torch.zeros(len(x))
    def compose(self, g, h): return g + h
    def inverse(self, g): return -g
    def act(self, g, x): return x * g.exp()[:, None, None]
"""
    said: list[str] = []
    declared = ("(8, 8), (1,)", "(8, 8), (1,)\n    symmetries = {'blur': Blur()}")
    dataset = a_dataset(tmp_path, ("SHIFT = 0.0", f"SHIFT = 0.0\n{group}"), declared)
    make(dataset, {TARGET: 50, TEST: 50}, said.append)
    assert len(said) == 1 and "images of others under blur is not checked" in said[0]


def test_a_mistake_of_the_program_ends_the_study_at_once(cluster, tmp_path):
    dataset = a_dataset(tmp_path, DEAR, before("nonsense()"))
    with pytest.raises(
        SolverFailed, match=r"failed 2 times .* NameError: name 'nonsense' is not defined \(line \d+ of"
    ):
        make(dataset, {TARGET: 3})


def test_a_label_of_double_precision_keeps_it_where_its_input_was_drawn_again(tmp_path):
    body = (
        "flaky = globals().setdefault('SEEN', []); flaky.append(1)\n"
        "        if len(flaky) == 1: raise OSError('busy')\n"
        "        return np.full((len(inputs), 1), -97208.123456789)"
    )
    dataset = a_dataset(tmp_path, DEAR, before(body))
    assert make_shard(dataset, dataset.missing({TARGET: 1})[0]).failures == 1
    assert dataset.read(TARGET, 1).labels.double().item() == -97208.123456789


# Parameters

DRAWN = "        return Sample(rng.uniform(0.1, 1, (count, 8, 8)).astype(np.float32))"
PARAMETERS = {
    "the inputs' name": ("{'input': np.zeros((count, 8, 8))}", r"the name of a parameter is 'input'; give a text, but"),
    "the labels' name": ("{'label': np.zeros(count)}", "the name of a parameter is 'label'"),
    "no name": ("{1: np.zeros(count)}", "the name of a parameter is 1"),
    "masked": (
        "{'a': np.ma.masked_less(np.arange(count), 1)}",
        r"'a', is masked int64 of shape \(2,\); give",
    ),
    "objects": ("{'a': [None] * count}", "'a', is object of shape"),
    "text": ("{'a': ['x'] * count}", "'a', is <U1 of shape"),
    "other rows": ("{'a': np.zeros(3)}", r"'a', is float64 of shape \(3,\)"),
    "no columns": ("{'a': np.zeros((count, 0))}", r"'a', is float64 of shape \(2, 0\)"),
    "none": ("None", "parameters is a NoneType; give a dictionary of arrays"),
}


@pytest.mark.parametrize(("parameters", "says"), PARAMETERS.values(), ids=PARAMETERS)
def test_parameters_that_cannot_be_stored_are_refused_before_a_label_is_made(parameters, says, tmp_path):
    with pytest.raises(BadProblem, match=says):
        loaded(tmp_path, (DRAWN, DRAWN[:-1] + f", {parameters})"))


def test_parameters_of_any_number_are_stored(tmp_path):
    kinds = ("bool", "int8", "uint64", "float16", "float32", "longdouble", "complex64", "clongdouble")
    given = ", ".join(f"'{kind}': np.ones((count, 2), np.{kind})" for kind in kinds)
    dataset = a_dataset(tmp_path, (DRAWN, DRAWN[:-1] + f", {{{given}, 'listed': [1] * count}})"))
    make_shard(dataset, dataset.missing({TARGET: 50})[0])
    assert dataset.holds(dataset.stored()[0], pytest.fail)
    columns = pq.read_schema(dataset.store.path(dataset.shard_name(TARGET, 0))).names
    assert set(columns) == {"input", "label", "listed", *kinds}


def test_an_input_that_is_drawn_again_has_the_parameters_of_the_others(tmp_path):
    other = DRAWN[:-1] + ", {'a': np.zeros(count)} if count > 9 else {})"
    fragile = before("assert (inputs[:, 0, 0] < 0.9).all()")
    dataset = a_dataset(tmp_path, (DRAWN, other.replace("count > 9", "count in (2, 50)")), fragile)
    with pytest.raises(BadProblem, match=r"mean.sample draws parameters \{\}, and \{'a'.* before; give all"):
        make_shard(dataset, dataset.missing({TARGET: 50})[0])


def test_a_symmetry_and_an_equivariance_have_names_of_their_own(tmp_path):
    both = (
        "(8, 8), (1,)",
        "(8, 8), (1,)\n    from sibcl_ray.symmetry import Equivariance, PointGroup\n"
        "    symmetries = {'turn': PointGroup(2)}\n"
        "    equivariances = {'turn': Equivariance(PointGroup(2), lambda g, labels: labels)}",
    )
    with pytest.raises(BadProblem, match=r"a name of an equivariance, is \['turn'\], as of a symmetry"):
        loaded(tmp_path, both)


def test_what_cannot_be_sent_to_a_process_is_told(tmp_path):
    made = "    def __init__(self):\n        import threading\n        self.lock = threading.Lock()\n"
    lock = ("    def sample(", f"{made}    def sample(")
    with pytest.raises(BadProblem, match=r"cannot be sent to a process of its own .*lock.*make in solve what cannot"):
        loaded(tmp_path, lock)


@pytest.mark.parametrize(("death", "told"), [("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), 40)", "signal 40")])
def test_a_death_costs_no_new_start_and_its_last_words_are_told(death, told, tmp_path):
    problem = loaded(tmp_path, before(f"if len(inputs) == 1: os.write(2, b'no licence\\n'); {death}"))
    with Sandbox(problem) as apart:
        apart("solve", INPUTS)
        server = sandbox._SERVER._process.pid
        for _ in range(2):
            with pytest.raises(CallFailed, match=told) as failed:
                apart("solve", INPUTS[:1])
            assert "no licence" in failed.value.left and "Extension modules" not in failed.value.left
            apart("solve", INPUTS)
        assert sandbox._SERVER._process.pid == server
