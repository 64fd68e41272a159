"""What of a label is known before anything is learned: a constant or, in delta-learning, an estimate of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from sibcl_ray.data.dataset import Split
from sibcl_ray.data.sandbox import call
from sibcl_ray.problems import check
from sibcl_ray.problems.problem import Problem


def known(problem: Problem, inputs: Tensor, delta: bool, estimates: Tensor | None = None) -> Tensor:
    """What the network does not have to learn of labels: their offset, or an estimate of each, stored or asked for."""
    if not delta:
        return torch.from_numpy(problem.offset)
    return _estimates(problem, inputs) if estimates is None else estimates


def difference(problem: Problem, labelled: Split, delta: bool) -> Tensor:
    """What a network has to learn of labels, (count, *label_shape)."""
    assert labelled.labels is not None
    return labelled.labels - known(problem, labelled.inputs, delta, labelled.estimates)


def moved(difference: Tensor, move: Callable[[Tensor], Tensor], problem: Problem, delta: bool) -> Tensor:
    """What a network fits, (batch, …), where labels are moved: the estimates move with them, the offset stays."""
    difference = difference.view(-1, *problem.label_shape)
    if delta:
        return move(difference).flatten(1)
    offset = torch.from_numpy(problem.offset).to(difference.device)
    return (move(difference + offset) - offset).flatten(1).to(difference.dtype)


def _estimates(problem: Problem, inputs: Tensor) -> Tensor:
    """The problem's estimates, (count, *label_shape); those made once are kept in memory."""
    kept = _KEPT.setdefault(problem, {})
    keys = [hashlib.sha256(x.numpy().tobytes()).digest() for x in inputs]
    new = [row for row, key in enumerate(keys) if key not in kept]
    if new:
        given = call(problem, "estimate", inputs[new].numpy())
        estimates = check.labels(problem, given, len(new), f"{problem.name}.estimate")
        kept.update(zip([keys[row] for row in new], torch.from_numpy(estimates), strict=True))
    return torch.stack([kept[key] for key in keys])


_KEPT: dict[Problem, dict[bytes, Tensor]] = {}
