"""Pretraining and fine-tuning: plain functions of data, a configuration and a device.

They run wherever torch runs. In a torch.distributed process group ``pretrain`` shares every batch among the
workers, which changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sibcl_ray.data.dataset import Split
from sibcl_ray.learning import baseline, distributed
from sibcl_ray.learning.checkpoint import Checkpoint, Progress
from sibcl_ray.learning.contrastive import nt_xent
from sibcl_ray.learning.networks import Architecture, Network
from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import Problem
from sibcl_ray.randomness import named_seed
from sibcl_ray.symmetry import augment, augment_labelled

Probabilities = tuple[tuple[str, float], ...]  # of each symmetry, by name, to act on a sample
Report = Callable[[float, float], None]  # the finished fraction, and the mean loss of the last epoch
Weights = dict[str, Tensor]

COMPILE_FROM = 5_000  # steps from which, on a GPU, a compiled network repays its compilation


class Diverged(ArithmeticError):
    """The loss became infinite or NaN."""


def _silent(fraction: float, loss: float) -> None:
    pass


def _check(configuration: object, positive: tuple[str, ...]) -> None:
    for name in positive:
        value = getattr(configuration, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be positive")


def _check_probabilities(*groups: Probabilities) -> None:
    for name, probability in (pair for group in groups for pair in group):
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of {name} is {probability}; it must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """What is learned before a target label is seen (SimCLR and surrogate labels; Loh et al., 2022)."""

    architecture: Architecture
    contrastive: bool  # pull together views of unlabelled and surrogate inputs
    surrogate_labels: bool  # fit labels of surrogate inputs; alternates with the above, epoch by epoch
    views: Probabilities = ()  # of each symmetry in a contrastive view
    augmentation: Probabilities = ()  # of each symmetry where surrogate labels are fitted
    temperature: float = 0.1  # of NT-Xent
    contrastive_batch: int = 768  # inputs a step, over all workers
    supervised_batch: int = 32  # surrogate labels a step, over all workers
    learning_rate: float = 1e-3  # peak of the one-cycle schedule
    epochs: int = 100  # passes over the unlabelled and over the surrogate inputs
    seed: int = 0  # of weights, order and views

    def __post_init__(self) -> None:
        _check(self, ("temperature", "contrastive_batch", "supervised_batch", "learning_rate", "epochs"))
        _check_probabilities(self.views, self.augmentation)
        if not (self.contrastive or self.surrogate_labels):
            raise ValueError("nothing to pretrain on; ask for contrastive pairs or surrogate labels")


@dataclass(frozen=True, kw_only=True)
class Finetuning:
    """How all weights are fitted to the target labels."""

    architecture: Architecture
    augmentation: Probabilities = ()  # of each symmetry where labels are fitted
    learning_rate: float = 1e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.01  # of AdamW
    batch: int = 32  # labels a step
    steps: int = 1000  # batches in all: chosen inside the budget, so that no label is kept back to stop
    views: int = 0  # whose predictions are averaged, each moved by all symmetries; 0: the input as it is
    delta: bool = False  # fit the difference from the problem's estimate
    seed: int = 0  # of new weights, order and augmentation

    def __post_init__(self) -> None:
        _check(self, ("learning_rate", "batch", "steps"))
        _check_probabilities(self.augmentation)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be zero or positive")
        if self.views < 0:
            raise ValueError(f"views is {self.views}; it must be zero or positive")


def new_network(problem: Problem, architecture: Architecture, seed: int) -> Network:
    """A network for the problem's inputs and labels with weights drawn from ``seed``."""
    _, channels, *grid = problem.features(torch.ones(1, *problem.input_shape)).shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed("weights", seed))
        network = Network(architecture, channels, math.prod(problem.label_shape), len(grid))
    network.scale.fill_(problem.label_scale)
    # In two dimensions convolutions of few channels run about twice as fast on a CPU with channels last.
    return network.to(memory_format=torch.channels_last) if len(grid) == 2 else network  # type: ignore[call-overload]


def check_takes(problem: Problem, architecture: Architecture) -> None:
    """ValueError where the network does not take the problem's inputs."""
    ones = torch.ones(2, *problem.input_shape)
    try:
        new_network(problem, architecture, seed=0)(problem.features(ones))
    except RuntimeError as error:
        raise ValueError(
            f"the encoder {architecture.encoder.label} does not take inputs of shape {problem.input_shape} "
            f"({one_line(error, 200)}); give images of at least 32 × 32 pixels"
        ) from None


