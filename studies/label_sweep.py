"""Which method needs the fewest labels? Sweeps label budgets, searches each, and says what was saved.

python studies/label_sweep.py --help
"""

from __future__ import annotations

import difflib
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's cluster may not have us installed

from recipes import SCALES

from sibcl_ray.methods import METHODS
from sibcl_ray.plan import plan
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.progress import Display
from sibcl_ray.report import learning_curve_figure, matrix_table, saving_table
from sibcl_ray.run import Missing, Timings, connect, fit_resources, missing, run
from sibcl_ray.store import Store
from sibcl_ray.study import Ledger, Study, set_aside
from sibcl_ray.workers import Unfinished

TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
BAD_INPUT, SOME_FAILED, INTERRUPTED = 2, 1, 130

UsageError: Any = typer.BadParameter.__bases__[0]  # Typer brings a click of its own, or not, by version

console = Console()
app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


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
        raise BadInput(f"{option} is {text!r}; give {'whole ' * (kind is int)}numbers separated by commas") from None


def _at_least(option: str, value: float | None, least: float) -> None:
    if value is not None and not value >= least:
        raise BadInput(f"{option} is {value}; it must be {'at least 1' if least else '0 or more'}")


def _study(
    problem: str,
    scale: str,
    seed: int,
    methods: str | None,
    budgets: str | None,
    temperatures: str | None,
    changes: dict[str, int | None],
    pretraining_workers: int,
) -> Study:
    """The recipe with what the options change."""
    _named("problem", problem, PROBLEMS)
    study = _named("scale", scale, SCALES)(problem, seed)
    given: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
    if methods is not None:
        names = dict.fromkeys(name.strip() for name in methods.split(","))
        given["methods"] = tuple(_named("method", name, METHODS) for name in names)
    if budgets is not None:
        given["budgets"] = tuple(sorted(set(_numbers("--budgets", budgets, int))))
    space: dict[str, Any] = {"workers": pretraining_workers}
    if temperatures is not None:
        space["temperatures"] = _numbers("--temperatures", temperatures, float)
    return replace(study, **given, space=replace(study.space, **space))


def _storage(uri: str) -> Store:
    """The store, if it can be written."""
    # A job's working folder is thrown away with the job.
    here = Path.home() if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()
    store = Store(uri if "://" in uri else str((here / uri).resolve()))
    try:
        store.write("writable", b"")
        store.remove("writable")
    except (OSError, ValueError, ImportError) as error:
        raise BadInput(
            f"--storage {uri} cannot be written ({' '.join(str(error).split())}); choose another folder"
        ) from None
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


def _finish(ledger: Ledger, tracking_uri: str) -> bool:
    """Write and show the results; whether all cells are done."""
    from sibcl_ray.tracking import TrackingUnavailable, sync

    store, study, matrix = ledger.store, ledger.study, ledger.matrix()
    where = ledger.write_matrix(matrix)
    console.print(matrix_table(matrix))
    console.print(saving_table(matrix))
    with tempfile.TemporaryDirectory() as folder:
        files = learning_curve_figure(matrix, Path(folder) / "learning_curves", study.name)
        for file in files:
            store.write(f"{ledger.folder}/{file.name}", file.read_bytes())
        files.append(Path(folder) / "matrix.parquet")
        files[-1].write_bytes(store.read(f"{ledger.folder}/matrix.parquet"))
        console.print(f"matrix    {where}", soft_wrap=True)
        console.print(f"figure    {store.path(ledger.folder)}/learning_curves.png and .svg", soft_wrap=True)
        try:
            opened = sync(tracking_uri, study.name, matrix, ledger.trials(), files)
            console.print(f"tracking  {opened}", soft_wrap=True)
        except TrackingUnavailable as error:
            console.print(f"[yellow]tracking  {error}[/]", soft_wrap=True)
    return bool((matrix.state == "done").all())


def _tracking_uri(store: Store, option: str | None) -> str:
    """The option, else the environment, else SQLite beside the results."""
    folder = store.uri if store.is_local else Path.cwd()
    uri = option or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
    if uri.split(":")[0].split("+")[0] not in TRACKING_SCHEMES:
        raise BadInput(
            f"--tracking-uri {uri} is neither a server nor a database; give http://HOST:PORT or sqlite:////FILE"
        )
    return uri


def _run(ledger: Ledger, lacking: Missing, study: Study, workers: int | None, gpus: float | None) -> None:
    """Make what is missing, and say where the time went."""
    timings, begun = Timings(), time.monotonic()
    with timings.stage("ray"):
        connect()
    wide = study.space.workers
    resources = fit_resources(workers, gpus, wide)
    scratch = ledger.store.path("scratch") if ledger.store.is_local else str(Path.home() / "ray_results")
    with Display(console) as display:
        run(ledger, lacking, resources, scratch, display, timings)
    console.print(_where_time_went(timings, time.monotonic() - begun), highlight=False)


