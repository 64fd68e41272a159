"""No edit throws labels away: what is made again, what is asked first, and what was decided."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sibcl_ray.data.dataset import SURROGATE, TARGET, TEST, UNLABELLED, Dataset
from sibcl_ray.data.definitions import deciding, version_of
from sibcl_ray.data.shards import make_shard
from sibcl_ray.data.versions import LabelsChanged
from sibcl_ray.problems.schrodinger import Schrodinger2D
from sibcl_ray.storage.store import Store
from sibcl_ray.user_module import loading

STORED = Path(__file__).parent / "stored"  # a storage and a problem's file, as the version 803627c has written them
MODEL = """
from dataclasses import dataclass
import numpy as np
import physics
from sibcl_ray.problems.problem import Sample
from sibcl_ray.problems.simulation import Simulation

CALLS = {calls!r}
GAIN = 2.0


class Common(Simulation):
    def finished(self, values):
        return values[:, None]


@dataclass(frozen=True)
class Mine(Common):
    name = "mine"
    input_shape = (4, 4)
    label_shape = (1,)
    timeout = 60
    labels_per_task = 2
    retries = 0
    resources = {{"num_cpus": 1}}
    size: float = 1.0
    weight: float = 1.0

    def sample(self, count, rng):
        return Sample((self.size * rng.random((count, 4, 4))).astype(np.float32))

    def solve(self, inputs):
        with open(CALLS, "a") as calls:  # noted
            calls.write("x" * len(inputs))
        return self.finished(GAIN * physics.energy(inputs))

    def features(self, inputs):
        return self.weight * inputs[:, None]

    def label_loss(self, prediction, label):
        return (prediction - label).abs().mean()

    def error(self, prediction, label):
        return (prediction - label).abs().flatten(1).mean(1)

    @property
    def offset(self):
        return np.ones(1, np.float32)
"""
PHYSICS = """
def energy(x):
    return x.mean((1, 2))


def momentum(x):
    return x.std((1, 2))
"""
WHOLE = {TARGET: 8, TEST: 4}
HALF = {TARGET: 4, TEST: 2}


class Project:
    """A user's folder, with a problem and a storage."""

    def __init__(self, folder):
        self.folder = folder
        self.calls = folder / "calls"
        self.calls.touch()
        (folder / "mine.py").write_text(MODEL.format(calls=str(self.calls)))
        (folder / "physics.py").write_text(PHYSICS)

    def edit(self, file, old, new):
        path = self.folder / file
        assert path.read_text().count(old) == 1, old
        path.write_text(path.read_text().replace(old, new))

    def dataset(self):
        return Dataset(loading.load(f"{self.folder}/mine.py:Mine"), 0, Store(str(self.folder / "runs")))

    def make(self, sizes, labels=None):
        """What is missing, as a study makes it; the data."""
        dataset = self.dataset()
        dataset.settle(sizes, labels)
        for shard in dataset.missing(sizes):
            make_shard(dataset, shard)
        return dataset

    @property
    def solved(self):
        """How many inputs were solved so far."""
        return len(self.calls.read_text())

    def files(self):
        return {p: p.read_bytes() for p in (self.folder / "runs").rglob("*") if p.is_file()}


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


