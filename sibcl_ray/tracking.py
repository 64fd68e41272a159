"""MLflow as a view of the ledger: written as often as one likes, showing exactly what the ledger says.

Experiment `{study}` holds one run per method, whose metric `test_error` (a fraction, with `test_error_low`
and `test_error_high`) over step = number of labels is the learning curve; `{study}/trials` holds one run per
(method, budget) search with its trials nested below. A run is found again by its tag `sibcl.key`. One whose
tag `sibcl.content` differs from the ledger is replaced, since MLflow can add to a metric but not correct it.
Runs of other origin, and runs the ledger does not mention, are left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pandas as pd

from sibcl_ray.curves import LabelSaving, label_savings, learning_curves
from sibcl_ray.report import colour, interval_in_words, labels_in_words, saving_in_words

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Read by MLflow on import and at each request. Its own defaults retry a dead server for minutes, report usage
# over the network, and print. Importing it takes a second, so that is left to the functions that need it.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

KEY, CONTENT, PARENT = "sibcl.key", "sibcl.content", "mlflow.parentRunId"
VIEW = "sibcl"  # key of the saved view in either experiment


class TrackingUnavailable(RuntimeError):
    """The tracking store cannot be reached or refuses what is written; the ledger is whole without it."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What one MLflow run shows. Times are unix milliseconds; metrics are (key, value, time, step)."""

    key: str
    name: str
    started: int
    ended: int | None = None
    status: str = "FINISHED"
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: tuple[Path, ...] = ()

    def content(self) -> str:
        """Hash of all that is shown, the bytes of the artifacts included."""
        digest = hashlib.sha256(json.dumps({**vars(self), "artifacts": ()}, sort_keys=True).encode())
        for path in self.artifacts:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def sync(
    tracking_uri: str, study: str, matrix: pd.DataFrame, trials: pd.DataFrame, artifacts: Sequence[Path] = ()
) -> str:
    """Make the MLflow store at `tracking_uri` show the ledger; returns how to open the learning curves.

    `artifacts` (figures, matrix.parquet) are attached to every method's run. A second call with the same
    ledger writes nothing. Raises TrackingUnavailable, within seconds for a server that is down.
    """
    with _unavailable(tracking_uri):
        client = _connect(tracking_uri)
        curves = _experiment(client, tracking_uri, study, CURVE_VIEW)
        _mirror(client, curves, _existing(client, curves), _curve_runs(matrix, tuple(artifacts)))
        if len(trials):
            searches = _experiment(client, tracking_uri, f"{study}/trials", SEARCH_VIEW)
            there = _existing(client, searches)
            parents = _mirror(client, searches, there, _search_runs(trials))
            _mirror(client, searches, there, _trial_runs(trials, parents))
    view = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={VIEW}"
    page = f"#/experiments/{curves}/runs?{view}"
    if tracking_uri.startswith("http"):
        return f"{tracking_uri.rstrip('/')}/{page}"
    server = f"MLFLOW_DISABLE_TELEMETRY=true mlflow server --backend-store-uri '{tracking_uri}'"
    return _without_password(f"{server}  and open  http://127.0.0.1:5000/{page}")


