"""Runs a study to its end and reads finished ones: what commands and scripts share."""

import io
import os
import secrets
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from sibcl_ray.deadlines import Deadline, DeadlineExceeded, within
from sibcl_ray.learning.model import check_takes
from sibcl_ray.messages import one_line
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.results.curves import LabelSaving, LearningCurve, label_savings, learning_curves
from sibcl_ray.results.log import Log
from sibcl_ray.results.mlflow.background import Tracker
from sibcl_ray.results.mlflow.connection import sqlite_uri, takes
from sibcl_ray.results.mlflow.tracking import TrackingUnavailable
from sibcl_ray.results.progress import Display, Snapshot, Watch
from sibcl_ray.results.terminal import Screen
from sibcl_ray.settings import FILE, settings_of, versions_now
from sibcl_ray.storage.folders import expanded
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import NewerStore, Store
from sibcl_ray.study.ledger import Ledger, Missing
from sibcl_ray.study.plan import Plan, plan
from sibcl_ray.study.study import Study
from sibcl_ray.user_module.loading import from_file

SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # of Ray, in its temporary folder
LONGEST = 107 if sys.platform == "linux" else 103  # path of a Unix socket, in bytes
ANSWER = 15.0  # seconds in which a storage has to
Say = Callable[[str], None]


@dataclass(frozen=True)
class Results:
    """What a study has found.

    Args:
        matrix: one row per cell (method, budget, seed); the README lists its columns.
        folder: path or URL of the study's files: ``matrix.parquet``, ``learning_curves.png`` and ``.svg``.
    """

    matrix: pd.DataFrame
    folder: str

    def curves(self) -> Mapping[str, LearningCurve]:
        """The mean test error of each method at each budget, with its interval.

        Tables and figures show narrower ones, for comparing methods: without what moves all methods alike.
        """
        return learning_curves(self.matrix)

    def savings(self) -> list[LabelSaving]:
        """How many times fewer labels than SL each method needs for SL's smallest error, with its interval."""
        return label_savings(self.matrix)


def load_results(folder: str | os.PathLike[str]) -> Results:
    """The results of a study in ``STORAGE/studies/NAME``, a folder or URL; FileNotFoundError if there are none."""
    place, _, name = str(folder).rstrip("/").rpartition("/")
    store = open_store(place or ".", reading=True)
    try:
        data = store.read(f"{name}/matrix.parquet")
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no study in {folder}; give STORAGE/studies/NAME") from None
    return Results(pd.read_parquet(io.BytesIO(data)), store.path(name))


def run(
    study: Study,
    storage: str | os.PathLike[str] = "runs",
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    pretraining_workers: int = 1,
    search_storage: str | None = None,
    tracking_uri: str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    labels: str | None = None,
    say: Say = print,
    watch: Watch | None = None,
) -> Results:
    """Run what a study lacks, here or on the cluster that RAY_ADDRESS names, and write its results.

    Called again, it continues where it stopped. A Ray cluster that it starts, or a connection that it makes, ends with
    it; one that the process has already is used and left.

    Args:
        study: see `recipes`.
        storage: a folder, or an s3://, gs:// or az:// URL.
        workers, gpus_per_worker, pretraining_workers, search_storage, tracking_uri, fresh, retry_failed, labels: as the
            options of `python studies/label_sweep.py --help`.
        say: is given warnings and notes, a line each.
        watch: is given the progress, twice a second; shown on a terminal and in a notebook if not given.

    Raises:
        ValueError: the study, the storage or the cluster cannot be used as asked; in one line, before any compute.
        SolverFailed: a label cannot be computed.
        StoreError, Unfinished: the storage or the cluster failed; the same call continues.
    """
    study = replace(study, problem=from_file(study.problem))
    workforce = Workforce(workers, gpus_per_worker, pretraining_workers)
    driver = Driver(study, open_store(os.fspath(storage)), workforce, search_storage, tracking_uri, labels, say)
    console = Screen(quiet=watch is not None or not (sys.stdout.isatty() or Screen().is_jupyter))
    with Display(console) as display:
        try:
            driver.complete(watch or display, fresh, retry_failed, lambda plan: display.expect(plan.work))
        finally:
            driver.disconnect()
    results = driver.results()
    try:
        driver.track()
    except TrackingUnavailable as error:
        say(f"{error}; call again to do only that")
    return results