ESTIMATE = (
    "    def features(self",
    "    def estimate(self, inputs):\n        return inputs[:, 0, :1]\n\n    def features(self",
)
KEPT = {
    "timeout": ("mine.py", "timeout = 60", "timeout = 3600"),
    "retries": ("mine.py", "retries = 0", "retries = 3"),
    "resources": ("mine.py", '{"num_cpus": 1}', '{"num_cpus": 2}'),
    "labels_per_task": ("mine.py", "labels_per_task = 2", "labels_per_task = 7"),
    "features": ("mine.py", "self.weight * inputs", "self.weight + inputs"),
    "label_loss": ("mine.py", "(prediction - label).abs().mean()", "(prediction - label).square().mean()"),
    "error": ("mine.py", ".flatten(1).mean(1)", ".flatten(1).sum(1)"),
    "offset": ("mine.py", "np.ones(1, np.float32)", "np.zeros(1, np.float32)"),
    "a field of the features": ("mine.py", "weight: float = 1.0", "weight: float = 2.0"),
    "a comment": ("mine.py", "# noted", "# kept in mind"),
    "layout": ("mine.py", "GAIN = 2.0", "GAIN = (\n    2.0\n)"),
    "an estimate": ("mine.py", *ESTIMATE),
    "a helper that nothing uses": ("physics.py", "x.std((1, 2))", "x.var((1, 2))"),
    "a comment on an import": ("mine.py", "import physics", "import physics  # and nothing else"),
}
DECIDES = {
    "solve": ("mine.py", "GAIN * physics", "GAIN + physics", "Mine.solve in mine.py"),
    "a constant": ("mine.py", "GAIN = 2.0", "GAIN = 3.0", "GAIN in mine.py"),
    "a sibling": ("physics.py", "x.mean((1, 2))", "x.max((1, 2))", "energy in physics.py"),
    "a base": ("mine.py", "return values[:, None]", "return -values[:, None]", "Common.finished in mine.py"),
    "sample": ("mine.py", "self.size * rng", "self.size + rng", "Mine.sample in mine.py"),
    "a field": ("mine.py", "size: float = 1.0", "size: float = 2.0", "the value of size"),
}


RARELY = ("retries", "label_loss", "offset", "layout")  # each with a near relative above


@pytest.mark.parametrize(
    "edit",
    [pytest.param(edit, id=name, marks=[pytest.mark.thorough] * (name in RARELY)) for name, edit in KEPT.items()],
)
def test_what_does_not_decide_labels_makes_none_again(edit, project):
    project.make(HALF)
    assert project.solved == 6
    before = project.files()
    project.edit(*edit)
    data = project.make(WHOLE)
    assert project.solved == 12 and before.items() <= project.files().items()
    assert data.size(TARGET) == 2 and len(data.read(TARGET, 8).inputs) == 8


@pytest.mark.parametrize(("file", "old", "new", "told"), DECIDES.values(), ids=DECIDES)
def test_what_decides_labels_is_asked_about_first(file, old, new, told, project):
    project.make(HALF)
    before = project.files()
    project.edit(file, old, new)
    for _ in range(2):
        with pytest.raises(LabelsChanged) as caught:
            project.make(WHOLE)
        line = str(caught.value)
        assert "\n" not in line and line.startswith(f"{told} of mine changed since 6 target and test labels of ")
        assert "core hours were made" in line and "--labels keep" in line and "--labels new" in line
    assert project.solved == 6 and project.files() == before


def test_labels_that_are_kept_stay_and_what_is_missing_is_made_by_the_new_code(project):
    old = project.make(HALF).read(TARGET, 4)
    before = project.files()
    project.edit(*DECIDES["a constant"][:3])
    project.make({TARGET: 6}, "keep")
    assert project.solved == 8
    data = project.make(WHOLE)  # remembered
    assert project.solved == 12 and before.items() <= project.files().items()
    found = data.read(TARGET, 8)
    assert np.array_equal(found.inputs[:4], old.inputs) and np.array_equal(found.labels[:4], old.labels)
    assert np.allclose(found.labels[4:, 0], 3 * found.inputs[4:].mean((1, 2)), rtol=1e-6)
    assert data.line(TARGET).earlier == ("6 target and test labels were made before GAIN in mine.py changed",)


