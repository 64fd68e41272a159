"""The subcommands: each is a dataclass of its options, and ``run`` gives the exit code."""

import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import typer
from rich.text import Text

from sibcl_ray.cli.narrow_help import Command, Group
from sibcl_ray.cli.options import SEARCH_STORAGE, STORAGE, Sweep
from sibcl_ray.cli.plan import estimate, plan_tables
from sibcl_ray.cli.studies import joined, markdown, savings_table, settings_beside, summaries, summary_table
from sibcl_ray.driver import Driver, Results, load_results, open_store
from sibcl_ray.messages import choose, nearest, redact
from sibcl_ray.results.mlflow.tracking import TrackingUnavailable
from sibcl_ray.results.progress import Display
from sibcl_ray.results.tables import failures_in_words, matrix_table, saving_table
from sibcl_ray.results.terminal import Screen
from sibcl_ray.settings import versions_now
from sibcl_ray.storage.cleaning import free, unneeded
from sibcl_ray.storage.leases import Session
from sibcl_ray.study.plan import Plan, plan

SOME_FAILED = 1  # an exit code
PROGRAM = "sibcl-ray"
console = Screen()
app = typer.Typer(
    name=PROGRAM,
    cls=Group,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find out which method needs the [b]fewest labels[/].",
)


def say(text: str, style: str = "") -> None:
    """Print a line in which no character is markup; for a terminal it is broken between words, and nowhere else."""
    line = redact(text)
    if console.is_terminal:
        line = textwrap.fill(line, console.width, break_long_words=False, break_on_hyphens=False)
    console.print(Text(line, style), soft_wrap=True)


def warn(text: str) -> None:
    say(text, "yellow")


def _nothing(text: str) -> None:
    """What notes are told to where only results are to be printed."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(*(f"{package} {number}" for package, number in versions_now().items()), sep="\n")
        raise typer.Exit


command = partial(app.command, cls=Command)


@app.callback()
def _every_command(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print versions and stop."
    ),
) -> None:
    """Options of the command itself."""


@command(
    "sweep",
    help="""Find out which method needs the [b]fewest labels[/].