@dataclass(frozen=True)
class Workforce:
    """The workers that are asked for; see `cluster.resources.fit_resources`."""

    workers: int | None
    gpus_per_worker: float | None
    pretraining_workers: int

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("gpus_per_worker", 0), ("pretraining_workers", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value < float("inf"):
                raise ValueError(f"{name} is {value}; it must be {'at least 1' if least else '0 or more'}")
        gpus = self.gpus_per_worker
        if gpus is not None and gpus > 1 and not float(gpus).is_integer():
            raise ValueError(f"gpus_per_worker is {gpus}; give a fraction below 1, or a whole number")


class Driver:
    """A study on a storage, with arguments as those of `run`; ValueError, in one line, if it cannot be run like this.

    ``warn`` is given warnings, which ``say`` is otherwise.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        workforce: Workforce,
        search_storage: str | None,
        tracking_uri: str | None,
        labels: str | None,
        say: Say,
        warn: Say | None = None,
    ) -> None:
        # Every worker needs its share of each batch, and batches may be cut to half of what is asked for.
        smallest = min(*study.space.contrastive_batches, *study.space.supervised_batches) // 2
        if workforce.pretraining_workers > smallest:
            raise ValueError(
                f"pretraining_workers is {workforce.pretraining_workers}, and too many to share the smallest batches "
                f"of this study; give at most {smallest}"
            )
        if study.problem.name not in PROBLEMS:
            for architecture in study.space.architectures:
                check_takes(study.problem, architecture)
        if labels not in (None, "keep", "new"):
            raise ValueError(f"labels is {labels!r}; give keep or new")
        self.study, self.store, self.workforce = study, store, workforce
        self.log = Log(f"studies/{study.name}/logs/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}.txt")
        self._say, self._warn = self.log.also(say), self.log.also(warn or say)
        self.disconnect: Callable[[], object] = lambda: None  # ends the Ray cluster or connection that was made
        uri = _tracking_address(store, tracking_uri)
        self.ledger = Ledger(study, store, search_storage, self._warn)
        self.ledger.dataset.settle([role for role, count in study.sizes.items() if count], labels, self._say)
        self.tracker = Tracker(uri, study.name, lambda: (self.ledger.matrix(), self.ledger.trials()), warn=self._warn)

    def complete(self, watch: Watch, fresh: bool, retry_failed: bool, begin: Callable[[Plan], object]) -> None:
        """Make what is missing, as the only driver of this study; another one is waited for.

        ``fresh`` sets earlier results aside first, but no labels; with ``retry_failed`` failures are tried again.
        ``begin`` is given the plan of what is missing before any of it is made.
        """
        if not (fresh or retry_failed or self.ledger.missing()):
            return
        _prepare_for_ray()
        with self.tracker, Session(self.store) as session:
            session.claims.wait(
                f"studies/{self.study.name}",
                lambda holder: self._warn(f"this study is being run by {holder}; waiting for it to end"),
            )
            self.ledger.writable()
            if fresh:
                self._say(f"earlier results are now in {self.ledger.set_aside()}")
            if retry_failed:
                self._say(f"{self.ledger.retry_failures()} failures are tried again")
            if lacking := self.ledger.missing():
                self._run(lacking, session, watch, begin)

    def _write_settings(self) -> None:
        """Beside the results, what `sweep --config` makes the same study of."""
        if settings := settings_of(self.study):
            versions = {**versions_now(), "labels": self.ledger.labels_name}
            self.store.write(f"{self.ledger.folder}/{FILE}", settings.toml(versions).encode())

    def _run(self, lacking: Missing, session: Session, watch: Watch, begin: Callable[[Plan], object]) -> None:
        from sibcl_ray.cluster.connection import connect, disconnect  # Ray takes seconds to import
        from sibcl_ray.cluster.resources import fit_resources
        from sibcl_ray.cluster.run import Timings, run

        self._write_settings()
        self.log.store, workforce = self.store, self.workforce
        logged = Display(self.log.console(), verbose=True)

        def watch_and_log(snapshot: Snapshot) -> None:
            watch(snapshot)
            logged(snapshot)

        try:
            work = plan(self.study, self.ledger.dataset, lacking)
            begin(work)
            logged.expect(work.work)
            timings = Timings()
            if connect():
                self.disconnect = disconnect
            timings.ends("ray")
            resources = fit_resources(workforce.workers, workforce.gpus_per_worker, workforce.pretraining_workers)
            run(self.ledger, lacking, session, resources, watch_and_log, timings)
            self._say(str(timings))
        except BaseException as error:
            self.log.write(f"{type(error).__name__}: {error}")
            raise
        finally:
            self.log.save()

    def results(self) -> Results:
        """Write the matrix and the figure of what is there, and give it."""
        from sibcl_ray.results.figure import learning_curve_figure  # Matplotlib takes long to import

        ledger, store = self.ledger, self.store
        for search in ledger.searches():
            ledger.note(search)
        matrix = ledger.matrix()
        ledger.write_matrix(matrix)
        with tempfile.TemporaryDirectory() as folder:
            for file in learning_curve_figure([matrix], Path(folder) / "learning_curves", self.study.name):
                store.write(f"{ledger.folder}/{file.name}", file.read_bytes())
        return Results(matrix, store.path(ledger.folder))

    def track(self) -> str:
        """Bring MLflow to what the results say; where it shows them. Raises TrackingUnavailable."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, name) for name in ("learning_curves.png", "learning_curves.svg", "matrix.parquet")]
            for file in files:
                file.write_bytes(self.store.read(f"{self.ledger.folder}/{file.name}"))
            return self.tracker.finish(files)


def open_store(uri: str, dry_run: bool = False, reading: bool = False) -> Store:
    """The storage at a path or URL, if it can be used; else ValueError, in one line.

    With ``dry_run`` nothing is changed, but could be; with ``reading`` nothing has to be.
    """
    if not uri.strip():
        raise ValueError("storage is empty; give a folder")
    uri = expanded(uri.removeprefix("file://"))
    store = Store(uri if "://" in uri else str((_here() / uri).resolve()), read_only=dry_run or reading)
    try:
        within(Deadline(ANSWER), partial(store.open, reading), grace=0)
    except NewerStore:
        raise
    except DeadlineExceeded:
        raise ValueError(
            f"storage {uri} does not answer within {ANSWER:.0f} s; check its address and the network"
        ) from None
    except (OSError, ImportError, ValueError) as error:
        raise ValueError(f"storage {uri} cannot be used ({one_line(error)}); choose another folder") from None
    return store


def _here() -> Path:
    """Where relative paths begin: the working folder of a Ray job is thrown away with the job."""
    return Path(expanded("~")) if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ else Path.cwd()


def _tracking_address(store: Store, given: str | None) -> str:
    """What was given, else the environment's, else SQLite beside the results."""
    name, uri = "tracking_uri", given
    if uri is None:
        name, folder = "MLFLOW_TRACKING_URI", store.uri if store.is_local else _here()
        uri = os.environ.get(name) or sqlite_uri(Path(folder) / "mlflow.db")
    if not takes(uri):
        raise ValueError(
            f"{name} {uri} is neither a server nor a database, and MLflow writes to folders only if "
            "MLFLOW_ALLOW_FILE_STORE is true; give http://HOST:PORT or sqlite:////FILE"
        )
    return uri


def _prepare_for_ray() -> None:
    """Settings that Ray reads when it is imported, for a cluster that is started here, and a look at its folder."""
    ray = sys.modules.get("ray")
    if "RAY_ADDRESS" in os.environ or (ray and ray.is_initialized()):
        return
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # its address is 127.0.0.1, on any system
    if not os.access(os.path.expanduser("~"), os.W_OK):  # as that of a container's user
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # Ray would keep one there
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)  # as Ray looks at them
    name = next((n for n in names if n in os.environ), "RAY_TMPDIR")
    place = os.environ.get(name, "/tmp")
    if (length := len(os.fsencode(place))) + len(SOCKET) > LONGEST:
        raise ValueError(
            f"{name} is a path of {length} letters, too long for Ray's sockets; set RAY_TMPDIR to a folder with at "
            f"most {LONGEST - len(SOCKET)}, such as /tmp"
        )
    try:
        os.makedirs(place, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name} is {place} and cannot be used ({error}); set RAY_TMPDIR to a folder, such as /tmp"
        ) from None