def pretrain(
    problem: Problem,
    unlabelled: Tensor,
    surrogate: Split,
    configuration: Pretraining,
    device: torch.device | str = "cpu",
    report: Report = _silent,
    checkpoint: Checkpoint | None = None,
) -> Weights:
    """Pretrain a network; every worker of a process group calls this with the same arguments.

    Args:
        problem: gives features, symmetries and the surrogate loss.
        unlabelled: inputs without labels, (count, *input_shape).
        surrogate: inputs and labels of the surrogate family.
        configuration: see `Pretraining`.
        device: where to train; on CUDA in bfloat16 where that is safe.
        report: called after every epoch.
        checkpoint: written between epochs, and where the training begins if there is something. On one worker
            the weights are then, bit for bit, those of a training that was never interrupted.

    Returns:
        The weights of a `Network`, on the CPU.

    Raises:
        Diverged: the loss is no longer finite.
        ValueError: there are more workers than samples in a batch.
    """
    c, device = configuration, torch.device(device)
    network = new_network(problem, c.architecture, c.seed).to(device)
    generator = torch.Generator(device).manual_seed(named_seed("pretrain", c.seed))
    order = torch.Generator().manual_seed(named_seed("order", c.seed))
    pool = torch.cat([unlabelled, surrogate.inputs]).to(device)
    known = torch.from_numpy(problem.offset)
    fit_labels = _label_loss(problem, surrogate, known, problem.surrogate_loss, c.augmentation, generator, device)
    steps = c.epochs * (
        c.contrastive * len(_sizes(len(pool), c.contrastive_batch))
        + c.surrogate_labels * len(_sizes(len(surrogate.inputs), c.supervised_batch))
    )
    model = _compiled(distributed.data_parallel(network, device), steps, device)

    def contrast(rows: Tensor) -> Tensor:
        x, groups, p = pool[rows.to(device)], problem.symmetries, dict(c.views)
        views = [distributed.local_shard(augment(x, groups, p, generator)) for _ in range(2)]
        first, second = model(torch.cat([problem.features(v) for v in views]), project=True).chunk(2)
        shares = distributed.shares(len(rows)) if distributed.size() > 1 else ()
        return nt_xent(first, second, c.temperature, shares) * distributed.weight(len(rows))

    phases: list[tuple[int, int, Callable[[Tensor], Tensor]]] = []
    if c.contrastive:
        phases.append((len(pool), c.contrastive_batch, contrast))
    if c.surrogate_labels:
        phases.append((len(surrogate.inputs), c.supervised_batch, lambda rows: fit_labels(model, rows)))
    for count, batch, _ in phases:
        if (smallest := min(_sizes(count, batch))) < distributed.size():
            raise ValueError(f"a batch of {smallest} cannot be shared by {distributed.size()} workers; ask for fewer")
    step = _Stepper(network, c.learning_rate, 0.0, steps, device)
    progress = Progress(checkpoint, {"network": network, **step.stateful}, {"views": generator, "order": order}, device)
    for epoch in range(progress.epochs, c.epochs):
        for count, batch, loss in phases:
            mean = _run(loss, _batches(count, batch, order), step)
        progress.maybe_save(epoch + 1)
        report((epoch + 1) / c.epochs, mean)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def finetune(
    problem: Problem,
    labelled: Split,
    configuration: Finetuning,
    weights: Weights | None = None,
    device: torch.device | str = "cpu",
    report: Report = _silent,
) -> Network:
    """Fit a network, pretrained or new, to target labels for a fixed number of steps.

    Args:
        problem: gives features, symmetries and the label loss.
        labelled: the target labels that may be seen, all of them.
        configuration: see `Finetuning`.
        weights: of a pretrained network of the same architecture; None to start from scratch.
        device, report: as in `pretrain`.

    Raises:
        Diverged: the loss is no longer finite.
        ValueError: the weights are of another architecture.
    """
    c, device = configuration, torch.device(device)
    network = new_network(problem, c.architecture, c.seed)
    if weights is not None:
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(f"the weights are of another architecture: {one_line(error)}") from None
    assert labelled.labels is not None
    known = baseline.known(problem, labelled.inputs, c.delta, labelled.estimates)
    if c.delta:  # a good estimate leaves little to learn: of what size, the labels that may be seen tell
        network.scale.copy_((labelled.labels - known).square().mean().sqrt().clamp(min=1e-12))
    network.to(device)
    generator = torch.Generator(device).manual_seed(named_seed("finetune", c.seed))
    order = torch.Generator().manual_seed(named_seed("order", c.seed))
    loss = _label_loss(problem, labelled, known, problem.label_loss, c.augmentation, generator, device)
    model = _compiled(network, c.steps, device)
    step = _Stepper(network, c.learning_rate, c.weight_decay, c.steps, device)
    done = 0
    while done < c.steps:
        rows = list(_batches(len(labelled.inputs), c.batch, order))[: c.steps - done]
        mean = _run(lambda r: loss(model, r), rows, step)
        done += len(rows)
        report(done / c.steps, mean)
    return network