def _where_time_went(timings: Timings, wall: float) -> str:
    busy = sum(timings.busy.values()) / max(1, timings.workers)
    starting = timings.wall.get("ray", 0.0) + timings.wall.get("workers", 0.0)
    labels = timings.wall.get("labels", 0.0)
    rest = wall - starting - labels - busy
    return (
        f"{_time(wall)}: {labels:.0f} s labels, {busy:.0f} s training on {timings.workers} workers, "
        f"{starting:.0f} s starting Ray and its workers, {rest:.0f} s ({rest / wall:.0%}) everything else"
    )


HELP = """Find out which method needs the [b]fewest labels[/].

Every method is tuned at every searched label budget (by Optuna, inside the budget's own labels), then fitted \
over several seeds and tested once. Prints the learning-curve matrix and how many labels each method saves \
against SL, and writes matrix.parquet, a figure and MLflow runs. The same command continues a study that was \
interrupted; a study extended by budgets, methods, seeds or trials runs only what is new.

[b]On a laptop:[/]  python studies/label_sweep.py

[b]On a cluster:[/]  ray job submit --working-dir . -- python studies/label_sweep.py --scale paper
"""


@app.command(help=HELP)
def main(
    problem: Annotated[str, typer.Option(help="What is learned: " + ", ".join(PROBLEMS) + ".")] = "photonic-dos",
    scale: Annotated[
        str,
        typer.Option(
            help="How thoroughly: " + ", ".join(SCALES) + ". [b]smoke[/] takes a minute and "
            "proves the set-up; [b]quick[/] at most ten minutes on two cores; [b]standard[/] about an hour on a GPU; "
            "[b]paper[/] the sizes of the SIB-CL paper."
        ),
    ] = "quick",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: " + ", ".join(METHODS) + ". "
            "-I: the symmetries also augment whatever labels are fitted."
        ),
    ] = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated numbers of target labels. A budget counts every "
            "label that is seen, those for choosing hyperparameters included."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions of every cell of the matrix.")] = None,
    trials: Annotated[int | None, typer.Option(help="Configurations tried by each search.")] = None,
    temperatures: Annotated[
        str | None, typer.Option(help="Comma-separated temperatures of the contrastive loss to choose from.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the study: another seed draws other data.")] = 0,
    storage: Annotated[
        str,
        typer.Option(
            help="Folder or fsspec URL for labels, weights, ledger and results; in a submitted job relative "
            "to the home folder of the driver's node."
        ),
    ] = "runs",
    search_storage: Annotated[
        str | None,
        typer.Option(help="Database URL for Optuna's histories; a journal file in the storage folder if not given."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow server or database; MLFLOW_TRACKING_URI, or SQLite in the storage folder, if not given."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Ray Train workers that stay up and take jobs; all that fit if not given."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="GPUs of each worker, also fractions; 1 where the cluster has GPUs if not given."),
    ] = None,
    pretraining_workers: Annotated[int, typer.Option(help="Workers that one pretraining spans.")] = 1,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Continue from whatever is there, or set earlier "
            "results aside (none is deleted; labels are kept) and start anew.",
        ),
    ] = True,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done, with an estimate of its time, and stop."),
    ] = False,
) -> None:
    """Build the study that the options describe, run what it lacks, and show the results."""
    for option, value, least in (
        ("--pretraining-workers", pretraining_workers, 1),
        ("--workers", workers, 1),
        ("--gpus-per-worker", gpus_per_worker, 0),
    ):
        _at_least(option, value, least)
    changes: dict[str, int | None] = {"seeds": seeds, "trials": trials}
    study = _study(problem, scale, seed, methods, budgets, temperatures, changes, pretraining_workers)
    store = _storage(storage)
    tracking_uri = _tracking_uri(store, tracking_uri)
    if not resume:
        console.print(f"earlier results are now in {set_aside(store)}", soft_wrap=True)
    ledger = Ledger(study, store, search_storage)
    lacking = missing(ledger, warn=lambda text: console.print(f"[yellow]{text}[/]"))
    if dry_run:
        _show_plan(study, lacking)
        return
    if lacking:
        _run(ledger, lacking, study, workers, gpus_per_worker)
    if not _finish(ledger, tracking_uri):
        raise typer.Exit(SOME_FAILED)


def command_line() -> int:
    """Run, and turn whatever is the user's to mend into one line and an exit code."""
    try:
        return app(standalone_mode=False) or 0
    except UsageError as error:
        return _complain(error.format_message(), BAD_INPUT)
    except ValueError as error:
        return _complain(str(error), BAD_INPUT)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted; the same command continues where it stopped", INTERRUPTED)
    except Unfinished as error:
        return _complain(f"{error}; the same command continues where it stopped", SOME_FAILED)


def _complain(text: str, code: int) -> int:
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(command_line())
