"""The main job as people run it: a study from nothing, again, extended, submitted to a cluster, and misused."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import folders as arrays
import numpy as np
import pandas as pd
import pytest
from faults import RECORDS, digest
from processes import NAME, PATIENCE, ROOT, SCRIPT, Driver, environment, interpreter, of_session, ray_program, told
from servers import free_port, wait_until
from test_ledger import fill, good

from sibcl_ray.cli import main as cli
from sibcl_ray.cluster.connection import NOBODY, keeping_signals
from sibcl_ray.data.dataset import TARGET
from sibcl_ray.learning.jobs import CellJob, TrialJob
from sibcl_ray.problems import PROBLEMS, tabulated
from sibcl_ray.problems.problem import FRACTION
from sibcl_ray.problems.simulation import Simulation
from sibcl_ray.recipes import SCALES
from sibcl_ray.results.terminal import Screen
from sibcl_ray.search.methods import METHODS
from sibcl_ray.storage.records import failure
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.user_module import loading


def sweep(folder: Path, *options: str, **variables: str) -> tuple[subprocess.CompletedProcess, float]:
    """Run the script on storage in ``folder``; what it printed, and its seconds."""
    command = [sys.executable, SCRIPT, "--scale", "smoke", "--storage", str(folder), *options]
    start = time.monotonic()
    env = environment(**variables)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, cwd=folder.parent)
    return done, time.monotonic() - start


def ledger(folder: Path) -> dict[str, float]:
    """Everything that was ever computed, with its time."""
    return {str(p.relative_to(folder)): p.stat().st_mtime for p in folder.glob("ledger/*/*.json")}


def matrix_of(folder: Path, name: str = NAME) -> pd.DataFrame:
    return pd.read_parquet(folder / "studies" / name / "matrix.parquet")


@dataclass(frozen=True)
class Cluster:
    """What is seen from outside of a cluster that a driver has started."""

    listens: set[str]  # addresses, in hexadecimal
    visits: tuple[int, int]  # how they end that know the token of its user, and that do not
    dashboards: set[str]  # that its workers would ask


def visited(driver: Driver, user: dict[str, str]) -> Cluster:
    """Look at the cluster of a driver at work, as its ``user`` and as somebody else."""
    workers = [p for p in driver.processes() if p.title.startswith("ray::")]
    address = next(m[1] for p in driver.processes() if (m := re.search(r"--gcs-address=(\S+)", p.title)))
    visit = f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None, 10)"
    visitors = [
        subprocess.Popen([sys.executable, "-c", visit], env={**user, "RAY_AUTH_MODE": mode})
        for mode in ("token", "disabled")
    ]
    variables = [Path(f"/proc/{worker.number}/environ").read_text().split("\0") for worker in workers]
    asked = {v.partition("=")[2] for its in variables for v in its if v.startswith("RAY_API_SERVER_ADDRESS=")}
    return Cluster(driver.listens(), tuple(visitor.wait(60) for visitor in visitors), asked)


@dataclass(frozen=True)
class Studied:
    """A smoke study from nothing, run by two drivers at once."""

    folder: Path  # of its storage
    codes: tuple[int, int]
    printed: tuple[str, str]
    changed: tuple[str, ...]  # records that were seen with different contents
    cluster: Cluster


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """With an environment whose path has a blank, and another cluster's dashboard among the variables."""
    place = tmp_path_factory.mktemp("sweep")
    folder, seen, changed, cluster = place / "runs", dict[str, str](), list[str](), None
    spaced = place / "my environment"
    spaced.symlink_to(sys.prefix)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE")  # as for everybody but these tests
        user = environment(HOME=str(place))
        its = {"HOME": str(place), "RAY_API_SERVER_ADDRESS": "http://192.0.2.1:8265"}
        python = spaced / "bin" / "python"
        drivers = [Driver(folder, place / f"log-{i}", python=python, **its) for i in range(2)]
    try:
        while any(driver.process.poll() is None for driver in drivers):
            changed += [p.name for p in folder.glob(RECORDS) if seen.setdefault(p.name, digest(p)) != digest(p)]
            if seen and cluster is None:
                cluster = visited(next(driver for driver in drivers if driver.processes()), user)
            time.sleep(0.1)
        first, second = drivers
        codes, printed = (first.wait(), second.wait()), (first.printed(), second.printed())
        return Studied(folder, codes, printed, tuple(changed), cluster)
    finally:
        for driver in drivers:
            driver.end()


