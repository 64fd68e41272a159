"""Which method needs the fewest labels? Sweeps label budgets, searches each, and says what was saved.

python studies/label_sweep.py --help
"""

from __future__ import annotations

import difflib
import logging
import math
import os
import re
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pandas as pd
import psutil
import torch
import typer
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parent))  # where Python may not look by itself
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a job's cluster may not have us installed
if "RAY_ADDRESS" not in os.environ:
    # Read when Ray is imported: a cluster that is started here has the address 127.0.0.1, on any system.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if not os.access(os.path.expanduser("~"), os.W_OK):  # as that of a container's user
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray would keep one there
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # which says at length that it does without

from recipes import SCALES

from sibcl_ray.cluster.scheduler import Unfinished
from sibcl_ray.data.sandbox import leads
from sibcl_ray.deadlines import Limit, OutOfTime, within
from sibcl_ray.learning.training import new_network
from sibcl_ray.messages import one_line, redact
from sibcl_ray.problems import PROBLEMS, tabulated
from sibcl_ray.problems.problem import Problem, SolverFailed
from sibcl_ray.results.mlflow.background import Tracker
from sibcl_ray.results.mlflow.tracking import TrackingUnavailable, sqlite_uri, takes
from sibcl_ray.results.progress import Display
from sibcl_ray.results.report import failures_in_words, learning_curve_figure, matrix_table, saving_table
from sibcl_ray.results.terminal import Screen, take_any_letter
from sibcl_ray.search.methods import METHODS
from sibcl_ray.storage.cleaning import free, unneeded
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import NewerStore, Store, StoreError
from sibcl_ray.study.ledger import Ledger, Missing
from sibcl_ray.study.plan import plan
from sibcl_ray.study.study import Study
from sibcl_ray.user_module import loading

TABULATED = "tabulated"
BAD_INPUT, SOME_FAILED = 2, 1  # exit codes; 128 and the signal's number where one ended the run
ANSWER = 15.0  # seconds in which a storage has to
AGAIN = "the same command continues where it stopped"
SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # of Ray, in its temporary folder
LONGEST = 107 if sys.platform == "linux" else 103  # path of a Unix socket, in bytes

UsageError: Any = typer.BadParameter.__bases__[0]  # Typer brings a click of its own, or not, by version

console = Screen()
app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


class BadInput(ValueError):
    """What the user asked for cannot be; in one line, with advice."""


_signals: list[int] = []  # that told this process to end: Ctrl-C, the system, or `ray job stop`


def _stop(number: int, frame: object) -> None:
    _signals.append(number)
    raise KeyboardInterrupt  # the one exception that Ray lets through wherever it is


def _obey_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


@contextmanager
def _hearing_signals() -> Iterator[None]:
    """Whoever takes signals from us meanwhile, as Ray does while it starts, and loses one: we obey it afterwards."""
    heard, told = socket.socketpair()
    with heard, told:
        heard.setblocking(False)
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            _obey_signals()
        with suppress(BlockingIOError):
            for number in heard.recv(1000):
                if number in (signal.SIGINT, signal.SIGTERM):
                    _stop(number, None)


def _say(text: str, style: str = "") -> None:
    """A line in which nothing is markup, whatever names and paths are made of."""
    console.print(Text(redact(text), style), soft_wrap=True)


_warn = partial(_say, style="yellow")


def _would_warn(text: str) -> None:
    """A run would do what a dry run only finds to be done."""
    _warn(f"a run would find: {text}")


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


def _as_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w.+ -]{0,99}", name):
        raise BadInput(f"--name is {name!r}; give letters, digits, blanks and any of _ - . +, at most 100")
    return name


def _at_least(option: str, value: float | None, least: float) -> None:
    if value is not None and not least <= value < math.inf:
        raise BadInput(f"{option} is {value}; it must be {'at least 1' if least else '0 or more'}")


def _not_together(**given: bool) -> None:
    """Refuse options that contradict each other."""
    names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if len(names) > 1:
        raise BadInput(f"{' and '.join(names)} were given; use one of them at a time")


def _problem(name: str, data: Path | None) -> Problem:
    """The problem of that name, or the user's: a class in a file, or what a folder of arrays describes."""
    if data is not None and name != TABULATED:
        raise BadInput(f"--data is for --problem {TABULATED}, and the problem is {name}; leave one of them out")
    if loading.is_own(name):
        problem, where = loading.load(_home(name)), name
    elif name == TABULATED:
        if data is None:
            raise BadInput(f"--problem {TABULATED} needs --data FOLDER, with arrays and the problem.toml naming them")
        problem, where = tabulated.load(Path(_home(str(data)))), "problem.toml"
    else:
        return _named("problem", name, {**PROBLEMS, TABULATED: None})
    if problem.name in (*PROBLEMS, TABULATED):
        raise BadInput(f"the name {problem.name!r} in {where} is that of another problem; give a name of its own")
    return problem