Every method is tuned at every searched label budget (by Optuna, inside the budget's own labels), then fitted \
over several seeds and tested once. Prints the learning-curve matrix and how many labels each method saves \
against SL, and writes matrix.parquet, a figure and MLflow runs. The same command continues a study that was \
interrupted; a study extended by budgets, methods, repeats or trials runs only what is new.

[b]On a laptop:[/]  sibcl-ray sweep

[b]On a cluster:[/]  ray job submit --working-dir . -- python studies/label_sweep.py --scale paper
""",
)
@dataclass(frozen=True, kw_only=True)
class SweepCommand(Sweep):
    """Makes what a study lacks and shows its results."""

    def run(self) -> int:
        workforce = self.workforce
        if self.clean:
            return Clean(storage=self.storage, dry_run=self.dry_run).run()
        note = _nothing if self.quiet else say
        settings = self.settings()
        if self.data:
            note(f"reading and checking {self.data}")
        study, store = settings.study(), open_store(self.storage, dry_run=self.dry_run)
        tell = (lambda text: warn(f"a run would find: {text}")) if self.dry_run else warn
        driver = Driver(study, store, workforce, self.search_storage, self.tracking_uri, self.labels, note, tell)
        made_with = self.made_with()
        if (labels := made_with.get("labels")) and labels != driver.ledger.labels_name:
            warn(f"{self.config} is of other labels than these: options, the problem's code or its data are others now")
        elif changed := [p for p, v in made_with.items() if versions_now().get(p, v) != v and p != "labels"]:
            warn(f"{self.config} was written with other versions of {', '.join(changed)}, so results may differ")
        if self.dry_run:
            lacking = driver.ledger.missing()
            if lacking:
                _show_plan(driver, plan(study, driver.ledger.dataset, lacking))
                say("No label was computed and nothing was written.")
            else:
                say(f"Nothing is left to do for {study.name}; nothing was computed or written.")
            return 0
        if not self.sync_tracking:
            with Display(Screen(quiet=True) if self.quiet else console, verbose=self.verbose) as display:

                def begin(plan: Plan) -> None:
                    if not self.quiet:
                        _show_plan(driver, plan)
                    display.expect(plan.work)

                driver.complete(display, self.fresh, self.retry_failed, begin)
        return self._finish(driver)

    def _finish(self, driver: Driver) -> int:
        results = driver.results()
        _show(results)
        shown = True
        try:
            console.print(Text(f"tracking  {driver.track()}"), soft_wrap=True)  # a command to be copied
        except TrackingUnavailable as error:
            warn(f"tracking  {error}; with --sync-tracking this command does only that")
            shown = False
        done = _all_done(driver.ledger.asked(results.matrix))
        return 0 if (shown if self.sync_tracking else done) else SOME_FAILED


def _show_plan(driver: Driver, plan: Plan) -> None:
    for table in plan_tables(driver.study, driver.ledger.dataset, plan):
        console.print(table)
    say(estimate(plan))


def _show(results: Results) -> None:
    console.print(matrix_table(results.matrix))
    console.print(saving_table(results.matrix))
    settings, _ = settings_beside(results)
    if settings and settings.scale == "smoke":
        warn("smoke proves that all parts work together: its networks learn nothing, so its numbers mean nothing")
    say(f"matrix    {results.folder}/matrix.parquet")
    say(f"figure    {results.folder}/learning_curves.png and .svg")


def _all_done(matrix: pd.DataFrame) -> bool:
    """Whether there is a result in every cell; says what is to be done about the others."""
    states = matrix.state.value_counts()
    for line in failures_in_words(matrix):
        warn(line)
    if failed := states.get("failed", 0):
        warn(f"{failed} cells failed for good; --retry-failed tries them again")
    if diverged := states.get("diverged", 0):
        warn(f"{diverged} cells diverged; the same would happen again, so smaller learning rates are needed")
    return states.get("done", 0) == len(matrix)


@command("list", help="List the studies in a storage: what they are, how far they are and when they last changed.")
@dataclass(frozen=True, kw_only=True)
class List:
    storage: str = STORAGE
    search_storage: str | None = SEARCH_STORAGE

    def run(self) -> int:
        found = summaries(open_store(self.storage, reading=True), self.search_storage)
        if found:
            console.print(summary_table(found))
        else:
            say(f"There is no study in {self.storage}.")
        return 0


def _print(text: str) -> None:
    """For programs: as it is, and where the reader has gone it is lost."""
    console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


def _as_csv(results: Results) -> None:
    _print(results.matrix.drop(columns="sample_errors").to_csv(index=False).rstrip())


def _as_json(results: Results) -> None:
    _print(results.matrix.to_json(orient="records", indent=2))


def _as_markdown(results: Results) -> None:
    _print(f"{markdown(matrix_table(results.matrix))}\n{markdown(saving_table(results.matrix))}")


FORMATS: dict[str, Callable[[Results], None]] = {
    "table": _show,
    "json": _as_json,
    "csv": _as_csv,
    "markdown": _as_markdown,
}
STUDY = "Its name in the storage, or the folder or URL of its results."


def _results(study: str, storage: str) -> Results:
    """The results of a study, by its name or its folder."""
    folder = study if "/" in study or os.sep in study else f"{storage}/studies/{study}"
    try:
        return load_results(folder)
    except FileNotFoundError as error:
        there = [name.rpartition("/")[2] for name in open_store(storage, reading=True).names("studies")]
        if study in there:
            raise ValueError(f"{study} has no results yet; the command that began it continues") from None
        advice = nearest(study, there) if there else f"there is none in {storage}"
        raise ValueError(f"{str(error).partition(';')[0]}; {advice}") from None


@command("show", help="Show the results of a study again.")
@dataclass(frozen=True, kw_only=True)
class Show:
    study: str = typer.Argument(help=STUDY)
    storage: str = STORAGE
    format: str = typer.Option("table", help=f"{', '.join(FORMATS)}.")

    def run(self) -> int:
        show = choose("format", self.format, FORMATS)
        show(_results(self.study, self.storage))
        return 0


@command(
    "compare",
    help="Compare studies of one problem, such as draws of its data, versions or methods, in one table and figure. "
    "Those that share labels are paired.",
)
@dataclass(frozen=True, kw_only=True)
class Compare:
    studies: list[str] = typer.Argument(help=f"Two or more. {STUDY}")  # noqa: RUF009 (a description, not a value)
    storage: str = STORAGE
    figure: Path = typer.Option(  # noqa: RUF009
        Path("comparison"), help="File name of the figure, without its ending: .png and .svg are written."
    )

    def run(self) -> int:
        names = [study.rstrip("/").rpartition("/")[2] for study in self.studies]
        if len(set(names)) < len(names):  # such as one in two storages
            names = self.studies
        found = {name: _results(study, self.storage) for name, study in zip(names, self.studies, strict=True)}
        from sibcl_ray.results.figure import LINES, learning_curve_figure  # Matplotlib takes long to import

        if not 2 <= len(found) <= len(LINES):
            raise ValueError(f"studies are {', '.join(self.studies)}; give two to {len(LINES)}")
        labels = {name: settings_beside(results)[1].get("labels", "") for name, results in found.items()}
        matrices = joined(found, labels)
        for matrix in matrices:
            console.print(matrix_table(matrix))
        console.print(savings_table(found))
        try:
            files = learning_curve_figure(matrices, self.figure, " and ".join(found))
        except OSError as error:
            raise ValueError(f"figure {self.figure} cannot be written ({error.strerror}); give another name") from None
        say(f"figure    {files[0]} and .svg")
        return 0


@command(
    "clean",
    help="List what is no longer needed in the storage, by any of its studies, and remove it: weights and checkpoints "
    "without a pretraining, claims of drivers that are gone.",
)
@dataclass(frozen=True, kw_only=True)
class Clean:
    storage: str = STORAGE
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would be removed.")

    def run(self) -> int:
        store = open_store(self.storage, dry_run=self.dry_run)
        session = Session(store)
        found = unneeded(store, session.claims, say)
        for what, names in (
            ("weights that no pretraining in the ledger refers to", found.weights),
            ("checkpoints of pretrainings that have ended", found.checkpoints),
            ("claims of drivers that are gone", found.claims),
            ("signs of life of drivers that are gone", found.sessions),
        ):
            size = sum(Path(store.path(n)).stat().st_size for n in names if store.is_local and store.exists(n))
            say(f"{len(names):,} {what}{f', {size / 2**20:,.1f} MiB' * bool(size)}")
        if found.running:
            warn(f"{len(found.running)} drivers are at work, so weights and claims are left alone")
        if found and not store.read_only:
            with session:
                free(store, session, found)
        say("They are removed." if found and not store.read_only else "Nothing was removed.")
        return 0