@pytest.mark.slow
def test_a_study_from_nothing(studied):
    folder, printed = studied.folder, studied.printed[0]
    assert studied.codes[0] == 0, printed
    matrix = matrix_of(folder)
    assert len(matrix) == 5 * 2 * 2
    assert set(matrix.state) == {"done"} and matrix.error.between(0, 1).all() and (matrix.seconds > 0).all()
    for row in matrix.itertuples():
        assert row.error == pytest.approx(np.mean(row.sample_errors), rel=1e-4)
    assert {"problem", "method", "encoder", "budget", "seed", "error", "state", "seconds", "configuration"} <= {*matrix}
    assert "Labels for a test error" in printed and "tracking" in printed
    for file in ("learning_curves.png", "learning_curves.svg"):
        assert (folder / "studies" / NAME / file).stat().st_size > 10_000
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_two_drivers_of_one_study_do_nothing_twice(studied):
    assert studied.codes == (0, 0) and not studied.changed
    assert sum("this study is being run by process" in printed for printed in studied.printed) == 1
    assert all("Test error" in printed for printed in studied.printed)


@pytest.mark.slow
def test_a_cluster_of_our_own_listens_on_loopback_and_asks_for_a_token(studied):
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert studied.cluster.listens and studied.cluster.listens <= loopback
    assert studied.cluster.visits == (0, 1)
    assert studied.cluster.dashboards == {NOBODY}, "another's dashboard, asked for actors, would know none"


@pytest.mark.slow
def test_the_second_run_trains_nothing_and_is_quick(studied, capfd):
    folder = studied.folder
    before, matrix = ledger(folder), matrix_of(folder)
    start = time.monotonic()
    code, printed = told(capfd, "--scale", "smoke", "--storage", str(folder))
    assert code == 0 and time.monotonic() - start < 20, printed
    assert ledger(folder) == before
    pd.testing.assert_frame_equal(matrix_of(folder), matrix)


@pytest.mark.thorough
def test_another_budget_runs_only_that_budget_and_is_tracked_when_there_is_a_server_again(studied, tmp_path):
    folder = Path(shutil.copytree(studied.folder, tmp_path / "runs"))
    before = ledger(folder)
    matrix = matrix_of(folder)
    done, _ = sweep(folder, "--budgets", "10,15,20", "--tracking-uri", "http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"MLflow at http://127.0.0.1:1 cannot be written", " ".join(done.stdout.split()))
    synchronised, _ = sweep(folder, "--budgets", "10,15,20", "--sync-tracking")
    assert synchronised.returncode == 0 and "mlflow server" in synchronised.stdout
    assert before.items() <= ledger(folder).items()
    added = [name for name in ledger(folder) if name not in before]
    assert len(added) == 5 * 2 and all(name.startswith("ledger/cell/") for name in added)
    kept = matrix_of(folder).query("budget != 15").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, matrix)


def starts(driver: Driver, folder: Path) -> bool:
    return any(process.program == "raylet" for process in driver.processes())


def works(driver: Driver, folder: Path) -> bool:
    return bool(ledger(folder))