def _check_networks(study: Study) -> None:
    """Whether the networks of the recipe take such inputs as were given."""
    if study.problem.name in PROBLEMS:
        return
    ones = torch.ones(2, *study.problem.input_shape)
    for architecture in study.space.architectures:
        try:
            new_network(study.problem, architecture, seed=0)(study.problem.features(ones))
        except RuntimeError as error:
            raise BadInput(
                f"the encoder {architecture.encoder.label} does not take inputs of shape {study.problem.input_shape} "
                f"({one_line(error, 200)}); give images of at least 32 × 32 pixels"
            ) from None


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
    study = _named("scale", scale, SCALES)(problem, seed)
    given: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
    if methods is not None:
        names = dict.fromkeys(name.strip() for name in methods.split(","))
        given["methods"] = tuple(_named("method", name, METHODS) for name in names)
    if budgets is not None:
        given["budgets"] = tuple(sorted(set(_numbers("--budgets", budgets, int))))
    if temperatures is not None:
        given["space"] = replace(study.space, temperatures=_numbers("--temperatures", temperatures, float))
    return replace(study, **given)


def _here() -> Path:
    """Where relative names begin: a job's working folder is thrown away with the job."""
    return Path(_home("~")) if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()


def _home(path: str) -> str:
    """The path with ~ as a shell has it, which leaves it alone inside of --option=~/path."""
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise BadInput(f"{path} is in a home folder that is not known; give the whole path")
    return whole


def _storage(uri: str, read_only: bool) -> Store:
    """The store, if it can be written, or if it could be."""
    if not uri.strip():
        raise BadInput("--storage is empty; give a folder")
    uri = _home(uri.removeprefix("file://"))
    store = Store(uri if "://" in uri else str((_here() / uri).resolve()), read_only=read_only)
    try:
        within(Limit(ANSWER), store.open, grace=0)
    except NewerStore:
        raise
    except OutOfTime:
        raise BadInput(
            f"--storage {uri} does not answer within {ANSWER:.0f} s; check its address and the network"
        ) from None
    except (OSError, ImportError, ValueError) as error:
        raise BadInput(f"--storage {uri} cannot be used ({one_line(error)}); choose another folder") from None
    return store


def _show_plan(ledger: Ledger, lacking: Missing) -> None:
    study = ledger.study
    if not lacking:
        _say(f"Nothing is left to do for {study.name}; nothing was computed or written.")
        return
    p = plan(study, ledger.dataset, lacking)
    table = Table(title=f"Plan of {study.name}: what is still to be done", title_justify="left")
    for column in ("work", "number", "core time"):
        table.add_column(column, justify="left" if column == "work" else "right")
    table.add_row("target labels", str(p.target_labels), _label_time(p.target_seconds))
    table.add_row("surrogate labels", str(p.surrogate_labels), _label_time(p.surrogate_seconds))
    table.add_row("pretrainings", f"at most {p.pretrainings}", _time(p.pretraining_seconds))
    table.add_row(f"trials, {study.folds} folds each", str(p.trials), _time(p.trial_seconds))
    table.add_row("cells", str(p.cells), _time(p.cell_seconds))
    console.print(table)
    cores = os.cpu_count() or 1
    without = ", labels of unknown cost not" if None in (p.target_seconds, p.surrogate_seconds) else ""
    _say(
        f"Estimated on this machine: about {_time(p.seconds)} of one core, {_time(p.seconds / cores + 30)} "
        f"on {cores} cores, start-up included{without}. For this a few training steps were timed on made-up data; "
        "no label was computed and nothing was written."
    )


def _label_time(seconds: float | None) -> str:
    return "not known before the first label" if seconds is None else _time(seconds)


def _time(seconds: float) -> str:
    units = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((u for u in units if seconds >= 2 * u[0]), units[-1])
    return f"{seconds / size:.0f} {unit}"


