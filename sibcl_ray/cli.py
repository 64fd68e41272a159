"""The command line of a study: options, what is printed, and exit codes."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pandas as pd
import psutil
import typer
from rich.table import Table
from rich.text import Text

from sibcl_ray.cluster.scheduler import Unfinished
from sibcl_ray.data.sandbox import leads
from sibcl_ray.driver import Driver, Workforce, open_store
from sibcl_ray.messages import choose, duration, one_line, redact
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.problem import Problem, SolverFailed
from sibcl_ray.recipes import SCALES
from sibcl_ray.results.mlflow.tracking import TrackingUnavailable
from sibcl_ray.results.progress import Display
from sibcl_ray.results.tables import failures_in_words, matrix_table, saving_table
from sibcl_ray.results.terminal import Screen, take_any_letter
from sibcl_ray.search.methods import METHODS
from sibcl_ray.storage.cleaning import free, unneeded
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import Store, StoreError
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.study.plan import plan
from sibcl_ray.study.study import Study
from sibcl_ray.user_module.loading import TABULATED, find

BAD_INPUT, SOME_FAILED = 2, 1  # exit codes; 128 and the signal's number where one ended the run
AGAIN = "the same command continues where it stopped"
UsageError: Any = typer.BadParameter.__bases__[0]  # Typer brings a click of its own, or not, by version

console = Screen()
app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


_signals: list[int] = []  # that told this process to end: Ctrl-C, the system, or `ray job stop`


def _stop(number: int, frame: object) -> None:
    _signals.append(number)
    raise KeyboardInterrupt  # the one exception that Ray lets through wherever it is


def _obey_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def _say(text: str, style: str = "") -> None:
    """Print a line in which no character is markup."""
    console.print(Text(redact(text), style), soft_wrap=True)


_warn = partial(_say, style="yellow")


def _would_warn(text: str) -> None:
    """A run would do what a dry run only finds to be done."""
    _warn(f"a run would find: {text}")


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}; give {'whole ' * (kind is int)}numbers separated by commas") from None


def _as_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+ -]{0,99}", name):
        raise ValueError(f"--name is {name!r}; give letters, digits, blanks and any of _ - . +, at most 100")
    return name


def _not_together(**given: bool) -> None:
    """Refuse options that contradict each other."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise ValueError(f"{' and '.join(names)} were given; use one of them at a time")


def _study(
    problem: Problem,
    scale: str,
    seed: int,
    methods: str | None,
    budgets: str | None,
    temperatures: str | None,
    changes: dict[str, int | None],
) -> Study:
    """The recipe with what the options change."""
    study = choose("scale", scale, SCALES)(problem, seed)
    given: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
    if methods is not None:
        names = dict.fromkeys(name.strip() for name in methods.split(","))
        given["methods"] = tuple(choose("method", name, METHODS) for name in names)
    if budgets is not None:
        given["budgets"] = tuple(sorted(set(_numbers("--budgets", budgets, int))))
    if temperatures is not None:
        given["space"] = replace(study.space, temperatures=_numbers("--temperatures", temperatures, float))
    return replace(study, **given)


def _show_plan(ledger: Ledger) -> None:
    study, lacking = ledger.study, ledger.missing()
    if not lacking:
        _say(f"Nothing is left to do for {study.name}; nothing was computed or written.")
        return
    p = plan(study, ledger.dataset, lacking)
    table = Table(title=f"Plan of {study.name}: what is still to be done", title_justify="left")
    for column in ("work", "number", "core time"):
        table.add_column(column, justify="left" if column == "work" else "right")
    table.add_row("target labels", str(p.target_labels), _known(p.target_seconds))
    table.add_row("surrogate labels", str(p.surrogate_labels), _known(p.surrogate_seconds))
    table.add_row("pretrainings", f"at most {p.pretrainings}", duration(p.pretraining_seconds))
    table.add_row(f"trials, {study.folds} folds each", str(p.trials), duration(p.trial_seconds))
    table.add_row("cells", str(p.cells), duration(p.cell_seconds))
    console.print(table)
    cores = os.cpu_count() or 1
    without = ", labels of unknown cost not" if None in (p.target_seconds, p.surrogate_seconds) else ""
    _say(
        f"Estimated on this machine: about {duration(p.seconds)} of one core, {duration(p.seconds / cores + 30)} "
        f"on {cores} cores, start-up included{without}. For this a few training steps were timed on made-up data; "
        "no label was computed and nothing was written."
    )