@pytest.mark.parametrize("name", ["program.py", "parameters.txt"])
def test_programs_and_data_that_the_file_names_count_where_they_are_used(name, project):
    (project.folder / name).write_text("1.0  # one number\n")
    line = f"SCALE = float(open(__file__.rpartition('/')[0] + '/' + {name!r}).read().split()[0])\n"
    project.edit("mine.py", "GAIN = 2.0\n", f"GAIN = 2.0\n{line}")
    project.make(HALF)
    (project.folder / name).write_text("3.0  # another\n")
    project.make(HALF)  # nothing that makes labels uses it
    project.edit("mine.py", "self.weight * inputs", "SCALE * inputs")
    project.make(HALF)
    project.edit("mine.py", "GAIN * physics", "SCALE * physics")
    with pytest.raises(LabelsChanged, match=r"Mine\.solve in mine.py, SCALE in mine.py"):
        project.make(HALF)
    project.make(HALF, "new")
    (project.folder / name).write_text("4.0  # a third\n")
    with pytest.raises(LabelsChanged, match=name):
        project.make(HALF)


def test_results_that_were_learned_from_labels_that_are_kept_stay(project):
    named = project.make(HALF).named(TARGET)
    project.edit(*DECIDES["solve"][:3])
    assert project.make(WHOLE, "keep").named(TARGET) == named
    project.edit("mine.py", "GAIN + physics", "GAIN - physics")
    assert project.make(WHOLE, "new").named(TARGET) != named


def test_new_labels_leave_the_old_ones_which_are_found_again(project):
    old = project.make(HALF).read(TARGET, 4)
    before = project.files()
    project.edit(*DECIDES["a constant"][:3])
    new = project.make(HALF, "new").read(TARGET, 4)
    assert project.solved == 12 and before.items() <= project.files().items()
    assert np.array_equal(new.inputs, old.inputs) and np.allclose(new.labels, 1.5 * old.labels)
    project.edit("mine.py", "GAIN = 3.0", "GAIN = 2.0")
    assert np.array_equal(project.make(HALF).read(TARGET, 4).labels, old.labels) and project.solved == 12


def test_an_edit_that_is_undone_does_not_hide_what_was_made_meanwhile(project):
    project.make(HALF)
    project.edit(*DECIDES["a constant"][:3])
    project.make(HALF, "keep")
    project.edit("mine.py", "GAIN = 3.0", "GAIN = 2.0")
    assert project.make(HALF).line(TARGET).earlier == ()  # nothing was
    project.edit(*DECIDES["a constant"][:3])
    project.make(WHOLE)
    project.edit("mine.py", "GAIN = 3.0", "GAIN = 2.0")
    with pytest.raises(LabelsChanged, match=r"GAIN in mine\.py of mine changed since 12 target and test labels"):
        project.make(WHOLE)
    assert project.solved == 12
    earlier = project.make(WHOLE, "keep").line(TARGET).earlier
    assert len(earlier) == 2 and project.make(WHOLE).line(TARGET).earlier == earlier and project.solved == 12


def test_of_labels_that_two_versions_made_all_can_be_made_anew(project):
    old = project.make(HALF).read(TARGET, 4)
    project.edit(*DECIDES["a constant"][:3])
    project.make(WHOLE, "keep")
    project.edit("mine.py", "GAIN = 3.0", "GAIN = 2.0")
    project.make(HALF, "new")
    data = project.make(WHOLE)
    found = data.read(TARGET, 8)
    assert project.solved == 24 and data.line(TARGET).earlier == ()
    assert np.array_equal(found.labels[:4], old.labels)
    assert np.allclose(found.labels[:, 0], 2 * found.inputs.mean((1, 2)), rtol=1e-6)


def test_each_version_is_asked_about_once_more(project):
    project.make(HALF)
    project.edit(*DECIDES["a constant"][:3])
    project.make(WHOLE, "keep")
    project.edit("mine.py", "GAIN = 3.0", "GAIN = 4.0")
    with pytest.raises(LabelsChanged, match="changed since 12 target and test labels"):
        project.make(WHOLE)
    assert len(project.make(WHOLE, "keep").line(TARGET).earlier) == 2 and project.solved == 12


