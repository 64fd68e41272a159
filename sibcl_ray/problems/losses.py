"""Losses of labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
