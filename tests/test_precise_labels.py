"""Labels far from zero lose nothing: their offset is taken off in float64, and predictions are put back in it."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from folders import ALL, SURROGATE, TARGET_ONLY, arrays, fill, refusal
from toy import ARCHITECTURE

from sibcl_ray.data.dataset import SURROGATE as SURROGATE_ROLE
from sibcl_ray.data.dataset import TARGET, TEST, Dataset, Split
from sibcl_ray.learning import baseline
from sibcl_ray.learning.evaluate import test_errors as errors_of
from sibcl_ray.learning.training import Finetuning, Pretraining, finetune, pretrain
from sibcl_ray.problems.tabulated import load
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Store
from sibcl_ray.symmetry import Equivariance, PointGroup

A = arrays()
X = A["x"]
F = (X.mean((1, 2)) - X.mean()) / X.mean((1, 2)).std()  # a deviation of one
ENERGIES = -97208.0 + 0.2 * F


def labelled(said="", toml=TARGET_ONLY):
    return toml.replace("[label]", f'[label]\nmetric = "absolute"\n{said}')


def samples(problem, role="target"):
    ((_, sample, labels),) = problem.shards(role, 0, [0], problem.available[role])
    return sample.parameters["row"], labels


FAR = {
    "energies": (ENERGIES, "offset = -97208.0"),
    "faint energies": (-97208.0 + 1e-6 * F, "offset = -97208.0\nscale = 1e-6"),
    "large integers": ((2**24 + 1 + np.arange(130) * 2).astype("i8"), "offset = 16777345\nscale = 100"),
    "very large integers": ((2**53 - 999 + 7 * np.arange(130)), "offset = 9007199254740000\nscale = 1e3"),
    "unsigned integers": ((4_000_000_000 + np.arange(130)).astype("u4"), "offset = 4e9\nscale = 100"),
    "near one": (1 + 1e-7 * F, "offset = 1\nscale = 1e-7"),
    "scaled": (3e8 + 500 * F, "offset = 3e8\nscale = 1e3"),
    "of two scales": (np.stack([1e5 + F, 1e5 - 0.1 * F], 1), "offset = 1e5"),
    "float32, scaled": ((2**24 + 100 * F).astype("f4"), "offset = 16777216\nscale = 30"),
    "far by surrogate": (5e6 + F, 'offset = "surrogate mean"'),
    "by a loss of logarithms": (ENERGIES, 'offset = -97208.0\nloss = "log_absolute"'),
}


@pytest.mark.parametrize(("y", "said"), FAR.values(), ids=FAR)
def test_labels_far_from_zero_stay_apart(y, said, tmp_path):
    """What networks learn of them is right to a millionth of the deviation, and so is what is put back."""
    toml, more = (
        (TARGET_ONLY + SURROGATE, {"sy": 5e6 + 1e-3 + np.arange(70) % 7}) if "surrogate" in said else (TARGET_ONLY, {})
    )
    problem = load(fill(tmp_path, labelled(said, toml), y=y, **more))
    rows, labels = samples(problem)
    true = y[rows].reshape(labels.shape).astype(np.longdouble)
    assert labels.dtype == problem.offset.dtype == np.float64
    assert len(np.unique(labels)) == len(np.unique(true))
    offset = float(re.search(r"offset = (\S+)", said)[1]) if "surrogate" not in said else problem.offset * problem.scale
    deviation = float(true.std())
    bound = max(1e-6 * deviation, 4e-16 * np.abs(true).max())  # or as near as float64 is
    learned = (labels - problem.offset).astype(np.float32)
    assert np.abs(learned.astype(float) * problem.scale - (true - offset)).max() < bound
    assert np.abs(labels * problem.scale - true).max() < bound


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (A["y"], ""),
        (A["y"].astype("f4"), ""),
        (A["y"], "scale = 0.3"),
        (np.arange(130), "scale = 30"),
        ((2**24 - np.arange(130)).astype("f4"), "offset = 16777216\nscale = 64"),
    ],
)
def test_labels_that_float32_holds_are_float32(y, said, tmp_path):
    problem = load(fill(tmp_path, labelled(said), y=y))
    rows, labels = samples(problem)
    assert labels.dtype == problem.offset.dtype == np.float32
    expected = (y[rows].astype(np.float64) / problem.scale).astype(np.float32)
    assert np.array_equal(labels, expected.reshape(labels.shape))


@pytest.mark.parametrize(("y", "said"), [(A["y"][:, 0], ""), (ENERGIES, "offset = -97208.0")])
@pytest.mark.parametrize("name", ["y", "sy"])
def test_a_change_below_float32_is_another_problem(y, said, name, tmp_path):
    """Even where float32 has no number for the difference."""
    rest = {"y": y, "sy": y[:70]}
    changed = rest[name].copy()
    changed[3] *= 1 + 1e-13
    assert changed[3] != rest[name][3] and np.float32(changed[3]) == np.float32(rest[name][3])
    toml = labelled(said, ALL)
    one, other = (load(fill(tmp_path / k, toml, **{**rest, name: v})) for k, v in (("a", rest[name]), ("b", changed)))
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize("kind", ["i8", "f8", ">f8"])
def test_the_type_of_stored_numbers_does_not_name_them(kind, tmp_path):
    y = np.arange(130) + 2**25
    one, other = (
        load(fill(tmp_path / k, labelled("offset = 33554432\nscale = 64"), y=y.astype(k))) for k in ("i4", kind)
    )
    assert one == other


# What cannot be learned, and advice that holds


TINY, FARAWAY = 1e-8, 1e6
UNLEARNABLE = {
    "scale of the mean": ({"y": -97208.0 + 4 * F}, "scale = 1e5", TARGET_ONLY),
    "scale of the mean, less": ({"y": -97208.0 + 4 * F}, "scale = 1e3", TARGET_ONLY),
    "far": ({"y": ENERGIES}, "", TARGET_ONLY),
    "offset not near": ({"y": ENERGIES}, "offset = -97000", TARGET_ONLY),
    "offset of the other sign": ({"y": ENERGIES}, "offset = 97208", TARGET_ONLY),
    "faint": ({"y": 1 + 1e-5 * F}, "", TARGET_ONLY),
    "small": ({"y": TINY * F}, "", TARGET_ONLY),
    "large": ({"y": FARAWAY * F}, "", TARGET_ONLY),
    "large integers": ({"y": 10**9 + np.arange(130)}, "scale = 1e9", TARGET_ONLY),
    "several": ({"y": np.stack([100 + F, 100 - F], 1) * 1e4}, "", TARGET_ONLY),
    "with a surrogate": ({"y": ENERGIES, "sy": ENERGIES[:70] + 0.01}, "", TARGET_ONLY + SURROGATE),
    "float32 energies": ({"y": (-1e3 + F).astype("f4")}, "scale = 1e5", TARGET_ONLY),
}


@pytest.mark.parametrize(("changed", "said", "toml"), UNLEARNABLE.values(), ids=UNLEARNABLE)
def test_the_advice_holds(changed, said, toml, tmp_path):
    """Where labels cannot be learned, what is said to give is given, and then they can."""
    text = refusal(fill(tmp_path, labelled(said, toml), **changed))
    found = re.search(r"deviates by \S+, and networks learn numbers of order one; .*give (.*) in \[label\]$", text)
    assert found, text
    advised = dict(part.split(" = ") for part in found[1].split(" and "))
    assert set(advised) <= {"offset", "scale"}
    kept = dict(part.split(" = ") for part in said.splitlines())
    lines = "\n".join(f"{key} = {value}" for key, value in {**kept, **advised}.items())
    problem = load(fill(tmp_path / "again", labelled(lines, toml), **changed))
    assert 1e-2 < (samples(problem)[1] - problem.offset).std() < 10


def test_the_scale_that_was_given_is_not_advised(tmp_path):
    said = refusal(fill(tmp_path, labelled("scale = 1e5"), y=-97208.0 + 4 * F))
    assert "deviates by 4e-05" in said and "give offset = -97208.0 and scale = 1" in said and "1e+05" not in said


@pytest.mark.parametrize(
    ("changed", "toml"),
    [
        ({"y": ENERGIES, "sy": ENERGIES[:70] + 300}, TARGET_ONLY + SURROGATE),  # another zero of energy
        ({"y": A["y"], "sy": A["sy"] * 1e6}, TARGET_ONLY + SURROGATE),  # another unit
        ({"y": np.stack([-97208.0 + F, F], 1)}, TARGET_ONLY),  # numbers of which each has its own
    ],
)
def test_where_no_offset_and_scale_suit_none_is_advised(changed, toml, tmp_path):
    said = refusal(
        fill(tmp_path, labelled("offset = -97208" * ("y" in changed and changed["y"].ndim == 1), toml), **changed)
    )
    assert "no offset and scale suit all labels: store each array less an offset of its own, and in one unit" in said


@pytest.mark.parametrize("value", [0.1, -97208.3, 1e-9, 2**30 + 1])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_labels_that_differ_by_rounding_alone_are_the_same(value, kind, tmp_path):
    y = np.full(130, value, kind)
    assert "is the same in all rows; there is nothing to learn" in refusal(fill(tmp_path, labelled(), y=y))
    y[::2] = np.nextafter(y[0], np.inf, dtype=kind)
    assert "is the same in all rows" in refusal(fill(tmp_path, labelled(f"offset = {value}"), y=y))


def test_integers_that_float64_rounds_are_refused(tmp_path):
    y = 2**53 + np.arange(130)
    assert re.search(
        r"integers beyond ±9,007,199,254,740,992, which float64 cannot tell apart, in 129 of 130 .* less an offset",
        refusal(fill(tmp_path, labelled("offset = 9e15"), y=y)),
    )


# Inputs that float32 cannot hold


CHANNELS = 'channels = "{}"\n'
BLURRED = {
    "all": ({"x": 1e8 + X}, ""),
    "faint": ({"x": 1 + 1e-8 * X}, ""),
    "below a step": ({"x": 1e6 + 1e-3 * X}, ""),
    "a pattern": ({"x": 1e6 * X[:1] + 1e-3 * X}, ""),
    "second channel": ({"x": np.stack([X, 1e8 + X], 1)}, CHANNELS.format("first")),
    "last channel": ({"x": np.stack([X, 2 * X, 1e8 + X], -1)}, CHANNELS.format("last")),
}


@pytest.mark.parametrize(("changed", "said"), BLURRED.values(), ids=BLURRED)
def test_inputs_that_float32_cannot_hold_are_refused(changed, said, tmp_path):
    text = refusal(fill(tmp_path, TARGET_ONLY.replace("[input]", f"[input]\n{said}"), **changed))
    assert re.search(r"rows.* that differ by at most .* which float32 cannot hold; store them less an offset", text)
    channel = {"second channel": "of channel 1", "last channel": "of channel 2"}
    assert not said or channel[next(k for k, v in BLURRED.items() if v[1] == said)] in text


@pytest.mark.parametrize(
    "x", [100 + X, 1e4 + 10 * X, (1e6 + np.round(1e3 * X)).astype("i4"), (1e7 * X).astype("f4"), 0.1 + np.round(X)]
)
def test_inputs_that_float32_holds_are_read(x, tmp_path):
    assert load(fill(tmp_path, TARGET_ONLY, x=x))


def test_inputs_that_are_constant_are_still_called_so(tmp_path):
    """And not told to be stored less an offset."""
    toml = TARGET_ONLY + '[unlabelled]\nfile = "data.npz"\ninputs = "u"\n'
    assert "is 3.3 everywhere" in refusal(fill(tmp_path, toml, u=np.full((60, 8, 8), 3.3)))


# From end to end


@pytest.fixture
def energies(tmp_path):
    """Total energies, and their shards."""
    toml = labelled('offset = "surrogate mean"\nscale = 0.2', TARGET_ONLY + SURROGATE)
    own = A["sx"].mean((1, 2))
    surrogate = -97208.0 + 0.2 * (own - own.mean()) / own.std()
    problem = load(fill(tmp_path / "data", toml, y=ENERGIES, sy=surrogate))
    dataset = Dataset(problem, 0, Store(str(tmp_path / "store")))
    for role, count in ((TARGET, 2), (TEST, 1), (SURROGATE_ROLE, 2)):
        for index, sample, labels in problem.shards(role.name, 0, range(count), 50):
            dataset.write(role, index, sample, labels)
    return dataset


def test_shards_keep_float64_labels(energies):
    split = energies.read(TARGET, 100)
    rows, labels = samples(energies.problem)
    assert split.labels.dtype == torch.float64 and split.inputs.dtype == torch.float32
    assert np.array_equal(split.labels, labels)
    assert np.array_equal(split.labels[:, 0] * 0.2, ENERGIES[rows] / 0.2 * 0.2)


def test_what_is_learned_of_energies_is_put_back_in_float64(energies):
    problem, split = energies.problem, energies.read(TARGET, 100)
    c = Finetuning(architecture=ARCHITECTURE, learning_rate=1e-2, steps=200, views=2)
    model = finetune(problem, split, c)
    errors = errors_of(model, energies, 30)
    assert errors.dtype == np.float64 and len(np.unique(errors)) == 30
    assert errors.mean() < 0.1  # of a deviation of 0.2, and of steps of float32 of 0.008
    held = energies.read(TEST, 30)
    prediction = model.predict(held.inputs, precision=torch.float64)
    assert torch.equal(torch.from_numpy(errors), problem.error(prediction, held.labels))
    with torch.no_grad():
        bare = model.network(problem.features(held.inputs)).double().numpy()
    assert np.array_equal(replace(model, views=0).predict(held.inputs).numpy(), bare + problem.offset)


def test_networks_fit_the_difference_that_float64_has(energies):
    """Training on energies is, bit for bit, training on the same numbers with the offset taken off beforehand."""
    problem, split = energies.problem, energies.read(TARGET, 60)
    near = replace(problem, known=(0.0,), precision="float32")
    shifted = Split(split.inputs, (split.labels - torch.from_numpy(problem.offset)).float())
    c = Finetuning(architecture=ARCHITECTURE, steps=20, augmentation=(("point_group", 1.0),))
    networks = [finetune(p, s, c).network for p, s in ((problem, split), (near, shifted))]
    assert all(torch.equal(a, b) for a, b in zip(*(n.state_dict().values() for n in networks), strict=True))
    cheap = energies.read(SURROGATE_ROLE, 70)
    p = Pretraining(architecture=ARCHITECTURE, contrastive=False, surrogate_labels=True, epochs=2)
    less = Split(cheap.inputs, (cheap.labels - torch.from_numpy(problem.offset)).float())
    weights = [pretrain(q, cheap.inputs[:0], s, p) for q, s in ((problem, cheap), (near, less))]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@dataclass(frozen=True)
class Moved:
    """As much of a problem as is asked where labels move with inputs."""

    offset: np.ndarray
    label_shape: tuple[int, ...] = (4, 4)


@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_moved_labels_lose_nothing_to_a_far_offset(kind):
    offset = (-97208.0 + 0.25 * np.arange(16).reshape(4, 4)).astype(kind)
    turn = Equivariance(PointGroup(2), lambda g, labels: PointGroup(2).act(g, labels))
    difference = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    g = turn.group.draw(difference.view(5, 4, 4), torch.Generator().manual_seed(1))
    found = baseline.moved(difference, lambda labels: turn.on_labels(g, labels), Moved(offset), delta=False)
    known = torch.from_numpy(offset)
    if kind == "f8":
        whole = turn.on_labels(g, difference.view(5, 4, 4).double() + known) - known
        assert torch.equal(found, whole.flatten(1).float()) and found.dtype == torch.float32
    exact = turn.on_labels(g, difference.view(5, 4, 4).double() + known.double()) - known.double()
    assert np.abs(found - exact.flatten(1)).max() < (1e-6 if kind == "f8" else 0.02)


@pytest.mark.parametrize("labels", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [np.float32, np.float64])
def test_predictions_are_of_the_type_of_labels(labels, offset, energies):
    problem = replace(energies.problem, precision=np.dtype(offset).name)
    model = finetune(problem, energies.read(TARGET, 20), Finetuning(architecture=ARCHITECTURE, steps=2))
    inputs = energies.read(TARGET, 20).inputs
    assert model.predict(inputs, precision=labels).dtype == labels
    assert model.predict(inputs).numpy().dtype == offset
