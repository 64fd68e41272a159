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
from collections.abc import Iterable, Sequence
from functools import partial
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


class Mirror:
    """A study's runs in the MLflow store at `tracking_uri`, which are made to show the ledger.

    It remembers what it has shown, so that the next sync need not read it again. This holds as long as no other client
    changes the store; once a sync has failed, take a new mirror.
    """

    def __init__(self, tracking_uri: str, study: str) -> None:
        study = redact(study)
        self._uri, self._names = tracking_uri, (study, f"{study}/trials")
        if is_databricks(tracking_uri):  # there names are paths, and an experiment is no folder
            self._names = (f"/Shared/{study}", f"/Shared/{study}-trials")
        self._lock = _WRITING.setdefault((tracking_uri, study), threading.Lock())
        self._runs: dict[str, dict[str, dict[str, str]]] = {}  # contents by experiment, key and MLflow's id
        self._trials: dict[str, float] = {}  # when those that are shown ended, by key, which may become another's
        self._connected: Any = None
        self._deadline, self._done = Deadline(), 0  # of a sync; how many runs it has brought up to date

    def sync(
        self,
        matrix: pd.DataFrame,
        trials: pd.DataFrame,
        artifacts: Sequence[Path] = (),
        deadline: Deadline | None = None,
    ) -> str:
        """Make the store show the ledger; returns how to open the learning curves.

        `artifacts` (figures, matrix.parquet) are attached to every method's run. A second call with the same ledger
        writes nothing. The first one reads and compares everything that is there; later ones cost what is new.

        Raises TrackingUnavailable: within seconds for a server that is down, between two requests at the `deadline`,
        and at the latest one request's timeout (MLFLOW_HTTP_REQUEST_TIMEOUT, 10 s if not set) after that, in all
        cases. The next sync completes what this one began.
        """
        self._deadline, self._done = deadline or Deadline(), 0
        curves = curve_runs(matrix, artifacts)
        new = trials[trials["key"].map(self._trials) != trials["finished"]] if len(trials) else trials
        searches = [*search_runs(trials), *trial_runs(new)]
        write = partial(self._show_both, curves, searches)
        try:
            experiment = within(self._deadline, write, float(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
            self._trials.update(zip(new["key"], new["finished"], strict=True) if len(new) else ())
            return address_of(self._uri, experiment)
        except TrackingUnavailable:
            raise
        except DeadlineExceeded:
            what = f"MLflow at {self._uri} was given up after {self._deadline.spent():.0f} s"
            what += f" with {self._done} of {len(curves) + len(searches)} runs up to date"
            raise TrackingUnavailable(what, "the next synchronisation completes it") from None
        except Exception as error:  # MLflow, its stores and the network raise errors of any kind
            what = f"MLflow at {self._uri} cannot be written: {reason(error)}"
            advice = "start the server, or give another tracking URI, and synchronise again"
            raise TrackingUnavailable(what, advice) from error

    @property
    def _client(self) -> Any:
        """The MlflowClient, to be asked for before every request, if there is time for one."""
        self._deadline.check()
        return self._connected

    def _show_both(self, curves: list[TrackedRun], searches: list[TrackedRun]) -> str:
        """Make both experiments show their runs; the id of that with the learning curves."""
        if not self._lock.acquire(timeout=min(self._deadline.left(), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded
        try:
            self._connected = connect(self._uri)
            experiment = self._show(self._names[0], CURVE_VIEW, curves)
            if searches:
                self._show(self._names[1], SEARCH_VIEW, searches)
            return experiment
        finally:
            self._lock.release()

    def _show(self, name: str, view: str, runs: list[TrackedRun]) -> str:
        """Make each of `runs`, parents before their children, be in an experiment once, as it is; the id of that."""
        experiment = self._experiment(name, view)
        if first := experiment not in self._runs:
            self._runs[experiment] = self._existing(experiment)
        known, written = self._runs[experiment], False
        for run in runs:
            parent = next(iter(known[run.parent])) if run.parent else ""
            content, there = run.content(parent), known.get(run.key, {})
            kept = next((run_id for run_id, shown in there.items() if shown == content), "")
            if not kept:
                kept, written = self._write(experiment, run, parent, content, list(there)), True
                if there and kept not in there:
                    self._trials.clear()  # its children have lost their parent, and the next sync gives them this one
            self._delete(there.keys() - {kept})
            known[run.key] = {kept: content}
            self._done += 1
        if written and first:  # a request of an earlier sync that was cut off may have made others meanwhile
            existing = self._existing(experiment)
            for run in runs:
                self._delete(existing.get(run.key, {}).keys() - known[run.key].keys())
        return experiment

    def _delete(self, ids: Iterable[str]) -> None:
        for run_id in ids:
            self._client.delete_run(run_id)

    def _experiment(self, name: str, view: str) -> str:
        """Id of the experiment, made if there is none, with its saved view."""
        found = self._client.get_experiment_by_name(name)
        if found and found.lifecycle_stage == "deleted":
            what = f"MLflow at {self._uri} is left as it is: its experiment {name} was deleted there"
            raise TrackingUnavailable(what, "restore it in MLflow, or give another --name")
        tags = {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": view}
        if found:
            for tag in tags.items() - found.tags.items():
                self._client.set_experiment_tag(found.experiment_id, *tag)
            return found.experiment_id
        # MLflow's default for an embedded store is ./mlruns of the first client
        embedded = self._uri.startswith("sqlite")
        folder = (sqlite_file(self._uri).parent / "mlartifacts" / name).as_uri() if embedded else None
        return self._client.create_experiment(name, folder, tags)

    def _existing(self, experiment: str) -> dict[str, dict[str, str]]:
        """Contents of the study's own runs by key and id; several of one key where two syncs met or one was cut off."""
        runs = defaultdict[str, dict[str, str]](dict)
        token = None
        while token != "":
            page = self._client.search_runs([experiment], max_results=1000, page_token=token)
            for run in page:
                if key := run.data.tags.get(KEY):
                    runs[key][run.info.run_id] = run.data.tags.get(CONTENT, "")
            token = page.token or ""
        return runs

    def _write(self, experiment: str, run: TrackedRun, parent: str, content: str, there: Sequence[str]) -> str:
        """Complete one of the runs that are there, or create one; its id.

        The content tag comes last, and is taken away first: a run cut off in between has none, and so is written
        again by the next sync.
        """
        from mlflow.entities import Metric, Param, RunTag

        found = [self._client.get_run(run_id) for run_id in there]
        run_id, metrics = self._begun(found, run)
        tags = run.tags | ({OWN_NOTE: run.tags[NOTE]} if NOTE in run.tags else {}) | _theirs(found, run)
        if run_id:
            self._client.set_tag(run_id, CONTENT, "")
        else:
            renamed = (r.info.run_name for r in found if r.info.run_name != r.data.tags.get(NAME, run.name))
            own = {KEY: run.key, NAME: run.name}
            run_id = self._client.create_run(experiment, run.started, tags | own, next(renamed, run.name)).info.run_id
        for path in run.artifacts:
            self._client.log_artifact(run_id, str(path))
        self._client.set_terminated(run_id, run.status, run.ended)
        tags |= {PARENT: parent, CONTENT: content} if parent else {CONTENT: content}
        points = [Metric(*point) for point in metrics]
        while len(points) > 800:  # MLflow takes 1000 entries at once
            self._client.log_batch(run_id, points[:800])
            points = points[800:]
        params = [Param(*param) for param in run.params.items()]
        self._client.log_batch(run_id, points, params, [RunTag(*tag) for tag in tags.items()])
        return run_id

    def _begun(self, found: list[Any], run: TrackedRun) -> tuple[str, Sequence[Point]]:
        """The id of one of those found that shows nothing but what `run` does, and the points that it lacks.

        MLflow can correct nothing else: where each shows something wrong the id is empty, and all points are lacking.
        """
        for r in found:
            info, data = r.info, r.data
            right = (
                info.start_time == run.started
                and data.tags.get(NAME, run.name) == run.name
                and data.params.items() <= run.params.items()
                and data.metrics.items() <= {(name, value) for name, value, _, _ in run.metrics}
            )
            if not right:
                continue
            shown = {
                (name, point.value, point.timestamp, point.step)
                for name in data.metrics
                for point in self._client.get_metric_history(info.run_id, name)
            }
            if shown <= set(run.metrics):
                return info.run_id, [point for point in run.metrics if point not in shown]
        return "", run.metrics


def _theirs(found: list[Any], run: TrackedRun) -> dict[str, str]:
    """The tags that people have added to runs in MLflow's pages, where a note is one as well, and may replace ours."""
    theirs: dict[str, str] = {}
    for tags in (r.data.tags for r in found):
        noted = tags.get(OWN_NOTE, tags.get(NOTE) if NOTE in run.tags else None)
        for tag, value in tags.items():
            ours = value == noted if tag == NOTE else tag.startswith(("mlflow.", "sibcl.")) or tag in run.tags
            if not ours:
                theirs[tag] = value
    return theirs
