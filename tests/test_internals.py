"""What is used of other libraries and is not public is still there: else this says what a release has changed."""

from importlib import import_module
from importlib.metadata import version

import optuna
import pytest
import typer

from sibcl_ray.search.search import FIXED

RAY = [
    ("ray._private.state", "state._connect_and_get_accessor"),
    ("ray.autoscaler.v2.utils", "is_autoscaler_v2"),
    ("ray.core.generated.gcs_pb2", "PlacementGroupTableData.FromString"),
    ("ray.core.generated.gcs_pb2", "PlacementGroupTableData.REMOVED"),
]


@pytest.mark.parametrize(("module", "name"), RAY, ids=[name for _, name in RAY])
def test_ray_has_it(module, name):
    said = f"ray {version('ray')} has no {module}.{name} any more; sibcl_ray/cluster/internals.py needs it"
    try:
        found = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        pytest.fail(said, pytrace=False)


def test_a_placement_group_says_who_made_it():
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData

    fields = {field.name for field in PlacementGroupTableData.DESCRIPTOR.fields}
    needed = {"creator_job_id", "creator_actor_id", "creator_actor_dead", "state", "placement_group_id"}
    assert needed <= fields, f"ray {version('ray')}: {needed - fields} are gone; cluster/internals.py needs them"


def test_a_run_of_train_starts_two_processes_fewer():
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from sibcl_ray.cluster.internals import UNNEEDED, Trainer

    theirs, ours = (
        {type(each).__name__ for each in kind(print, scaling_config=ScalingConfig())._create_default_callbacks()}
        for kind in (TorchTrainer, Trainer)
    )
    assert theirs - ours == {*UNNEEDED}, f"ray {version('ray')}: cluster/internals.py needs the names of callbacks"


def test_trials_of_optuna_have_numbers_and_say_what_was_asked_for():
    study = optuna.create_study()
    study.enqueue_trial({"x": 0.5})
    trial = study.get_trials()[0]
    assert trial.system_attrs[FIXED] == {"x": 0.5}, f"optuna {version('optuna')}: search/search.py needs {FIXED}"
    assert isinstance(trial._trial_id, int), f"optuna {version('optuna')}: search/history.py needs _trial_id"


def test_typer_raises_usage_errors():
    kind = typer.BadParameter.__bases__[0]
    assert hasattr(kind, "format_message"), f"typer {version('typer')}: cli.main needs the base of BadParameter"
