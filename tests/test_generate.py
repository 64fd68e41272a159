"""Shards made on a real Ray cluster: the same bytes whoever makes them, only those missing, damage mended."""

from pathlib import Path

import pytest
from toy import Moments

from sibcl_ray.dataset import ROLES, SURROGATE, TARGET, TEST, UNLABELLED, Dataset
from sibcl_ray.generate import generate, make_shard, missing_shards
from sibcl_ray.store import Store

SIZES = {TARGET: 120, TEST: 50, SURROGATE: 60, UNLABELLED: 10}
SHARDS = {TARGET: 3, TEST: 1, SURROGATE: 2, UNLABELLED: 1}


def a_dataset(folder: Path) -> Dataset:
    return Dataset(Moments(), 7, Store(str(folder)))


def contents(dataset: Dataset) -> dict[str, bytes]:
    folder = dataset.shard_name(TARGET, 0).rsplit("/", 1)[0]
    return {name: dataset.store.read(name) for name in dataset.store.names(folder)}


@pytest.fixture
def made(cluster, tmp_path):
    dataset = a_dataset(tmp_path / "ray")
    list(generate(dataset, missing_shards(dataset, SIZES)))
    return dataset


def test_workers_change_no_byte(made, tmp_path):
    alone = a_dataset(tmp_path / "alone")
    for shard in reversed(missing_shards(alone, SIZES)):  # in another order, in this process
        make_shard(alone, shard)
    assert contents(alone) == contents(made)
    assert len(contents(made)) == sum(SHARDS.values())


def test_nothing_is_made_twice_and_more_is_only_more(made):
    before = contents(made)
    assert missing_shards(made, SIZES) == []
    more = missing_shards(made, {**SIZES, TARGET: 160})
    assert [(s.role, s.index) for s in more] == [(TARGET, 3)]
    list(generate(made, more))
    assert before.items() <= contents(made).items()


def test_a_damaged_shard_is_named_and_made_again(made):
    name = made.shard_name(TARGET, 1)
    whole = made.store.read(name)
    made.store.write(name, whole[: len(whole) // 2])
    said: list[str] = []
    damaged = missing_shards(made, SIZES, warn=said.append)
    assert [(s.role, s.index) for s in damaged] == [(TARGET, 1)]
    assert len(said) == 1 and name in said[0] and "made again" in said[0] and "\n" not in said[0]
    list(generate(made, damaged))
    assert made.store.read(name) == whole


def test_roles_share_no_input(made):
    rows = [tuple(x.flatten().tolist()) for role in ROLES for x in made.read(role, SIZES[role]).inputs]
    assert len(set(rows)) == len(rows)