def _finish(ledger: Ledger, tracker: Tracker) -> tuple[bool, bool]:
    """Write and show the results; whether all cells are done, and whether MLflow shows them."""
    for search in ledger.searches():
        ledger.note(search)
    store, matrix = ledger.store, ledger.matrix()
    where = ledger.write_matrix(matrix)
    console.print(matrix_table(matrix))
    console.print(saving_table(matrix))
    with tempfile.TemporaryDirectory() as folder:
        files = learning_curve_figure(matrix, Path(folder) / "learning_curves", ledger.study.name)
        for file in files:
            store.write(f"{ledger.folder}/{file.name}", file.read_bytes())
        files.append(Path(folder) / "matrix.parquet")
        files[-1].write_bytes(store.read(f"{ledger.folder}/matrix.parquet"))
        _say(f"matrix    {where}")
        _say(f"figure    {store.path(ledger.folder)}/learning_curves.png and .svg")
        try:
            _say(f"tracking  {tracker.finish(files)}")
        except TrackingUnavailable as error:
            _warn(f"tracking  {error}; with --sync-tracking this command does only that")
            return _all_done(ledger.asked(matrix)), False
    return _all_done(ledger.asked(matrix)), True


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
    """Say what nobody needs any more, and remove it from a store that is not read only."""
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


def _tracking_uri(store: Store, option: str | None) -> str:
    """The option, else the environment, else SQLite beside the results."""
    folder = store.uri if store.is_local else _here()
    said = "--tracking-uri" if option is not None else "MLFLOW_TRACKING_URI"
    uri = option if option is not None else os.environ.get(said) or sqlite_uri(Path(folder) / "mlflow.db")
    if not takes(uri):
        raise BadInput(
            f"{said} {uri} is neither a server nor a database, and MLflow writes to folders only if "
            "MLFLOW_ALLOW_FILE_STORE is true; give http://HOST:PORT or sqlite:////FILE"
        )
    return uri


def _check_temporary_folder() -> None:
    """Whether a cluster that is started here has room for its sockets."""
    if "RAY_ADDRESS" in os.environ:
        return
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)  # as Ray looks at them
    name = next((n for n in names if n in os.environ), "RAY_TMPDIR")
    place = os.environ.get(name, "/tmp")
    if (length := len(os.fsencode(place))) + len(SOCKET) > LONGEST:
        raise BadInput(
            f"{name} is a path of {length} letters, too long for Ray's sockets; set RAY_TMPDIR to a folder with at "
            f"most {LONGEST - len(SOCKET)}, such as /tmp"
        )
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{name} is {place} and cannot be used ({error}); set RAY_TMPDIR to a folder, such as /tmp"
        ) from None


def _check_shares(study: Study, sharing: int) -> None:
    """Whether each of so many workers has samples of every batch of a pretraining."""
    smallest = min(*study.space.contrastive_batches, *study.space.supervised_batches) // 2  # they may be cut evenly
    if sharing > smallest:
        raise BadInput(
            f"--pretraining-workers is {sharing}, and too many to share the smallest batches of this study; "
            f"give at most {smallest}"
        )


def _run(
    ledger: Ledger, lacking: Missing, session: Session, workers: int | None, gpus: float | None, sharing: int
) -> None:
    """Make what is missing, and say where the time went."""
    from sibcl_ray.cluster.connection import connect
    from sibcl_ray.cluster.resources import fit_resources  # Ray takes seconds to import
    from sibcl_ray.cluster.run import Timings, run

    timings, begun = Timings(), time.monotonic()
    with timings.stage("ray"), _hearing_signals():
        connect()
    resources = fit_resources(workers, gpus, sharing)
    with Display(console) as display:
        run(ledger, lacking, session, resources, display, timings)
    went = _where_time_went(timings.wall, timings.busy, timings.workers, time.monotonic() - begun)
    console.print(went, highlight=False)


def _complete(ledger: Ledger, prepare: Callable[[Ledger], None], work: Callable[[Missing, Session], None]) -> None:
    """Do what is missing, as the only driver of this study; another one is waited for."""
    with Session(ledger.store) as session:
        session.claims.wait(
            f"studies/{ledger.study.name}",
            lambda holder: _warn(f"this study is being run by {holder}; waiting for it to end"),
        )
        ledger.writable()
        prepare(ledger)
        if lacking := ledger.missing():
            work(lacking, session)


