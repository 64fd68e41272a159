"""A job's name says all that decides its result, it runs once, and it sees only the labels it may."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from toy import ARCHITECTURE, Moments

from sibcl_ray.data.dataset import SHARD, SURROGATE, TARGET, TEST, UNLABELLED, Dataset
from sibcl_ray.learning import checkpoint
from sibcl_ray.learning.jobs import CellJob, Job, PretrainJob, TrialJob, execute
from sibcl_ray.learning.training import Diverged, Finetuning, Pretraining, pretrain
from sibcl_ray.storage.records import ATTEMPTS, DIVERGED, DONE, FAILED
from sibcl_ray.storage.store import Store, StoreError

BUDGET = 60  # it ends inside the second shard
CPU = torch.device("cpu")
FINETUNING = Finetuning(architecture=ARCHITECTURE, augmentation=(("translation", 0.5),), views=2, batch=20, steps=20)
PRETRAINING = Pretraining(
    architecture=ARCHITECTURE, contrastive=True, surrogate_labels=True, contrastive_batch=50, epochs=1
)


def run(job):
    return execute(job, CPU, lambda fraction, loss: None)


def write(dataset, role, change=None):
    """Two shards of a role, their inputs and labels changed first, in the order of samples."""
    problem = dataset.problem
    for index in (0, 1):
        rng = dataset.rng(role, index)
        sample = (problem.sample_surrogate if role.surrogate else problem.sample)(SHARD, rng)
        labels = problem.solve(sample.inputs) if role.labelled else None
        if change:
            change(np.arange(index * SHARD, (index + 1) * SHARD), sample.inputs, labels)
        dataset.write(role, index, sample, labels)


@pytest.fixture
def dataset(tmp_path):
    return Dataset(Moments(), 1, Store(str(tmp_path / "plain")))


@pytest.fixture
def full(dataset):
    """A dataset all of whose roles are there."""
    for role in (TARGET, SURROGATE, UNLABELLED, TEST):
        write(dataset, role)
    return dataset


@pytest.fixture
def changed(tmp_path):
    """A maker of datasets some of whose samples are not what they should be."""

    def make(**changes):
        dataset = Dataset(Moments(), 1, Store(str(tmp_path / "changed")))
        for role in (TARGET, SURROGATE, UNLABELLED, TEST):
            write(dataset, role, changes.get(role.name))
        return dataset

    return make


def pretraining(dataset, **changes):
    plain = {"unlabelled": 70, "surrogate": 60, "configuration": PRETRAINING}
    return PretrainJob(**{"dataset": dataset, **plain, **changes})


def artefact(job):
    """The name of a pretraining's weights."""
    return f"artefacts/{job.last_record()['weights']}.safetensors"


def trial(dataset, **changes):
    plain = {"method": "SL", "budget": BUDGET, "pretraining": None, "configuration": FINETUNING, "folds": 3}
    return TrialJob(**{"dataset": dataset, **plain, **changes})


def cell(dataset, **changes):
    plain = {"method": "SL", "budget": BUDGET, "pretraining": None, "configuration": FINETUNING, "seed": 0, "test": 80}
    return CellJob(**{"dataset": dataset, **plain, **changes})


OTHERS = {
    pretraining: {
        "unlabelled": 80,
        "surrogate": 80,
        "configuration": replace(PRETRAINING, seed=1),
    },
    trial: {
        "method": "SL-I",
        "budget": 61,
        "pretraining": PretrainJob,
        "configuration": replace(FINETUNING, seed=1),
        "folds": 4,
    },
    cell: {
        "method": "SL-I",
        "budget": 61,
        "pretraining": PretrainJob,
        "configuration": replace(FINETUNING, seed=1),
        "seed": 1,
        "test": 81,
    },
}