@pytest.mark.thorough  # setting aside and signals are also tested by themselves
@pytest.mark.slow
@pytest.mark.parametrize("midway", [starts, pytest.param(works, marks=pytest.mark.thorough)])
def test_fresh_sets_results_aside_and_a_stop_is_quick_and_says_how_to_go_on(midway, studied, tmp_path):
    folder = Path(shutil.copytree(studied.folder, tmp_path / "runs"))
    before = ledger(folder)
    driver = Driver(folder, tmp_path / "log", "--fresh", "--workers", "1")
    try:
        moved = (folder / "aside").glob
        wait_until(lambda: len(list(moved("*/ledger/*/*.json"))) == len(before), PATIENCE, driver.printed)
        wait_until(lambda: midway(driver, folder), PATIENCE, driver.printed)
        driver.send(signal.SIGTERM)
        begun = time.monotonic()
        assert driver.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 10 and not driver.leftovers()  # one or two, on a machine at rest
    finally:
        driver.end()
    assert "stopped by SIGTERM; the same command continues" in driver.printed().splitlines()[-1]
    (aside,) = (folder / "aside").iterdir()
    assert ledger(aside).keys() == before.keys()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_another_handler_loses_is_obeyed(number):
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli._obey_signals()
        with pytest.raises(KeyboardInterrupt), keeping_signals():
            signal.signal(number, lambda number, frame: None)  # as Ray puts in place while it starts
            os.kill(os.getpid(), number)
        assert cli._signals == [number] and signal.getsignal(number) is cli._stop
        with keeping_signals():
            pass
    finally:
        cli._signals.clear()
        for each, handler in handlers.items():
            signal.signal(each, handler)


