"""Shards say what they are and are what they say; budgets are nested and folds partition them."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy import Moments

from sibcl_ray.data.dataset import (
    ROLES,
    SHARD,
    SURROGATE,
    TARGET,
    TEST,
    UNLABELLED,
    Dataset,
    Shard,
    folds,
)
from sibcl_ray.storage.store import Damaged, Store, StoreError


def make(dataset, role, index):
    """Draw, solve and write one shard; its bytes."""
    problem, rng = dataset.problem, dataset.rng(role, index)
    sample = (problem.sample_surrogate if role.surrogate else problem.sample)(SHARD, rng)
    dataset.write(role, index, sample, problem.solve(sample.inputs) if role.labelled else None)
    return dataset.store.read(dataset.shard_name(role, index))


@pytest.fixture
def dataset(tmp_path):
    return Dataset(Moments(), 3, Store(str(tmp_path / "store")))


def metadata(data):
    return json.loads(pq.read_schema(io.BytesIO(data)).metadata[b"sibcl_ray"])


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_the_bytes_of_a_shard_are_a_function_of_its_name(role, dataset, tmp_path):
    """Whatever was made before it, and wherever."""
    first = make(dataset, role, 2)
    elsewhere = replace(dataset, store=Store(str(tmp_path / "elsewhere")))
    for index in (0, 2, 1):
        again = make(elsewhere, role, index)
        assert (again == first) == (index == 2)


def test_another_process_makes_the_same_bytes(dataset):
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_dataset import TARGET, Dataset, Moments, Store, make
sys.stdout.buffer.write(make(Dataset(Moments(), 3, Store("memory://there")), TARGET, 1))
"""
    other = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60).stdout
    assert other == make(dataset, TARGET, 1)


def test_no_two_shards_share_an_input(dataset):
    """Of any seed, role and index: above all, the test split and the pool of labels are disjoint."""
    shards = {}
    for seed in (3, 4):
        source = replace(dataset, seed=seed)
        for role in ROLES:
            for index in (0, 1):
                make(source, role, index)
                shards[seed, role.name, index] = source.read_shard(role, index).inputs
    rows = {name: {row.numpy().tobytes() for row in inputs} for name, inputs in shards.items()}
    assert len(rows) == 16 and all(len(row) == SHARD for row in rows.values())
    assert all(a.isdisjoint(b) for a, b in combinations(rows.values(), 2))


def test_what_is_read_is_what_was_drawn_and_solved(dataset):
    for role in ROLES:
        make(dataset, role, 0)
        split = dataset.read_shard(role, 0)
        assert split.inputs.shape == (SHARD, 8, 8) and split.inputs.dtype == torch.float32
        if not role.labelled:
            assert split.labels is None
            continue
        assert split.labels.dtype == torch.float32
        assert np.array_equal(split.labels.numpy(), dataset.problem.solve(split.inputs.numpy()))


def test_budgets_are_nested(dataset):
    for index in range(3):
        make(dataset, TARGET, index)
    largest = dataset.read(TARGET, 130)
    for budget in (1, 25, 50, 51, 100):
        split = dataset.read(TARGET, budget)
        assert len(split.inputs) == len(split.labels) == budget
        assert torch.equal(split.inputs, largest.inputs[:budget])
        assert torch.equal(split.labels, largest.labels[:budget])


def test_a_budget_needs_only_its_own_shards(dataset):
    make(dataset, TARGET, 0)
    assert len(dataset.read(TARGET, SHARD).inputs) == SHARD
    with pytest.raises(StoreError, match="no longer"):
        dataset.read(TARGET, SHARD + 1)


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (SHARD, 1), (SHARD + 1, 2), (10 * SHARD, 10), (0, 0)])
def test_shards_hold_a_count(count, shards, dataset):
    assert all(dataset.shards_for(role, count) == shards for role in ROLES)


def test_metadata_say_what_the_numbers_are(dataset):
    about = metadata(make(dataset, TARGET, 1))
    assert len(about.pop("sha256")) == 64
    assert about == {
        "fingerprint": dataset.line(TARGET).fingerprint,
        "version": dataset.line(TARGET).version,
        "role": "target",
        "shard": 1,
        "seed": 3,
        "problem": "Moments()",
        "shapes": {"input": [8, 8], "label": [2], "scale": []},
        "units": {"input": "none", "label": "none"},
        "parameters": ["scale"],
        "redrawn": [],
    }
    assert "label" not in metadata(make(dataset, UNLABELLED, 1))["shapes"]


