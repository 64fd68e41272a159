"""A folder of arrays is a problem: the same in every kind of file, and split without leaks."""

import pickle
import subprocess
import sys
import tomllib
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from folders import (
    ALL,
    OWN_TEST,
    SURROGATE,
    TARGET_ONLY,
    UNLABELLED_TOO,
    WRITERS,
    arrays,
    chunked_hdf5,
    few,
    fill,
    hdf5,
    labels_of,
    npz,
    of_kind,
    packed_npz,
)
from hypothesis import given
from hypothesis import strategies as st
from toy import ARCHITECTURE

from sibcl_ray.data.dataset import SHARD, TARGET, UNLABELLED, Dataset, Split
from sibcl_ray.learning.training import Finetuning, finetune
from sibcl_ray.problems import tabulated
from sibcl_ray.problems.tabulated import BadData, declaration, load, statistics, tables
from sibcl_ray.problems.tabulated.declaration import LOSSES, METRICS
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Store
from sibcl_ray.symmetry import EachChannel, PointGroup, Translations
from sibcl_ray.symmetry.orbits import Orbits


@pytest.fixture
def problem(tmp_path):
    return load(fill(tmp_path))


def samples(problem, role, seed, index, size):
    """A part of a role's samples, and their labels."""
    ((_, sample, labels),) = problem.shards(role, seed, [index], size)
    return sample, labels


KINDS = [
    pytest.param(*writer, block, marks=[pytest.mark.thorough] * (block == 1 and place % 3 > 0))
    for place, writer in enumerate(WRITERS)
    for block in (1, 3000, 2**22)
]


