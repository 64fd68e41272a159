"""One batch on several workers of a torch.distributed process group, as if one worker had all of it.

Every worker draws the same batches and the same views, and keeps its share. BatchNorm and the contrastive loss
look at all shares; so the mean of the workers' gradients is the gradient of the whole batch, to rounding, however
many workers there are. That is so inside `process_group`: workers of one may also do different things.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

_TOGETHER = ContextVar("together", default=False)


@contextmanager
def process_group() -> Iterator[None]:
    """All workers of the process group do inside what one would do alone."""
    token = _TOGETHER.set(True)
    try:
        yield
    finally:
        _TOGETHER.reset(token)


def size() -> int:
    """How many workers share the work; 1 outside of `process_group`."""
    return dist.get_world_size() if _TOGETHER.get() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if size() > 1 else 0


def shares(count: int) -> list[int]:
    """How many rows of a batch each worker has; equal to within one."""
    return [count // size() + (worker < count % size()) for worker in range(size())]


def local_shard(batch: Tensor) -> Tensor:
    """This worker's rows of a batch."""
    return batch.split(shares(len(batch)))[rank()] if size() > 1 else batch


def weight(count: int) -> float:
    """Of the mean over this worker's rows of ``count``: the mean over workers is then that over all rows."""
    return shares(count)[rank()] * size() / count


def mean(values: Tensor) -> Tensor:
    """The mean over all workers; no gradient goes through it."""
    if size() > 1:
        dist.all_reduce(values)
    return values / size()


def same(value: Any, device: torch.device) -> Any:
    """The first worker's value, on every one of them."""
    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, 0, device=device)
    return values[0]


class _Sum(torch.autograd.Function):
    """The sum over all workers; so is the gradient, as every worker's loss depends on every worker's part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def gather(x: Tensor, rows: Sequence[int]) -> Tensor:
    """The rows, (batch, dimension), of all workers in their order, so many each; gradients flow back to each."""
    before, after = sum(rows[: rank()]), sum(rows[rank() + 1 :])
    return _Sum.apply(F.pad(x, (0, 0, before, after))) if size() > 1 else x


class _SyncBatchNorm(_BatchNorm):
    """BatchNorm with the statistics of all workers' rows, on any device; torch's own is for GPUs only."""

    def _check_input_dim(self, x: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        others = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = _Sum.apply(torch.cat([x.sum(others), count]))
        average, total = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - average.view(shape)
        variance = _Sum.apply(centred.square().sum(others)) / total
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(average, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        return centred * ((variance + self.eps).rsqrt() * self.weight).view(shape) + self.bias.view(shape)


def _synchronise(module: nn.Module) -> None:
    """Replace every BatchNorm below, keeping its parameters and buffers."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            twin = _SyncBatchNorm(child.num_features, child.eps, child.momentum)
            twin._parameters, twin._buffers = child._parameters, child._buffers
            module.add_module(name, twin)
        else:
            _synchronise(child)


def data_parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network as its workers train it together; it is itself what is trained."""
    if size() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    else:
        _synchronise(network)
    # A step uses one head or the other, so some parameters get no gradient.
    return DistributedDataParallel(network, find_unused_parameters=True)