@contextmanager
def _unavailable(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow, its database and the network raise into one line, without a password in it."""
    try:
        yield
    except Exception as error:
        origin = type(error).__module__.split(".")[0]
        if not isinstance(error, OSError | ImportError) and origin not in ("mlflow", "sqlalchemy", "sqlite3"):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        message = f"MLflow at {tracking_uri} cannot be written: {reason}. Results are safe in the ledger: "
        message += "start the server, or give another tracking URI, and synchronise again"
        raise TrackingUnavailable(_without_password(message)) from error


def _without_password(text: str) -> str:
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)


def _connect(tracking_uri: str) -> MlflowClient:
    """A client, after the quick checks that MLflow itself would spread over a hundred seconds of retries."""
    parts = urlsplit(tracking_uri)
    if parts.scheme.startswith("sqlite"):
        path = _sqlite_file(tracking_uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version")
    elif parts.scheme.startswith("http"):
        # only whether it answers: certificates and credentials are MLflow's business
        address = f"{parts.scheme}://{parts.netloc.split('@')[-1]}{parts.path}"
        with suppress(HTTPError):
            urlopen(address, timeout=5, context=ssl._create_unverified_context()).close()
    elif parts.hostname:
        port = parts.port or {"postgresql": 5432, "mysql": 3306}.get(parts.scheme.split("+")[0], 1433)
        socket.create_connection((parts.hostname, port), timeout=5).close()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri)


def _sqlite_file(tracking_uri: str) -> Path:
    return Path(tracking_uri.split("?")[0].split(":///", 1)[1]).absolute()


def _experiment(client: MlflowClient, tracking_uri: str, name: str, view: str) -> str:
    """Id of the experiment, made or restored, with its saved view."""
    found = client.get_experiment_by_name(name)
    if found and found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    tags = {"mlflow.experimentKind": "custom_model_development", f"mlflow.sharedViewState.{VIEW}": view}
    if found:
        for key, value in tags.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return found.experiment_id
    # MLflow's default for an embedded store is ./mlruns of whoever asks first
    embedded = tracking_uri.startswith("sqlite")
    folder = (_sqlite_file(tracking_uri).parent / "mlartifacts" / name).as_uri() if embedded else None
    return client.create_experiment(name, folder, tags)


def _view(name: str, line: str, axis: str, bars: Sequence[str], hidden: Sequence[str]) -> str:
    """A saved view of MLflow's UI: a metric over its steps, others as bars, and all of them as columns."""

    def chart(kind: str, metric: str, **more: Any) -> dict[str, Any]:
        card = {"uuid": metric, "type": kind, "metricKey": metric, "metricSectionId": name}
        return card | {"isGenerated": True, "deleted": metric in hidden, "runsCountToCompare": 20} | more

    curve = {"selectedMetricKeys": [line], "xAxisScaleType": axis, "xAxisKey": "step", "displayPoints": True}
    curve |= {"useGlobalXaxisKey": False, "useGlobalLineSmoothing": False, "lineSmoothness": 0, "range": {}}
    section = {"uuid": name, "name": name, "display": True, "isReordered": True}
    state = {
        "compareRunCharts": [chart("LINE", line, **curve), *(chart("BAR", key) for key in (*bars, *hidden))],
        "compareRunSections": [section | {"columns": 2, "cardHeight": 420}],
        "selectedColumns": [f"metrics.`{key}`" for key in (line, *bars)],
    }
    return json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})


CURVE_VIEW = _view(
    "Learning curves",
    line="test_error",
    axis="log",
    bars=("label_saving", "labels_needed"),
    hidden=("test_error_low", "test_error_high", "label_saving_low", "label_saving_high"),
)
SEARCH_VIEW = _view("Searches", "best_validation_error", "linear", bars=("validation_error",), hidden=())


def _existing(client: MlflowClient, experiment: str) -> dict[str, list[Any]]:
    """The study's own runs by key; several of one key only where two syncs met or one was cut off."""
    runs: dict[str, list[Any]] = {}
    token: str | None = ""
    while token is not None:
        page = client.search_runs([experiment], max_results=1000, page_token=token or None)
        for run in page:
            runs.setdefault(run.data.tags.get(KEY, ""), []).append(run)
        token = page.token or None
    return {key: found for key, found in runs.items() if key}


def _mirror(client: MlflowClient, experiment: str, existing: dict[str, list[Any]], runs: list[_Run]) -> dict[str, str]:
    """Make each of `runs` be there once, as it is; returns run ids by key."""
    ids = {}
    for run in runs:
        content = run.content()
        for found in existing.get(run.key, []):
            if run.key not in ids and found.data.tags.get(CONTENT) == content:
                ids[run.key] = found.info.run_id
            else:
                client.delete_run(found.info.run_id)
        if run.key not in ids:
            ids[run.key] = _write(client, experiment, run, content)
    return ids


def _write(client: MlflowClient, experiment: str, run: _Run, content: str) -> str:
    """Create a run. The content tag comes last: a run cut off before it is replaced by the next sync."""
    from mlflow.entities import Metric, Param, RunTag

    run_id = client.create_run(experiment, run.started, {**run.tags, KEY: run.key}, run.name).info.run_id
    for path in run.artifacts:
        client.log_artifact(run_id, str(path))
    if run.ended is not None:
        client.set_terminated(run_id, run.status, run.ended)
    metrics = [Metric(*point) for point in run.metrics]
    while len(metrics) > 800:  # MLflow takes 1000 entries at once
        client.log_batch(run_id, metrics[:800])
        metrics = metrics[800:]
    params = [Param(key, value) for key, value in run.params.items()]
    client.log_batch(run_id, metrics, params, [RunTag(CONTENT, content)])
    return run_id