@pytest.fixture
def head(tmp_path):
    """A head node, as `ray start --head` makes it, on loopback; the address of its jobs."""
    port, dashboard = free_port(), free_port()
    command = [*ray_program(), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # another cluster here may have the usual one
    with open(tmp_path / "head.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    trial = [*ray_program(), "job", "submit", "--address", address, "--", "true"]
    for _ in range(20):  # the port answers some time before there is an agent that takes jobs
        if subprocess.run(trial, capture_output=True, env=environment()).returncode == 0:
            break
        time.sleep(2)
    else:
        pytest.fail(f"the head node takes no jobs: {(tmp_path / 'head.log').read_text()[-2000:]}")
    yield address
    for part in of_session(process.pid):
        part.kill()
    process.wait()


@pytest.mark.thorough
def test_a_submitted_job_is_stopped_and_submitted_again(head, tmp_path):
    storage = tmp_path / "runs"

    def job(action: str, *rest: str, code: int = 0) -> str:
        command = [*ray_program(), "job", action, "--address", head, *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment(), cwd=ROOT)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    study = [interpreter(), "studies/label_sweep.py", "--scale", "smoke", "--storage", str(storage)]
    job("submit", "--working-dir", ".", "--submission-id", "first", "--no-wait", "--", *study)
    wait_until(lambda: len(ledger(storage)) > 10, PATIENCE, lambda: job("logs", "first"))
    job("stop", "first")
    before = ledger(storage)
    assert "stopped by SIGTERM; the same command continues" in job("logs", "first")
    assert "succeeded" in job("submit", "--working-dir", ".", "--", *study)
    assert before.items() <= ledger(storage).items()
    assert (matrix_of(storage).state == "done").all()


def test_a_dry_run_says_what_would_be_done(tmp_path, capfd):
    code, printed = told(capfd, "--scale", "smoke", "--storage", str(tmp_path / "runs"), "--dry-run")
    assert code == 0, printed.err
    assert re.search(r"target labels\s+│\s+100 ", printed.out) and re.search(r"cells\s+│\s+20 ", printed.out)
    assert "Estimated on this machine" in printed.out and "No label was computed" in printed.out
    assert "not known" not in printed.out and not (tmp_path / "runs").exists()


COUNTED = """
import numpy as np
from sibcl_ray.problems.problem import Sample
from sibcl_ray.problems.simulation import Simulation
from sibcl_ray.symmetry import PointGroup

def mean(name, images):
    with open(CALLS, "a") as calls:
        calls.write(name + " ")
    return images.mean((1, 2), keepdims=False)[:, None].astype(np.float32)

class Counted(Simulation):
    name = "counted"
    input_shape, label_shape = (32, 32), (1,)
    symmetries = {"point_group": PointGroup(2)}
    error_units = "volt"
    # MORE

    def sample(self, count, rng):
        return Sample(rng.uniform(0, 1, (count, 32, 32)).astype(np.float32))

    def solve(self, inputs):
        return mean("solve", inputs)

    def estimate(self, inputs):
        return mean("estimate", inputs[:, :16])

    def sample_surrogate(self, count, rng):
        return self.sample(count, rng)

    def solve_surrogate(self, sample):
        return mean("solve_surrogate", sample.inputs)
"""


@dataclass(frozen=True)
class Place:
    """A user's file, whose solver notes its calls, and a study of it."""

    folder: Path

    @property
    def options(self) -> tuple[str, ...]:
        return ("--problem", f"{self.folder}/counted.py:Counted", "--scale", "smoke", "--methods", "SL,SL-I")

    @property
    def store(self) -> Store:
        return Store(str(self.folder / "runs"))

    def calls(self) -> str:
        return (self.folder / "calls").read_text()

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Everything in the folder, folders too: when it was last changed, and its content."""
        found = [self.folder, *self.folder.rglob("*")]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in found}

    def ledger(self) -> Ledger:
        problem = loading.load(self.options[1])
        methods = tuple(METHODS[name] for name in self.options[-1].split(","))
        return Ledger(replace(SCALES["smoke"](problem, 0), methods=methods), self.store)


def written(folder: Path, more: str = "") -> Place:
    """The file, with the calls of this process forgotten."""
    (folder / "counted.py").write_text(f"CALLS = {str(folder / 'calls')!r}\n{COUNTED.replace('# MORE', more)}")
    (folder / "calls").write_text("")
    return Place(folder)


def with_labels(place: Place) -> Place:
    ledger = place.ledger()
    for shard in ledger.missing().shards:
        data, size = ledger.dataset, ledger.dataset.size(shard.role)
        sample = data.problem.sample(size, data.rng(shard.role, shard.index))
        labels = sample.inputs.mean((1, 2))[:, None] if shard.role.labelled else None
        data.write(shard.role, shard.index, sample, labels)
    return place


def finished(place: Place, end=good) -> Place:
    """The study as if it had been run."""
    place.store.open()
    fill(with_labels(place).ledger(), end)
    return place


def damaged(place: Place) -> Place:
    """What is found damaged would be set aside, or mended, by a run."""
    finished(place)
    for pattern in ("datasets/*/*-00001.parquet", "ledger/cell/*.json", "sibcl_ray.json", "studies/*/search.journal"):
        for path in (place.folder / "runs").glob(pattern):
            path.write_bytes(path.read_bytes()[:-7])
    return place


BEFORE = {"nothing": lambda place: place, "labels": with_labels, "all": finished, "damage": damaged}


@pytest.mark.parametrize("before", BEFORE)
def test_a_dry_run_solves_nothing_and_writes_nothing(before, tmp_path, monkeypatch, capfd):
    place = BEFORE[before](written(tmp_path))
    monkeypatch.chdir(tmp_path)
    files = place.files()
    databases = (["--search-storage", "sqlite:///search.db"], ["--tracking-uri", "sqlite:///new/mlflow.db"], [])
    for more in databases if before == "nothing" else ([],):
        code, printed = told(capfd, *place.options, "--storage", "runs", "--dry-run", *more)
        assert code == 0 and not printed.err, printed
        assert place.files() == files and not place.calls()
    assert ("Nothing is left to do" in printed.out) == (before == "all")
    assert ("a run would find: ledger/cell/" in printed.out) == (before == "damage")


def test_a_dry_run_reads_a_database_of_searches_and_leaves_it_as_it_is(tmp_path, capfd):
    place, url = written(tmp_path), f"sqlite:///{tmp_path}/search.db"
    ledger = with_labels(place).ledger()
    study = replace(ledger.study, trials=3)
    fill(Ledger(study, place.store, url))
    files = place.files()
    options = (*place.options, "--storage", str(tmp_path / "runs"), "--search-storage", url, "--dry-run")
    for trials, left in (("3", r"Nothing is left to do"), ("5", r"trials, 2 folds each +│ +4 │")):
        code, printed = told(capfd, *options, "--trials", trials)
        assert code == 0 and re.search(left, printed.out) and place.files() == files, printed


def test_showing_what_there_is_solves_nothing(tmp_path, capfd):
    place = finished(written(tmp_path))
    options = (*place.options, "--storage", str(tmp_path / "runs"), "--tracking-uri", "http://127.0.0.1:1")
    for more, right in ((), 0), (("--sync-tracking",), 1), (("--help",), 0):  # there is no server
        code, printed = told(capfd, *options, *more)
        assert code == right and not printed.err and not place.calls(), printed
    assert set(matrix_of(tmp_path / "runs", "counted-smoke-0").error_units) == {"volt"}


COSTS = [  # of 70 target labels and 50 of the surrogate: declared, recorded of two shards, in seconds; and what is said
    ("", (), ["not known before the first label"] * 2, "labels of unknown cost not"),
    ("label_seconds = 3600", (), ["3 days", "not known before the first label"], "labels of unknown cost not"),
    pytest.param(
        *("label_seconds, surrogate_seconds = 86400.0, 36", (), ["70 days", "30 min"], "about 70 days of core time"),
        marks=pytest.mark.thorough,
    ),
    ("label_seconds, surrogate_seconds = 86400.0, 36", (3600, 7200), ["4 days", "30 min"], "about 4 days of core time"),
    ("surrogate_seconds = 0", (60, 60), ["68 min", "0 s"], "about 68 min of core time"),
]


@pytest.mark.parametrize(("declared", "recorded", "said", "in_all"), COSTS)
def test_the_plan_knows_what_labels_cost_or_says_that_it_does_not(declared, recorded, said, in_all, tmp_path, capfd):
    place = written(tmp_path, declared)
    data = place.ledger().dataset
    for index, seconds in enumerate(recorded):
        sample = data.problem.sample(1, data.rng(TARGET, index))
        data.write(TARGET, index, sample, sample.inputs.mean((1, 2))[:, None])
        data.record_seconds(TARGET, index, seconds)
    code, printed = told(capfd, *place.options, "--methods", "SL,TL", "--storage", str(tmp_path / "runs"), "--dry-run")
    assert code == 0 and not place.calls(), printed
    cost = {kind: re.search(rf"{kind} labels +│ +\d+ │ +(.*?) │", printed.out)[1] for kind in ("target", "surrogate")}
    assert [cost["target"], cost["surrogate"]] == said and in_all in printed.out


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ('label_seconds = "8 h"', r"Counted.label_seconds is '8 h'; give the seconds of one core"),
        ("label_seconds = -1.0", r"Counted.label_seconds is -1.0; give"),
        ("surrogate_seconds = float('nan')", r"Counted.surrogate_seconds is nan; give"),
        ("error_units = None", r"Counted.error_units is None; give text"),
    ],
)
def test_declared_costs_and_units_that_are_none_are_refused(declared, expected, tmp_path, capfd):
    place = written(tmp_path, declared)
    code, printed = told(capfd, *place.options, "--storage", str(tmp_path / "runs"), "--dry-run")
    assert code == 2 and re.search(expected, printed.err) and printed.err.count("\n") == 1


METRIC = 'units = "volt"\nmetric = "{}"\n'.format
ARRAYS = [  # what is said of labels, and what errors are in
    ('units = "volt"\n', "fraction"),
    (METRIC("mean_relative"), "fraction"),
    (METRIC("absolute"), "volt"),
    (METRIC("root_mean_square") + "scale = 0.5\n", "volt"),  # of the label as it was given
    ('metric = "absolute"\n', "absolute"),
    ('metric = "root_mean_square"\nscale = 2.0\n', "root mean square"),
]


@pytest.mark.parametrize(("label", "units"), ARRAYS)
def test_errors_of_arrays_are_in_the_unit_of_their_labels(label, units, tmp_path):
    described = arrays.ALL.replace('[label]\nunits = "volt"\n', f"[label]\n{label}")
    assert tabulated.load(arrays.fill(tmp_path, described)).error_units == units


def test_percents_are_for_fractions_alone():
    fractions = {name for name, problem in PROBLEMS.items() if problem.error_units == FRACTION}
    assert fractions == PROBLEMS.keys() - {"photonic-gap"}
    assert all(0 < p.surrogate_seconds < p.label_seconds < 1 for p in PROBLEMS.values()), "as measured on one core"

    class Mine(Simulation):
        name, input_shape, label_shape = "mine", (32, 32), (1,)
        sample = solve = None

    class MyError(Mine):
        def error(self, prediction, label):
            return (prediction - label).abs().mean(1)

    class InVolts(MyError):
        error_units = "volt"

    assert (Mine().error_units, MyError().error_units, InVolts().error_units) == (FRACTION, "", "volt")


def ending_badly(job):
    """Every trial of SL-I, each with a reason of its own, and a cell of SL."""
    if isinstance(job, TrialJob) and job.method == "SL-I":
        return failure(f"OSError: no file [/data/{job.configuration.steps}] × 2")
    return failure("MemoryError: 3 µs") if isinstance(job, CellJob) and job.seed else good(job)


def test_the_first_real_reasons_are_in_the_matrix_and_after_the_table(tmp_path, capfd):
    place = finished(written(tmp_path), ending_badly)
    code, printed = told(
        capfd, *place.options, "--storage", str(tmp_path / "runs"), "--tracking-uri", "http://127.0.0.1:1"
    )
    table, lines = printed.out.split("tracking  ")
    assert code == 1 and "4 failed" not in table
    reason = r"OSError: no file \[/data/\d+\] × 2 \(in the first trial of its search; all failed\)"
    assert re.search(f"^4 cells failed: {reason}$", lines, re.MULTILINE)
    assert "2 cells failed: MemoryError: 3 µs\n" in lines and "6 cells failed for good" in lines
    matrix = matrix_of(tmp_path / "runs", "counted-smoke-0").query("method == 'SL-I'")
    assert all(re.fullmatch(reason, text) for text in matrix.reason)


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.thorough)])
def test_a_finished_study_is_shown_on_any_terminal(encoding, tmp_path, monkeypatch, capfd):
    place = finished(written(tmp_path), ending_badly)
    with monkeypatch.context() as patch:
        shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        patch.setattr(sys, "stdout", shown)
        options = (*place.options, "--storage", str(tmp_path / "runs"), "--sync-tracking")
        code, printed = told(capfd, *options, MLFLOW_HTTP_REQUEST_TIMEOUT="10")
        shown.flush()
    text = shown.buffer.getvalue().decode(encoding)
    assert code == 0 and not printed.err, text
    assert re.search(r"\| SL +\| +\S+ \+- \S+ \|", text) and "Test error (volt) by labels" in text
    assert re.search(r"4 cells failed: OSError: no file \[/data/\d+\] [x×] 2 ", text)
    assert "mlflow server" in text and (text.isascii() or encoding != "ascii")


@pytest.mark.parametrize("options", [("--dry-run",), ("--help",)])
def test_who_has_read_enough_is_told_nothing_of_it(options, tmp_path, monkeypatch, capfd):
    reads, writes = os.pipe()
    os.close(reads)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", os.fdopen(writes, "w"))
        patch.setattr("sibcl_ray.cli.commands.console", Screen())  # which is quiet from then on
        copy = os.dup(1)  # Rich closes it for Typer's help
        code, printed = told(capfd, *finished(written(tmp_path)).options, "--storage", str(tmp_path / "runs"), *options)
        os.dup2(copy, 1)
    assert (code, printed.out, printed.err) == (0, "", "")


def test_the_home_folder_is_that_of_a_shell(tmp_path, monkeypatch, capfd):
    place = finished(written(tmp_path))
    arrays.fill(tmp_path / "arrays", arrays.ALL, **arrays.arrays(side=32))
    monkeypatch.chdir("/")
    mine = ("--problem=~/counted.py:Counted", *place.options[2:])
    for options, variables in (
        ((*mine, "--storage=~/runs"), {}),
        ((*mine, "--storage=file://~/runs"), {}),
        (mine, {"SIBCL_RAY_STORAGE": "~/runs"}),
    ):
        code, printed = told(capfd, *options, "--dry-run", HOME=str(tmp_path), **variables)
        assert code == 0 and "Nothing is left to do" in printed.out, printed
    data = ("--problem", "tabulated", "--data=~/arrays", "--scale", "smoke", "--storage=~/new", "--dry-run")
    code, printed = told(capfd, *data, HOME=str(tmp_path))
    assert code == 0 and "Plan of moments-smoke-0" in printed.out, printed
    code, printed = told(capfd, *place.options, "--storage=~nobody-of-this-name/runs", "--dry-run")
    assert code == 2 and "~nobody-of-this-name/runs is in a home folder that is not known" in printed.err


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"RAY_TMPDIR": "/tmp/" + "x" * 110},
            r"RAY_TMPDIR is a path of 115 letters, too long for Ray's sockets; set ",
        ),
        ({"RAY_TMPDIR": "/tmp/" + "é" * 20}, r"too long for Ray's sockets; set RAY_TMPDIR to a folder with at most 39"),
        ({"RAY_TMPDIR": "/proc/nowhere"}, r"RAY_TMPDIR is /proc/nowhere and cannot be used .*; set RAY_TMPDIR to"),
        ({"RAY_TMPDIR": "/dev/null/x"}, r"RAY_TMPDIR is /dev/null/x and cannot be used .*Not a directory"),
    ],
)
def test_where_ray_cannot_have_its_sockets_nothing_starts(variables, expected, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as it is in a process that other tests use
    place = written(tmp_path)
    code, printed = told(capfd, *place.options, "--storage", str(tmp_path / "runs"), **variables)
    assert code == 2 and re.search(expected, printed.err) and printed.err.count("\n") == 1, printed
    assert not printed.out and not list((tmp_path / "runs").glob("claims")) and not place.calls()


def test_a_finished_study_needs_no_sockets(tmp_path, capfd):
    place = finished(written(tmp_path))
    options = (*place.options, "--storage", str(tmp_path / "runs"), "--tracking-uri", "http://127.0.0.1:1")
    assert told(capfd, *options, RAY_TMPDIR="/tmp/" + "x" * 110)[0] == 0


def test_the_tracking_server_of_the_environment_is_named_by_its_variable(tmp_path, capfd):
    options = ("--scale", "smoke", "--storage", str(tmp_path / "runs"), "--dry-run")
    code, printed = told(capfd, *options, MLFLOW_TRACKING_URI="file:/scratch/mlruns")
    assert code == 2 and re.search(r"error: MLFLOW_TRACKING_URI file:/scratch/mlruns is neither a server", printed.err)
    assert told(capfd, *options, MLFLOW_TRACKING_URI="databricks")[0] == 0


@pytest.mark.thorough
@pytest.mark.parametrize("start", [("-m", "studies.label_sweep"), ("-P", SCRIPT)])
def test_it_starts_however_python_is_asked_to(start):
    """Also where there is no home folder, of which nothing is said."""
    command = [sys.executable, *start, "--help"]
    env = environment(HOME="/proc/nowhere")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=ROOT)
    assert done.returncode == 0 and "fewest labels" in done.stdout and not done.stderr, done


def test_help_teaches(capfd):
    code, printed = told(capfd, "--help")
    assert code == 0
    for word in ("fewest labels", "ray job submit", "--dry-run", "SIB-CL", "paper"):
        assert word in printed.out
