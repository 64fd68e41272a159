"""Studies of a storage: a summary of each, and several beside each other."""

import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.table import Column, Table
from rich.text import Text

from sibcl_ray.driver import Results
from sibcl_ray.messages import one_line
from sibcl_ray.results.curves import LabelSaving, label_savings
from sibcl_ray.results.tables import interval_in_words, saving_in_words, units_of
from sibcl_ray.settings import FILE, Settings, parsed
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger


@dataclass(frozen=True)
class Summary:
    """Of a study: how many of its cells are done, and when the last one was."""

    name: str
    problem: str
    scale: str
    progress: str
    changed: float | None  # seconds since 1970


def summaries(store: Store, search_storage: str | None) -> list[Summary]:
    """One of each study in the store, those that changed last first."""
    names = [folder.rpartition("/")[2] for folder in store.names("studies")]
    return sorted((_summary(store, name, search_storage) for name in names), key=lambda s: -(s.changed or 0.0))


def settings_in(store: Store, folder: str) -> tuple[Settings | None, dict[str, str]]:
    """What a study's folder says of its settings and the versions they were written with; None and {} if nothing."""
    try:
        said, versions = parsed(store.read(f"{folder}/{FILE}").decode())
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        return Settings(**values), versions
    except (FileNotFoundError, ValueError, TypeError):  # the last where another version has written it
        return None, {}


def _summary(store: Store, name: str, search_storage: str | None) -> Summary:
    folder = f"studies/{name}"
    settings, _ = settings_in(store, folder)
    matrix = _matrix(store, folder)
    scale = settings.scale if settings else ""
    asked = len(settings.methods or ()) * len(settings.budgets or ()) * (settings.repeats or 0) if settings else 0
    if settings and (matrix is None or len(matrix) < asked or (matrix.state == "missing").any()):
        try:
            matrix = Ledger(settings.study(), store, search_storage, lambda text: None).matrix()
        except Exception as error:  # of users' code too
            if matrix is None:
                return Summary(name, settings.problem, scale, f"cannot be read here: {one_line(error, 60)}", None)
    if matrix is None or not len(matrix):
        return Summary(name, settings.problem if settings else "", scale, "no results yet", None)
    states = matrix.state.value_counts()
    progress = f"{states.get('done', 0)}/{len(matrix)} cells"
    progress += "".join(f", {states[s]} {s}" for s in ("failed", "diverged") if s in states)
    finished = matrix.finished.max()
    return Summary(name, matrix.problem.iloc[0], scale, progress, None if pd.isna(finished) else float(finished))


def _matrix(store: Store, folder: str) -> pd.DataFrame | None:
    try:
        return pd.read_parquet(io.BytesIO(store.read(f"{folder}/matrix.parquet")))
    except (FileNotFoundError, ValueError):
        return None


def summary_table(found: Iterable[Summary]) -> Table:
    table = Table("study", "problem", "scale", "progress", "last cell")
    for s in found:
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(s.changed)) if s.changed else ""
        table.add_row(*(Text(text) for text in (s.name, s.problem, s.scale, s.progress, changed)))
    return table


def settings_beside(results: Results) -> tuple[Settings | None, dict[str, str]]:
    """The same of the folder that results are in."""
    place, _, name = results.folder.rpartition("/")
    return settings_in(Store(place, read_only=True), name)


def joined(results: dict[str, Results], labels: dict[str, str]) -> list[pd.DataFrame]:
    """The matrices of studies, one for those with the same ``labels``, so that they are paired; methods say whose.

    ValueError where problems differ.
    """
    for column in ("problem", "error_units"):
        if len(kinds := {str(value) for found in results.values() for value in found.matrix[column]}) > 1:
            what = column.replace("_", " ")
            raise ValueError(f"{what} is {' and '.join(sorted(kinds))} of these studies; give those of one {what}")
    groups: dict[str, list[pd.DataFrame]] = {}
    for name, found in results.items():
        renamed = found.matrix.assign(method=[f"{method} ({name})" for method in found.matrix.method])
        groups.setdefault(labels.get(name) or name, []).append(renamed)
    return [pd.concat(matrices, ignore_index=True) for matrices in groups.values()]


def savings_table(results: dict[str, Results]) -> Table:
    """Label savings: a row for each method, a column for each study, each against the study's own baseline."""
    savings = {name: {s.method: s for s in label_savings(found.matrix)} for name, found in results.items()}
    methods = dict.fromkeys(method for of in savings.values() for method in of)
    headers = [
        f"{name}\nfor {_target(found, of.values())}"
        for (name, found), of in zip(results.items(), savings.values(), strict=True)
    ]
    table = Table("method", *(Column(Text(header), justify="right") for header in headers), title="Label saving")
    table.caption = Text("each study's for the error of its own SL at its largest budget")
    for method in methods:
        entries = [of.get(method) for of in savings.values()]
        table.add_row(method, *(f"{saving_in_words(s)}\n{interval_in_words(s)}" if s else "–" for s in entries))
    return table


def _target(results: Results, savings: Iterable[LabelSaving]) -> str:
    """The error that savings are for."""
    errors = {units_of(results.matrix).in_words(saving.target_error) for saving in savings}
    return next(iter(errors), "no error")


def markdown(table: Table) -> str:
    """The table for a page in Markdown."""
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += map(list, zip(*([_plain(cell) for cell in column.cells] for column in table.columns), strict=True))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    title, caption = (f"{text}\n" if text else "" for text in (table.title, table.caption))
    return "\n".join(filter(None, [title, *lines, f"\n{caption}" if caption else ""]))


def _plain(cell: object) -> str:
    return " ".join(str(cell).split()).replace("|", "\\|")