@pytest.mark.parametrize("make", OTHERS)
def test_every_field_is_in_the_name(make, dataset):
    others = [
        make(dataset, **{name: pretraining(dataset) if value is PretrainJob else value})
        for name, value in OTHERS[make].items()
    ]
    others.append(make(replace(dataset, seed=2)))
    if make is not pretraining:
        others.append(make(dataset, pretraining=pretraining(dataset, surrogate=80)))
    assert set(OTHERS[make]) | {"dataset"} == {f.name for f in fields(make(dataset))}
    assert len({job.key for job in (make(dataset), *others)}) == len(others) + 1


CONFIGURED = [(pretraining, PRETRAINING, f.name) for f in fields(PRETRAINING)]
CONFIGURED += [(cell, FINETUNING, f.name) for f in fields(FINETUNING)]


def another(value):
    """A value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case tuple():
            return (("translation", 0.25),)
    return replace(value, projection=5)


@pytest.mark.parametrize(("make", "configuration", "name"), CONFIGURED)
def test_every_field_of_a_configuration_is_in_the_name(make, configuration, name, dataset):
    changed = replace(configuration, **{name: another(getattr(configuration, name))})
    assert make(dataset, configuration=changed).key != make(dataset).key


@pytest.mark.parametrize("make", OTHERS)
def test_equal_jobs_have_equal_names_wherever_they_are_kept(make, dataset):
    elsewhere = replace(dataset, store=Store("memory://elsewhere"))
    assert make(dataset) == make(dataset) and make(dataset).key == make(dataset).key == make(elsewhere).key
    assert len({make(dataset).key for make in OTHERS}) == len(OTHERS)


def test_a_cell_waits_for_its_pretraining(dataset):
    first = pretraining(dataset)
    assert cell(dataset, pretraining=first).requires == (first,)
    assert cell(dataset).requires == () and first.requires == ()


def test_a_job_runs_once(full):
    job = trial(full)
    assert job.record() is None
    first, again = run(job), run(trial(full))
    assert first["state"] == DONE and first["error"] > 0
    assert again["started"] == first["started"] and again["finished"] == first["finished"]
    assert {**first, "job": job.about()} == job.record()
    assert again == {**job.record(), "seconds": 0.0}, "a second run costs nothing"
    assert first["seconds"] == pytest.approx(first["finished"] - first["started"], abs=1e-3) and first["seconds"] > 0


def test_a_result_is_a_function_of_the_jobs_name(full, changed):
    """It is the same again in another store."""
    same = changed()
    for make in (trial, cell):
        first, second = run(make(full)), run(make(same))
        assert first["error"] == second["error"]


def test_only_one_of_several_workers_announces(full):
    job = trial(full)
    execute(job, CPU, lambda fraction, loss: None, announce=False)
    assert job.record() is None


@dataclass(frozen=True, kw_only=True)
class Failing(Job):
    """Raises, until there is nothing left to raise."""

    kind = "failing"
    title = "fail"
    errors: list = field(default_factory=list, compare=False)

    def about(self):
        return {}

    def compute(self, device, report):
        if self.errors:
            raise self.errors.pop(0)
        return {}


def test_a_failed_job_is_recorded_with_its_reason_and_tried_again(dataset):
    job = Failing(dataset=dataset, errors=[OSError("the disk is full")])
    record = run(job)
    assert (record["state"], record["reason"]) == (FAILED, "OSError: the disk is full")
    assert job.last_record()["reason"] == record["reason"] and job.record() is None
    assert run(job)["state"] == DONE and job.record()["state"] == DONE


def test_a_job_that_fails_is_tried_a_few_times_and_then_no_more(dataset):
    job = Failing(dataset=dataset, errors=[OSError(f"disk {i} is full") for i in range(ATTEMPTS + 1)])
    for attempt in range(1, ATTEMPTS + 1):
        assert run(job)["attempts"] == job.last_record()["attempts"] == attempt
        assert (job.record() is not None) == (attempt == ATTEMPTS)
    assert run(job)["reason"] == f"OSError: disk {ATTEMPTS - 1} is full" and len(job.errors) == 1


def test_a_storage_that_fails_says_nothing_about_the_job(dataset):
    job = Failing(dataset=dataset, errors=[StoreError("no space left on device")])
    with pytest.raises(StoreError, match="no space"):
        run(job)
    assert job.last_record() is None and run(job)["state"] == DONE


def test_a_damaged_record_is_kept_aside_and_its_job_is_run_again(dataset):
    job = Failing(dataset=dataset)
    run(job)
    whole = dataset.store.read(job.record_name)
    dataset.store.write(job.record_name, whole.replace(b"done", b"gone"))
    record = run(job)
    assert record["state"] == DONE and len(record["remade"]) == 1
    line = record["remade"][0]
    assert job.record_name in line and "checksum" in line and "made again" in line and "\n" not in line
    (aside,) = Path(dataset.store.path("aside/damaged")).rglob("*.json")
    assert aside.read_bytes() == whole.replace(b"done", b"gone")
    assert run(job)["remade"] == [], "damage is told once"


def test_a_reason_is_one_line_without_secrets(dataset):
    job = Failing(dataset=dataset, errors=[OSError("lost\nhttps://me:hunter22@host/runs")])
    assert run(job)["reason"] == "OSError: lost https://me:***@host/runs"


def test_a_diverged_job_is_an_end(dataset):
    job = Failing(dataset=dataset, errors=[Diverged("the loss became nan")])
    first, again = run(job), run(job)
    assert (first["state"], first["reason"]) == (DIVERGED, "the loss became nan")
    assert again["started"] == first["started"] and "error" not in again


def test_a_learning_rate_without_sense_diverges(full):
    record = run(cell(full, configuration=replace(FINETUNING, learning_rate=1e15)))
    assert record["state"] == DIVERGED and "a smaller learning rate may help" in record["reason"]


def test_an_interrupt_is_no_failure(dataset):
    job = Failing(dataset=dataset, errors=[KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        run(job)
    assert job.last_record() is None


def poison(rows_from):
    """NaN in the inputs and labels of all samples from ``rows_from``."""

    def change(rows, inputs, labels):
        inputs[rows >= rows_from] = np.nan
        labels[rows >= rows_from] = np.nan

    return change


@pytest.mark.parametrize("make", [trial, cell])
def test_a_budget_sees_exactly_its_own_labels(make, full, changed):
    """No other: they may be NaN. All of them: the last one counts."""
    expected = run(make(full))["error"]
    poisoned = changed(target=poison(BUDGET))
    assert run(make(poisoned))["error"] == expected
    assert run(make(poisoned, budget=BUDGET + 1))["state"] == DIVERGED


@pytest.mark.parametrize("make", [trial, cell])
def test_the_last_label_of_a_budget_counts(make, full, changed):
    def double(rows, inputs, labels):
        labels[rows == BUDGET - 1] *= 2

    assert run(make(changed(target=double)))["error"] != run(make(full))["error"]


def test_a_trial_runs_where_there_is_no_test_split(dataset):
    write(dataset, TARGET)
    assert run(trial(dataset))["state"] == DONE
    with pytest.raises(StoreError, match=r"test-00000.parquet is no longer in"):
        run(cell(dataset))


def test_a_cell_only_measures_with_the_test_split(full, changed):
    """Other test labels and inputs change the errors of their own samples, and of no others."""

    def alter(rows, inputs, labels):
        labels[rows >= 40] *= 3
        inputs[rows >= 70] *= 0.5

    plain, altered = (np.array(run(cell(d))["sample_errors"]) for d in (full, changed(test=alter)))
    assert len(plain) == 80
    assert np.array_equal(plain[:40], altered[:40]) and np.all(plain[40:] != altered[40:])


def test_a_cell_reads_no_more_of_the_test_split_than_it_says(full, changed):
    assert run(cell(full))["error"] == run(cell(changed(test=poison(80))))["error"]


def test_a_pretraining_sees_no_target_label_and_no_test_sample(full, changed):
    run(pretraining(full))
    poisoned = changed(target=poison(0), test=poison(0), surrogate=poison(60))
    run(pretraining(poisoned))
    first, second = pretraining(full).weights(), pretraining(poisoned).weights()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_pretrainings_weights_are_kept(full):
    job = pretraining(full)
    assert run(job)["state"] == DONE and full.store.exists(artefact(job))
    unlabelled, surrogate = full.read(UNLABELLED, 70).inputs, full.read(SURROGATE, 60)
    expected, kept = pretrain(full.problem, unlabelled, surrogate, PRETRAINING), job.weights()
    assert expected.keys() == kept.keys() and all(torch.equal(expected[name], kept[name]) for name in kept)


def flip(data):
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: None], ids=["bit", "cut", "gone"])
def test_damaged_weights_are_found_kept_aside_and_made_again(damage, full):
    """Also by a worker that has used them before."""
    job = pretraining(full)
    first = run(job)
    kept, name = job.weights(), artefact(job)
    data = damage(full.store.read(name))
    if data is None:
        full.store.remove(name)
    else:
        full.store.write(name, data)
    again = run(job)
    assert again["state"] == DONE and again["weights"] == first["weights"] and again["started"] > first["started"]
    assert len(again["remade"]) == 1 and name in again["remade"][0] and "pretraining is repeated" in again["remade"][0]
    assert job.last_record()["remade"] == again["remade"]
    assert all(torch.equal(kept[n], job.weights()[n]) for n in kept) and full.store.exists(name)
    aside = list(Path(full.store.path("aside/damaged")).rglob("*.safetensors"))
    assert [path.read_bytes() for path in aside] == ([data] if data else [])
    assert run(job)["started"] == again["started"]


def test_weights_of_another_architecture_are_one_clear_line(full):
    """Under a digest that is right: the file is whole, only not what the record should name."""
    job, other = pretraining(full), replace(PRETRAINING, architecture=replace(ARCHITECTURE, projection=5))
    wider = pretraining(full, configuration=other)
    run(job), run(wider)
    full.store.write_record(job.record_name, {**job.last_record(), "weights": wider.last_record()["weights"]})
    record = run(cell(full, pretraining=job))
    assert record["state"] == FAILED and "ValueError: the weights are of another architecture" in record["reason"]
    assert "size mismatch" in record["reason"] and "\n" not in record["reason"]


def test_what_is_no_safetensors_under_its_right_digest_fails_with_a_reason(full):
    job = pretraining(full)
    run(job)
    digest = hashlib.sha256(b"pickle").hexdigest()
    full.store.write(f"artefacts/{digest}.safetensors", b"pickle")
    full.store.write_record(job.record_name, {**job.last_record(), "weights": digest})
    record = run(cell(full, pretraining=job))
    assert record["state"] == FAILED and "Safetensor" in record["reason"]


def test_a_cell_starts_from_its_pretraining(full):
    first, other = pretraining(full), pretraining(full, configuration=replace(PRETRAINING, seed=1))
    for job in (first, other):
        run(job)
    errors = [run(cell(full, pretraining=job))["error"] for job in (None, first, other)]
    assert len(set(errors)) == 3


def test_a_cell_without_its_pretraining_fails(full):
    record = run(cell(full, pretraining=pretraining(full)))
    assert record["state"] == FAILED and pretraining(full).record_name in record["reason"]


def test_a_cells_error_is_that_of_its_network_on_the_test_split(full):
    job = cell(full)
    errors = job._finetune(full.read(TARGET, BUDGET), CPU, lambda fraction, loss: None).errors(full.read(TEST, 80))
    record = run(job)
    assert record["error"] == pytest.approx(errors.mean().item(), rel=1e-6)
    assert record["sample_errors"] == pytest.approx(errors.tolist(), rel=1e-5)


@dataclass(frozen=True)
class Watched(Moments):
    """Moments that note, in order, the labels that are fitted and those that a prediction is compared with."""

    events: list = field(default_factory=list, compare=False)

    def label_loss(self, prediction, label):
        self.events.append(("fitted", set(label[:, 0].tolist())))
        return super().label_loss(prediction, label)

    def error(self, prediction, label):
        self.events.append(("measured", set(label[:, 0].tolist())))
        return super().error(prediction, label)


def test_a_trial_measures_each_label_once_with_a_network_that_did_not_fit_it(tmp_path):
    dataset = Dataset(Watched(), 1, Store(str(tmp_path)))
    write(dataset, TARGET)
    assert run(trial(dataset))["state"] == DONE
    budget = set(dataset.read(TARGET, BUDGET).labels[:, 0].tolist())
    fitted, measured = set(), []
    for event, labels in dataset.problem.events:
        if event == "fitted":
            fitted |= labels
            continue
        assert fitted | labels == budget and not fitted & labels
        fitted, measured = set(), [*measured, *labels]
    assert len(measured) == BUDGET and set(measured) == budget


def test_a_pretraining_that_was_lost_is_gone_on_with(full, monkeypatch):
    """And its checkpoint is forgotten when it is done; one that is damaged counts as none."""
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    job = pretraining(full, configuration=replace(PRETRAINING, epochs=3))
    name = f"checkpoints/{job.key}"

    def lost(fraction, loss):
        if fraction > 0.5:
            raise KeyboardInterrupt

    def seen():
        reports = []
        return reports, execute(job, CPU, lambda fraction, loss: reports.append(round(3 * fraction)))

    for damage, left in ((bytes, [3]), (lambda state: state[:-1] + b"?", [1, 2, 3])):
        with pytest.raises(KeyboardInterrupt):
            execute(job, CPU, lost)
        full.store.write(name, damage(full.store.read(name)))
        reports, record = seen()
        assert reports == left and record["state"] == DONE and not full.store.exists(name)
        weights = record["weights"]
        full.store.remove(job.record_name)
    assert weights == seen()[1]["weights"]


@dataclass(frozen=True)
class Estimated(Moments):
    """Moments with an estimate that is a little off, as long as it is not told to be asked for no more."""

    name = "estimated"
    ASKED: ClassVar[list[int]] = []
    SILENT: ClassVar[list[bool]] = []

    def estimate(self, inputs):
        assert not self.SILENT, "it was asked although its estimates are stored"
        self.ASKED.append(len(inputs))
        return self.solve(inputs) * np.float32(0.9)


@pytest.mark.parametrize("make", [trial, cell])
def test_estimates_are_read_where_they_are_stored(make, tmp_path):
    errors = []
    for stored in (False, True):
        data = Dataset(Estimated(), 1, Store(str(tmp_path / str(stored))))
        for role in (TARGET, TEST):
            write(data, role)
            shards = data.missing_estimates({role: 2 * SHARD})
            assert len(shards) == 2
            for shard in shards if stored else ():
                data.write_estimates(
                    role, shard.index, data.problem.estimate(data.read_shard(role, shard.index).inputs.numpy())
                )
            assert len(data.missing_estimates({role: 2 * SHARD})) == 2 * (not stored)
        if not stored:
            for role in (TARGET, TEST):
                for index in (0, 1):
                    inputs = data.read_shard(role, index).inputs.numpy()
                    data.write_estimates(role, index, data.problem.solve(inputs) * np.float32(0.8))
        Estimated.SILENT.append(True)
        try:
            record = run(make(data, configuration=replace(FINETUNING, delta=True)))
        finally:
            Estimated.SILENT.clear()
        assert record["state"] == DONE, record["reason"]
        errors.append(record["error"])
    assert errors[0] != errors[1], "they are those that are stored"


def test_damaged_estimates_are_set_aside_to_be_made_again(tmp_path):
    data = Dataset(Estimated(), 1, Store(str(tmp_path)))
    write(data, TARGET)
    for index in (0, 1):
        data.write_estimates(TARGET, index, data.problem.estimate(data.read_shard(TARGET, index).inputs.numpy()))
    name = data.estimate_name(TARGET, 1)
    data.store.write(name, data.store.read(name)[:-3] + b"xyz")
    with pytest.raises(StoreError, match=r"estimates are not what was written.* to be made again"):
        data.read(TARGET, 2 * SHARD, estimated=True)
    assert [shard.index for shard in data.missing_estimates({TARGET: 2 * SHARD})] == [1]