@pytest.mark.parametrize(("suffix", "write", "block"), KINDS)
def test_the_kind_of_file_and_the_size_of_blocks_change_nothing(suffix, write, block, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", block)
    other = load(of_kind(tmp_path / "other", suffix, write))
    assert other == problem and fingerprint(other) == fingerprint(problem)
    for role in problem.available:
        for (_, a, labels), (_, b, expected) in zip(
            other.shards(role, 5, [1, 0], 20), problem.shards(role, 5, [1, 0], 20), strict=True
        ):
            assert np.array_equal(a.inputs, b.inputs) and np.array_equal(a.parameters["row"], b.parameters["row"])
            assert (labels is None and expected is None) or np.array_equal(labels, expected)


@pytest.mark.parametrize("kind", [("npz", npz), ("npz", packed_npz), ("h5", hdf5), ("hdf5", chunked_hdf5)])
def test_a_file_need_not_fit_in_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", 2**17)
    suffix, write = kind
    x = np.random.default_rng(0).normal(size=(4000, 16, 16))
    write(tmp_path / f"data.{suffix}", x=x, y=x[:, 0, 0])
    (tmp_path / "problem.toml").write_text(
        f'name = "big"\n[target]\nfile = "data.{suffix}"\ninputs = "x"\nlabels = "y"\ntest = 500\n'
    )
    tracemalloc.start()
    try:
        large = load(tmp_path)
        list(large.shards("target", 0, range(4), 50))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < x.nbytes / 4


# What names it


def test_the_reference_says_all_there_is_to_say():
    """The example in the module's text is read, and has every key of every table."""
    toml = tabulated.__doc__.split("::\n", 1)[1]
    said = tomllib.loads(toml.replace("# [test]", '[test]\nfile = "t.npz"\ninputs = "x"\nlabels = "y"\n#'))
    for table, model in declaration._TABLES.items():
        assert set(said[table]) >= set(model.model_fields), table
    declared = declaration.parse(toml.encode())
    assert declared.target.test == 200 and declared.parts["unlabelled"].file == "more.parquet"
    assert list(declared.groups((32, 32))) == ["translation", "point_group", "scaling"]
    assert declared.label.offset == "surrogate mean" and declared.input.shape == (32, 32)


def test_it_is_named_by_its_content_and_not_by_where_that_lies(problem, tmp_path):
    elsewhere = fill(tmp_path / "elsewhere", ALL.replace("data.npz", "renamed.npz"), "renamed.npz")
    assert load(elsewhere) == problem and repr(load(elsewhere)) == repr(problem)
    assert str(tmp_path) not in repr(problem) and "data.npz" not in repr(problem)
    assert hash(load(elsewhere)) == hash(problem)


@pytest.mark.parametrize("name", arrays())
def test_a_changed_number_is_another_problem(name, tmp_path):
    original = load(fill(tmp_path / "original", OWN_TEST))
    changed = arrays()[name].copy()
    changed.flat[-1] *= 1 + 1e-5
    assert fingerprint(load(fill(tmp_path, OWN_TEST, **{name: changed}))) != fingerprint(original)


CHANGES = {
    "name": ("moments", "moment"),
    "test": ("test = 30", "test = 31"),
    "symmetry": ("point_group = true", "point_group = false"),
    "metric": ("[label]", '[label]\nmetric = "absolute"'),
    "loss": ("[label]", '[label]\nloss = "squared"'),
    "surrogate loss": ("[label]", '[label]\nsurrogate_loss = "log_absolute"'),
    "label offset": ("[label]", "[label]\noffset = 1"),
    "label scale": ("[label]", "[label]\nscale = 2"),
    "input scale": ("[input]", "[input]\nscale = 2"),
    "units": ('"volt"\nperiodic', '"V"\nperiodic'),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_decides_a_result_names_it(change, problem, tmp_path):
    assert ALL.count(change[0]) == 1
    assert fingerprint(load(fill(tmp_path, ALL.replace(*change)))) != fingerprint(problem)


def test_it_needs_no_folder_to_be_learned(problem, tmp_path):
    """Another process that has never seen the folder gets the same numbers; only rows it cannot give."""
    (tmp_path / "data.npz").unlink()
    program = """
import pickle, sys, torch
problem = pickle.load(sys.stdin.buffer)
x, y = torch.arange(192.0).view(3, 8, 8), torch.arange(1.0, 7).view(3, 2)
try:
    list(problem.shards("target", 0, [0], 50))
except ValueError as error:
    assert "data.npz" in str(error), error
else:
    raise AssertionError("rows from nowhere")
out = [problem.features(x), problem.label_loss(y, 2 * y), problem.surrogate_loss(y, 2 * y), problem.error(y, 2 * y)]
assert list(problem.symmetries) == ["translation", "point_group"]
sys.stdout.buffer.write(pickle.dumps((problem, out)))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(problem), check=True, capture_output=True, timeout=60
    )
    there, numbers = pickle.loads(ran.stdout)
    x, y = torch.arange(192.0).view(3, 8, 8), torch.arange(1.0, 7).view(3, 2)
    here = [
        problem.features(x),
        problem.label_loss(y, 2 * y),
        problem.surrogate_loss(y, 2 * y),
        problem.error(y, 2 * y),
    ]
    assert there == problem and np.array_equal(there.offset, problem.offset)
    assert all(torch.equal(a, b) for a, b in zip(numbers, here, strict=True))
    with pytest.raises(BadData, match="load their folder"):
        samples(replace(problem), "target", 0, 0, 50)
    assert "source" not in {f.name for f in fields(problem)}


# The contract of a problem


def test_it_says_what_it_is(problem):
    assert (problem.name, problem.version) == ("moments", 1)
    assert problem.input_shape == (8, 8) and problem.label_shape == (2,)
    assert problem.input_units == problem.label_units == "volt"
    assert problem.symmetries == {"translation": Translations(8), "point_group": PointGroup(2)}
    assert np.array_equal(problem.offset, np.zeros(2, np.float32)) and problem.offset.dtype == np.float32
    for draws in (problem.sample, problem.sample_surrogate):
        with pytest.raises(BadData, match="can draw no others"):
            draws(2, np.random.default_rng(0))
    with pytest.raises(BadData, match="no solver"):
        problem.solve(np.ones((2, 8, 8)))


def test_features_are_standardised_by_inputs_without_labels(problem, tmp_path):
    assert "u" in arrays()
    features = problem.features(torch.from_numpy(arrays()["u"]).float())
    assert features.shape == (60, 1, 8, 8) and features.dtype == torch.float32
    assert abs(features.mean()) < 1e-5 and abs(features.std() - 1) < 1e-3
    alone = load(fill(tmp_path, TARGET_ONLY)).features(torch.from_numpy(arrays()["x"]).float())
    assert abs(alone.mean()) < 1e-5 and abs(alone.std() - 1) < 1e-3


def test_features_are_scaled_as_declared(tmp_path):
    declared = load(fill(tmp_path, ALL.replace("[input]", "[input]\noffset = 1\nscale = 19")))
    x = torch.rand(3, 8, 8) * 19 + 1
    assert torch.allclose(declared.features(x), ((x - 1) / 19).unsqueeze(1))


@pytest.mark.parametrize("where", ["first", "last"])
def test_channels_are_moved_alike_and_scaled_each_by_itself(where, tmp_path):
    channels = {name: np.stack([arrays()[name], 5 + 3 * arrays(1)[name]], 1) for name in ("x", "sx", "u")}
    stored = channels if where == "first" else {name: np.moveaxis(array, 1, -1) for name, array in channels.items()}
    toml = ALL.replace("[input]", f'[input]\nchannels = "{where}"')
    problem = load(fill(tmp_path, toml, **stored))
    assert problem.input_shape == (2, 8, 8)
    sample, _ = samples(problem, "surrogate", 0, 0, 70)
    x = torch.from_numpy(sample.inputs)
    assert np.array_equal(x, channels["sx"][sample.parameters["row"]].astype(np.float32))
    features = problem.features(x)
    assert features.shape == (70, 2, 8, 8)
    assert features.mean((0, 2, 3)).abs().max() < 0.2 and (features.std((0, 2, 3)) - 1).abs().max() < 0.2
    for name, group in problem.symmetries.items():
        plain = {"translation": Translations(8), "point_group": PointGroup(2)}[name]
        assert group == EachChannel(plain)
        g, h = (group.draw(x, torch.Generator().manual_seed(s)) for s in (1, 2))
        for channel in (0, 1):
            assert torch.equal(group.act(g, x)[:, channel], plain.act(g, x[:, channel]))
        assert torch.equal(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))
        assert torch.equal(group.act(group.inverse(g), group.act(g, x)), x)
        assert torch.equal(group.act(group.identity(x), x), x)


def test_scaling_has_the_declared_range(tmp_path):
    problem = load(fill(tmp_path, ALL.replace("point_group = true", "scaling = [1, 4.0]")))
    x = torch.from_numpy(samples(problem, "target", 0, 0, 50)[0].inputs)
    group = problem.symmetries["scaling"]
    moved = group.act(group.draw(x, torch.Generator().manual_seed(0)), x)
    assert moved.min() >= 1 and moved.max() <= 4 and not torch.equal(moved, x)


T, P = torch.tensor([[1.0, 3.0], [2.0, 2.0]]), torch.tensor([[2.0, 3.0], [1.0, 4.0]])
ERRORS = {
    "relative": [1 / 4, 3 / 4],
    "mean_relative": [1 / 2, 3 / 4],
    "absolute": [1 / 2, 3 / 2],
    "root_mean_square": [0.5**0.5, 2.5**0.5],
}


@pytest.mark.parametrize("metric", METRICS)
def test_errors_are_what_their_names_say(metric, tmp_path):
    toml = ALL.replace("[label]", f'[label]\nmetric = "{metric}"')
    one, ten = (load(fill(tmp_path / s, toml.replace("[label]", f"[label]\nscale = {s}"))) for s in ("1", "10"))
    assert torch.allclose(one.error(P, T), torch.tensor(ERRORS[metric]))
    assert torch.allclose(ten.error(P / 10, T / 10), one.error(P, T))  # in the label's own unit, whatever the scale
    assert torch.equal(one.error(T, T), torch.zeros(2))


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_declared(loss, tmp_path):
    problem = load(fill(tmp_path, ALL.replace("[label]", f'[label]\nsurrogate_loss = "{loss}"')))
    assert problem.surrogate_loss(P, T) == LOSSES[loss](P, T)
    assert problem.label_loss(P, T) == LOSSES["absolute"](P, T)
    both = load(fill(tmp_path, ALL.replace("[label]", f'[label]\nloss = "{loss}"')))
    assert both.surrogate_loss(P, T) == both.label_loss(P, T) == LOSSES[loss](P, T)


def test_labels_are_learned_less_their_offset_and_over_their_scale(tmp_path):
    toml = ALL.replace("[label]", '[label]\nscale = 0.5\noffset = "surrogate mean"')
    problem = load(fill(tmp_path, toml))
    assert np.allclose(problem.offset, arrays()["sy"].mean(0) / 0.5)
    sample, labels = samples(problem, "target", 1, 0, 50)
    assert labels.dtype == np.float32
    assert np.allclose(labels, arrays()["y"][sample.parameters["row"]] / 0.5)
    assert problem.label_units == "volt, divided by 0.5"
    number = load(fill(tmp_path, ALL.replace("[label]", "[label]\nscale = 0.5\noffset = 2")))
    assert np.array_equal(number.offset, [4, 4])


def test_one_number_a_row_is_a_label_of_one(tmp_path):
    problem = load(fill(tmp_path, TARGET_ONLY, y=arrays()["y"][:, 0]))
    labels = samples(problem, "target", 0, 0, 50)[1]
    assert problem.label_shape == (1,) and labels.shape == (50, 1) and problem.offset.shape == (1,)


@pytest.mark.parametrize(("dtype", "scale"), [("f2", 1), ("f4", 1), ("i2", 100), ("u1", 50), ("i8", 1000), (">u4", 9)])
def test_numbers_of_any_real_type_are_read(dtype, scale, tmp_path):
    x = (arrays()["x"] * scale).astype(dtype)
    problem = load(fill(tmp_path, TARGET_ONLY, x=x))
    sample, _ = samples(problem, "target", 0, 0, 100)
    assert sample.inputs.dtype == np.float32
    assert np.array_equal(sample.inputs, x[sample.parameters["row"]].astype(np.float32))


def test_only_integers_have_to_be_exact(tmp_path):
    large = (arrays()["x"] * 1e9).astype(np.float32)
    sample, _ = samples(load(fill(tmp_path, TARGET_ONLY, x=large)), "target", 0, 0, 100)
    assert np.array_equal(sample.inputs, large[sample.parameters["row"]])


# Splits


def rows(problem, role, seed=0, size=50):
    parts = range(-(-problem.available[role] // size))
    return np.concatenate([sample.parameters["row"] for _, sample, _ in problem.shards(role, seed, parts, size)])


def test_available_counts_what_there_is(problem, tmp_path):
    assert problem.available == {"target": 100, "test": 30, "surrogate": 70, "unlabelled": 60}
    alone = load(fill(tmp_path / "alone", TARGET_ONLY))
    assert alone.available == {"target": 100, "test": 30, "surrogate": 0, "unlabelled": 0}
    own = load(fill(tmp_path / "own", OWN_TEST))
    assert own.available == {"target": 130, "test": 40, "surrogate": 70, "unlabelled": 60}


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_test_and_target_part_the_rows(seed, problem):
    test, target = rows(problem, "test", seed), rows(problem, "target", seed)
    assert len(test) == 30 and sorted([*test, *target]) == list(range(130))
    assert sorted(rows(problem, "surrogate", seed)) == list(range(70))
    assert sorted(rows(problem, "unlabelled", seed)) == list(range(60))


def test_an_own_test_takes_nothing_from_the_target(tmp_path):
    problem = load(fill(tmp_path, OWN_TEST))
    assert sorted(rows(problem, "target")) == list(range(130)) and sorted(rows(problem, "test")) == list(range(40))
    sample, labels = samples(problem, "test", 0, 0, 50)
    assert np.allclose(labels, labels_of(sample.inputs), atol=1e-5)
    assert np.array_equal(sample.inputs, arrays()["tx"][sample.parameters["row"]].astype(np.float32))


def test_order_is_a_function_of_the_seed_and_the_data(problem):
    for role in problem.available:
        first, again, other = (rows(problem, role, seed) for seed in (0, 0, 1))
        assert np.array_equal(first, again) and not np.array_equal(first, other)
        assert not np.array_equal(first, np.sort(first))


def test_a_part_does_not_depend_on_what_else_is_asked_for(problem):
    """Neither on the other parts nor on the order or the size of parts."""
    whole = rows(problem, "target", 3, size=100)
    for indices in ([0], [1], [1, 0], [0, 1]):
        for index, sample, labels in problem.shards("target", 3, indices, 50):
            expected = whole[50 * index : 50 * (index + 1)]
            assert np.array_equal(sample.parameters["row"], expected)
            assert np.array_equal(sample.inputs, arrays()["x"][expected].astype(np.float32))
            assert np.array_equal(labels, arrays()["y"][expected].astype(np.float32))
    assert list(problem.shards("target", 3, [], 50)) == []


def test_the_last_part_holds_what_is_left(problem):
    sizes = [len(sample.inputs) for _, sample, _ in problem.shards("surrogate", 0, range(2), 50)]
    assert sizes == [50, 20]
    with pytest.raises(BadData, match="70 surrogate samples, and those from 100 were asked for"):
        samples(problem, "surrogate", 0, 2, 50)


def test_parts_become_shards(problem, tmp_path):
    dataset = Dataset(problem, 4, Store(str(tmp_path / "store")))
    for role in (TARGET, UNLABELLED):
        for index, sample, labels in problem.shards(role.name, dataset.seed, range(1), SHARD):
            dataset.write(role, index, sample, labels)
    split = dataset.read(TARGET, 40)
    assert torch.allclose(split.labels, torch.from_numpy(labels_of(split.inputs.numpy())), atol=1e-5)
    assert dataset.read(UNLABELLED, 50).labels is None


def test_a_network_learns_from_it(problem):
    (_, sample, labels), (_, held_out, truth) = problem.shards("target", 0, range(2), 50)
    split = Split(torch.from_numpy(sample.inputs), torch.from_numpy(labels))
    c = Finetuning(architecture=ARCHITECTURE, learning_rate=1e-2, steps=150, augmentation=(("translation", 0.5),))
    truth = torch.from_numpy(truth)
    error = finetune(problem, split, c).errors(Split(torch.from_numpy(held_out.inputs), truth)).mean()
    guess = problem.error(split.labels.mean(0).expand_as(truth), truth).mean()
    assert error < guess / 2


@pytest.mark.parametrize("change", ["rewritten", "gone"])
def test_files_that_changed_after_the_check_are_refused(change, problem, tmp_path):
    (tmp_path / "data.npz").unlink()
    if change == "rewritten":
        np.savez(tmp_path / "data.npz", **arrays(seed=1))
    with pytest.raises(BadData, match="changed since" if change == "rewritten" else "is not in"):
        samples(problem, "target", 0, 0, 50)


NEEDS = [
    (ALL, (True, True, True), ""),
    (TARGET_ONLY, (False, False, True), ""),
    (TARGET_ONLY, (False, True, False), "surrogate labels"),
    (TARGET_ONLY, (True, False, False), "inputs without labels"),
    (TARGET_ONLY + UNLABELLED_TOO, (True, False, True), ""),
    (TARGET_ONLY + SURROGATE, (True, True, True), ""),
    (ALL.split("[symmetry]")[0], (False, False, True), "a symmetry"),
    (ALL.split("[symmetry]")[0], (False, False, False), ""),
]


@pytest.mark.parametrize(("toml", "method", "lacking"), NEEDS)
def test_it_says_what_a_method_lacks(toml, method, lacking, tmp_path):
    needs = dict(zip(("contrastive", "surrogate", "invariant"), method, strict=True))
    said = load(fill(tmp_path, toml)).missing_requirement(**needs, delta=False)
    assert said.startswith(lacking) if lacking else not said


# One pass through an array


@few
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 31), st.sampled_from([0, 1e3, -1e6]))
def test_moments_are_those_of_the_whole_however_it_is_cut(seed, count, step, offset):
    values = (np.random.default_rng(seed).normal(size=(count, 2, 3)) + offset).astype(np.float32)

    def read():
        yield from (values[first : first + step] for first in range(0, count, step))

    found = statistics.Statistics(tables.Stored("a", count, (2, 3), read), lambda raw: raw, [], Orbits((), (2, 3)))
    exact = values.astype(np.float64)
    assert np.allclose(found.mean, exact.mean(0), rtol=1e-12)
    assert np.allclose(found.square_about(found.mean), exact.var(0), rtol=1e-6, atol=1e-12)
    assert np.allclose(found.square_about(1.5), np.square(exact - 1.5).mean(0), rtol=1e-9)
    assert len(np.unique(found.hashes)) == count == found.stored.rows


def test_a_file_that_ends_too_soon_is_found():
    short = tables.Stored("'short.h5', array 'x',", 10, (2,), lambda: iter([np.ones((4, 2))]))
    with pytest.raises(BadData, match="has 4 rows where 10 were expected"):
        list(short.blocks())
    with pytest.raises(BadData, match="row 7 was asked for"):
        tables.Stored("a", 4, (2,), lambda: iter([np.ones((4, 2))])).take(np.array([1, 7]))
