"""Networks: an encoder, a projector for the contrastive loss and a predictor of labels.

Inputs are (batch, channels, *grid) with a grid of one to three dimensions. Configurations are frozen
dataclasses that ``build`` their module, so a new encoder is one new class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

CONVOLUTION: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOL = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
CIRCULAR_PAD: dict[int, Callable[..., nn.Module]] = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}


def _check_sizes(**sizes: int | tuple[int, ...]) -> None:
    for name, size in sizes.items():
        if min(size if isinstance(size, tuple) else (size,), default=1) < 1:
            raise ValueError(f"{name} is {size}; it must be 1 or larger")


class Encoder(ABC):
    """The configuration of a network from inputs to their representations: a frozen dataclass."""

    version: ClassVar[int] = 1  # raise it when what the network computes changes
    pads_by_period: ClassVar[bool] = False  # whether it depends on which axes are periodic
    latent: int  # size of the representation

    @property
    @abstractmethod
    def label(self) -> str:
        """Short name for tables."""

    @property
    def smallest(self) -> int:
        """The length that every axis of the grid must have at least."""
        return 1

    def fitted(self, length: int) -> Encoder:
        """The encoder, or one as near to it as grids allow whose shortest axis has this length."""
        return self

    @abstractmethod
    def build(self, inputs: int, grid: tuple[int, ...], periodic: tuple[bool, ...]) -> nn.Module:
        """The module for ``inputs`` channels: (batch, inputs, *grid) -> (batch, latent).

        Args:
            inputs: the number of channels.
            grid: the length of each axis.
            periodic: of each axis whether inputs repeat along it.
        """


@dataclass(frozen=True, kw_only=True)
class ReferenceEncoder(Encoder):
    """The CNN of Loh et al. (2022): zero padding, BatchNorm, ReLU, max-pooling, global average."""

    channels: tuple[int, ...] = (64, 256, 256)  # of each convolution
    kernel: int = 7  # odd side of every filter, pixels
    stride: int = 1  # of the first convolution; the published networks have 1
    pools: tuple[int, ...] = (2, 4, 4)  # max-pooling after each convolution
    head: int = 1024  # hidden units of the two-layer head
    latent: int = 1024  # size of the representation

    def __post_init__(self) -> None:
        _check_sizes(**vars(self))
        if not self.channels:
            raise ValueError("channels are (); give at least one convolution")
        if len(self.channels) != len(self.pools):
            raise ValueError(
                f"got {len(self.channels)} channels and {len(self.pools)} pools; give one pool per convolution"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel is {self.kernel}; an odd side keeps the grid's size")

    @property
    def label(self) -> str:
        stride = f" s{self.stride}" if self.stride > 1 else ""
        return f"reference {'-'.join(map(str, self.channels))} k{self.kernel}{stride}"

    @property
    def smallest(self) -> int:
        return self.stride * (math.prod(self.pools) - 1) + 1

    def fitted(self, length: int) -> ReferenceEncoder:
        """With the largest pool, the first of them, halved until the grid is large enough."""
        encoder = self
        while encoder.smallest > length:
            pools = list(encoder.pools)
            largest = pools.index(max(pools))
            pools[largest] //= 2
            encoder = replace(encoder, pools=tuple(pools))
        return encoder

    def scaled(self, width: float) -> ReferenceEncoder:
        """The same shape with every layer's width multiplied."""
        return replace(
            self,
            channels=tuple(round(c * width) for c in self.channels),
            head=round(self.head * width),
            latent=round(self.latent * width),
        )

    def build(self, inputs: int, grid: tuple[int, ...], periodic: tuple[bool, ...]) -> nn.Module:
        dimensions, layers = len(grid), list[nn.Module]()
        strides = (self.stride, *(1 for _ in self.channels[1:]))
        for (before, after), stride, pool in zip(pairwise((inputs, *self.channels)), strides, self.pools, strict=True):
            convolution = CONVOLUTION[dimensions](
                before, after, self.kernel, stride=stride, padding=self.kernel // 2, bias=False
            )
            # Pooling before the ReLU gives the same numbers, and the ReLU less to do.
            layers += [convolution, NORM[dimensions](after), POOL[dimensions](pool), nn.ReLU()]
        layers += [AVERAGE[dimensions](1), nn.Flatten()]
        return nn.Sequential(*layers, perceptron(self.channels[-1], (self.head,), self.latent))


@dataclass(frozen=True, kw_only=True)
class InvariantEncoder(Encoder):
    """Residual dilated convolutions without downsampling: exactly invariant under periodic translations.

    Circular padding and stride 1 commute with translations; the global mean and standard deviation do not depend on
    places. The dilations give the receptive field that pooling would give (Schurov et al., arXiv 2406.08318). Along
    axes that are not periodic the padding is zeros.
    """

    pads_by_period: ClassVar[bool] = True

    channels: int = 48  # of every layer
    dilations: tuple[int, ...] = (1, 2, 4, 8, 4, 2)  # of the residual layers, whose filters have 3 pixels a side
    latent: int = 256  # size of the representation

    def __post_init__(self) -> None:
        _check_sizes(**vars(self))
        if not self.dilations:
            raise ValueError("dilations are (); give at least one")

    @property
    def label(self) -> str:
        return f"invariant {self.channels} d{'-'.join(map(str, self.dilations))}"

    @property
    def smallest(self) -> int:
        return max(2, *self.dilations)  # circular padding is at most the period

    def fitted(self, length: int) -> InvariantEncoder:
        """With those of the dilations that the grid is large enough for."""
        return replace(self, dilations=tuple(d for d in self.dilations if d <= length) or (1,))

    def build(self, inputs: int, grid: tuple[int, ...], periodic: tuple[bool, ...]) -> nn.Module:
        return _Invariant(self, inputs, periodic)