def _known(seconds: float | None) -> str:
    return "not known before the first label" if seconds is None else duration(seconds)


def _all_done(matrix: pd.DataFrame) -> bool:
    """Whether there is a result in every cell; says what is to be done about the others."""
    states = matrix.state.value_counts()
    for line in failures_in_words(matrix):
        _warn(line)
    if failed := states.get("failed", 0):
        _warn(f"{failed} cells failed for good; --retry-failed tries them again")
    if diverged := states.get("diverged", 0):
        _warn(f"{diverged} cells diverged; the same would happen again, so smaller learning rates are needed")
    return states.get("done", 0) == len(matrix)


def _clean(store: Store) -> None:
    """List files that are no longer needed, and remove them unless the store is read only."""
    session = Session(store)
    found = unneeded(store, session.claims, _say)
    for what, names in (
        ("weights that no pretraining in the ledger refers to", found.weights),
        ("checkpoints of pretrainings that have ended", found.checkpoints),
        ("claims of drivers that are gone", found.claims),
        ("signs of life of drivers that are gone", found.sessions),
    ):
        size = sum(Path(store.path(n)).stat().st_size for n in names if store.is_local and store.exists(n))
        _say(f"{len(names):,} {what}{f', {size / 2**20:,.1f} MiB' * bool(size)}")
    if found.running:
        _warn(f"{len(found.running)} drivers are at work, so weights and claims are left alone")
    if found and not store.read_only:
        with session:
            free(store, session, found)
    _say("They are removed." if found and not store.read_only else "Nothing was removed.")


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
    problem: Annotated[
        str,
        typer.Option(
            help="What is learned: " + ", ".join([*PROBLEMS, TABULATED]) + ", or a class of your own in a file, "
            "[b]my_problem.py:MyProblem[/]."
        ),
    ] = "photonic-dos",
    data: Annotated[
        Path | None,
        typer.Option(help=f"Folder with your own arrays and a problem.toml, for [b]--problem {TABULATED}[/]."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the study, for one that is to be kept apart from others of its problem.")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="How thoroughly: " + ", ".join(SCALES) + ". [b]smoke[/] takes a minute and "
            "proves the set-up; [b]quick[/] about ten minutes on two cores; [b]standard[/] about an hour on a GPU; "
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
            envvar="SIBCL_RAY_STORAGE",
            help="Folder, or s3://, gs:// or az:// URL, for labels, weights, ledger and results; in a submitted job "
            "relative to the home folder of the driver's node.",
        ),
    ] = "runs",
    search_storage: Annotated[
        str | None,
        typer.Option(
            envvar="SIBCL_RAY_SEARCH_STORAGE",
            help="Database URL for Optuna's histories; a journal file in the storage folder if not given.",
        ),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow server or database; MLFLOW_TRACKING_URI, or SQLite in the storage folder, if not given."
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            envvar="SIBCL_RAY_WORKERS",
            help="Ray Train workers that stay up and take jobs; all that fit if not given. "
            "A cluster that scales has to be told.",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(
            envvar="SIBCL_RAY_GPUS_PER_WORKER",
            help="GPUs of each worker, also fractions; 1 where the cluster has GPUs if not given.",
        ),
    ] = None,
    pretraining_workers: Annotated[int, typer.Option(help="Workers that share a pretraining.")] = 1,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--fresh",
            help="Continue from earlier results, or set them aside (none is deleted; labels are kept) and start anew.",
        ),
    ] = True,
    labels: Annotated[
        str | None,
        typer.Option(
            help="Where what decides labels has changed since they were made: [b]keep[/] them, and make what is "
            "missing by the new code, or make all [b]new[/] and leave those alone."
        ),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed for good; what diverged would do so again.")
    ] = False,
    sync_tracking: Annotated[
        bool,
        typer.Option("--sync-tracking", help="Only show the results there are, and bring MLflow to what they say."),
    ] = False,
    clean: Annotated[
        bool,
        typer.Option(
            "--clean",
            help="List what is no longer needed in the storage, by any of its studies, and remove it: weights and "
            "checkpoints without a pretraining, claims of drivers that are gone. With [b]--dry-run[/] only say it.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be done, with an estimate of its time, and stop."),
    ] = False,
) -> None:
    """Build the study that the options describe, run what it lacks, and show the results."""
    _not_together(fresh=not resume, dry_run=dry_run, sync_tracking=sync_tracking)
    _not_together(retry_failed=retry_failed, dry_run=dry_run, sync_tracking=sync_tracking)
    _not_together(clean=clean, fresh=not resume, retry_failed=retry_failed, sync_tracking=sync_tracking)
    workforce = Workforce(workers, gpus_per_worker, pretraining_workers)
    if clean:
        return _clean(open_store(storage, read_only=dry_run))
    changes: dict[str, int | None] = {"seeds": seeds, "trials": trials}
    learned = find(problem, None if data is None else str(data))
    study = _study(learned, scale, seed, methods, budgets, temperatures, changes)
    study = study if name is None else replace(study, name=_as_name(name))
    store, warn = open_store(storage, read_only=dry_run), _would_warn if dry_run else _warn
    driver = Driver(study, store, workforce, search_storage, tracking_uri, labels, _say, warn)
    if dry_run:
        return _show_plan(driver.ledger)
    if not sync_tracking:
        with Display(console) as display:
            driver.complete(display, fresh=not resume, retry_failed=retry_failed)
    results = driver.results()
    console.print(matrix_table(results.matrix))
    console.print(saving_table(results.matrix))
    _say(f"matrix    {results.folder}/matrix.parquet")
    _say(f"figure    {results.folder}/learning_curves.png and .svg")
    shown = True
    try:
        _say(f"tracking  {driver.track()}")
    except TrackingUnavailable as error:
        _warn(f"tracking  {error}; with --sync-tracking this command does only that")
        shown = False
    done = _all_done(driver.ledger.asked(results.matrix))
    if not (shown if sync_tracking else done):
        raise typer.Exit(SOME_FAILED)