def test_kinds_of_data_are_named_apart(project):
    sizes = {**HALF, SURROGATE: 50, UNLABELLED: 50}
    data = project.make(sizes)
    names = {role.name: data.named(role) for role in sizes}
    assert names["target"] == names["test"] and len(set(names.values())) == 3
    project.edit("mine.py", *ESTIMATE)
    with pytest.raises(LabelsChanged, match=r"Mine\.estimate in .* changed since 50 surrogate labels"):
        project.make(sizes)  # the estimate stands in for the surrogate's solver
    data = project.make(sizes, "new")
    changed = {role.name for role in sizes if data.named(role) != names[role.name]}
    assert changed == {"surrogate"} and project.solved == 56


def test_labels_of_another_shape_cannot_be_kept(project):
    project.make(HALF)
    project.edit("mine.py", "label_shape = (1,)", "label_shape = (2,)")
    project.edit("mine.py", "values[:, None]", "np.stack([values, values], 1)")
    project.edit("mine.py", "np.ones(1, np", "np.ones(2, np")
    with pytest.raises(LabelsChanged, match=r"shapes .* so they cannot be kept; give --labels new"):
        project.make(HALF, "keep")
    assert project.make(HALF, "new").read(TARGET, 4).labels.shape == (4, 2)


def test_a_damaged_decision_is_asked_for_again(project):
    project.make(HALF)
    project.edit(*DECIDES["a constant"][:3])
    version = project.make(HALF, "keep").line(TARGET).version
    (record,) = (project.folder / "runs" / "versions").rglob(f"*{version}.json")
    record.write_bytes(record.read_bytes()[:-9])
    with pytest.raises(LabelsChanged):
        project.make(HALF)
    project.make(HALF, "keep")
    assert project.solved == 6


def test_what_an_older_library_has_read_in_its_way_is_not_compared(project):
    version = project.make(HALF).line(TARGET).version
    store, (path,) = project.dataset().store, (project.folder / "runs" / "versions").rglob(f"labels-*{version}.json")
    record = store.read_record(f"versions/mine/{path.name}")
    del record["reading"]
    path.unlink()
    store.write_record(f"versions/mine/labels-0-{'0' * 16}.json", record | {"version": "0" * 16})
    project.edit(*DECIDES["a constant"][:3])
    with pytest.raises(LabelsChanged, match=r"may have changed since an older sibcl_ray made them.* since 6 "):
        project.make(HALF)


@pytest.mark.parametrize(
    ("edit", "decides"), [("units = 'hartree'", False), ("timeout = 70", False), ("return 2 * super()", True)]
)
def test_a_problem_derived_from_one_of_the_library_is_named_by_what_it_overrides(edit, decides, tmp_path):
    text = """
from sibcl_ray.problems.schrodinger import Schrodinger2D
class Mine(Schrodinger2D):
    name = "mine"
    label_units = 'eV'
    timeout = 60
    def solve(self, inputs):
        return 1 * super().solve(inputs)
"""
    versions = []
    for old in ("", {"u": "units = 'eV'", "t": "timeout = 60", "r": "return 1 * super()"}[edit[0]]):
        (tmp_path / "mine.py").write_text(text.replace(old, edit) if old else text)
        versions.append(version_of(deciding(loading.load(f"{tmp_path}/mine.py:Mine"), "sample", "solve")))
    assert (versions[0] != versions[1]) == decides


def test_a_new_version_of_a_built_in_problem_is_asked_about(tmp_path, monkeypatch):
    store, problem = Store(str(tmp_path)), Schrodinger2D()
    data = Dataset(problem, 0, store)
    data.settle([TARGET])
    sample = problem.sample(2, data.rng(TARGET, 0))
    data.write(TARGET, 0, sample, problem.solve(sample.inputs))
    for method, asked in (("features", False), ("error", False), ("estimate", False), ("solve", True)):
        with monkeypatch.context() as patch:
            patch.setattr(Schrodinger2D, "versions", {method: 2}, raising=False)
            deciding.cache_clear()
            its = Dataset(problem, 0, store)
            if asked:
                with pytest.raises(
                    LabelsChanged, match=r"Schrodinger\.solve of schrodinger-2d changed since 50 target"
                ):
                    its.settle([TARGET])
            else:
                its.settle([TARGET])
                assert its.line(TARGET) == data.line(TARGET)
    deciding.cache_clear()