def _curve_runs(matrix: pd.DataFrame, artifacts: tuple[Path, ...], baseline: str = "SL") -> list[_Run]:
    savings = {saving.method: saving for saving in label_savings(matrix, baseline)}
    runs = []
    for method, curve in learning_curves(matrix).items():
        cells = matrix[matrix["method"] == method]
        finished = cells[cells["state"] == "done"].groupby("budget")["finished"].max()
        times = [_milliseconds(finished[n]) for n in curve.budgets]
        series = {"test_error": curve.error, "test_error_low": curve.low, "test_error_high": curve.high}
        metrics = [
            (name, float(value), time, int(n))
            for name, values in series.items()
            for n, value, time in zip(curve.budgets, values, times, strict=True)
            if np.isfinite(value)
        ]
        tags = {"mlflow.runColor": colour(method)}
        tags |= {f"cells_{state}": str(n) for state, n in cells["state"].value_counts().items()}
        if method in savings:
            metrics += [(name, value, max(times), 0) for name, value in _bounded(savings[method]).items()]
            tags |= _in_words(savings[method])
        runs.append(
            _Run(
                key=f"curve/{method}",
                name=method,
                started=min(times),
                ended=max(times),
                params={"method": method, "problem": str(cells["problem"].iloc[0]), "baseline": baseline},
                metrics=metrics,
                tags=tags,
                artifacts=artifacts,
            )
        )
    return runs


def _bounded(s: LabelSaving) -> dict[str, float]:
    """The saving as numbers a chart can show: a censored one at the bound that its tag states in words."""
    least, most = s.baseline_labels / s.largest, s.baseline_labels / s.smallest
    numbers = {"label_saving": s.saving, "label_saving_low": s.low, "label_saving_high": s.high}
    shown = {name: float(np.clip(value, least, most)) for name, value in numbers.items()}
    shown["labels_needed"] = float(np.clip(s.labels, s.smallest, s.largest))
    return {name: value for name, value in shown.items() if np.isfinite(value)}


def _in_words(s: LabelSaving) -> dict[str, str]:
    saving, labels, interval = saving_in_words(s), labels_in_words(s), interval_in_words(s)
    note = f"{s.method} needs {labels} labels for {s.baseline}'s error of {100 * s.target_error:.2f} %"
    return {
        "label_saving": saving,
        "labels_needed": labels,
        "label_saving_interval": interval,
        "mlflow.note.content": f"{note}. Label saving: {saving} (95 % interval: {interval}).",
    }


def _search_runs(trials: pd.DataFrame) -> list[_Run]:
    """One run per (method, budget): the best validation error after each trial."""
    runs = []
    for (method, budget), group in trials.groupby(["method", "budget"], sort=False):
        complete = group[group["state"] == "complete"].sort_values(["finished", "number"])
        best = zip(complete["value"].cummin(), complete["finished"], strict=True)
        running = (group["state"] == "running").any()
        runs.append(
            _Run(
                key=f"search/{method}/{budget}",
                name=f"{method} · {budget} labels",
                started=_milliseconds(group["started"].min()),
                ended=None if running else _milliseconds(group["finished"].max()),
                params={"method": str(method), "budget": str(budget)},
                metrics=[
                    ("best_validation_error", float(value), _milliseconds(time), step)
                    for step, (value, time) in enumerate(best, 1)
                ],
            )
        )
    return runs


def _trial_runs(trials: pd.DataFrame, parents: dict[str, str]) -> list[_Run]:
    """One run per trial; its parent's id is part of its content, so that it follows a replaced parent."""
    status = {"complete": "FINISHED", "failed": "FAILED", "running": "RUNNING"}
    runs = []
    for trial in trials.itertuples():
        ended = None if trial.state == "running" else _milliseconds(trial.finished)
        metrics = []
        if ended is not None and trial.state == "complete" and np.isfinite(trial.value):
            metrics = [("validation_error", float(trial.value), ended, 0)]
        params = {"method": trial.method, "budget": trial.budget, **trial.parameters}
        runs.append(
            _Run(
                key=f"trial/{trial.key}",
                name=f"{trial.method} · {trial.budget} labels · {trial.number}",
                started=_milliseconds(trial.started),
                ended=ended,
                status=status[trial.state],
                params={name: str(value) for name, value in params.items()},
                metrics=metrics,
                tags={PARENT: parents[f"search/{trial.method}/{trial.budget}"]},
            )
        )
    return runs


def _milliseconds(seconds: float) -> int:
    """Unix milliseconds; 0 for a time that was not recorded."""
    return int(1000 * seconds) if np.isfinite(seconds) else 0
