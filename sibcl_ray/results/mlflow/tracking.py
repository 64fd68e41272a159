"""MLflow as a view of the ledger.

Experiment `{study}` holds one run per method, whose metric `test_error` over step = number of labels is the learning
curve; `{study}/trials` holds one run per (method, budget) search with its trials nested below. A run is found again by
its tag `sibcl.key`. One whose tag `sibcl.content` differs from the ledger is added to, or replaced where adding is not
enough, since MLflow can add to a metric but not correct it. Runs of other origin, and runs the ledger does not
mention, are left alone. So is what people add in MLflow: tags, notes and names, also where a run is replaced.

Nothing here may hold a study up: every wait has an end, and what is cut off is completed by the next sync.
"""

import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from sibcl_ray.deadlines import Deadline, DeadlineExceeded, within
from sibcl_ray.messages import redact
from sibcl_ray.results.mlflow.connection import address_of, connect, is_databricks, sqlite_file
from sibcl_ray.results.mlflow.runs import (
    CURVE_VIEW,
    SEARCH_VIEW,
    VIEW,
    Point,
    TrackedRun,
    curve_runs,
    search_runs,
    trial_runs,
)

KEY, CONTENT, NAME = "sibcl.key", "sibcl.content", "sibcl.name"
PARENT, NOTE = "mlflow.parentRunId", "mlflow.note.content"
OWN_NOTE = "sibcl.note"  # what a note was, should people have changed it since
# One for each store and study. Its thread may be left behind, so a sync waits for the last one's request to end.
_WRITING: dict[tuple[str, str], threading.Lock] = {}


class TrackingUnavailable(RuntimeError):
    """The tracking store cannot be reached or refuses what is written; the ledger is whole without it.

    One line, without secrets. `what` is the line without its advice.
    """

    def __init__(self, what: str, advice: str) -> None:
        self.what = redact(what)
        super().__init__(f"{self.what}. Results are safe in the ledger: {advice}")


@dataclass
class Shown:
    """What earlier syncs have shown, so that the next need not read it again. It is for one store and study.

    It holds as long as no other client changes the store. Once a sync has failed, take a new one.
    """

    runs: dict[str, tuple[str, str]] = field(default_factory=dict)  # content and MLflow's id by key
    trials: set[str] = field(default_factory=set)  # by the ledger's key: they have ended, and never change


class _TimedClient:
    """An MlflowClient that asks before every request whether there is time for it."""

    def __init__(self, client: Any, deadline: Deadline) -> None:
        self._client, self._deadline = client, deadline

    def __getattr__(self, name: str) -> Any:
        self._deadline.check()
        return getattr(self._client, name)