def test_the_generators_parameters_are_kept(dataset):
    table = pq.read_table(io.BytesIO(make(dataset, TARGET, 0)))
    sample = dataset.problem.sample(SHARD, dataset.rng(TARGET, 0))
    assert np.array_equal(table["scale"].to_numpy(), sample.parameters["scale"])


@dataclass(frozen=True)
class Mean(Moments):
    """A problem whose label is one number without an axis, and whose generator has complex parameters."""

    @property
    def label_shape(self):
        return ()

    def sample(self, count, rng):
        sample = super().sample(count, rng)
        wave = np.arange(4 * count).reshape(count, 2, 2) * (1 + 2j)
        return replace(sample, parameters={"wave": wave})

    def solve(self, inputs):
        return inputs.mean((1, 2))


def test_numbers_of_any_shape_come_back(tmp_path):
    dataset = Dataset(Mean(), 0, Store(str(tmp_path)))
    data = make(dataset, TARGET, 0)
    split = dataset.read_shard(TARGET, 0)
    assert split.labels.shape == (SHARD,)
    assert np.array_equal(split.labels.numpy(), split.inputs.numpy().mean((1, 2)))
    wave = np.stack(pq.read_table(io.BytesIO(data))["wave"].to_numpy()).reshape(SHARD, 2, 2, 2)
    assert np.array_equal(wave[..., 1], 2 * wave[..., 0])


@dataclass(frozen=True)
class Newer(Moments):
    version = 2


@dataclass(frozen=True)
class Sized(Moments):
    size: int = 1


def test_data_are_named_by_the_problem_its_fields_its_version_and_the_seed(dataset):
    others = [
        replace(dataset, seed=4),
        replace(dataset, problem=Newer()),
        replace(dataset, problem=Sized()),
        replace(dataset, problem=Sized(2)),
    ]
    names = {d.named(TARGET) for d in (dataset, *others)}
    assert len(names) == 5
    assert replace(dataset, store=Store("memory://elsewhere")).named(TARGET) == dataset.named(TARGET)


def test_damage_anywhere_is_found(dataset):
    """Every byte in turn is changed: what is still read is what was written."""
    data = make(dataset, TARGET, 0)
    name = dataset.shard_name(TARGET, 0)
    intact = dataset.read_shard(TARGET, 0)
    footer = len(data) - int.from_bytes(data[-8:-4], "little") - 8
    found = 0
    positions = [*range(0, footer, 41), *range(footer, len(data), 13)]
    for position in positions:
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        dataset.store.write(name, bytes(damaged))
        try:
            split = dataset.read_shard(TARGET, 0)
        except Damaged as error:
            assert name in str(error) and "\n" not in str(error)
            found += 1
        else:
            assert torch.equal(split.inputs, intact.inputs) and torch.equal(split.labels, intact.labels)
    assert found > 0.8 * len(positions)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_shard_is_damaged(kept, dataset):
    data = make(dataset, TARGET, 0)
    dataset.store.write(dataset.shard_name(TARGET, 0), data[: int(kept * len(data))])
    with pytest.raises(Damaged, match="cannot be read"):
        dataset.read_shard(TARGET, 0)


@pytest.mark.parametrize("lost", ["fingerprint", "role", "shard", "shapes"])
def test_lost_metadata_are_damage(lost, dataset):
    """They lie in the part of the file that has no checksum."""
    data = make(dataset, TARGET, 0)
    about = {name: value for name, value in metadata(data).items() if name != lost}
    table = pq.read_table(io.BytesIO(data)).replace_schema_metadata({"sibcl_ray": json.dumps(about)})
    pq.write_table(table, dataset.store.path(dataset.shard_name(TARGET, 0)))
    with pytest.raises(Damaged, match=lost):
        dataset.read_shard(TARGET, 0)


@pytest.mark.parametrize(
    ("seed", "role", "index"),
    [(4, TARGET, 0), (3, TEST, 0), (3, TARGET, 1), (3, SURROGATE, 0)],
    ids=["seed", "test", "index", "surrogate"],
)
def test_a_shard_under_anothers_name_is_damaged(seed, role, index, dataset):
    other = replace(dataset, seed=seed)
    make(other, role, index)
    own = Path(dataset.store.path(dataset.shard_name(TARGET, 0)))
    own.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(dataset.store.path(other.shard_name(role, index)), own)
    with pytest.raises(Damaged, match="is not what was written there") as damage:
        dataset.read_shard(TARGET, 0)
    assert str((other.line(role).fingerprint, role.name, index)) in str(damage.value)


