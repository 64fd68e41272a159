"""What pretraining and fine-tuning do to a network, on a problem that costs nothing."""

import subprocess
import sys
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from groups import group
from toy import ARCHITECTURE, Moments

from sibcl_ray.data.dataset import Split
from sibcl_ray.learning import baseline, checkpoint, distributed
from sibcl_ray.learning.checkpoint import Checkpoint
from sibcl_ray.learning.model import Model, new_network
from sibcl_ray.learning.networks import Architecture, InvariantEncoder
from sibcl_ray.learning.training import Diverged, Finetuning, Pretraining, finetune, pretrain
from sibcl_ray.symmetry import Equivariance, PointGroup, augment

PROBLEM = Moments()
ALL = tuple((name, 1.0) for name in PROBLEM.symmetries)
PRETRAINING = Pretraining(
    architecture=ARCHITECTURE,
    contrastive=True,
    surrogate_labels=True,
    views=ALL,
    contrastive_batch=60,
    supervised_batch=20,
    epochs=3,
)
FINETUNING = Finetuning(architecture=ARCHITECTURE, learning_rate=3e-3, batch=20, steps=200)


def drawn(count, seed, surrogate=False):
    rng = np.random.default_rng(seed)
    sample = (PROBLEM.sample_surrogate if surrogate else PROBLEM.sample)(count, rng)
    labels = PROBLEM.solve_surrogate(sample) if surrogate else PROBLEM.solve(sample.inputs)
    return Split(torch.from_numpy(sample.inputs), torch.from_numpy(labels))


UNLABELLED = drawn(80, 1).inputs
SURROGATE = drawn(40, 2, surrogate=True)
LABELLED = drawn(40, 3)
UNSEEN = drawn(200, 4)


def error(model, split):
    return model.errors(split).mean().item()


def untrained(architecture=ARCHITECTURE):
    return Model(new_network(PROBLEM, architecture, 0), PROBLEM)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def losses_of(function, *arguments):
    """The mean losses that training reports, epoch by epoch."""
    found = []
    function(PROBLEM, *arguments, report=lambda fraction, loss: found.append((fraction, loss)))
    fractions, losses = zip(*found, strict=True)
    assert list(fractions) == sorted(fractions) and fractions[-1] == 1
    return losses


PHASES = {
    "both": PRETRAINING,
    "pairs": replace(PRETRAINING, surrogate_labels=False),
    "surrogate": replace(PRETRAINING, contrastive=False, augmentation=ALL),
}
LONG = {"epochs": 60, "learning_rate": 1e-2}


