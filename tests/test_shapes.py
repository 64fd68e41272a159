"""Inputs of any shape: vectors, lines, images and volumes, periodic or not, from recipes to trained networks."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from folders import fill

from sibcl_ray import recipes
from sibcl_ray.data.dataset import Dataset, Split
from sibcl_ray.data.definitions import LEARNED, deciding, version_of
from sibcl_ray.learning.jobs import TrialJob
from sibcl_ray.learning.model import boundaries, check_takes, new_network
from sibcl_ray.learning.networks import Architecture, InvariantEncoder, PerceptronEncoder, ReferenceEncoder
from sibcl_ray.learning.training import Finetuning, finetune
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.problem import Problem, Sample, feature_shape, periodic_axes
from sibcl_ray.problems.tabulated import BadData, load
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Store
from sibcl_ray.symmetry import EachChannel, PointGroup, Translations


@dataclass(frozen=True)
class Shaped(Problem):
    """Inputs and labels of any shape."""

    input_shape: tuple[int, ...] = (8, 8)
    channels: bool = False  # whether the first axis is one of channels
    periodic: bool | tuple[bool, ...] | None = None
    label_shape: tuple[int, ...] = (1,)
    stored: int = 0  # target labels that there are; 0 if they are made

    name = "shaped"
    version = 1
    input_units = label_units = "none"

    @property
    def symmetries(self):
        return {}

    @property
    def available(self):
        return dict.fromkeys(("target", "test", "surrogate", "unlabelled"), self.stored) if self.stored else None

    def features(self, inputs):
        return inputs if self.channels else inputs.unsqueeze(1)

    def sample(self, count, rng):
        return Sample(rng.uniform(size=(count, *self.input_shape)).astype(np.float32))

    sample_surrogate = sample

    def solve(self, inputs):
        return np.ones((len(inputs), *self.label_shape), np.float32)

    def error(self, prediction, label):
        return (prediction - label).abs().flatten(1).mean(1)


SHAPES = [  # of inputs, whether the first axis is of channels, and of labels
    ((8, 8), False, (1,)),
    ((16, 64), False, (3,)),
    ((2, 12, 20), True, (5, 2)),
    ((3, 64), False, (1,)),
    ((3, 64), True, (50,)),
    ((100,), False, (4,)),
    ((7,), False, (60,)),
    ((1,), False, (1,)),
    ((12, 12, 12), False, (2,)),
]
CASES = [
    Shaped(shape, channels, periodic, label)
    for shape, channels, label in SHAPES
    for periodic in (True, False)
    if not (periodic and shape == (1,))
]
CASES.append(Shaped((8, 8), False, (True, False)))
CASES.append(Shaped((2, 12, 20), False, (False, True, False)))


@pytest.mark.parametrize("problem", CASES, ids=lambda p: f"{p.input_shape}{' channels' * p.channels} {p.periodic}")
@pytest.mark.parametrize("scale", recipes.SCALES)
def test_every_scale_offers_networks_that_take_the_inputs(scale, problem):
    for architecture in recipes.SCALES[scale](problem).space.architectures:
        assert min(feature_shape(problem)[1:]) >= architecture.encoder.smallest
        if scale in ("standard", "paper"):  # of millions of weights; the rest does not depend on how many
            small = {"channels": 4} if isinstance(architecture.encoder, InvariantEncoder) else {"latent": 4}
            if isinstance(architecture.encoder, ReferenceEncoder):
                small = {"channels": (4,) * len(architecture.encoder.channels), "head": 4}
            architecture = Architecture(
                encoder=replace(architecture.encoder, **small), predictor=(8,), projector=(8,), projection=4
            )
        check_takes(problem, architecture)
        network = new_network(problem, architecture, seed=0)
        x = torch.rand(6, *problem.input_shape, generator=torch.Generator().manual_seed(0))
        labels, projections = network(problem.features(x)), network(problem.features(x), project=True)
        assert labels.shape == (6, np.prod(problem.label_shape)) and projections.shape == (6, architecture.projection)
        (labels.square().sum() + projections.square().sum()).backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in network.parameters())


def encoders(problem, scale="standard"):
    return [architecture.encoder for architecture in recipes.SCALES[scale](problem).space.architectures]


def test_large_grids_get_the_networks_that_they_always_got():
    """And small ones those with pools and dilations that fit."""
    large = (ReferenceEncoder().scaled(0.5), InvariantEncoder(), InvariantEncoder(dilations=(1, 2, 4, 8, 16)))
    assert tuple(encoders(Shaped((32, 48)))) == tuple(encoders(PROBLEMS["photonic-dos"])) == large
    reference, first, second = encoders(Shaped((8, 8)))
    assert (reference.pools, first.dilations, second.dilations) == ((2, 2, 2), (1, 2, 4, 8, 4, 2), (1, 2, 4, 8))
    assert encoders(Shaped((16, 64)))[0].pools == (2, 2, 4)
    assert [e.dilations for e in encoders(PROBLEMS["magnet-sign"])] == [(1, 2, 3), (1, 1, 1), (3, 2, 1)]


def test_vectors_get_perceptrons_and_lines_get_them_first():
    assert [type(e) for e in encoders(Shaped((7,)), "quick")] == [PerceptronEncoder]
    assert [type(e) for e in encoders(Shaped((100,)), "quick")] == [PerceptronEncoder, ReferenceEncoder]
    assert [type(e) for e in encoders(Shaped((100,), periodic=True), "quick")] == [ReferenceEncoder]


def test_all_stored_labels_are_a_budget():
    assert recipes.quick(Shaped(stored=700)).budgets == (25, 50, 100, 200, 400, 700)
    assert recipes.quick(Shaped(stored=5000)).pool == recipes.quick(Shaped(stored=5000)).budgets[-1] == 5000
    assert recipes.quick(Shaped(stored=400)).budgets == (25, 50, 100, 200, 400)
    assert recipes.quick(Shaped(stored=450)).budgets == (25, 50, 100, 200, 400, 450)
    assert recipes.quick(Shaped(stored=110)).budgets == (25, 50, 100)  # 110 would be hardly another
    assert recipes.quick(Shaped(stored=130)).budgets == (25, 50, 100, 130)
    assert recipes.quick(Shaped(stored=20)).budgets == (20,)
    assert recipes.quick(Shaped()).budgets == (25, 50, 100, 200, 400) and recipes.quick(Shaped()).pool == 1600


# Periodic axes


@pytest.mark.parametrize("periodic", [(True,), (True, True), (True, False), (False, True), (True, False, True)])
def test_an_invariant_encoder_does_not_see_shifts_along_periodic_axes(periodic):
    grid, axes = (9, 8, 10)[: len(periodic)], [axis for axis, repeats in enumerate(periodic) if repeats]
    torch.manual_seed(0)
    module = InvariantEncoder(channels=4, dilations=(1, 2, 4), latent=8).build(2, grid, periodic).double()
    x = torch.rand(5, 2, *grid, dtype=torch.float64)
    module(x)  # running statistics that are not the trivial ones
    moved = x.roll([3] * len(axes), [2 + axis for axis in axes])
    with torch.no_grad():
        before, after = module.eval()(x), module(moved)
    assert ((after - before).abs().max() / before.abs().max()).item() < 1e-12


@pytest.mark.parametrize("periodic", [(False,), (False, False), (True, False), (False, True), (False, True, False)])
def test_it_pads_with_zeros_along_the_others(periodic):
    """As if the input were surrounded by zeros, and by its own images along periodic axes."""
    grid = (9, 8, 10)[: len(periodic)]
    torch.manual_seed(0)
    module = InvariantEncoder(channels=4, dilations=(1,), latent=8).build(1, grid, periodic).eval()
    x = torch.rand(2, 1, *grid)
    around = torch.zeros(2, 1, *(n + 8 for n in grid))
    around[(..., *(slice(4, 4 + n) for n in grid))] = x
    for axis, (n, repeats) in enumerate(zip(grid, periodic, strict=True), 2):
        if repeats:
            around = around.narrow(axis, 4, n)
            around = torch.cat([around.narrow(axis, n - 4, 4), around, around.narrow(axis, 0, 4)], axis)
    (weight,) = (p for name, p in module.stem.named_parameters() if p.ndim > 2)
    convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[len(grid)]
    expected = convolve(around, weight)[(..., *(slice(2, 2 + n) for n in grid))]
    torch.testing.assert_close(module.stem[0](x), expected)


def key(problem, encoder, place):
    architecture = Architecture(encoder=encoder)
    data = Dataset(problem, 0, Store(str(place)))
    configuration = Finetuning(architecture=architecture)
    return TrialJob(dataset=data, method="SL", budget=10, pretraining=None, configuration=configuration, folds=2).key


def test_which_axes_are_periodic_names_what_depends_on_it_and_nothing_else(tmp_path):
    lines = 'name = "image"\n[target]\nfile = "data.npz"\ninputs = "x"\nlabels = "y"\ntest = 30\n'
    said = {"": "", "[true, false]": "", "false": "", "true": ""}
    for number, periodic in enumerate(said):
        toml = lines + (f"[input]\nperiodic = {periodic}\n" if periodic else "")
        said[periodic] = load(fill(tmp_path / str(number), toml))
    problems = list(said.values())
    assert [p.periodic for p in problems] == [(False, False), (True, False), (False, False), (True, True)]
    assert len({fingerprint(p) for p in problems}) == len({repr(p) for p in problems}) == 1
    assert len({version_of(deciding(p, "sample", "solve", *LEARNED)) for p in problems}) == 1
    reference, invariant = (
        [key(p, e(), tmp_path / "store") for p in problems] for e in (ReferenceEncoder, InvariantEncoder)
    )
    assert len(set(reference)) == 1
    assert len(set(invariant)) == 3 and invariant[0] == invariant[2]


def test_what_is_as_where_nothing_is_said_has_no_other_name():
    invariant, reference = Architecture(encoder=InvariantEncoder()), Architecture()
    for shape, said, named in (
        ((8, 8), None, ()),
        ((8, 8), True, ()),
        ((8, 8), False, (False, False)),
        ((8, 8), (True, False), (True, False)),
        ((40,), None, ()),
        ((40,), False, ()),
        ((40,), True, (True,)),
    ):
        assert boundaries(Shaped(shape, periodic=said), invariant) == named
        assert boundaries(Shaped(shape, periodic=said), reference) == ()


# Encoders that do not fit


@pytest.mark.parametrize(
    ("encoder", "shape", "message"),
    [
        (
            ReferenceEncoder(),
            (8, 64),
            "takes inputs of at least 32 pixels along each axis, and these have 8 × 64; give",
        ),
        (ReferenceEncoder(stride=2, pools=(2, 2, 2)), (14,), "at least 15 pixels along each axis, and these have 14;"),
        (InvariantEncoder(dilations=(1, 16)), (12, 12), r"at least 16 pixels .* give its .fitted\(12\), or larger"),
    ],
)
def test_the_smallest_size_is_said(encoder, shape, message):
    with pytest.raises(ValueError, match=message) as refused:
        check_takes(Shaped(shape), Architecture(encoder=encoder))
    assert "\n" not in str(refused.value)
    check_takes(Shaped(shape), Architecture(encoder=encoder.fitted(min(shape))))
    check_takes(Shaped((encoder.smallest,) * len(shape)), Architecture(encoder=encoder))


# Folders of arrays


def described(more="", symmetry=""):
    return (
        'name = "shaped"\n[target]\nfile = "data.npz"\ninputs = "x"\nlabels = "y"\ntest = 30\n'
        f'[unlabelled]\nfile = "data.npz"\ninputs = "u"\n[input]\n{more}\n[symmetry]\n{symmetry}\n'
        '[label]\nmetric = "absolute"\n'
    )


def drawn(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(1, 2, (130, *shape)) * rng.uniform(1, 2, (130, *[1] * len(shape)))


ARRAYS = {  # shape of inputs, of labels, what is said, and of which form features and symmetries are
    "spectra to scalars": ((100,), (), "shape = 100", "", (1, 100), {}),
    "periodic lines": (
        (50,),
        (3,),
        "periodic = true",
        "translation = true\npoint_group = true",
        (1, 50),
        {"translation": Translations(50, 1), "point_group": PointGroup(1)},
    ),
    "lines of channels": (
        (40, 3),
        (2,),
        'channels = "last"',
        "point_group = true",
        (3, 40),
        {"point_group": EachChannel(PointGroup(1))},
    ),
    "vectors to spectra": ((7,), (60,), "", "", (1, 7), {}),
    "rectangles": (
        (8, 20),
        (4, 5),
        "periodic = [true, false]",
        "translation = [true, false]\npoint_group = true",
        (1, 8, 20),
        {"translation": Translations((8, None)), "point_group": PointGroup((0, 1))},
    ),
    "periodic rectangles": (
        (8, 12),
        (),
        "periodic = true",
        "translation = true",
        (1, 8, 12),
        {"translation": Translations((8, 12))},
    ),
    "volumes": (
        (8, 8, 8),
        (),
        'channels = "none"\nperiodic = true',
        "translation = true",
        (1, 8, 8, 8),
        {"translation": Translations(8, 3)},
    ),
    "volumes that are open along one axis": (
        (8, 8, 8),
        (),
        'channels = "none"\nperiodic = [true, true, false]',
        "point_group = true",
        (1, 8, 8, 8),
        {"point_group": PointGroup((0, 0, 2))},
    ),
}


@pytest.mark.parametrize(("shape", "outputs", "said", "symmetry", "seen", "groups"), ARRAYS.values(), ids=ARRAYS)
def test_folders_of_any_shape_are_learned(shape, outputs, said, symmetry, seen, groups, tmp_path):
    x = drawn(*shape)
    y = x.reshape(130, -1).mean(1).reshape(130, *[1] * len(outputs)) * np.linspace(1, 2, int(np.prod(outputs))).reshape(
        outputs
    )
    notes = []
    problem = load(fill(tmp_path, described(said, symmetry), x=x, y=y, u=drawn(*shape, seed=1)), notes.append)
    assert problem.symmetries == groups and feature_shape(problem) == seen and not notes
    assert problem.label_shape == (outputs or (1,))
    ((_, sample, labels),) = problem.shards("target", 0, [0], 50)
    split = Split(torch.from_numpy(sample.inputs), torch.from_numpy(labels))
    for architecture in recipes.smoke(problem).space.architectures:
        moving = tuple((name, 0.5) for name in groups)
        model = finetune(problem, split, Finetuning(architecture=architecture, steps=3, augmentation=moving, views=2))
        assert model.predict(split.inputs).shape == (50, *problem.label_shape)
        assert bool(torch.isfinite(model.errors(split)).all())


def test_the_numbers_of_a_vector_are_standardised_one_by_one(tmp_path):
    x = drawn(5) * [1, 100, 1e-3, 1, 1] + [0, 500, 0, 0, 7]
    given = {"x": x, "y": x[:, 0], "u": drawn(5, seed=1) * [1, 100, 1e-3, 1, 1] + [0, 500, 0, 0, 7]}
    problem = load(fill(tmp_path / "a", described(), **given))
    features = problem.features(torch.from_numpy(given["u"]).float())
    assert features.shape == (130, 1, 5)
    assert features.mean((0, 1)).abs().max() < 1e-4 and (features.std((0, 1)) - 1).abs().max() < 0.01
    assert len(load(fill(tmp_path / "b", described("periodic = true"), **given)).centre) == 1
    listed = load(fill(tmp_path / "c", described("scale = [1, 100, 1e-3, 1, 1]\noffset = 1"), **given))
    assert torch.allclose(listed.features(torch.ones(2, 5) * 2)[0, 0], torch.tensor([1, 0.01, 1e3, 1, 1]))
    with pytest.raises(BadData, match="is 3 everywhere in number 4; leave out what does not vary"):
        load(fill(tmp_path / "d", described(), x=x, y=x[:, 0], u=given["u"] * [1, 1, 1, 1, 0] + [0, 0, 0, 0, 3]))


def test_long_rows_are_said_to_be_read_as_lines(tmp_path):
    notes = []
    load(fill(tmp_path, described(), x=drawn(90), y=drawn(90)[:, 0], u=drawn(90, seed=1)), notes.append)
    assert len(notes) == 1 and "rows of 90 numbers, which are read as lines; in [input] give shape = [90]" in notes[0]


def test_axes_repeat_as_is_said_for_all_or_for_each():
    assert periodic_axes(Shaped(), 1) == (False,) and periodic_axes(Shaped(), 3) == (True, True, True)
    assert periodic_axes(Shaped(periodic=False), 2) == (False, False)
    assert periodic_axes(Shaped(periodic=(True, False)), 2) == (True, False)
