"""Shards made on a real Ray cluster: the same bytes whoever makes them, only those missing, damage mended."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toy import Fragile, Moments

from sibcl_ray.cluster.generate import generate
from sibcl_ray.data.dataset import ROLES, SHARD, SURROGATE, TARGET, TEST, UNLABELLED, Dataset, Shard
from sibcl_ray.data.shards import make_shard
from sibcl_ray.data.versions import LabelsChanged
from sibcl_ray.problems.problem import SolverFailed
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import Store

SIZES = {TARGET: 120, TEST: 50, SURROGATE: 60, UNLABELLED: 10}
SHARDS = {TARGET: 3, TEST: 1, SURROGATE: 2, UNLABELLED: 1}
ONE = {TARGET: SHARD}


class Newer(Moments):
    """Of which the methods give something else."""

    version = 2


def a_dataset(folder: Path, problem: Moments | None = None) -> Dataset:
    return Dataset(problem or Moments(), 7, Store(str(folder)))


def contents(dataset: Dataset) -> dict[str, bytes]:
    names = (dataset.shard_name(shard.role, shard.index) for shard in dataset.stored())
    return {name: dataset.store.read(name) for name in names}


def make(dataset: Dataset, sizes: dict, warn=print) -> list[Shard]:
    """What a driver does; returns what it made."""
    with Session(dataset.store) as session:
        return list(generate(dataset, dataset.missing(sizes), session.claims, warn))


@pytest.fixture
def made(cluster, tmp_path):
    dataset = a_dataset(tmp_path / "ray")
    make(dataset, SIZES)
    return dataset


def test_workers_change_no_byte(made, tmp_path):
    alone = a_dataset(tmp_path / "alone")
    for shard in reversed(alone.missing(SIZES)):  # in another order, in this process
        make_shard(alone, shard)
    assert contents(alone) == contents(made)
    assert len(contents(made)) == sum(SHARDS.values())


def test_nothing_is_made_twice_and_more_is_only_more(made):
    before = contents(made)
    assert made.missing(SIZES) == []
    assert make(made, {**SIZES, TARGET: 160}) == [Shard(TARGET, 3)]
    assert before.items() <= contents(made).items()


def test_a_damaged_shard_is_named_and_made_again(made):
    name = made.shard_name(TARGET, 1)
    whole = made.store.read(name)
    made.store.write(name, whole[: len(whole) // 2])
    said: list[str] = []
    assert made.missing(SIZES, said.append) == [Shard(TARGET, 1)]
    assert len(said) == 1 and name in said[0] and "made again" in said[0] and "\n" not in said[0]
    make(made, SIZES)
    assert made.store.read(name) == whole


def test_labels_of_other_code_are_asked_about(made):
    newer = a_dataset(Path(made.store.uri), Newer())
    with pytest.raises(LabelsChanged, match=r"changed since 200 target and test labels .* --labels keep"):
        make(newer, {**ONE, UNLABELLED: 10})
    newer.settle([TARGET], "keep")
    assert make(newer, ONE) == []


def test_roles_share_no_input(made):
    rows = [tuple(x.flatten().tolist()) for role in ROLES for x in made.read(role, SIZES[role]).inputs]
    assert len(set(rows)) == len(rows)


def test_two_drivers_make_every_shard_once_between_them(cluster, tmp_path):
    dataset = a_dataset(tmp_path)
    yields: list[Shard] = []
    drivers = [threading.Thread(target=lambda: yields.extend(make(dataset, SIZES))) for _ in range(2)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert len(contents(dataset)) == sum(SHARDS.values())
    assert set(Counter(yields)) == set(a_dataset(tmp_path / "none").missing(SIZES))
    assert not [path for path in (tmp_path / "claims").rglob("*") if path.is_file()]


@pytest.mark.parametrize("worse", ["raises", "returns NaN"])
def test_an_input_that_the_solver_fails_on_is_drawn_anew_and_said(worse, cluster, tmp_path):
    dataset, said = a_dataset(tmp_path, Fragile(worse=worse)), []
    make(dataset, ONE, said.append)
    split, undisturbed = dataset.read(TARGET, SHARD), Moments().sample(SHARD, dataset.rng(TARGET, 0)).inputs
    kept = Moments().solve(undisturbed)[:, 0] <= Fragile.above
    assert 0 < (~kept).sum() < SHARD // 2
    np.testing.assert_array_equal(split.inputs[kept], undisturbed[kept])
    np.testing.assert_allclose(split.labels, Moments().solve(split.inputs.numpy()), rtol=1e-6)
    assert float(split.labels[:, 0].max()) <= Fragile.above
    assert len(said) == 1 and "drawn anew" in said[0] and "\n" not in said[0]


@pytest.mark.parametrize(
    ("problem", "expected"),
    [
        (Fragile(above=0.0), "ArithmeticError: no convergence"),
        (Fragile(above=0.0, worse="returns NaN"), "not finite"),
        (Fragile(above=0.0, worse="dies"), "takes its process down"),
    ],
    ids=lambda value: getattr(value, "worse", ""),
)
def test_a_solver_that_always_fails_ends_the_study_with_its_reason(problem, expected, cluster, tmp_path):
    dataset = a_dataset(tmp_path, problem)
    with pytest.raises(SolverFailed, match=expected) as error:
        make(dataset, ONE)
    assert "\n" not in str(error.value)
    assert not dataset.store.names("datasets")
