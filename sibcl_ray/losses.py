"""Losses: NT-Xent on pairs of views, on one worker or many, and the losses of labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


class _Gather(torch.autograd.Function):
    """Concatenates a batch over all workers; each worker's gradient is the sum of what all ask for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.batch = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.batch :][: ctx.batch]


def _across_workers(x: Tensor) -> tuple[Tensor, int]:
    """All workers' rows, and where this worker's begin."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x, 0
    return _Gather.apply(x), dist.get_rank() * len(x)


def _similarities(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of all rows, (rows of x, rows of y), where autocast would multiply in half precision."""
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.T


def nt_xent(a: Tensor, b: Tensor, temperature: float, distributed: bool = False) -> Tensor:
    """Normalised temperature-scaled cross entropy of two views of one batch (Chen et al., SimCLR, 2020).

    Row i of ``a`` and row i of ``b`` are a positive pair; all other rows of both are negatives.

    Args:
        a, b: projections, (batch, dimension); they are normalised here.
        temperature: positive divisor of the cosine similarities.
        distributed: take negatives from all workers of the process group. Every worker must bring the
            same batch; the mean of the workers' losses, and of their gradients, is then that of one
            worker with the whole batch.

    Returns:
        The mean over this worker's 2·batch rows, a scalar.
    """
    # Exponentials of similarities over a temperature overflow half precision.
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    (all_a, first), (all_b, _) = (_across_workers(x) if distributed else (x, 0) for x in (a, b))
    positives = torch.arange(first, first + len(a), device=a.device)
    losses = []
    for view, same, other in ((a, all_a, all_b), (b, all_b, all_a)):
        among_same = _similarities(view, same) / temperature
        among_same.diagonal(first).fill_(-torch.inf)  # a row is no negative of itself
        logits = torch.cat([_similarities(view, other) / temperature, among_same], dim=1)
        losses.append(F.cross_entropy(logits, positives))
    return (losses[0] + losses[1]) / 2


def log_absolute(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean log(1 + |error|): the surrogate-label loss of the photonic density of states."""
    return (prediction - label).abs().log1p().mean()


def censored(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean |Δ|; a label of 0, the least there is, asks only for a prediction that is not above it (Tobin, 1958)."""
    return torch.where(label == 0, prediction.clamp(min=0), (prediction - label).abs()).mean()


def absolute(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean absolute error: the fine-tuning loss of the photonic density of states."""
    return F.l1_loss(prediction, label)


def squared(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(prediction, label)


def logistic(prediction: Tensor, label: Tensor) -> Tensor:
    """Mean log(1 + exp(−prediction · label)): the prediction is the log-odds of the label +1 against −1."""
    return F.softplus(-prediction * label).mean()
