"""The only reader of the test split."""

from __future__ import annotations

import numpy as np
import torch

from sibcl_ray.data.dataset import TEST, Dataset
from sibcl_ray.learning.networks import Network
from sibcl_ray.learning.training import predict


def test_errors(
    network: Network,
    dataset: Dataset,
    count: int,
    views: int = 0,
    device: torch.device | str = "cpu",
    delta: bool = False,
) -> np.ndarray:
    """The problem's error of each of ``count`` test samples, (count,): a cell's one look at them.

    ``views``, ``device`` and ``delta`` are those of `training.predict`.
    """
    split = dataset.read(TEST, count, delta)
    assert split.labels is not None
    prediction = predict(
        network, dataset.problem, split.inputs, views, device, delta,
        precision=split.labels.dtype, estimates=split.estimates,
    )  # fmt: skip
    return dataset.problem.error(prediction, split.labels).numpy()
