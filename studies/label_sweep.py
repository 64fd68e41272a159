"""Which method needs the fewest labels? Sweeps label budgets, searches each, and says what was saved.

python studies/label_sweep.py --help
"""

from __future__ import annotations

import difflib
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's cluster may not have us installed

from recipes import SCALES

from sibcl_ray.estimate import plan_table
from sibcl_ray.methods import METHODS
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.report import learning_curve_figure, matrix_table, saving_table
from sibcl_ray.store import Store
from sibcl_ray.study import Ledger, Study

BAD_INPUT, SOME_FAILED, INTERRUPTED = 2, 1, 130

console = Console()
app = typer.Typer(add_completion=False, rich_markup_mode="rich")


class BadInput(ValueError):
    """What the user asked for cannot be; in one line, with advice."""


def _named(kind: str, name: str, table: dict[str, Any]) -> Any:
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name.lower(), [n.lower() for n in table], n=1, cutoff=0.4)
    hint = f"; did you mean {next(n for n in table if n.lower() == near[0])}?" if near else ""
    raise BadInput(f"there is no {kind} {name!r}{hint} (known: {', '.join(table)})")


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise BadInput(
            f"{option} is {text!r}; give {'whole ' * (kind is int)}numbers separated by commas"
        ) from None


def _study(
    problem: str, scale: str, seed: int, methods: str | None, budgets: str | None, temperatures: str | None,
    changes: dict[str, int | str | None], pretraining_workers: int,
) -> Study:
    _named("problem", problem, PROBLEMS)
    study = _named("scale", scale, SCALES)(problem, seed)
    given: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
    if methods is not None:
        given["methods"] = tuple(dict.fromkeys(_named("method", m.strip(), METHODS) for m in methods.split(",")))
    if budgets is not None:
        given["budgets"] = tuple(sorted(set(_numbers("--budgets", budgets, int))))
    space = {"workers": pretraining_workers}
    if temperatures is not None:
        space["temperatures"] = _numbers("--temperatures", temperatures, float)
    return replace(study, **given, space=replace(study.space, **space))


def _storage(uri: str) -> Store:
    """The store, if it can be written."""
    store = Store(uri if "://" in uri else str(Path(uri).resolve()))
    try:
        store.write("writable", b"")
        store.remove("writable")
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(f"--storage {uri} cannot be written ({' '.join(str(error).split())}); choose another folder") from None
    return store


def _show_plan(study: Study, lacking: Missing) -> None:
    p = plan(study, lacking)
    table = Table(title=f"Plan of {study.name}: what is still to be done", title_justify="left")
    for column in ("work", "number", "core time"):
        table.add_column(column, justify="left" if column == "work" else "right")
    table.add_row("target labels", str(p.target_labels), "")
    table.add_row("surrogate labels", str(p.surrogate_labels), _time(p.label_seconds))
    table.add_row("pretrainings", f"at most {p.pretrainings}", _time(p.pretraining_seconds))
    table.add_row(f"trials, {study.folds} folds each", str(p.trials), _time(p.trial_seconds))
    table.add_row("cells", str(p.cells), _time(p.cell_seconds))
    console.print(table)
    cores = os.cpu_count() or 1
    console.print(
        f"Estimated on this machine: about {_time(p.seconds)} of one core, {_time(p.seconds / cores + 30)} "
        f"on {cores} cores, start-up included. Nothing was run."
    )


def _time(seconds: float) -> str:
    units = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((u for u in units if seconds >= 2 * u[0]), units[-1])
    return f"{seconds / size:.0f} {unit}"


def _finish(ledger: Ledger, store: Store, tracking_uri: str | None) -> bool:
    """Write and show the results; whether all cells are done."""
    matrix = ledger.matrix()
    where = ledger.write_matrix(matrix)
    console.print(matrix_table(matrix))
    console.print(saving_table(matrix))
    with tempfile.TemporaryDirectory() as folder:
        figures = learning_curve_figure(matrix, Path(folder) / "learning_curves", ledger.study.name)
        for figure in figures:
            store.write(f"{ledger.folder}/{figure.name}", figure.read_bytes())
        console.print(f"matrix   {where}\nfigure   {store.path(ledger.folder)}/learning_curves.png, .svg")
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_local_root(store)}/mlflow.db"
        try:
            console.print(f"tracking {sync(uri, ledger.study.name, matrix, ledger.trials(), figures)}")
        except TrackingUnavailable as error:
            console.print(f"[yellow]tracking is not up to date: {error}; run the same command to write it again")
    return bool((matrix.state == "done").all())