@pytest.fixture
def stored(tmp_path):
    """The user's file and the storage, as an earlier version has left them."""
    shutil.copytree(STORED / "storage", tmp_path / "runs")
    shutil.copy(STORED / "mine.py", tmp_path / "mine.py")
    return tmp_path


def test_labels_of_the_version_before_are_adopted(stored):
    data = Dataset(loading.load(f"{stored}/mine.py:Mine"), 0, Store(str(stored / "runs")))
    sizes = {TARGET: 3, TEST: 2, SURROGATE: 50, UNLABELLED: 50}
    said = []
    for _ in range(2):
        data.settle(sizes, tell=said.append)
    assert len(said) == 1 and said[0].startswith("labels of stored that an older sibcl_ray has made are used")
    assert not data.missing(sizes)
    pool = data.read(TARGET, 3)
    assert np.allclose(pool.labels[:, 0], 2 * pool.inputs.mean((1, 2)), rtol=1e-6)
    text = (stored / "mine.py").read_text()
    (stored / "mine.py").write_text(text.replace("- 0.5", "- 0.4"))
    assert not Dataset(loading.load(f"{stored}/mine.py:Mine"), 0, data.store).missing(sizes)
    built_in = Dataset(Schrodinger2D(), 0, data.store)
    built_in.settle([TARGET])
    assert built_in.stored()


def test_labels_of_the_version_before_are_asked_about_where_the_file_has_changed(stored):
    text = (stored / "mine.py").read_text()
    (stored / "mine.py").write_text(text.replace("- 0.5", "- 0.4"))
    store = Store(str(stored / "runs"))
    data = Dataset(loading.load(f"{stored}/mine.py:Mine"), 0, store)
    with pytest.raises(
        LabelsChanged, match=r"may have changed since an older sibcl_ray.* since 5 target and test labels"
    ):
        data.settle([TARGET, TEST])
    data.settle([TARGET, TEST], "keep")
    assert not data.missing({TARGET: 3, TEST: 2})
    other = Dataset(data.problem, 1, store)  # of another seed there are none
    other.settle([TARGET, TEST])


@pytest.mark.parametrize("written", range(3))
def test_a_driver_that_dies_while_labels_are_adopted_loses_none(written, stored, monkeypatch):
    store = Store(str(stored / "runs"))
    sizes = {TARGET: 3, TEST: 2, SURROGATE: 50, UNLABELLED: 50}
    left = iter(range(written))

    def create(self, name, data, create=Store.create):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return create(self, name, data)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "create", create)
        Dataset(loading.load(f"{stored}/mine.py:Mine"), 0, store).settle(sizes)
    data = Dataset(loading.load(f"{stored}/mine.py:Mine"), 0, store)
    data.settle(sizes)
    assert not data.missing(sizes) and len(list((stored / "runs" / "versions").rglob("*.json"))) == 3


def test_a_dry_run_decides_nothing(project):
    project.make(HALF)
    project.edit(*DECIDES["a constant"][:3])
    before = project.files()
    data = replace(project.dataset(), store=Store(str(project.folder / "runs"), read_only=True))
    data.settle(WHOLE, "keep")
    assert len(data.missing(WHOLE)) == 3 and project.files() == before
    with pytest.raises(LabelsChanged):
        project.make(WHOLE)


def test_names_are_those_of_ever():
    """Golden: another one here would be another name for everybody's labels."""
    names = {
        kind: version_of(deciding(Schrodinger2D(), *kind.split())) for kind in ("sample solve", "estimate", "error")
    }
    assert names == {"sample solve": "e077e8d21f5c8687", "estimate": "64b059fa5f03cc8a", "error": "d8d04b01eacb7539"}