@dataclass(frozen=True, kw_only=True)
class PerceptronEncoder(Encoder):
    """Linear layers from all numbers of an input: for vectors of parameters, of which neighbours are not alike."""

    hidden: tuple[int, ...] = (256, 256)  # units of each hidden layer
    latent: int = 256  # size of the representation

    def __post_init__(self) -> None:
        _check_sizes(**vars(self))

    @property
    def label(self) -> str:
        return f"perceptron {'-'.join(map(str, self.hidden))}"

    def build(self, inputs: int, grid: tuple[int, ...], periodic: tuple[bool, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), perceptron(inputs * math.prod(grid), self.hidden, self.latent))


def _same_size(inputs: int, outputs: int, kernel: int, periodic: tuple[bool, ...], dilation: int = 1) -> nn.Module:
    """A convolution that keeps the grid's size: circular padding along periodic axes, zeros along the others."""
    dimensions, reach = len(periodic), dilation * (kernel // 2)
    convolution = partial(CONVOLUTION[dimensions], inputs, outputs, kernel, dilation=dilation, bias=False)
    if all(periodic) or not any(periodic):
        return convolution(padding=reach, padding_mode="circular" if all(periodic) else "zeros")
    around = [reach * repeats for repeats in reversed(periodic) for _ in range(2)]  # the last axis first
    zeros = tuple(reach * (not repeats) for repeats in periodic)
    return nn.Sequential(CIRCULAR_PAD[dimensions](around), convolution(padding=zeros))


class _Residual(nn.Module):
    def __init__(self, channels: int, dilation: int, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        self.convolution = _same_size(channels, channels, 3, periodic, dilation)
        self.norm = NORM[len(periodic)](channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.convolution(x)))


class _Invariant(nn.Module):
    def __init__(self, configuration: InvariantEncoder, inputs: int, periodic: tuple[bool, ...]) -> None:
        super().__init__()
        width = configuration.channels
        self.stem = nn.Sequential(_same_size(inputs, width, 5, periodic), NORM[len(periodic)](width))
        self.layers = nn.Sequential(*(_Residual(width, d, periodic) for d in configuration.dilations))
        self.head = nn.Linear(2 * width, configuration.latent)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(torch.relu(self.stem(x))).flatten(2)
        variance, mean = torch.var_mean(x, dim=2, correction=0)
        # The root's slope is infinite at zero, where a channel is silent.
        return self.head(torch.cat([mean, (variance + 1e-6).sqrt()], dim=1))


def perceptron(inputs: int, hidden: tuple[int, ...], outputs: int, normalise: bool = False) -> nn.Sequential:
    """Linear layers with (BatchNorm and) ReLU between them: (batch, inputs) -> (batch, outputs)."""
    layers: list[nn.Module] = []
    for before, after in pairwise((inputs, *hidden)):
        layers.append(nn.Linear(before, after, bias=not normalise))
        layers += [nn.BatchNorm1d(after)] if normalise else []
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear((inputs, *hidden)[-1], outputs))


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Everything that fixes the shapes of a network's weights, apart from the problem's own shapes."""

    encoder: Encoder = ReferenceEncoder()
    predictor: tuple[int, ...] = (1024, 1024, 512)  # hidden units from representation to label
    projector: tuple[int, ...] = (1024, 1024, 1024)  # hidden units from representation to projection
    projection: int = 256  # size of the vectors that the contrastive loss compares

    def __post_init__(self) -> None:
        _check_sizes(predictor=self.predictor, projector=self.projector, projection=self.projection)


class Network(nn.Module):
    """Encoder with two heads: a predictor of labels and a projector for the contrastive loss."""

    def __init__(
        self,
        architecture: Architecture,
        inputs: int,
        outputs: int,
        grid: tuple[int, ...],
        periodic: tuple[bool, ...],
    ) -> None:
        super().__init__()
        latent = architecture.encoder.latent
        self.encoder = architecture.encoder.build(inputs, grid, periodic)
        self.projector = perceptron(latent, architecture.projector, architecture.projection, normalise=True)
        self.predictor = nn.Sequential(nn.ReLU(), perceptron(latent, architecture.predictor, outputs))
        self.scale: Tensor
        self.register_buffer("scale", torch.ones(()))  # of the labels that the predictor gives

    def forward(self, x: Tensor, project: bool = False) -> Tensor:
        """Of inputs (batch, inputs, *grid) the labels, (batch, outputs), or projections, (batch, projection)."""
        return self.projector(self.encoder(x)) if project else self.scale * self.predictor(self.encoder(x))