def sync(
    tracking_uri: str,
    study: str,
    matrix: pd.DataFrame,
    trials: pd.DataFrame,
    artifacts: Sequence[Path] = (),
    *,
    deadline: Deadline | None = None,
    shown: Shown | None = None,
) -> str:
    """Make the MLflow store at `tracking_uri` show the ledger; returns how to open the learning curves.

    `artifacts` (figures, matrix.parquet) are attached to every method's run. A second call with the same
    ledger writes nothing. With what earlier calls have `shown` the cost is that of what is new; else everything that
    is there is read and compared.

    Raises TrackingUnavailable: within seconds for a server that is down, between two requests at the `deadline`, and
    at the latest one request's timeout (MLFLOW_HTTP_REQUEST_TIMEOUT, 10 s if not set) after that, in all cases. The
    next sync completes what this one began.
    """
    deadline, study, shown = deadline or Deadline(), redact(study), shown or Shown()
    curves = curve_runs(matrix, artifacts)
    new = trials[~trials["key"].isin(shown.trials)] if len(trials) else trials
    searches = [*search_runs(trials), *trial_runs(new)]
    done: list[str] = []  # keys
    names = (study, f"{study}/trials")
    if is_databricks(tracking_uri):  # there names are paths, and an experiment is no folder
        names = (f"/Shared/{study}", f"/Shared/{study}-trials")
    lock = _WRITING.setdefault((tracking_uri, study), threading.Lock())

    def write() -> str:
        if not lock.acquire(timeout=min(deadline.left(), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded
        try:
            client = _TimedClient(connect(tracking_uri), deadline)
            experiment = _experiment(client, tracking_uri, names[0], CURVE_VIEW)
            _mirror(client, experiment, curves, done, shown)
            if searches:
                _mirror(client, _experiment(client, tracking_uri, names[1], SEARCH_VIEW), searches, done, shown)
                shown.trials.update(new["key"])
            return experiment
        finally:
            lock.release()

    try:
        return address_of(tracking_uri, within(deadline, write, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"])))
    except TrackingUnavailable:
        raise
    except DeadlineExceeded:
        what = f"MLflow at {tracking_uri} was given up after {deadline.spent():.0f} s"
        what += f" with {len(done)} of {len(curves) + len(searches)} runs up to date"
        raise TrackingUnavailable(what, "the next synchronisation completes it") from None
    except Exception as error:  # MLflow, its stores and the network raise errors of any kind
        what = f"MLflow at {tracking_uri} cannot be written: {reason(error)}"
        advice = "start the server, or give another tracking URI, and synchronise again"
        raise TrackingUnavailable(what, advice) from error


def reason(error: BaseException) -> str:
    """The first line of an error, redacted while it is whole."""
    origin = _origin(error)
    known = isinstance(origin, OSError) or type(origin).__module__ != "builtins"
    text = redact(str(origin) if known else f"{type(origin).__name__}: {origin}").strip()
    return (text or type(origin).__name__).splitlines()[0][:300]


def _origin(error: BaseException) -> BaseException:
    """What the network or a database's driver said, below the errors that wrap it."""
    below: BaseException | None = error
    while below:
        if driver := getattr(below, "orig", None):  # SQLAlchemy's name for it
            return driver
        inner = below.__cause__ or below.__context__
        if not inner and isinstance(below, OSError):
            return below
        below = inner
    return error


def _experiment(client: _TimedClient, tracking_uri: str, name: str, view: str) -> str:
    """Id of the experiment, made if there is none, with its saved view."""
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        what = f"MLflow at {tracking_uri} is left as it is: its experiment {name} was deleted there"
        raise TrackingUnavailable(what, "restore it in MLflow, or give another --name")
    tags = {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": view}
    if found:
        for key, value in tags.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return found.experiment_id
    # MLflow's default for an embedded store is ./mlruns of the first client
    embedded = tracking_uri.startswith("sqlite")
    folder = (sqlite_file(tracking_uri).parent / "mlartifacts" / name).as_uri() if embedded else None
    return client.create_experiment(name, folder, tags)


def _existing(client: _TimedClient, experiment: str) -> dict[str, list[Any]]:
    """The study's own runs by key; several of one key only where two syncs met or one was cut off."""
    runs = defaultdict[str, list[Any]](list)
    token = None
    while token != "":
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        for run in page:
            if key := run.data.tags.get(KEY):
                runs[key].append(run)
        token = page.token or ""
    return runs


def _mirror(client: _TimedClient, experiment: str, runs: list[TrackedRun], done: list[str], shown: Shown) -> None:
    """Make each of `runs`, parents before their children, be there once, as it is; then its key is among those `done`.

    Of runs that were `shown` only those are read that have changed since.
    """
    ids, nothing = shown.runs, ("", "")
    existing = None if runs and runs[0].key in ids else _existing(client, experiment)
    written = False
    for run in runs:
        parent = ids.get(run.parent, nothing)[1]
        content = run.content(parent)
        before, known = ids.get(run.key, nothing)
        if before != content:
            found = existing[run.key] if existing is not None else [client.get_run(known)] if known else []
            same = [r.info.run_id for r in found if r.data.tags.get(CONTENT) == content]
            run_id = same[0] if same else _write(client, experiment, found, run, parent, content)
            written |= not same
            _delete_others(client, found, run_id)
            if known not in ("", run_id):
                shown.trials.clear()  # its children have lost their parent, and the next sync gives them this one
            ids[run.key] = content, run_id
        done.append(run.key)
    if written and existing is not None:  # a request of an earlier sync that was cut off may have made others meanwhile
        for key, found in _existing(client, experiment).items():
            if key in ids:
                _delete_others(client, found, ids[key][1])


def _delete_others(client: _TimedClient, found: list[Any], kept: str) -> None:
    for run in found:
        if run.info.run_id != kept:
            client.delete_run(run.info.run_id)


def _write(client: _TimedClient, experiment: str, found: list[Any], run: TrackedRun, parent: str, content: str) -> str:
    """Complete one of those found, or create a run; its id.

    The content tag comes last, and is taken away first: a run cut off in between has none, and so is written
    again by the next sync.
    """
    from mlflow.entities import Metric, Param, RunTag

    completed = ((r.info.run_id, _missing(client, r, run)) for r in found)
    run_id, metrics = next(((id_, points) for id_, points in completed if points is not None), ("", run.metrics))
    tags = run.tags | ({OWN_NOTE: run.tags[NOTE]} if NOTE in run.tags else {}) | _theirs(found, run)
    if run_id:
        client.set_tag(run_id, CONTENT, "")
    else:
        renamed = [r.info.run_name for r in found if r.info.run_name != r.data.tags.get(NAME, run.name)]
        name = renamed[0] if renamed else run.name
        run_id = client.create_run(experiment, run.started, {**tags, KEY: run.key, NAME: run.name}, name).info.run_id
    for path in run.artifacts:
        client.log_artifact(run_id, str(path))
    client.set_terminated(run_id, run.status, run.ended)
    tags |= {PARENT: parent, CONTENT: content} if parent else {CONTENT: content}
    points = [Metric(*point) for point in metrics]
    while len(points) > 800:  # MLflow takes 1000 entries at once
        client.log_batch(run_id, points[:800])
        points = points[800:]
    params = [Param(*param) for param in run.params.items()]
    client.log_batch(run_id, points, params, [RunTag(*tag) for tag in tags.items()])
    return run_id


def _theirs(found: list[Any], run: TrackedRun) -> dict[str, str]:
    """The tags that people have added to runs in MLflow's pages, where a note is one as well, and may replace ours."""
    theirs: dict[str, str] = {}
    for tags in (r.data.tags for r in found):
        noted = tags[OWN_NOTE] if OWN_NOTE in tags else tags.get(NOTE) if NOTE in run.tags else None
        added = {tag for tag in tags if not tag.startswith(("mlflow.", "sibcl."))} - set(run.tags)
        added |= {NOTE} if NOTE in tags and tags[NOTE] != noted else set()
        theirs |= {tag: tags[tag] for tag in added}
    return theirs


def _missing(client: _TimedClient, found: Any, run: TrackedRun) -> Sequence[Point] | None:
    """The points that a run of MLflow lacks to be `run`; None where it shows what is wrong, and has to be replaced."""
    info, data = found.info, found.data
    right = (
        info.start_time == run.started
        and data.tags.get(NAME, run.name) == run.name
        and data.params.items() <= run.params.items()
        and data.metrics.items() <= {(name, value) for name, value, _, _ in run.metrics}
    )
    if not right:
        return None
    shown = {
        (name, point.value, point.timestamp, point.step)
        for name in data.metrics
        for point in client.get_metric_history(info.run_id, name)
    }
    return [point for point in run.metrics if point not in shown] if shown <= set(run.metrics) else None
