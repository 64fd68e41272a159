"""The only reader of the test split."""

import numpy as np

from sibcl_ray.data.dataset import TEST, Dataset
from sibcl_ray.learning.model import Model


def test_errors(model: Model, dataset: Dataset, count: int) -> np.ndarray:
    """The problem's error of each of ``count`` test samples, (count,): a cell's one look at them."""
    return model.errors(dataset.read(TEST, count, model.delta)).numpy()
