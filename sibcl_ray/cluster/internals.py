"""What of Ray is used here and is not public; `tests/test_internals.py` says what a release has changed."""

from typing import Any

import ray
from ray._private.state import state
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

UNNEEDED = ("DatasetsCallback", "PlacementGroupCleanerCallback")


def scales() -> bool:
    """Whether the connected cluster has an autoscaler (the second version of Ray's). How far it goes, nothing tells."""
    return is_autoscaler_v2(fetch_from_server=True)


class Trainer(TorchTrainer):
    """Without two processes that every run of Train would start, each in seconds: one hands out data, of which these
    runs have none, and one does what `free_what_the_dead_reserved` does."""

    def _create_default_callbacks(self) -> list[Any]:
        found = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in found if type(each).__name__ not in UNNEEDED]


def free_what_the_dead_reserved() -> None:
    """Remove the placement groups of Train controllers that were killed; Ray does so when the driver ends.

    Train's own cleaner needs a dashboard, which a cluster that was started by a driver does not have.
    """
    job, nobody = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    table = state._connect_and_get_accessor().get_placement_group_table()
    for entry in map(PlacementGroupTableData.FromString, table):
        by_actor = entry.creator_job_id.hex() == job and entry.creator_actor_id not in (b"", nobody)
        if by_actor and entry.creator_actor_dead and entry.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(entry.placement_group_id)))
