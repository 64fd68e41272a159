"""A model: a network, and how it predicts the labels of its problem."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sibcl_ray.data.dataset import Split
from sibcl_ray.learning import baseline
from sibcl_ray.learning.networks import Architecture, Network
from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import Problem, default_periodic_axes, feature_shape, periodic_axes
from sibcl_ray.randomness import named_seed
from sibcl_ray.symmetry import augment_labelled


def new_network(problem: Problem, architecture: Architecture, seed: int) -> Network:
    """A network for the problem's inputs and labels with weights drawn from ``seed``."""
    channels, *grid = feature_shape(problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed("weights", seed))
        outputs, periodic = math.prod(problem.label_shape), periodic_axes(problem, len(grid))
        network = Network(architecture, channels, outputs, tuple(grid), periodic)
    network.scale.fill_(problem.label_scale)
    # In two dimensions convolutions of few channels run about twice as fast on a CPU with channels last.
    return network.to(memory_format=torch.channels_last) if len(grid) == 2 else network  # type: ignore[call-overload]


def boundaries(problem: Problem, architecture: Architecture) -> tuple[bool, ...]:
    """Of each axis whether it is periodic, where the network depends on that and it is not the default; else ()."""
    if problem.periodic is None or not architecture.encoder.pads_by_period:
        return ()
    dimensions = len(feature_shape(problem)) - 1
    axes = periodic_axes(problem, dimensions)
    return () if axes == default_periodic_axes(dimensions) else axes


def check_takes(problem: Problem, architecture: Architecture) -> None:
    """ValueError where the network does not take the problem's inputs."""
    encoder, (_, *grid) = architecture.encoder, feature_shape(problem)
    if min(grid) < encoder.smallest:
        raise ValueError(
            f"the encoder {encoder.label} takes inputs of at least {encoder.smallest} pixels along each axis, and "
            f"these have {' × '.join(map(str, grid))}; give its .fitted({min(grid)}), or larger inputs"
        )
    try:
        new_network(problem, architecture, seed=0)(problem.features(torch.ones(2, *problem.input_shape)))
    except RuntimeError as error:
        raise ValueError(
            f"the encoder {encoder.label} does not take inputs of shape {problem.input_shape} "
            f"({one_line(error, 200)}); give another encoder or other features"
        ) from None


@dataclass(frozen=True)
class Model:
    """A network, and how it predicts the labels of a problem."""

    network: Network
    problem: Problem
    views: int = 0  # whose predictions are averaged, each moved by all symmetries; 0: the input as it is
    delta: bool = False  # whether it predicts the difference from the problem's estimate

    @torch.no_grad()
    def predict(
        self,
        inputs: Tensor,
        estimates: Tensor | None = None,
        precision: torch.dtype | None = None,
        batch: int = 500,
    ) -> Tensor:
        """Labels, (count, *label_shape), of inputs (count, *input_shape), on the CPU.

        Every view is moved by random elements of all symmetries and equivariances, and its label moved back by the
        latter: the mean is the network's projection, in the limit, on functions that share them.

        Args:
            estimates: the inputs', where they are known already.
            precision: type of the labels, if not that of their offset or estimates: far from zero float32 would lose
                what the network has found.
            batch: inputs that the network is given together.
        """
        network, problem, views = self.network.eval(), self.problem, max(1, self.views)
        device = network.scale.device
        generator = torch.Generator(device).manual_seed(named_seed("predict"))
        always = dict.fromkeys((*problem.symmetries, *problem.equivariances), float(self.views > 0))

        def look(x: Tensor) -> Tensor:
            x, moves = augment_labelled(x, problem.symmetries, problem.equivariances, always, generator)
            difference = network(problem.features(x)).float()
            return baseline.moved(difference, moves.back, problem, self.delta) if moves.steps else difference

        outputs = []
        for part in inputs.split(batch):
            x = part.to(device)
            outputs.append(sum(look(x) for _ in range(views)).cpu() / views)  # type: ignore[union-attr]
        difference = torch.cat(outputs).view(-1, *problem.label_shape)
        known = baseline.known(problem, inputs, self.delta, estimates)
        precision = precision or known.dtype
        return (difference.to(torch.promote_types(precision, known.dtype)) + known).to(precision)

    def errors(self, split: Split) -> Tensor:
        """The problem's error of each of the samples, (count,)."""
        assert split.labels is not None
        prediction = self.predict(split.inputs, split.estimates, split.labels.dtype)
        return self.problem.error(prediction, split.labels)