@pytest.mark.parametrize("phase", PHASES)
def test_a_pretraining_is_a_function_of_its_seed(phase):
    runs = [pretrain(PROBLEM, UNLABELLED, SURROGATE, replace(PHASES[phase], seed=s)) for s in (1, 1, 2)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_a_finetuning_is_a_function_of_its_seed():
    configuration = replace(FINETUNING, steps=20, augmentation=ALL)
    runs = [finetune(PROBLEM, LABELLED, replace(configuration, seed=s)).network.state_dict() for s in (1, 1, 2)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_training_leaves_the_callers_randomness_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    pretrain(PROBLEM, UNLABELLED, SURROGATE, PRETRAINING)
    finetune(PROBLEM, LABELLED, replace(FINETUNING, steps=5))
    assert torch.equal(torch.rand(3), expected)


def test_pretraining_fits_the_surrogate_labels():
    losses = losses_of(pretrain, UNLABELLED, SURROGATE, replace(PHASES["surrogate"], **LONG))
    assert losses[-1] < 0.1 * losses[0]


def test_contrastive_pretraining_lowers_its_loss():
    losses = losses_of(pretrain, UNLABELLED, SURROGATE, replace(PHASES["pairs"], **LONG))
    assert losses[-1] < losses[0] - 1.5


def contrast(weights):
    """Mean cosine similarity of two views of an input, less that of views of different inputs."""
    network = new_network(PROBLEM, ARCHITECTURE, 0)
    network.load_state_dict(weights)
    network.eval()
    generator = torch.Generator().manual_seed(5)
    views = [augment(UNSEEN.inputs, PROBLEM.symmetries, dict(ALL), generator) for _ in range(2)]
    with torch.no_grad():
        a, b = (F.normalize(network(PROBLEM.features(view), project=True)) for view in views)
    similarity = a @ b.T
    own = similarity.diagonal()
    return (own.mean() - (similarity.sum() - own.sum()) / (similarity.numel() - len(own))).item()


def test_contrastive_pretraining_brings_views_of_an_input_together():
    """Nearer than views of other inputs, by more than before, on inputs that it never saw."""
    before = new_network(PROBLEM, ARCHITECTURE, 0).state_dict()
    after = pretrain(PROBLEM, UNLABELLED, SURROGATE, replace(PHASES["pairs"], **LONG))
    assert contrast(before) < 0.1 and contrast(after) > 0.6


def test_finetuning_learns_what_generalises():
    assert error(finetune(PROBLEM, LABELLED, FINETUNING), UNSEEN) < 0.5 * error(untrained(), UNSEEN)


def test_finetuning_can_learn_a_handful_of_labels_by_heart():
    handful = Split(LABELLED.inputs[:5], LABELLED.labels[:5])
    configuration = replace(FINETUNING, batch=5, steps=600, learning_rate=1e-2)
    # A batch normalises by itself in training and by its running statistics here, hence some error.
    assert error(finetune(PROBLEM, handful, configuration), handful) < 0.05


def test_finetuning_starts_from_the_weights_it_is_given():
    weights = pretrain(PROBLEM, UNLABELLED, SURROGATE, PRETRAINING)
    barely = replace(FINETUNING, learning_rate=1e-9, weight_decay=0.0, steps=2)
    from_weights = dict(finetune(PROBLEM, LABELLED, barely, weights).network.named_parameters())
    assert all(torch.allclose(from_weights[name], weights[name], atol=1e-6) for name in from_weights)
    from_scratch = dict(finetune(PROBLEM, LABELLED, barely).network.named_parameters())
    assert not all(torch.allclose(from_scratch[name], weights[name], atol=1e-6) for name in from_scratch)


def test_pretraining_on_the_surrogate_helps():
    """After the same few steps, from pretrained weights and from new ones, on labels that were not fitted."""
    weights = pretrain(PROBLEM, UNLABELLED, SURROGATE, replace(PHASES["surrogate"], **LONG))
    short = replace(FINETUNING, steps=10, learning_rate=1e-3)
    pretrained, new = (finetune(PROBLEM, LABELLED, short, w) for w in (weights, None))
    assert error(pretrained, UNSEEN) < 0.5 * error(new, UNSEEN)


def test_divergence_is_said_not_returned():
    with pytest.raises(Diverged, match="a smaller learning rate may help"):
        finetune(PROBLEM, LABELLED, replace(FINETUNING, learning_rate=1e15))
    with pytest.raises(Diverged, match="the loss became"):
        pretrain(PROBLEM, UNLABELLED, SURROGATE, replace(PHASES["surrogate"], learning_rate=1e15, epochs=20))


def spread_over_views(model, how_many):
    """Standard deviation of the predictions of one input as it is moved about."""
    generator = torch.Generator().manual_seed(6)
    always = dict(ALL)
    moved = [augment(UNSEEN.inputs[:50], PROBLEM.symmetries, always, generator) for _ in range(8)]
    predictions = torch.stack([replace(model, views=how_many).predict(x) for x in moved])
    return predictions.std(0).mean().item()


def test_predictions_averaged_over_views_are_nearly_invariant():
    """The deviation falls as the root of the number of views."""
    model = finetune(PROBLEM, LABELLED, replace(FINETUNING, steps=40))
    single, averaged = spread_over_views(model, 0), spread_over_views(model, 64)
    assert 1 / 16 < averaged / single < 1 / 4


def test_predictions_do_not_depend_on_how_they_are_batched():
    whole, parts = (untrained().predict(UNSEEN.inputs, batch=b) for b in (500, 7))
    torch.testing.assert_close(whole, parts)


@dataclass(frozen=True)
class Offset(Moments):
    """Moments whose means are known to be near 100."""

    def solve(self, inputs):
        return super().solve(inputs) + self.offset

    @property
    def offset(self):
        return np.array([100, 0], np.float32)


def test_networks_learn_the_difference_to_the_offset():
    problem = Offset()
    labelled = Split(LABELLED.inputs, LABELLED.labels + torch.from_numpy(problem.offset))
    moved = finetune(problem, labelled, FINETUNING).predict(UNSEEN.inputs) - torch.from_numpy(problem.offset)
    plain = finetune(PROBLEM, LABELLED, FINETUNING).predict(UNSEEN.inputs)
    torch.testing.assert_close(moved, plain, rtol=1e-2, atol=1e-2)


@dataclass(frozen=True)
class Estimated(Moments):
    """Moments of which three quarters are known."""

    number: int = 0

    def estimate(self, inputs):
        return 0.75 * self.solve(inputs)


def test_delta_learning_starts_from_the_estimate_and_improves_on_it():
    problem, configuration = Estimated(), replace(FINETUNING, delta=True)
    estimate = torch.from_numpy(problem.estimate(UNSEEN.inputs.numpy()))
    before = problem.error(estimate, UNSEEN.labels).mean()
    model = finetune(problem, LABELLED, configuration)
    after, plain = error(model, UNSEEN), error(finetune(problem, LABELLED, FINETUNING), UNSEEN)
    assert after < 0.5 * before and after < plain
    # Of the labels that may be seen, and no others.
    assert model.network.scale.item() == pytest.approx(0.25 * LABELLED.labels.square().mean().sqrt().item(), rel=1e-5)


def test_an_input_is_estimated_once(monkeypatch):
    problem, asked, call = Estimated(number=1), [], baseline.call

    def counted(problem, method, inputs):
        asked.append(len(inputs))
        return call(problem, method, inputs)

    monkeypatch.setattr(baseline, "call", counted)
    for _ in range(2):
        model = finetune(problem, LABELLED, replace(FINETUNING, steps=2, delta=True, views=2))
        model.predict(torch.cat([UNSEEN.inputs, LABELLED.inputs]))
    assert asked == [len(LABELLED.inputs), len(UNSEEN.inputs)]


@dataclass(frozen=True)
class Watched(Moments):
    """Moments that note which labels are fitted, batch by batch."""

    seen: list = field(default_factory=list, compare=False)

    def label_loss(self, prediction, label):
        self.seen.append(label[:, 0].tolist())
        return super().label_loss(prediction, label)


def fitted(count, batch, epochs, seed=0):
    """Row numbers of the labels fitted in each batch of ``epochs`` epochs, epoch by epoch."""
    problem = Watched()
    rows = Split(drawn(count, 7).inputs, torch.arange(count)[:, None].repeat(1, 2).float())
    number = max(1, round(count / batch))
    finetune(problem, rows, replace(FINETUNING, batch=batch, steps=number * epochs, seed=seed))
    return [problem.seen[i : i + number] for i in range(0, len(problem.seen), number)]


@pytest.mark.parametrize(("count", "batch"), [(40, 20), (40, 7), (25, 32), (50, 32), (41, 20), (7, 3), (12, 1)])
def test_an_epoch_fits_every_label_once(count, batch):
    for epoch in fitted(count, batch, epochs=3):
        assert sorted(row for part in epoch for row in part) == list(range(count))
        sizes = [len(part) for part in epoch]
        assert max(sizes) - min(sizes) <= 1  # BatchNorm has no use for a remnant of one


def test_every_epoch_and_every_seed_has_its_own_order():
    orders = [*fitted(40, 20, epochs=2), *fitted(40, 20, epochs=2, seed=1)]
    assert all(a != b for a, b in combinations(orders, 2))
    assert fitted(40, 20, epochs=2) == orders[:2]


def test_a_finetuning_takes_the_steps_it_was_asked_for():
    problem = Watched()
    finetune(problem, LABELLED, replace(FINETUNING, batch=10, steps=9))
    assert len(problem.seen) == 9


def test_the_invariant_encoder_trains_too():
    architecture = Architecture(
        encoder=InvariantEncoder(channels=8, dilations=(1, 2), latent=8), predictor=(8,), projector=(8,), projection=4
    )
    configuration = replace(FINETUNING, architecture=architecture, steps=100)
    assert error(finetune(PROBLEM, LABELLED, configuration), UNSEEN) < 0.5 * error(untrained(architecture), UNSEEN)


SHARED = replace(PRETRAINING, contrastive_batch=45, supervised_batch=14, epochs=2)  # shares that are not equal


def _precise():
    """What `SHARED` gives in double precision: Adam makes rounding large where a gradient is nearly zero."""
    torch.set_default_dtype(torch.float64)
    try:
        surrogate = Split(SURROGATE.inputs.double(), SURROGATE.labels.double())
        return pretrain(PROBLEM, UNLABELLED.double(), surrogate, SHARED)
    finally:
        torch.set_default_dtype(torch.float32)


def _worker(rank, workers, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=workers)
    with distributed.process_group():
        with pytest.raises(ValueError, match=f"a batch of 1 cannot be shared by {workers} workers"):
            pretrain(PROBLEM, UNLABELLED, SURROGATE, replace(SHARED, supervised_batch=1))
        torch.save(_precise(), f"{folder}/{rank}.pt")
    dist.barrier()  # whoever leaves first closes its connections
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.thorough)])
def test_workers_of_one_pretraining_end_where_one_worker_ends(workers, tmp_path):
    """BatchNorm, views, negatives and labels: all as if one had the whole batch, but for rounding.

    More workers than samples in a batch are refused before.
    """
    group(_worker, (workers, str(tmp_path)), workers)
    first, *others = (torch.load(tmp_path / f"{rank}.pt") for rank in range(workers))
    assert all(same(first, other) for other in others)
    alone, start = _precise(), new_network(PROBLEM, ARCHITECTURE, SHARED.seed).state_dict()
    for name, weight in alone.items():
        moved = float((weight - start[name]).abs().max())
        torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-5 * moved + 1e-12)


