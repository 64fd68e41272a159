"""MLflow shows the ledger, exactly and once."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from servers import mlflow_server
from test_curves import exact, noisy, power_law

from sibcl_ray.results.curves import learning_curves
from sibcl_ray.results.figure import learning_curve_figure
from sibcl_ray.results.mlflow import connection, tracking

METHODS = {"SL": 1, "SL-I": 2, "SIB-CL": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def first_sync(place):
    """A process that shows a study in a store that was not there: MLflow's migrations take seconds."""
    code = (
        "import numpy as np, pandas as pd, sys; sys.path.insert(0, 'tests')\n"
        "from test_curves import exact, power_law; from sibcl_ray.results.mlflow import tracking\n"
        f"uri, matrix = 'sqlite:///{place}/mlflow.db', exact({{'SL': power_law(1)}})\n"
        "tracking.Mirror(uri, 'another study').sync(matrix, pd.DataFrame())"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.fixture
def uri(first_sync, place, tmp_path):
    """A store of this test's own, with another study in it."""
    shutil.copy(place / "mlflow.db", tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def matrix():
    return noisy(np.random.default_rng(0), METHODS, seeds=3)


def search(count, states=("complete",), methods=("SL", "SIB-CL")):
    rng = np.random.default_rng(0)
    rows = [
        {"method": m, "budget": n, "number": i, "value": 0.05 + 0.01 * rng.random(), "state": "complete",
         "parameters": {"temperature": 0.1 * i, "encoder": "invariant"}, "started": 1.7e9 + i,
         "finished": 1.7e9 + i + 5, "key": f"{m}-{n}-{i}"}
        for m in methods for n in (50, 400) for i in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def runs(uri, name):
    client = connection.connect(uri)
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    return client, {run.info.run_name: run for run in found}, len(found)


def history(client, run, metric):
    return {p.step: p.value for p in client.get_metric_history(run.info.run_id, metric)}


def test_the_store_shows_the_ledger(uri, matrix, tmp_path):
    artifacts = learning_curve_figure([matrix], tmp_path / "curves", "planted")
    tracking.Mirror(uri, "study").sync(matrix, search(3), artifacts)
    client, curves, count = runs(uri, "study")
    assert set(curves) == set(METHODS) and count == 3
    for method, curve in learning_curves(matrix).items():
        assert history(client, curves[method], "test_error") == pytest.approx(
            dict(zip(curve.budgets, curve.error, strict=True))
        )
        assert history(client, curves[method], "test_error_high")[400] == pytest.approx(curve.high[-1])
        assert {a.path for a in client.list_artifacts(curves[method].info.run_id)} == {
            "curves.png",
            "curves.svg",
        }
    assert "label_saving" not in curves["SL"].data.metrics
    assert curves["SIB-CL"].data.metrics["label_saving"] > 4
    assert curves["SIB-CL"].data.params == {"method": "SIB-CL", "problem": "planted", "baseline": "SL"}
    assert not any(name.startswith("system/") for run in curves.values() for name in run.data.metrics)

    client, trials, count = runs(uri, "study/trials")
    assert count == 4 + 4 * 3
    parent, child = trials["SL · 50 labels"], trials["SL · 50 labels · 1"]
    assert child.data.tags[tracking.PARENT] == parent.info.run_id
    assert child.data.params["encoder"] == "invariant"
    assert child.data.metrics["validation_error"] == search(3)["value"][1]
    best = history(client, parent, "best_validation_error")
    assert best[3] == search(3)["value"][:3].min() and len(best) == 3


def test_errors_are_shown_with_their_units(uri):
    matrix = exact({"SL": lambda n: 490.77 * (400 / n) ** 0.5, "SL-I": lambda n: 300 * (400 / n) ** 0.5})
    for units, note in (
        ("fraction", "for SL's error of 49077.00 %"),
        ("meV", "for SL's error of 491 meV."),
        ("", "for SL's error of 491."),
    ):
        tracking.Mirror(uri, f"study in {units}").sync(matrix.assign(error_units=units), search(0))
        client, curves, _ = runs(uri, f"study in {units}")
        assert note in curves["SL-I"].data.tags["mlflow.note.content"]
        assert curves["SL-I"].data.tags["error_units"] == (units or "not given")
        assert history(client, curves["SL"], "test_error")[400] == pytest.approx(490.77)


@pytest.mark.parametrize(
    ("uri", "taken"),
    [
        ("http://127.0.0.1:5000", True),
        ("https://me:secret@host/mlflow", True),
        ("sqlite:////folder/mlflow.db", True),
        ("postgresql+psycopg://me@host/mlflow", True),
        ("databricks", True),
        ("databricks://my-profile", True),
        ("databricks-uc", False),  # a registry of models
        ("http://", False),
        ("http://[", True),  # wrong, but a server's
        ("sqlite:", False),
        ("", False),
        ("mlruns", False),
        ("./mlruns", False),
        ("/scratch/mlruns", False),
        ("file:/scratch/mlruns", False),
        ("file:///scratch/mlruns", False),
        ("ftp://host/x", False),
        ("s3://bucket/mlruns", False),
    ],
)
def test_what_mlflow_writes_to_is_taken(uri, taken, monkeypatch):
    assert connection.takes(uri) == taken
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    assert connection.takes(uri) == (taken or ("mlruns" in uri and "s3:" not in uri))
    assert connection.takes(uri.replace("http:", "HTTP:")) == connection.takes(uri)


@pytest.mark.thorough
def test_a_workspace_of_databricks(uri, matrix, tmp_path, monkeypatch):
    """A server of MLflow stands in for it: the requests are the same, and names have to be paths."""
    with mlflow_server(uri, tmp_path) as server:
        monkeypatch.setenv("DATABRICKS_HOST", server.address)
        monkeypatch.setenv("DATABRICKS_TOKEN", "planted-token")
        said = tracking.Mirror("databricks", "study").sync(matrix, search(1))
        assert set(runs(server.address, "/Shared/study")[1]) == set(METHODS)
        assert runs(server.address, "/Shared/study-trials")[2] == 4 + 4
    assert said.startswith(f"{server.address}/ml/experiments/") and "planted" not in said
    monkeypatch.delenv("DATABRICKS_HOST")
    with pytest.raises(tracking.TrackingUnavailable, match="MLflow at databricks://nobody cannot be written"):
        tracking.Mirror("databricks://nobody", "study").sync(matrix, search(0))


def test_censored_savings_are_said_in_words(uri):
    matrix = exact({"SL": power_law(1), "early": power_law(40), "never": power_law(0.5)})
    tracking.Mirror(uri, "study").sync(matrix, search(0))
    _, curves, _ = runs(uri, "study")
    early, never = curves["early"].data, curves["never"].data
    assert early.tags["label_saving"] == "at least 16×" and early.metrics["label_saving"] == pytest.approx(16)
    assert never.tags["labels_needed"] == "more than 400" and never.metrics["labels_needed"] == 400


def test_a_second_sync_changes_nothing(uri, matrix):
    def state():
        return {
            run.info.run_id: (run.data, history(client, run, "test_error"))
            for name in ("study", "study/trials")
            for client, found, _ in [runs(uri, name)]
            for run in found.values()
        }

    tracking.Mirror(uri, "study").sync(matrix, search(2))
    before = {key: (data.to_dictionary(), points) for key, (data, points) in state().items()}
    tracking.Mirror(uri, "study").sync(matrix, search(2))
    assert {key: (data.to_dictionary(), points) for key, (data, points) in state().items()} == before


def test_an_extended_study_replaces_only_what_changed(uri, matrix):
    tracking.Mirror(uri, "study").sync(matrix[matrix["budget"] < 400], search(2))
    client, before, _ = runs(uri, "study")
    trials_before = runs(uri, "study/trials")[1]
    assert sorted(history(client, before["SL"], "test_error")) == [25, 50, 100, 200]

    changed = matrix["method"].eq("SL-I") & matrix["budget"].eq(400)
    more = pd.concat([search(2), search(3, methods=("SL",))]).drop_duplicates("key")
    tracking.Mirror(uri, "study").sync(matrix[(matrix["budget"] < 400) | changed], more)
    client, after, count = runs(uri, "study")
    assert count == 3
    curve = learning_curves(matrix)["SL-I"]
    assert history(client, after["SL-I"], "test_error") == pytest.approx(
        dict(zip(curve.budgets, curve.error, strict=True))
    )
    assert after["SL"].info.run_id == before["SL"].info.run_id
    trials_after = runs(uri, "study/trials")[1]
    assert len(trials_after) == len(trials_before) + 2
    kept = "SIB-CL · 50 labels · 0"
    assert trials_after[kept].info.run_id == trials_before[kept].info.run_id
    parents = {run.info.run_id for run in trials_after.values()}
    assert all(run.data.tags.get(tracking.PARENT, next(iter(parents))) in parents for run in trials_after.values())


def test_a_sync_that_knows_what_is_shown_ends_as_one_that_reads_it(uri, matrix):
    mirror = tracking.Mirror(uri, "study")
    early = matrix[(matrix["budget"] < 400) & matrix["method"].ne("SL-I")], search(2, methods=("SIB-CL",))
    for ledger in (early, (matrix, search(3)), (matrix, search(4)), (matrix, search(4))):
        mirror.sync(*ledger)
    before = [{name: run.info.run_id for name, run in runs(uri, n)[1].items()} for n in ("study", "study/trials")]
    assert [len(found) for found in before] == [3, 4 + 4 * 4]
    tracking.Mirror(uri, "study").sync(matrix, search(4))  # finds nothing to correct
    after = [{name: run.info.run_id for name, run in runs(uri, n)[1].items()} for n in ("study", "study/trials")]
    assert after == before


def test_what_a_sync_knows_is_not_read(uri, matrix, monkeypatch):
    mirror = tracking.Mirror(uri, "study")
    mirror.sync(matrix, search(2))
    monkeypatch.setattr(mirror, "_existing", None)
    mirror.sync(matrix, search(3))
    assert runs(uri, "study/trials")[2] == 4 + 4 * 3


def test_a_trial_that_ends_first_is_not_taken_for_an_earlier_one(uri, matrix):
    mirror, both = tracking.Mirror(uri, "study"), search(2, methods=("SL",)).query("budget == 50")
    alone = both[both["number"] == 1].assign(number=0, key=both["key"].iloc[0])  # as the ledger numbers it for a while
    for trials in (alone, both):
        mirror.sync(matrix, trials)
    _, found, count = runs(uri, "study/trials")
    shown = [found[f"SL · 50 labels · {i}"].data.metrics["validation_error"] for i in range(2)]
    assert shown == list(both["value"]) and count == 1 + 2


def test_states_of_trials_and_a_sync_cut_off(uri, matrix):
    trials = search(3)
    trials.loc[0, ["state", "value"]] = ["failed", np.nan]
    tracking.Mirror(uri, "study").sync(matrix, trials)
    client, shown, count = runs(uri, "study/trials")
    assert [shown[f"SL · 50 labels · {i}"].info.status for i in range(2)] == ["FAILED", "FINISHED"]
    # as if killed half-way, and as if two had written at once
    client.set_tag(shown["SL · 50 labels · 2"].info.run_id, tracking.CONTENT, "")
    twin = client.create_run(shown["SL · 50 labels"].info.experiment_id, tags={tracking.KEY: "trial/SL-50-0"})
    foreign = client.create_run(shown["SL · 50 labels"].info.experiment_id, run_name="not ours")
    tracking.Mirror(uri, "study").sync(matrix, search(3))
    _, shown, after = runs(uri, "study/trials")
    assert after == count + 1 and foreign.info.run_name in shown
    assert twin.info.run_id not in {run.info.run_id for run in shown.values()}
    assert shown["SL · 50 labels · 0"].info.status == "FINISHED"


def test_a_deleted_experiment_is_said_and_not_brought_back(uri, matrix):
    tracking.Mirror(uri, "study").sync(matrix, search(0))
    client, shown, _ = runs(uri, "study")
    experiment = shown["SL"].info.experiment_id
    client.delete_experiment(experiment)
    with pytest.raises(
        tracking.TrackingUnavailable, match=r"experiment study was deleted there.* restore it in MLflow"
    ):
        tracking.Mirror(uri, "study").sync(matrix, search(0))
    assert client.get_experiment(experiment).lifecycle_stage == "deleted"
    client.restore_experiment(experiment)
    tracking.Mirror(uri, "study").sync(matrix, search(0))
    assert set(runs(uri, "study")[1]) == set(METHODS)


def test_what_people_add_stays_where_a_run_is_added_to_and_where_it_is_replaced(uri, matrix):
    tracking.Mirror(uri, "study").sync(matrix, search(0))
    client, shown, _ = runs(uri, "study")
    theirs = {"reviewed": "by me, 12 May", "mlflow.note.content": "for the paper"}
    for tag, value in theirs.items():
        for method in ("SL", "SL-I"):  # of which the second has a note of ours
            client.set_tag(shown[method].info.run_id, tag, value)
    client.update_run(shown["SIB-CL"].info.run_id, name="favourite")
    for seeds in (2, 3):  # other means, which MLflow's metrics cannot be corrected to
        tracking.Mirror(uri, "study").sync(matrix[matrix.seed < seeds], search(0))
        _, now, count = runs(uri, "study")
        assert count == 3 and set(now) == {"SL", "SL-I", "favourite"}
        assert theirs.items() <= now["SL"].data.tags.items() and theirs.items() <= now["SL-I"].data.tags.items()
        assert "SIB-CL needs" in now["favourite"].data.tags["mlflow.note.content"]
        assert now["favourite"].data.tags["sibcl.key"] == shown["SIB-CL"].data.tags["sibcl.key"]


@pytest.mark.parametrize(
    "name",
    [
        "a?b",
        pytest.param("a%41b", marks=pytest.mark.thorough),
        pytest.param("it's", marks=pytest.mark.thorough),
        "a#b c",
    ],
)
def test_a_database_may_lie_in_a_folder_of_any_name(name, matrix, first_sync, place, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(place / "mlflow.db", folder / "mlflow.db")
    uri = connection.sqlite_uri(folder / "mlflow.db")
    figure = learning_curve_figure([matrix], tmp_path / "curves", "study")[0]
    told = tracking.Mirror(uri, "study").sync(matrix, search(0), [figure])
    assert connection.takes(uri) and set(runs(uri, "study")[1]) == set(METHODS)
    assert len(list((folder / "mlartifacts").rglob(figure.name))) == len(METHODS)
    assert {path.name for path in tmp_path.iterdir()} == {name, "curves.png", "curves.svg"}
    command = shlex.split(told.partition("  and open")[0])
    assert command[-1] == uri


def test_what_cannot_be_reached_fails_fast_in_one_line(matrix, tmp_path):
    with socket.socket() as closed, socket.socket() as silent:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (tmp_path / "file").write_text("not a folder")
        for uri, seconds in [
            (f"http://me:secret@127.0.0.1:{closed.getsockname()[1]}", 3),
            (f"http://127.0.0.1:{silent.getsockname()[1]}", 8),
            (f"postgresql://me:secret@127.0.0.1:{closed.getsockname()[1]}/mlflow", 3),
            (f"sqlite:///{tmp_path}/file/mlflow.db", 3),
        ]:
            start = time.monotonic()
            with pytest.raises(tracking.TrackingUnavailable) as caught:
                tracking.Mirror(uri, "study").sync(matrix, search(0))
            assert time.monotonic() - start < seconds
            assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.thorough
def test_nothing_is_printed(first_sync):
    assert (first_sync.stdout, first_sync.stderr, first_sync.returncode) == ("", "", 0)
    assert not os.path.exists("mlruns")
