"""The options of `sweep`: what a study is, where it is kept, what it runs on and what is shown."""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import typer

from sibcl_ray.driver import Workforce
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.recipes import SCALES
from sibcl_ray.search.methods import METHODS
from sibcl_ray.settings import ENCODERS, FILE, RENAMED, SETTINGS, Settings, read_config
from sibcl_ray.user_module.loading import TABULATED

what, how, kept, runs, shown = (
    partial(typer.Option, rich_help_panel=title)
    for title in ("What is studied", "How thoroughly", "Where it is kept", "What it runs on", "What is done and shown")
)

STORAGE = kept(
    "runs",
    envvar="SIBCL_RAY_STORAGE",
    help="Folder, or s3://, gs:// or az:// URL, for labels, weights, ledger and results; in a submitted job relative "
    "to the home folder of the driver's node.",
)
SEARCH_STORAGE = kept(
    None,
    envvar="SIBCL_RAY_SEARCH_STORAGE",
    help="Database URL for Optuna's histories; a journal file in the storage folder if not given.",
)


def _read(context: typer.Context, path: Path | None) -> Path | None:
    """Makes what a file says the defaults of the other options."""
    if path is not None and not context.resilient_parsing:
        context.default_map, _ = read_config(path, _known())
    return path


def _known() -> dict[str, Any]:
    """The options that a file may have, and their types."""
    return {f.name: f.type for f in fields(Sweep) if f.name != "config"}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `sweep` is given; a field's name is that of its option."""

    problem: str = what(
        "photonic-dos",
        help=f"What is learned: {', '.join([*PROBLEMS, TABULATED])}, or a class of your own in a file, "
        "[b]my_problem.py:MyProblem[/].",
    )
    data: Path | None = what(  # noqa: RUF009 (a description, not a value)
        None,
        help=f"Folder with your own arrays and a problem.toml, for [b]--problem {TABULATED}[/].",
    )
    name: str | None = what(
        None,
        help="Of the study, for one that is to be kept apart from others of its problem; the problem, the scale and "
        "the data seed if not given.",
    )
    methods: str | None = what(
        None,
        help=f"Comma-separated: {', '.join(METHODS)}. -I: the symmetries also augment whatever labels are fitted. All "
        "that the problem has what it takes for, but TL, SSL and SIB-CL-plain, if not given.",
    )
    budgets: str | None = what(
        None,
        help="Comma-separated numbers of target labels. A budget counts every label that is seen, those for choosing "
        "hyperparameters included. The scale's if not given.",
    )
    encoders: str | None = what(
        None,
        help=f"Comma-separated: {', '.join(ENCODERS)}, or with its dilations invariant:1-2-4-8; all are searched. The "
        "scale's if not given.",
    )
    temperatures: str | None = what(
        None, help="Comma-separated temperatures of the contrastive loss to choose from; the scale's if not given."
    )
    data_seed: int = what(0, help="Another one draws other data, and is another study.")
    scale: str = how(
        "quick",
        help=f"{', '.join(SCALES)}. [b]smoke[/] takes a minute or two and proves the set-up; [b]quick[/] a quarter "
        "of an hour on two cores; [b]standard[/] about an hour on a GPU; [b]paper[/] the sizes of the SIB-CL paper. "
        "What follows is the scale's if not given.",
    )
    target: int | None = how(None, help="Target labels to be had at most, besides the test's.")
    surrogate: int | None = how(None, help="Surrogate samples.")
    unlabelled: int | None = how(None, help="Inputs without labels.")
    test: int | None = how(None, help="Target labels set apart for the test.")
    searched: str | None = how(
        None,
        help="Comma-separated budgets at which hyperparameters are searched; others take the choice of the largest "
        "smaller one.",
    )
    trials: int | None = how(None, help="Configurations tried by each search.")
    folds: int | None = how(None, help="Of the cross-validation inside a budget.")
    repeats: int | None = how(None, help="Of every cell of the matrix: other weights, order and augmentation.")
    storage: str = STORAGE
    search_storage: str | None = SEARCH_STORAGE
    tracking_uri: str | None = kept(
        None, help="MLflow server or database; MLFLOW_TRACKING_URI, or SQLite in the storage folder, if not given."
    )
    resume: bool = kept(
        True,
        "--resume/--fresh",
        help="Continue from earlier results, or set them aside (none is deleted; labels are kept) and start anew.",
    )
    labels: str | None = kept(
        None,
        help="Where what decides labels has changed since they were made: [b]keep[/] them, and make what is missing "
        "by the new code, or make all [b]new[/] and leave those alone.",
    )
    clean: bool = typer.Option(False, "--clean", hidden=True)  # the command of that name
    workers: int | None = runs(
        None,
        envvar="SIBCL_RAY_WORKERS",
        help="Ray Train workers that stay up and take jobs; all that fit if not given. A cluster that scales has to "
        "be told.",
    )
    gpus_per_worker: float | None = runs(
        None,
        envvar="SIBCL_RAY_GPUS_PER_WORKER",
        help="GPUs of each worker, also fractions; 1 where the cluster has GPUs if not given.",
    )
    pretraining_workers: int = runs(1, help="Workers that share a pretraining.")
    config: Path | None = shown(  # noqa: RUF009
        None,
        help=f"TOML file with any of these options, as every study writes one, {FILE}, into its folder: the same "
        "study again. Options on the command line come first.",
        callback=_read,
        is_eager=True,
    )
    dry_run: bool = shown(False, "--dry-run", help="Print what would be done, with an estimate of its time, and stop.")
    retry_failed: bool = shown(
        False, "--retry-failed", help="Try again what failed for good; what diverged would do so again."
    )
    sync_tracking: bool = shown(
        False, "--sync-tracking", help="Only show the results there are, and bring MLflow to what they say."
    )
    quiet: bool = shown(False, "--quiet", "-q", help="Print results and warnings only.")
    verbose: bool = shown(False, "--verbose", "-v", help="Print when each job begins and ends.")

    def __post_init__(self) -> None:
        for contrary in (
            ("fresh", "dry_run", "sync_tracking"),
            ("retry_failed", "dry_run", "sync_tracking"),
            ("clean", "fresh", "retry_failed", "sync_tracking"),
            ("quiet", "verbose"),
        ):
            given = [spelled(name) for name in contrary if getattr(self, name)]
            if len(given) > 1:
                raise ValueError(f"{' and '.join(given)} were given; use one of them at a time")

    @property
    def fresh(self) -> bool:
        return not self.resume

    @property
    def workforce(self) -> Workforce:
        return Workforce(self.workers, self.gpus_per_worker, self.pretraining_workers)

    def settings(self) -> Settings:
        """What is studied, and how thoroughly."""
        said: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Settings)}
        said["data"] = None if self.data is None else str(self.data)
        for name, kind in (("methods", str), ("encoders", str), ("budgets", int), ("searched", int)):
            said[name] = _listed(name, said[name], kind)
        said["temperatures"] = _listed("temperatures", self.temperatures, float)
        return Settings(**said)

    def made_with(self) -> dict[str, str]:
        """The versions that the file of settings was made with."""
        return read_config(self.config, _known())[1] if self.config else {}


def _listed(name: str, text: str | None, kind: type) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} is {text!r}; give {'whole ' * (kind is int)}numbers separated by commas") from None


def spelled(field: str) -> str:
    """The option of a setting, or of a study's field."""
    return f"--{SETTINGS.get(field, field).replace('_', '-')}"


def renamed(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments with options under their names of today, and what is to be said of those that had another one."""
    today = {f"--{old}": spelled(old) for old in RENAMED}
    now, notes = [], dict[str, None]()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in today:
            notes[f"{name} is now called {today[name]}; the old name still works"] = None
        now.append(today.get(name, name) + equals + value)
    return now, list(notes)