def command_line() -> int:
    """Run the command; errors that the user can mend become one line and an exit code."""
    _signals.clear()  # of what this process did before
    _obey_signals()
    take_any_letter()
    try:
        code = app(standalone_mode=False) or 0
    except UsageError as error:
        return _complain(error.format_message() + _given(error), BAD_INPUT)
    except ValueError as error:
        return _complain(_by_option(error), BAD_INPUT)
    except (Unfinished, StoreError, SolverFailed) as error:
        return _complain(f"{error}; {AGAIN}", SOME_FAILED)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # as by `--help | head`
            return 0
        _signals.append(signal.SIGTERM)  # Ray answers it in its own way while it starts
        code = SOME_FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = SOME_FAILED
    if _signals:  # Typer may have made an exit code of it already
        return _complain(f"stopped by {signal.Signals(_signals[0]).name}; {AGAIN}", 128 + _signals[0])
    return code


def _end_at_once(code: int) -> NoReturn:
    """End this process and all that it has started, without waiting: everything is on disk.

    Ray is not shut down, as it ends a process, with a code of its own, whose threads still talk to it then.
    """
    with suppress(OSError, AttributeError):  # the reader is gone
        sys.stdout.flush()
    for _ in range(2):  # again for processes started meanwhile
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if not leads(process.cmdline()):
                    process.kill()
    os._exit(code)


def _by_option(error: ValueError) -> str:
    """Its text; one that begins with the name of an argument begins with that of the option instead."""
    name, _, rest = str(error).partition(" ")
    known = type(error) is ValueError and name in inspect.signature(main).parameters
    return f"--{name.replace('_', '-')} {rest}" if known else str(error)


def _given(error: Any) -> str:
    """What came in the place of a value that Typer refuses, which it does not always say."""
    names = getattr(getattr(error, "param", None), "opts", ())
    given = [value for option, value in zip(sys.argv, sys.argv[1:], strict=False) if option in names]
    return f", not {given[-1]!r}" if given else ""


def _complain(text: str, code: int) -> int:
    with suppress(OSError):  # the reader is gone
        print(f"error: {redact(one_line(text))}", file=sys.stderr, flush=True)
    return code


def main_program() -> NoReturn:
    """What `python studies/label_sweep.py` is."""
    code = command_line()
    if "ray" in sys.modules:
        _end_at_once(code)
    sys.exit(code)
