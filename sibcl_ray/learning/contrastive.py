"""The contrastive loss, NT-Xent on pairs of views, on one worker or many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sibcl_ray.learning import distributed


def nt_xent(a: Tensor, b: Tensor, temperature: float, shares: Sequence[int] = ()) -> Tensor:
    """Normalised temperature-scaled cross entropy of two views of one batch (Chen et al., SimCLR, 2020).

    Row i of ``a`` and row i of ``b`` are a positive pair; all other rows of both are negatives.

    Args:
        a, b: projections, (batch, dimension); they are normalised here.
        temperature: positive divisor of the cosine similarities.
        shares: how many pairs of the batch each worker of a process group has; negatives are taken from all of them.
            The mean of the workers' losses, and of their gradients, is that of one worker with the whole batch, if
            each is weighted by its share.

    Returns:
        The mean over this worker's 2·batch rows, a scalar.
    """
    # In single precision, also under autocast: exponentials of similarities over a temperature overflow half.
    a, b = F.normalize(a.float(), dim=1), F.normalize(b.float(), dim=1)
    all_a, all_b = (distributed.gather(x, shares) for x in (a, b))
    first = sum(shares[: distributed.rank()])
    positives = torch.arange(first, first + len(a), device=a.device)
    losses = []
    with torch.autocast(a.device.type, enabled=False):
        for view, same, other in ((a, all_a, all_b), (b, all_b, all_a)):
            among_same = view @ same.T / temperature
            among_same.diagonal(first).fill_(-torch.inf)  # a row is no negative of itself
            logits = torch.cat([view @ other.T / temperature, among_same], dim=1)
            losses.append(F.cross_entropy(logits, positives))
    return (losses[0] + losses[1]) / 2
