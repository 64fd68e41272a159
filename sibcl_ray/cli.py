"""The command line of a study: options, what is printed, and exit codes."""

import os
import re
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import psutil
import typer
from rich.table import Column, Table
from rich.text import Text

from sibcl_ray.cluster.scheduler import Unfinished
from sibcl_ray.data.sandbox import leads
from sibcl_ray.driver import Driver, Workforce, open_store
from sibcl_ray.messages import choose, duration, one_line, redact
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.problem import SolverFailed
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
optional = partial(typer.Option, None)

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


HELP = """Find out which method needs the [b]fewest labels[/].

Every method is tuned at every searched label budget (by Optuna, inside the budget's own labels), then fitted \
over several seeds and tested once. Prints the learning-curve matrix and how many labels each method saves \
against SL, and writes matrix.parquet, a figure and MLflow runs. The same command continues a study that was \
interrupted; a study extended by budgets, methods, seeds or trials runs only what is new.

[b]On a laptop:[/]  python studies/label_sweep.py

[b]On a cluster:[/]  ray job submit --working-dir . -- python studies/label_sweep.py --scale paper
"""


@app.command(help=HELP)
@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command is given; a field's name is that of its option."""

    problem: str = typer.Option(
        "photonic-dos",
        help=f"What is learned: {', '.join([*PROBLEMS, TABULATED])}, or a class of your own in a file, "
        "[b]my_problem.py:MyProblem[/].",
    )
    data: Path | None = optional(  # noqa: RUF009 (a description, not a value)
        help=f"Folder with your own arrays and a problem.toml, for [b]--problem {TABULATED}[/]."
    )
    name: str | None = optional(help="Of the study, for one that is to be kept apart from others of its problem.")
    scale: str = typer.Option(
        "quick",
        help=f"How thoroughly: {', '.join(SCALES)}. [b]smoke[/] takes a minute and proves the set-up; [b]quick[/] "
        "about ten minutes on two cores; [b]standard[/] about an hour on a GPU; [b]paper[/] the sizes of the SIB-CL "
        "paper.",
    )
    methods: str | None = optional(
        help=f"Comma-separated: {', '.join(METHODS)}. -I: the symmetries also augment whatever labels are fitted.",
    )
    budgets: str | None = optional(
        help="Comma-separated numbers of target labels. A budget counts every label that is seen, those for choosing "
        "hyperparameters included.",
    )
    seeds: int | None = optional(help="Repetitions of every cell of the matrix.")
    trials: int | None = optional(help="Configurations tried by each search.")
    temperatures: str | None = optional(help="Comma-separated temperatures of the contrastive loss to choose from.")
    seed: int = typer.Option(0, help="Of the study: another seed draws other data.")
    storage: str = typer.Option(
        "runs",
        envvar="SIBCL_RAY_STORAGE",
        help="Folder, or s3://, gs:// or az:// URL, for labels, weights, ledger and results; in a submitted job "
        "relative to the home folder of the driver's node.",
    )
    search_storage: str | None = optional(
        envvar="SIBCL_RAY_SEARCH_STORAGE",
        help="Database URL for Optuna's histories; a journal file in the storage folder if not given.",
    )
    tracking_uri: str | None = optional(
        help="MLflow server or database; MLFLOW_TRACKING_URI, or SQLite in the storage folder, if not given."
    )
    workers: int | None = optional(
        envvar="SIBCL_RAY_WORKERS",
        help="Ray Train workers that stay up and take jobs; all that fit if not given. A cluster that scales has to "
        "be told.",
    )
    gpus_per_worker: float | None = optional(
        envvar="SIBCL_RAY_GPUS_PER_WORKER",
        help="GPUs of each worker, also fractions; 1 where the cluster has GPUs if not given.",
    )
    pretraining_workers: int = typer.Option(1, help="Workers that share a pretraining.")
    resume: bool = typer.Option(
        True,
        "--resume/--fresh",
        help="Continue from earlier results, or set them aside (none is deleted; labels are kept) and start anew.",
    )
    labels: str | None = optional(
        help="Where what decides labels has changed since they were made: [b]keep[/] them, and make what is missing "
        "by the new code, or make all [b]new[/] and leave those alone.",
    )
    retry_failed: bool = typer.Option(
        False, "--retry-failed", help="Try again what failed for good; what diverged would do so again."
    )
    sync_tracking: bool = typer.Option(
        False, "--sync-tracking", help="Only show the results there are, and bring MLflow to what they say."
    )
    clean: bool = typer.Option(
        False,
        "--clean",
        help="List what is no longer needed in the storage, by any of its studies, and remove it: weights and "
        "checkpoints without a pretraining, claims of drivers that are gone. With [b]--dry-run[/] only say it.",
    )
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print what would be done, with an estimate of its time, and stop."
    )

    def __post_init__(self) -> None:
        for contrary in (
            ("fresh", "dry_run", "sync_tracking"),
            ("retry_failed", "dry_run", "sync_tracking"),
            ("clean", "fresh", "retry_failed", "sync_tracking"),
        ):
            given = [f"--{name.replace('_', '-')}" for name in contrary if getattr(self, name)]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} were given; use one of them at a time")

    @property
    def fresh(self) -> bool:
        return not self.resume

    def study(self) -> Study:
        """The recipe with what the options change."""
        problem = find(self.problem, None if self.data is None else str(self.data))
        study = choose("scale", self.scale, SCALES)(problem, self.seed)
        changes: dict[str, Any] = {"seeds": self.seeds, "trials": self.trials, "name": self.name}
        if self.methods is not None:
            names = dict.fromkeys(name.strip() for name in self.methods.split(","))
            changes["methods"] = tuple(choose("method", name, METHODS) for name in names)
        if self.budgets is not None:
            changes["budgets"] = tuple(sorted(set(_numbers("--budgets", self.budgets, int))))
        if self.temperatures is not None:
            changes["space"] = replace(study.space, temperatures=_numbers("--temperatures", self.temperatures, float))
        if self.name is not None and not re.fullmatch(r"\w[\w.+ -]{0,99}", self.name):
            raise ValueError(f"--name is {self.name!r}; give letters, digits, blanks and any of _ - . +, at most 100")
        return replace(study, **{field: value for field, value in changes.items() if value is not None})