class Memory(Checkpoint):
    """Keeps the state in memory; after some saves the machine is lost."""

    def __init__(self, lost_after=None):
        self.states, self.lost_after = [], lost_after

    def load(self):
        return self.states[-1] if self.states else None

    def save(self, state):
        self.states.append(state)
        if len(self.states) == self.lost_after:
            raise KeyboardInterrupt


def test_a_pretraining_goes_on_from_its_checkpoint_as_if_nothing_had_happened(monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    c = replace(PRETRAINING, epochs=4)
    memory, reports = Memory(lost_after=2), []
    with pytest.raises(KeyboardInterrupt):
        pretrain(PROBLEM, UNLABELLED, SURROGATE, c, checkpoint=memory)
    weights = pretrain(PROBLEM, UNLABELLED, SURROGATE, c, "cpu", lambda *now: reports.append(now[0]), memory)
    assert reports == [0.75, 1.0]
    assert same(weights, pretrain(PROBLEM, UNLABELLED, SURROGATE, c))


def test_checkpoints_are_no_more_frequent_than_they_should_be():
    memory = Memory()
    pretrain(PROBLEM, UNLABELLED, SURROGATE, PRETRAINING, checkpoint=memory)
    assert not memory.states  # it took less than a minute


BAD = [
    (PRETRAINING, {"temperature": -0.1}, "temperature is -0.1; it must be positive"),
    (PRETRAINING, {"temperature": float("nan")}, "temperature is nan; it must be positive"),
    (PRETRAINING, {"contrastive_batch": 0}, "contrastive_batch is 0; it must be positive"),
    (PRETRAINING, {"supervised_batch": -1}, "supervised_batch is -1; it must be positive"),
    (PRETRAINING, {"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
    (PRETRAINING, {"learning_rate": float("inf")}, "learning_rate is inf; it must be positive"),
    (PRETRAINING, {"epochs": 0}, "epochs is 0; it must be positive"),
    (PRETRAINING, {"views": (("translation", 1.5),)}, "the probability of translation is 1.5; it must lie between"),
    (PRETRAINING, {"augmentation": (("scaling", -0.5),)}, "the probability of scaling is -0.5; it must lie between"),
    (PRETRAINING, {"contrastive": False, "surrogate_labels": False}, "nothing to pretrain on; ask for"),
    (FINETUNING, {"learning_rate": -1e-3}, "learning_rate is -0.001; it must be positive"),
    (FINETUNING, {"weight_decay": -0.1}, "weight_decay is -0.1; it must be zero or positive"),
    (FINETUNING, {"weight_decay": float("nan")}, "weight_decay is nan; it must be zero or positive"),
    (FINETUNING, {"batch": 0}, "batch is 0; it must be positive"),
    (FINETUNING, {"steps": 0}, "steps is 0; it must be positive"),
    (FINETUNING, {"views": -1}, "views is -1; it must be zero or positive"),
    (FINETUNING, {"augmentation": (("translation", float("nan")),)}, "the probability of translation is nan"),
]


@pytest.mark.parametrize(("configuration", "bad", "message"), BAD, ids=[f"{b[1]}" for b in BAD])
def test_configurations_check_themselves(configuration, bad, message):
    with pytest.raises(ValueError) as raised:
        replace(configuration, **bad)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_training_and_jobs_know_nothing_of_ray():
    program = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError("ray is not here")

sys.meta_path.insert(0, NoRay())
import sibcl_ray.learning.training, sibcl_ray.learning.jobs
assert not any(name.split(".")[0] == "ray" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def _turned(g, labels):
    return PointGroup(2).act(g, labels)


@dataclass(frozen=True)
class Quarters(Moments):
    """The four quarters' means of an image: a turn of it turns them. Their offset does not look the same turned."""

    fitted: list = field(default_factory=list, compare=False)
    turns = True

    @property
    def label_shape(self):
        return (2, 2)

    @property
    def symmetries(self):
        return {}

    @property
    def equivariances(self):
        return {"point_group": Equivariance(PointGroup(2), _turned)} if self.turns else {}

    @property
    def offset(self):
        return np.array([[1, 2], [3, 4]], np.float32)

    def solve(self, inputs):
        return inputs.reshape(-1, 2, 4, 2, 4).mean((2, 4))

    def features(self, inputs):
        self.fitted.append(inputs)
        return inputs.unsqueeze(1)

    def label_loss(self, prediction, label):
        self.fitted.append(label)
        return super().label_loss(prediction, label)


QUARTERS = Split(LABELLED.inputs, torch.from_numpy(Quarters().solve(LABELLED.inputs.numpy())))
TURNED = replace(FINETUNING, augmentation=(("point_group", 1.0),), steps=4)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_labels_are_moved_with_the_inputs_that_they_are_fitted_to(probability):
    """Every batch shows the network an input and the label of this input, less the offset as it stands."""
    problem = Quarters()
    finetune(problem, QUARTERS, replace(TURNED, augmentation=(("point_group", probability),)))
    batches = problem.fitted[1:]  # the first features only tell the number of channels
    assert len(batches) == 8
    for inputs, labels in zip(batches[::2], batches[1::2], strict=True):
        expected = torch.from_numpy(problem.solve(inputs.numpy()) - problem.offset)
        torch.testing.assert_close(labels.view(-1, 2, 2), expected)
    originals = {tuple(x.flatten().tolist()) for x in LABELLED.inputs}
    kept = [tuple(x.flatten().tolist()) in originals for x in batches[0]]
    assert all(kept) if not probability else sum(kept) < len(kept) / 2


def test_predictions_for_turned_inputs_are_turned_back():
    """So their mean over views turns, nearly, as the input does."""
    network, inputs = new_network(Quarters(), ARCHITECTURE, 0), UNSEEN.inputs[:20]

    def unfaithful(views):
        model = Model(network, Quarters(), views)
        plain, turned = model.predict(inputs), model.predict(torch.rot90(inputs, 1, (1, 2)))
        return (turned - torch.rot90(plain, 1, (1, 2))).abs().mean()

    assert unfaithful(views=400) < 0.15 * unfaithful(views=0)


class Still(Quarters):
    """The same without equivariances, which are then never spoken of."""

    turns = False


def test_equivariances_that_never_act_change_nothing():
    """Not a bit of the weights: nothing is drawn for them."""
    never = replace(TURNED, augmentation=(("point_group", 0.0),))
    with_, without = (
        finetune(problem, QUARTERS, configuration).network.state_dict()
        for problem, configuration in ((Quarters(), never), (Still(), replace(TURNED, augmentation=())))
    )
    assert same(with_, without)


def test_contrastive_views_know_nothing_of_equivariances():
    with pytest.raises(ValueError, match="there is no symmetry 'point_group'"):
        pretrain(Quarters(), UNLABELLED, QUARTERS, replace(PHASES["pairs"], views=(("point_group", 1.0),)))