@pytest.mark.parametrize("change", ["input", "label", "units", "redrawn"])
def test_whatever_is_changed_with_all_checksums_of_parquet_renewed_is_damage(change, dataset):
    """As by a program that rewrites the file: the shard has a checksum of its own."""
    data = make(dataset, TARGET, 0)
    table, about = pq.read_table(io.BytesIO(data)), metadata(data)
    if change in table.column_names:
        values = table[change].combine_chunks()
        flat = values.flatten().to_numpy().copy()
        flat[7] = np.nextafter(flat[7], np.float32(2))
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat), values.type.list_size)
        table = table.set_column(table.column_names.index(change), change, column)
    else:
        about[change] = {"units": {"input": "metre", "label": "none"}, "redrawn": ["never"]}[change]
    pq.write_table(
        table.replace_schema_metadata({"sibcl_ray": json.dumps(about)}),
        dataset.store.path(dataset.shard_name(TARGET, 0)),
    )
    with pytest.raises(Damaged, match="is not what was written there"):
        dataset.read_shard(TARGET, 0)


def test_what_is_missing_is_what_is_absent_or_damaged_and_damage_is_kept(dataset):
    for role, index in ((TARGET, 0), (TARGET, 1), (TEST, 0)):
        make(dataset, role, index)
    name = dataset.shard_name(TARGET, 1)
    dataset.store.write(name, b"PAR1 and then nothing")
    said: list[str] = []
    missing = dataset.missing({TARGET: 3 * SHARD, TEST: 20}, said.append)
    assert missing == [Shard(TARGET, 1), Shard(TARGET, 2)]
    assert len(said) == 1 and name in said[0] and "\n" not in said[0]
    (aside,) = Path(dataset.store.path("aside/damaged")).rglob("*.parquet")
    assert aside.read_bytes() == b"PAR1 and then nothing" and str(aside).endswith(name)
    assert not dataset.store.exists(name)


def test_an_absent_shard_is_not_a_damaged_one(dataset):
    with pytest.raises(FileNotFoundError):
        dataset.read_shard(TARGET, 0)


@pytest.mark.parametrize(("count", "number"), [(25, 3), (50, 5), (7, 7), (100, 2)])
def test_folds_partition_a_budget(count, number):
    pairs = folds(count, number, seed=1)
    assert sorted(torch.cat([held_out for _, held_out in pairs]).tolist()) == list(range(count))
    for fit, held_out in pairs:
        assert sorted([*fit.tolist(), *held_out.tolist()]) == list(range(count))
        assert count // number <= len(held_out) <= -(-count // number)


def test_folds_are_a_function_of_their_seed():
    first, again, other = (folds(30, 3, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


@dataclass(frozen=True)
class ByOne(Moments):
    """Moments whose labels are a task each."""

    labels_per_task = 1


def test_how_long_labels_took_is_kept_beside_them_and_is_no_part_of_them(tmp_path):
    dataset = Dataset(ByOne(), 0, Store(str(tmp_path)))
    sizes = {TARGET: 3, SURROGATE: SHARD}
    assert dataset.label_seconds() is None and dataset.label_seconds(surrogate=True) is None
    for shard in dataset.missing(sizes):
        count = dataset.size(shard.role)
        sample = dataset.problem.sample(count, dataset.rng(shard.role, shard.index))
        dataset.write(shard.role, shard.index, sample, dataset.problem.solve(sample.inputs))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    for index, seconds in enumerate((10.0, 20.0, 60.0)):
        dataset.record_seconds(TARGET, index, seconds)
    dataset.record_seconds(TEST, 0, 30.0)  # by the same solver
    dataset.record_seconds(SURROGATE, 0, 5.0)
    assert dataset.label_seconds() == pytest.approx(30.0)
    assert dataset.label_seconds(surrogate=True) == pytest.approx(5.0 / SHARD)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == before
    assert dataset.missing(sizes) == [] and len(dataset.missing({**sizes, TEST: 1})) == 1
    damaged = next(tmp_path.rglob("target-00002.seconds"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert dataset.label_seconds() == pytest.approx(20.0), "of those that can be read"


def test_few_of_many_records_are_read(tmp_path, monkeypatch):
    dataset = Dataset(ByOne(), 0, Store(str(tmp_path)))
    for index in range(90):
        dataset.record_seconds(TARGET, index, float(index))
    read, asked = Store.read_records, []
    monkeypatch.setattr(Store, "read_records", lambda self, names: asked.extend(names) or read(self, names))
    assert dataset.label_seconds() == pytest.approx(44.5, abs=3) and len(asked) <= 20