@torch.no_grad()
def predict(
    network: Network,
    problem: Problem,
    inputs: Tensor,
    views: int = 0,
    device: torch.device | str = "cpu",
    delta: bool = False,
    batch: int = 500,
    precision: torch.dtype | None = None,
    estimates: Tensor | None = None,
) -> Tensor:
    """Labels, (count, *label_shape), of inputs (count, *input_shape), on the CPU.

    With ``views`` the mean over that many views of each input, every one moved by random elements of all
    symmetries and equivariances, and of the latter moved back: the network's projection, in the limit, on
    functions that share them. ``delta`` as it was fine-tuned with; ``estimates`` are the inputs', where they are
    known already. ``precision`` is the type of the labels, if it is not that of their offset or estimates: far from
    zero float32 would lose what the network has found.
    """
    network = network.to(device).eval()
    generator = torch.Generator(device).manual_seed(named_seed("predict"))
    always = dict.fromkeys((*problem.symmetries, *problem.equivariances), float(views > 0))

    def look(x: Tensor) -> Tensor:
        x, moves = augment_labelled(x, problem.symmetries, problem.equivariances, always, generator)
        difference = network(problem.features(x)).float()
        return baseline.moved(difference, moves.back, problem, delta) if moves.steps else difference

    outputs = []
    for x in inputs.split(batch):
        x = x.to(device)
        outputs.append(sum(look(x) for _ in range(max(1, views))).cpu() / max(1, views))  # type: ignore[union-attr]
    difference = torch.cat(outputs).view(-1, *problem.label_shape)
    known = baseline.known(problem, inputs, delta, estimates)
    precision = precision or known.dtype
    return (difference.to(torch.promote_types(precision, known.dtype)) + known).to(precision)


def _label_loss(
    problem: Problem,
    labelled: Split,
    known: Tensor,
    measure: Callable[[Tensor, Tensor], Tensor],
    augmentation: Probabilities,
    generator: torch.Generator,
    device: torch.device,
) -> Callable[[nn.Module, Tensor], Tensor]:
    """The loss of a batch of labelled rows as a function of the network and the rows.

    ``known`` is subtracted from the labels: (*label_shape), or one for each row. The difference is float32, however
    they are stored.
    """
    assert labelled.labels is not None
    delta = known.ndim > len(problem.label_shape)
    inputs = labelled.inputs.to(device)
    targets = (labelled.labels - known).flatten(1).float().to(device)

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        rows = rows.to(device)
        x, moves = augment_labelled(
            inputs[rows], problem.symmetries, problem.equivariances, dict(augmentation), generator
        )
        target = targets[rows]
        if moves.steps:
            target = baseline.moved(target, moves.forth, problem, delta)
        prediction = model(problem.features(distributed.local_shard(x)))
        return measure(prediction, distributed.local_shard(target)) * distributed.weight(len(rows))

    return loss


def _sizes(count: int, batch: int) -> list[int]:
    """Batches of equal size to within one, near to ``batch``, that hold all the data.

    BatchNorm cannot work on a last batch of one, and every worker needs its share of each.
    """
    number = max(1, round(count / batch))
    return [count // number + (i < count % number) for i in range(number)]


def _batches(count: int, batch: int, order: torch.Generator) -> Iterator[Tensor]:
    """One epoch of row numbers in random order."""
    sizes = _sizes(count, batch)
    yield from torch.randperm(count, generator=order).split(sizes)


def _compiled(model: nn.Module, steps: int, device: torch.device) -> nn.Module:
    """The model as it is trained: compiled where that repays."""
    return torch.compile(model) if device.type == "cuda" and steps >= COMPILE_FROM else model  # type: ignore[return-value]


def _precision(device: torch.device) -> AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


class _Stepper:
    """The optimiser of a network, and its schedule; a call computes a loss and follows its gradient."""

    def __init__(
        self, network: nn.Module, learning_rate: float, weight_decay: float, steps: int, device: torch.device
    ) -> None:
        network.train()
        optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
        # A schedule of one step has no room for a warm-up and a descent.
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, max(steps, 10), pct_start=0.15)
        self._optimiser, self._schedule, self._device = optimiser, schedule, device
        self.stateful: dict[str, Any] = {"optimiser": optimiser, "schedule": schedule}

    def __call__(self, compute: Callable[[], Tensor]) -> Tensor:
        self._optimiser.zero_grad(set_to_none=True)
        with _precision(self._device):
            loss = compute()
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        return loss.detach()


def _run(loss: Callable[[Tensor], Tensor], batches: Iterator[Tensor] | list[Tensor], step: _Stepper) -> float:
    """One epoch; its mean loss, over all workers, so that none goes on where another has stopped."""
    losses = [step(lambda rows=rows: loss(rows)) for rows in batches]  # type: ignore[misc]
    mean = float(distributed.mean(torch.stack(losses).mean()))
    if not math.isfinite(mean):
        raise Diverged(f"the loss became {mean}; a smaller learning rate may help")
    return mean
