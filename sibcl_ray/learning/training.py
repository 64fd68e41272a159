"""Pretraining and fine-tuning: plain functions of data, a configuration and a device.

They run wherever torch runs. In a torch.distributed process group ``pretrain`` shares every batch among the
workers, which changes nothing but rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sibcl_ray.data.dataset import Split
from sibcl_ray.learning import baseline, distributed
from sibcl_ray.learning.checkpoint import Checkpoint, Progress
from sibcl_ray.learning.contrastive import nt_xent
from sibcl_ray.learning.model import Model, new_network
from sibcl_ray.learning.networks import Architecture
from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import Problem
from sibcl_ray.randomness import named_seed
from sibcl_ray.symmetry import augment, augment_labelled

Probabilities = tuple[tuple[str, float], ...]  # of each symmetry, by name, to act on a sample
Report = Callable[[float, float], None]  # the finished fraction, and the mean loss of the last epoch
Weights = dict[str, Tensor]
Loss = Callable[[nn.Module, Tensor], Tensor]  # of a network and of row numbers on its device: a batch

COMPILE_FROM = 5_000  # steps from which, on a GPU, a compiled network repays its compilation


class Diverged(ArithmeticError):
    """The loss became infinite or NaN."""


def _check(configuration: object, positive: tuple[str, ...], probabilities: Probabilities) -> None:
    for name in positive:
        value = getattr(configuration, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; it must be positive")
    for name, value in probabilities:
        if not 0 <= value <= 1:
            raise ValueError(f"the probability of {name} is {value}; it must lie between 0 and 1")


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
        positive = "temperature", "contrastive_batch", "supervised_batch", "learning_rate", "epochs"
        _check(self, positive, (*self.views, *self.augmentation))
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
    views: int = 0  # of the model
    delta: bool = False  # of the model: fit the difference from the problem's estimate
    seed: int = 0  # of new weights, order and augmentation

    def __post_init__(self) -> None:
        _check(self, ("learning_rate", "batch", "steps"), self.augmentation)
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be zero or positive")
        if self.views < 0:
            raise ValueError(f"views is {self.views}; it must be zero or positive")


def pretrain(
    problem: Problem,
    unlabelled: Tensor,
    surrogate: Split,
    configuration: Pretraining,
    device: torch.device | str = "cpu",
    report: Report = lambda fraction, loss: None,
    checkpoint: Checkpoint | None = None,
) -> Weights:
    """Pretrain a network; every worker of a process group calls this with the same arguments.

    Args:
        unlabelled: inputs without labels, (count, *input_shape).
        surrogate: inputs and labels of the surrogate family.
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
    phases: list[tuple[list[int], Loss]] = []  # of an epoch: how large its batches are, and their loss
    if c.contrastive:
        pool = torch.cat([unlabelled, surrogate.inputs])
        phases.append((_sizes(len(pool), c.contrastive_batch), _contrastive_loss(problem, pool, c, generator)))
    if c.surrogate_labels:
        fit = _label_loss(problem, surrogate, problem.surrogate_loss, c.augmentation, False, generator)
        phases.append((_sizes(len(surrogate.inputs), c.supervised_batch), fit))
    steps = c.epochs * sum(len(sizes) for sizes, _ in phases)
    training = _Training(network, c.learning_rate, 0.0, steps, device)
    progress = Progress(checkpoint, {**training.stateful, "views": generator, "order": order}, device)
    for epoch in range(progress.epochs, c.epochs):
        for sizes, loss in phases:
            mean = training.epoch(loss, _batches(sizes, order))
        progress.maybe_save(epoch + 1)
        report((epoch + 1) / c.epochs, mean)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def finetune(
    problem: Problem,
    labelled: Split,
    configuration: Finetuning,
    weights: Weights | None = None,
    device: torch.device | str = "cpu",
    report: Report = lambda fraction, loss: None,
) -> Model:
    """Fit a network, pretrained or new, to target labels for a fixed number of steps.

    Args:
        labelled: the target labels that may be seen.
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
    if c.delta:  # a good estimate leaves little to learn: of what size, the labels that may be seen tell
        difference = baseline.difference(problem, labelled, c.delta)
        network.scale.copy_(difference.square().mean().sqrt().clamp(min=1e-12))
    generator = torch.Generator(device).manual_seed(named_seed("finetune", c.seed))
    order = torch.Generator().manual_seed(named_seed("order", c.seed))
    loss = _label_loss(problem, labelled, problem.label_loss, c.augmentation, c.delta, generator)
    training = _Training(network.to(device), c.learning_rate, c.weight_decay, c.steps, device)
    sizes, done = _sizes(len(labelled.inputs), c.batch), 0
    while done < c.steps:
        batches = _batches(sizes, order)[: c.steps - done]
        mean = training.epoch(loss, batches)
        done += len(batches)
        report(done / c.steps, mean)
    return Model(network, problem, c.views, c.delta)


def _contrastive_loss(problem: Problem, pool: Tensor, c: Pretraining, generator: torch.Generator) -> Loss:
    """The loss of two views of rows of ``pool``, inputs of both families."""
    inputs, groups, probabilities = pool.to(generator.device), problem.symmetries, dict(c.views)

    def loss(network: nn.Module, rows: Tensor) -> Tensor:
        x = inputs[rows]
        views = [distributed.local_shard(augment(x, groups, probabilities, generator)) for _ in range(2)]
        first, second = network(torch.cat([problem.features(v) for v in views]), project=True).chunk(2)
        shares, weight = distributed.shares(len(rows)), distributed.weight(len(rows))
        return nt_xent(first, second, c.temperature, shares) * weight

    return loss


def _label_loss(
    problem: Problem,
    labelled: Split,
    measure: Callable[[Tensor, Tensor], Tensor],
    augmentation: Probabilities,
    delta: bool,
    generator: torch.Generator,
) -> Loss:
    """The loss, by ``measure``, of labelled rows less what is known of their labels, in float32."""
    device = generator.device
    inputs = labelled.inputs.to(device)
    targets = baseline.difference(problem, labelled, delta).flatten(1).float().to(device)

    def loss(network: nn.Module, rows: Tensor) -> Tensor:
        x, moves = augment_labelled(
            inputs[rows], problem.symmetries, problem.equivariances, dict(augmentation), generator
        )
        target = targets[rows]
        if moves.steps:
            target = baseline.moved(target, moves.forth, problem, delta)
        prediction = network(problem.features(distributed.local_shard(x)))
        return measure(prediction, distributed.local_shard(target)) * distributed.weight(len(rows))

    return loss


def _sizes(count: int, batch: int) -> list[int]:
    """Batches of equal size to within one, near to ``batch``, that hold all the data.

    BatchNorm cannot work on a last batch of one, and every worker needs its share of each: else ValueError.
    """
    number = max(1, round(count / batch))
    if (smallest := count // number) < distributed.size():
        raise ValueError(f"a batch of {smallest} cannot be shared by {distributed.size()} workers; ask for fewer")
    return [smallest + (i < count % number) for i in range(number)]


def _batches(sizes: list[int], order: torch.Generator) -> tuple[Tensor, ...]:
    """One epoch of row numbers in random order."""
    return torch.randperm(sum(sizes), generator=order).split(sizes)


class _Training:
    """A network that is trained, with its optimiser and schedule."""

    def __init__(
        self, network: nn.Module, learning_rate: float, weight_decay: float, steps: int, device: torch.device
    ) -> None:
        self._device = device
        self._model = distributed.data_parallel(network, device)
        if device.type == "cuda" and steps >= COMPILE_FROM:
            self._model = torch.compile(self._model)  # type: ignore[assignment]
        network.train()
        self._optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=weight_decay, fused=True)
        steps = max(steps, 10)  # one alone has no room for a warm-up and a descent
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, learning_rate, steps, pct_start=0.15)
        self.stateful = {"network": network, "optimiser": self._optimiser, "schedule": self._schedule}

    def epoch(self, loss: Loss, batches: Iterable[Tensor]) -> float:
        """Follow the gradient of each batch's loss; the mean loss over all workers, so that all stop where one does."""
        losses = [self._step(loss, rows.to(self._device)) for rows in batches]
        mean = float(distributed.mean(torch.stack(losses).mean()))
        if not math.isfinite(mean):
            raise Diverged(f"the loss became {mean}; a smaller learning rate may help")
        return mean

    def _step(self, loss: Loss, rows: Tensor) -> Tensor:
        self._optimiser.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            value = loss(self._model, rows)
        value.backward()
        self._optimiser.step()
        self._schedule.step()
        return value.detach()
