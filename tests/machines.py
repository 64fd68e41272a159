"""Machines for an autoscaler that are processes here; its process imports this, and nothing more of the tests."""

import os
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ray._private import parameter
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider


class Machines(FakeMultiNodeProvider):
    """Ray's fake machines, each with a disk of its own: else one that ends takes the job's files from all others."""

    def _create_node_with_resources_and_labels(self, *arguments: Any) -> None:
        disk = Path(os.environ["MACHINES"]) / str(self._next_node_id + 1)
        with patch.object(parameter, "RayParams", partial(parameter.RayParams, temp_dir=str(disk))):
            super()._create_node_with_resources_and_labels(*arguments)