def _numbers(option: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} is {text!r}; give {'whole ' * (kind is int)}numbers separated by commas") from None


def _show_plan(ledger: Ledger) -> None:
    study, lacking = ledger.study, ledger.missing()
    if not lacking:
        _say(f"Nothing is left to do for {study.name}; nothing was computed or written.")
        return
    p = plan(study, ledger.dataset, lacking)
    numbers = Column("number", justify="right"), Column("core time", justify="right")
    title = f"Plan of {study.name}: what is still to be done"
    table = Table("work", *numbers, title=title, title_justify="left")
    table.add_row("target labels", str(p.target_labels), _known(p.target_seconds))
    table.add_row("surrogate labels", str(p.surrogate_labels), _known(p.surrogate_seconds))
    table.add_row("pretrainings", f"at most {p.pretrainings}", duration(p.pretraining_seconds))
    table.add_row(f"trials, {study.folds} folds each", str(lacking.trials), duration(p.trial_seconds))
    table.add_row("cells", str(lacking.cells), duration(p.cell_seconds))
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


def _run(options: Options) -> int:
    """Do what the options say and show the results; the exit code."""
    workforce = Workforce(options.workers, options.gpus_per_worker, options.pretraining_workers)
    if options.clean:
        _clean(open_store(options.storage, read_only=options.dry_run))
        return 0
    study, store = options.study(), open_store(options.storage, read_only=options.dry_run)
    warn = (lambda text: _warn(f"a run would find: {text}")) if options.dry_run else _warn
    driver = Driver(study, store, workforce, options.search_storage, options.tracking_uri, options.labels, _say, warn)
    if options.dry_run:
        _show_plan(driver.ledger)
        return 0
    if not options.sync_tracking:
        with Display(console) as display:
            driver.complete(display, options.fresh, options.retry_failed)
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
    return 0 if (shown if options.sync_tracking else done) else SOME_FAILED


def command_line() -> int:
    """Run the command; errors that the user can mend become one line and an exit code."""
    _signals.clear()  # of what this process did before
    _obey_signals()
    take_any_letter()
    try:
        options = app(standalone_mode=False)
        code = _run(options) if isinstance(options, Options) else 0  # of --help
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
    if _signals:
        return _complain(f"stopped by {signal.Signals(_signals[0]).name}; {AGAIN}", 128 + _signals[0])
    return code


def _by_option(error: ValueError) -> str:
    """Its text; one that begins with the name of an argument begins with that of the option instead."""
    name, _, rest = str(error).partition(" ")
    known = type(error) is ValueError and name in Options.__dataclass_fields__
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
    """What `python studies/label_sweep.py` is.

    If it has used Ray, this process and all that it has started end at once, as everything is on disk: Ray's own
    shutdown may end a process, with a code of its own, whose threads still talk to it.
    """
    code = command_line()
    if "ray" not in sys.modules:
        sys.exit(code)
    with suppress(OSError, AttributeError):  # the reader is gone
        sys.stdout.flush()
    for _ in range(2):  # again for processes started meanwhile
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if not leads(process.cmdline()):
                    process.kill()
    os._exit(code)