def _where_time_went(stages: dict[str, float], busy: dict[str, float], workers: int, wall: float) -> str:
    training = sum(busy.values()) / max(1, workers)
    starting, labels = stages.get("ray", 0.0) + stages.get("workers", 0.0), stages.get("labels", 0.0)
    rest = wall - starting - labels - training
    return (
        f"{_time(wall)}: {labels:.0f} s labels, {training:.0f} s training on {workers} workers, "
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
            help="Continue from whatever is there, or set earlier "
            "results aside (none is deleted; labels are kept) and start anew.",
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
            help="Say what nobody needs any more in the storage, of all its studies, and remove it: weights and "
            "checkpoints without a pretraining, claims of drivers that are gone. With [b]--dry-run[/] only say it.",
        ),
    ] = False,
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
    if gpus_per_worker is not None and gpus_per_worker > 1 and not float(gpus_per_worker).is_integer():
        raise BadInput(f"--gpus-per-worker is {gpus_per_worker}; give a fraction below 1, or a whole number")
    _not_together(fresh=not resume, dry_run=dry_run, sync_tracking=sync_tracking)
    _not_together(retry_failed=retry_failed, dry_run=dry_run, sync_tracking=sync_tracking)
    _not_together(clean=clean, fresh=not resume, retry_failed=retry_failed, sync_tracking=sync_tracking)
    if clean:
        return _clean(_storage(storage, read_only=dry_run))
    changes: dict[str, int | None] = {"seeds": seeds, "trials": trials}
    study = _study(_problem(problem, data), scale, seed, methods, budgets, temperatures, changes)
    study = study if name is None else replace(study, name=_as_name(name))
    _check_shares(study, pretraining_workers)
    _check_networks(study)
    store = _storage(storage, read_only=dry_run)
    tracking_uri = _tracking_uri(store, tracking_uri)
    if labels not in (None, "keep", "new"):
        raise BadInput(f"--labels is {labels!r}; give keep or new")
    ledger = Ledger(study, store, search_storage, _would_warn if dry_run else _warn)
    ledger.dataset.settle([role for role, count in study.sizes.items() if count], labels, _say)
    if dry_run:
        _show_plan(ledger, ledger.missing())
        return
    tracker = Tracker(tracking_uri, study.name, lambda: (ledger.matrix(), ledger.trials()), warn=_warn)
    if sync_tracking:
        raise typer.Exit(0 if _finish(ledger, tracker)[1] else SOME_FAILED)

    def prepare(ledger: Ledger) -> None:
        if not resume:
            _say(f"earlier results are now in {ledger.set_aside()}")
        if retry_failed:
            _say(f"{ledger.retry_failures()} failures are tried again")

    def work(lacking: Missing, session: Session) -> None:
        _run(ledger, lacking, session, workers, gpus_per_worker, pretraining_workers)

    if not resume or retry_failed or ledger.missing():
        _check_temporary_folder()
        with tracker:
            _complete(ledger, prepare, work)
    if not _finish(ledger, tracker)[0]:
        raise typer.Exit(SOME_FAILED)


def command_line() -> int:
    """Run, and turn whatever is the user's to mend into one line and an exit code."""
    _signals.clear()  # of what this process did before
    _obey_signals()
    take_any_letter()
    try:
        code = app(standalone_mode=False) or 0
    except UsageError as error:
        return _complain(error.format_message() + _given(error), BAD_INPUT)
    except ValueError as error:
        return _complain(str(error), BAD_INPUT)
    except (Unfinished, StoreError, SolverFailed) as error:
        return _complain(f"{error}; {AGAIN}", SOME_FAILED)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # whoever read --help has read enough
            return 0
        _signals.append(signal.SIGTERM)  # Ray answers it in its own way while it starts
        code = SOME_FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = SOME_FAILED
    if _signals:  # Typer may have made an exit code of it already
        return _complain(f"stopped by {signal.Signals(_signals[0]).name}; {AGAIN}", 128 + _signals[0])
    return code


def _end_at_once(code: int) -> NoReturn:
    """End with all that this process has started: everything is on disk, and nobody should wait.

    Ray is not shut down, as it ends a process, with a code of its own, whose threads still talk to it then.
    """
    with suppress(OSError, AttributeError):  # nobody reads it any more, or ever did
        sys.stdout.flush()
    for _ in range(2):  # whatever is started meanwhile
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if not leads(process.cmdline()):
                    process.kill()
    os._exit(code)


def _given(error: Any) -> str:
    """What came in the place of a value that Typer refuses, which it does not always say."""
    names = getattr(getattr(error, "param", None), "opts", ())
    given = [value for option, value in zip(sys.argv, sys.argv[1:], strict=False) if option in names]
    return f", not {given[-1]!r}" if given else ""


def _complain(text: str, code: int) -> int:
    with suppress(OSError):  # nobody reads it any more
        print(f"error: {redact(one_line(text))}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    code = command_line()
    if "ray" in sys.modules:
        _end_at_once(code)
    sys.exit(code)
