"""What MLflow shows of the ledger: one run per learning curve, per search and per trial, and two saved views."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sibcl_ray.messages import redact
from sibcl_ray.results.curves import BASELINE, LabelSaving, LearningCurve, label_savings, learning_curves
from sibcl_ray.results.tables import Units, colour, interval_in_words, labels_in_words, saving_in_words, units_of

VIEW = "sibcl"  # key of the saved view in either experiment
STATES = ("done", "failed", "diverged", "missing")  # of cells

Point = tuple[str, float, int, int]  # key, value, unix milliseconds, step


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What one MLflow run shows, without secrets. Times are unix milliseconds."""

    key: str  # names the run for ever, unlike MLflow's id
    name: str
    started: int
    ended: int
    status: str = "FINISHED"
    params: dict[str, str]
    metrics: tuple[Point, ...]
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: tuple[Path, ...] = ()
    parent: str = ""  # key of the run it is nested under

    def __post_init__(self) -> None:
        texts = (self.key, self.name, self.parent, *self.params, *self.params.values(), *self.tags, *self.tags.values())
        together = "\n".join(texts)
        if redact(together) == together:  # at a thirtieth of the cost, and so it is nearly always
            return
        for text in ("key", "name", "parent"):
            object.__setattr__(self, text, redact(getattr(self, text)))
        for mapping in ("params", "tags"):
            clean = {redact(name): redact(value) for name, value in getattr(self, mapping).items()}
            object.__setattr__(self, mapping, clean)

    def content(self, parent_id: str) -> str:
        """Hash of all that is shown, the bytes of the artifacts and MLflow's id of the parent included."""
        shown = {**vars(self), "artifacts": (), "parent": parent_id}
        digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode())
        for path in self.artifacts:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def curve_runs(matrix: pd.DataFrame, artifacts: Sequence[Path] = ()) -> list[TrackedRun]:
    """One run per method with a finished cell: its learning curve, and its label saving where that is known."""
    if matrix.empty:
        return []
    savings = {saving.method: saving for saving in label_savings(matrix)}
    return [
        _curve_run(curve, matrix[matrix["method"] == method], savings.get(method), tuple(artifacts))
        for method, curve in learning_curves(matrix).items()
    ]


def _curve_run(
    curve: LearningCurve, cells: pd.DataFrame, saving: LabelSaving | None, artifacts: tuple[Path, ...]
) -> TrackedRun:
    finished = cells[cells["state"] == "done"].groupby("budget")["finished"].max()
    times = [_milliseconds(finished[n]) for n in curve.budgets]
    series = {"test_error": curve.error, "test_error_low": curve.low, "test_error_high": curve.high}
    metrics = [
        (name, float(value), time, int(n))
        for name, values in series.items()
        for n, value, time in zip(curve.budgets, values, times, strict=True)
        if np.isfinite(value)
    ]
    tags = {"mlflow.runColor": colour(curve.method), "error_units": str(cells["error_units"].iloc[0]) or "not given"}
    tags |= {f"cells_{state}": str((cells["state"] == state).sum()) for state in STATES}
    if saving:
        metrics += [(name, value, max(times), 0) for name, value in _bounded(saving).items()]
        tags |= _in_words(saving, units_of(cells))
    return TrackedRun(
        key=f"curve/{curve.method}",
        name=curve.method,
        started=min(times),
        ended=max(times),
        params={"method": curve.method, "problem": str(cells["problem"].iloc[0]), "baseline": BASELINE},
        metrics=tuple(metrics),
        tags=tags,
        artifacts=artifacts,
    )


def _bounded(s: LabelSaving) -> dict[str, float]:
    """The saving as numbers a chart can show: a censored one at the bound that its tag states in words."""
    least, most = s.baseline_labels / s.largest, s.baseline_labels / s.smallest
    shown = {
        "label_saving": np.clip(s.saving, least, most),
        "label_saving_low": np.clip(s.low, least, most),
        "label_saving_high": np.clip(s.high, least, most),
        "labels_needed": np.clip(s.labels, s.smallest, s.largest),
    }
    return {name: float(value) for name, value in shown.items() if np.isfinite(value)}


def _in_words(s: LabelSaving, units: Units) -> dict[str, str]:
    saving, labels, interval = saving_in_words(s), labels_in_words(s), interval_in_words(s)
    note = f"{s.method} needs {labels} labels for {s.baseline}'s error of {units.in_words(s.target_error)}"
    return {
        "label_saving": saving,
        "labels_needed": labels,
        "label_saving_interval": interval,
        "mlflow.note.content": f"{note}. Label saving: {saving} (95 % interval: {interval}).",
    }


def search_runs(trials: pd.DataFrame) -> list[TrackedRun]:
    """One run per (method, budget): the best validation error after each trial."""
    if trials.empty:
        return []
    groups = trials.groupby(["method", "budget"], sort=False)
    return [_search_run(method, budget, its) for (method, budget), its in groups]


def _search_run(method: Any, budget: Any, trials: pd.DataFrame) -> TrackedRun:
    complete = trials[trials["state"] == "complete"].sort_values(["finished", "number"])
    best = zip(complete["value"].cummin(), complete["finished"], strict=True)
    return TrackedRun(
        key=f"search/{method}/{budget}",
        name=f"{method} · {budget} labels",
        started=_milliseconds(trials["started"].min()),
        ended=_milliseconds(trials["finished"].max()),
        params={"method": method, "budget": str(budget)},
        metrics=tuple(
            ("best_validation_error", float(value), _milliseconds(time), step)
            for step, (value, time) in enumerate(best, 1)
            if np.isfinite(value)
        ),
    )


def trial_runs(trials: pd.DataFrame) -> list[TrackedRun]:
    """One run per trial, nested under its search."""
    return [_trial_run(trial) for trial in trials.itertuples()]


def _trial_run(trial: Any) -> TrackedRun:
    ended = _milliseconds(trial.finished)
    params = {"method": trial.method, "budget": trial.budget, **trial.parameters}
    return TrackedRun(
        key=f"trial/{trial.key}",
        name=f"{trial.method} · {trial.budget} labels · {trial.number}",
        started=_milliseconds(trial.started),
        ended=ended,
        status="FINISHED" if trial.state == "complete" else "FAILED",
        params={name: str(value) for name, value in params.items()},
        metrics=(("validation_error", float(trial.value), ended, 0),) if np.isfinite(trial.value) else (),
        parent=f"search/{trial.method}/{trial.budget}",
    )


def _milliseconds(seconds: float) -> int:
    """Unix milliseconds; 0 for a time that was not recorded."""
    return int(1000 * seconds) if np.isfinite(seconds) else 0


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
