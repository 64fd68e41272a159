"""A fault campaign: a study is disturbed at random moments, again and again, and must come to the same end.

    python tests/faults.py --rounds 40 --seed 0

First two `smoke` studies run undisturbed, one of photonic-dos and one of a user's solver that works with files of fixed
names. Then, in each round, one of these commands runs on another storage and something is killed: a worker, a part of
Ray, the driver, a node, the tracking server; or the driver is asked to stop, or the storage is cleaned. Half of the
labels of the second problem are there at first, as an older version of the library has named them. Whenever a study
has come to its end it is compared with the undisturbed one, checked, and the next round begins one of the other kind.
What must hold:

- after every round: a driver that should have survived did; the exit code tells; no process is left; what the ledger
  has once announced, it says for ever, byte for byte, so nothing was done twice;
- at every end: matrix and trials are those of the undisturbed study bit for bit, but for times; every shard, record,
  search history and weight is whole; every label is that of its input, where that can be told; MLflow shows the
  ledger, each run and point once.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import conftest  # noqa: F401  where things lie, and how Ray is set up for tests
from processes import AGENTS, PATIENCE, SCRIPT, Driver, Process, environment
from servers import MlflowServer, mlflow_server, wait_until
from test_outages import assert_shows

from sibcl_ray.data.dataset import LABELS, TARGET, TEST, Dataset
from sibcl_ray.data.versions import BEFORE
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.problem import Sample
from sibcl_ray.recipes import SCALES
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.user_module.loading import find

RECORDS = "ledger/*/*.json"
GRACE = 10.0  # seconds that a driver may take to stop; three, on a machine that does nothing else
TIMES = ["seconds", "started", "finished"]


@dataclass
class Scene:
    """What a fault may strike."""

    driver: Driver
    storage: Path
    server: MlflowServer
    records: int  # of an undisturbed study
    chance: random.Random
    before: set[Path]  # sessions of drivers that are no more
    nodes: Any = None  # a Cluster, where the driver did not start its own

    def moment(self) -> None:
        """Wait for one: some seconds after the beginning, or some share of the results."""
        wait_until(lambda: self._begun() or self._ended(), PATIENCE)
        if self.chance.random() < 0.4:
            end = time.monotonic() + self.chance.uniform(0, 25)
            wait_until(lambda: time.monotonic() > end or self._ended(), PATIENCE)
        else:
            there = len(list(self.storage.glob(RECORDS)))
            enough = self.chance.randrange(there, max(there + 1, self.records))
            wait_until(lambda: len(list(self.storage.glob(RECORDS))) >= enough or self._ended(), PATIENCE)
            time.sleep(self.chance.uniform(0, 0.5))

    def victim(self, belongs: Callable[[Process], bool]) -> Process | None:
        """One of the driver's processes, killed; None if there is none such until it ends."""
        found: list[Process] = []

        def search() -> bool:
            found[:] = sorted(filter(belongs, self.driver.processes()), key=lambda p: p.number)
            return bool(found) or self._ended()

        wait_until(search, PATIENCE)
        if not found:
            return None
        chosen = self.chance.choice(found)
        chosen.kill()
        return chosen

    def _begun(self) -> bool:
        return bool(sessions(self.storage) - self.before)

    def _ended(self) -> bool:
        return self.driver.process.poll() is not None


SYSTEM = ("gcs_server", "raylet", "ray::JobQueue")  # without these a driver's own cluster is no more
SPARED = (*SYSTEM, *AGENTS, "ray::IDLE")


def a_worker(scene: Scene) -> tuple[str, set[int]]:
    """A process that runs jobs, trials or labels, or looks after those that do."""
    scene.moment()
    killed = scene.victim(lambda p: p.program.startswith("ray::") and p.program not in SPARED)
    return f"killed {killed.title if killed else 'nobody'}", {0}


def the_cluster(scene: Scene) -> tuple[str, set[int]]:
    """A process that the driver cannot do without; it has to say so and end."""
    scene.moment()
    killed = scene.victim(lambda p: p.program in SYSTEM)
    return f"killed {killed.program if killed else 'nobody'}", {0, 1, 2}  # 2: Ray could not even start


def the_driver(scene: Scene) -> tuple[str, set[int]]:
    scene.moment()
    scene.driver.send(signal.SIGKILL)
    return "killed the driver", {0, -signal.SIGKILL}


def a_stop(scene: Scene) -> tuple[str, set[int]]:
    scene.moment()
    how = scene.chance.choice((signal.SIGTERM, signal.SIGINT))
    begun = time.monotonic()
    scene.driver.send(how)
    code = scene.driver.wait()
    took = time.monotonic() - begun
    if code:
        assert took < GRACE, f"{how.name} took {took:.0f} s"
        said = f"stopped by {how.name}; the same command continues"
        assert said in scene.driver.printed(), scene.driver.printed()
    return f"{how.name}, ended after {took:.1f} s", {0, 128 + how}


def a_node(scene: Scene) -> tuple[str, set[int]]:
    """A node of two, which comes back after a while."""
    scene.moment()
    node = scene.chance.choice([n for n in scene.nodes.worker_nodes])
    scene.nodes.remove_node(node, allow_graceful=False)
    time.sleep(scene.chance.uniform(0, 5))
    scene.nodes.add_node(num_cpus=1)
    return "lost a node for some seconds", {0}


def the_tracking(scene: Scene) -> tuple[str, set[int]]:
    scene.moment()
    scene.server.kill()
    away = scene.chance.uniform(0, 20)
    wait = time.monotonic() + away
    wait_until(lambda: time.monotonic() > wait or scene.driver.process.poll() is not None, PATIENCE)
    scene.server.start()
    return f"MLflow was away for {away:.0f} s", {0}


def a_cleaning(scene: Scene) -> tuple[str, set[int]]:
    """One beside the driver, or after its death, which may be killed itself."""
    scene.moment()
    alone = scene.chance.random() < 0.5
    if alone:
        scene.driver.send(signal.SIGKILL)
    command = [sys.executable, SCRIPT, "--storage", str(scene.storage), "--clean"]
    cleaner = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        printed, _ = cleaner.communicate(timeout=scene.chance.uniform(4, 12))
        assert cleaner.returncode == 0, printed
        how = "to its end"
    except subprocess.TimeoutExpired:
        cleaner.kill()
        cleaner.communicate()
        how = "until it was killed"
    return f"cleaned {'after' if alone else 'beside'} the driver {how}", {0, -signal.SIGKILL} if alone else {0}


STUDIED = ("photonic-dos", f"{Path(__file__).with_name('fixed_files.py')}:FixedFiles")
FAULTS = (a_worker, the_cluster, the_driver, a_stop, a_node, the_tracking, a_cleaning)


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A cluster with a head that does no work and two nodes of one core."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@dataclass
class Campaign:
    """Studies on storages below a folder, one after the other, all tracked by one server."""

    folder: Path
    server: MlflowServer
    chance: random.Random
    studies: int = 0
    announced: dict[str, str] = field(default_factory=dict)  # digests of the records that there were once
    expected: dict[str, tuple[Any, Any, int]] = field(default_factory=dict)  # by problem, matrix, trials, records

    @property
    def storage(self) -> Path:
        return self.folder / f"study-{self.studies}"

    @property
    def problem(self) -> str:
        return STUDIED[self.studies % len(STUDIED)]

    @property
    def ledger(self) -> Ledger:
        problem = find(self.problem)
        return Ledger(SCALES["smoke"](problem, 0), Store(str(self.storage)), warn=fail)

    @property
    def records(self) -> int:
        return self.expected[self.problem][2]

    def start(self, name: str, *options: str, **variables: str) -> Driver:
        log = self.folder / f"{name}.log"
        tracking = ("--tracking-uri", self.server.address)
        return Driver(self.storage, log, "--problem", self.problem, *tracking, *options, **variables)

    def undisturbed(self) -> None:
        """Run studies that nothing happens to; what the others are compared with."""
        for _ in STUDIED:
            self._complete("undisturbed")
            self.expected[self.problem] = (*outcome(self.ledger), len(list(self.storage.glob(RECORDS))))
            self._next()

    def round(self, number: int, fault: Callable[[Scene], tuple[str, set[int]]]) -> str:
        """One run with one fault; says what happened."""
        if len(self.announced) == self.records:  # there is nothing left to disturb
            self.finish()
        if self.problem not in PROBLEMS and not self.storage.exists():
            self._begin_with_old_labels()
        with ExitStack() as stack:
            nodes = stack.enter_context(two_nodes()) if fault is a_node else None
            variables = {"RAY_ADDRESS": nodes.address} if nodes else {}
            before = sessions(self.storage)
            driver = self.start(f"round-{number}", **variables)
            stack.callback(driver.end)
            scene = Scene(driver, self.storage, self.server, self.records, self.chance, before, nodes)
            done, codes = fault(scene)
            code = driver.wait()
            left = driver.leftovers(spared=AGENTS if fault in (the_driver, the_cluster) else ())
        printed = driver.printed()
        assert code in codes, f"{done}: exit code {code}, not one of {codes}\n{printed}"
        assert not left, f"{done}: left behind are {left}"
        assert "Traceback" not in printed, f"{done}\n{printed}"
        self._nothing_done_twice()
        progress = f"{len(self.announced)} of {self.records} results"
        if code == 0:
            self._verify(number, late=fault is the_tracking)
            self._next()
            progress += ", all verified"
        return f"{done}; exit code {code}; {progress}"

    def _begin_with_old_labels(self) -> None:
        """Half of them are there, under the name that an older version of the library gave them."""
        made = Dataset(self.ledger.study.problem, 0, Store(str(self.folder / f"study-{STUDIED.index(self.problem)}")))
        adopted = replace(made, store=Store(str(self.storage)))
        problem = made.problem
        old = fingerprint(BEFORE, problem.labels_per_task, problem.version, problem, 0)
        line = made.line(TARGET)
        adopted._lines[LABELS] = replace(line, folder=f"datasets/{problem.name}-{old}", fingerprint=old)
        for shard in made.stored()[::2]:
            if shard.role in (TARGET, TEST):
                split = made.read_shard(shard.role, shard.index)
                adopted.write(shard.role, shard.index, Sample(split.inputs.numpy()), split.labels.numpy())

    def finish(self) -> None:
        """Bring the last study to its end, if one has been begun."""
        if self.storage.exists():
            self._complete("last")
            self._nothing_done_twice()
            self._verify(-1, late=True)
            self._next()

    def _complete(self, name: str) -> None:
        driver = self.start(name)
        try:
            assert driver.wait() == 0, driver.printed()
        finally:
            driver.end()

    def _next(self) -> None:
        """Another study of the same name, on a storage of its own; MLflow has to forget what it showed of the last."""
        self.studies += 1
        self.announced.clear()

    def _nothing_done_twice(self) -> None:
        now = {str(p.relative_to(self.storage)): digest(p) for p in self.storage.glob(RECORDS)}
        changed = {name for name, was in self.announced.items() if now.get(name) != was}
        assert not changed, f"announced before, and done again: {changed}"
        self.announced = now

    def _verify(self, number: int, late: bool) -> None:
        """The study has ended: all that must hold now, or when a server that was away has been told."""
        if late:
            driver = self.start(f"sync-{number}", "--sync-tracking")
            assert driver.wait() == 0, driver.printed()
        ledger = self.ledger
        assert not ledger.missing() and not ledger.dataset.missing(ledger.study.sizes, fail)
        ledger.writable()  # reads the whole journal
        for name, mine, theirs in zip(
            ("matrix", "trials"), outcome(ledger), self.expected[self.problem][:2], strict=True
        ):
            assert mine.equals(theirs), f"the {name} is\n{mine.to_string()}\nand undisturbed\n{theirs.to_string()}"
        if self.problem not in PROBLEMS:
            for role in (TARGET, TEST):
                split = ledger.dataset.read(role, ledger.study.sizes[role])
                wrong = (split.labels[:, 0] - split.inputs[:, 0, 0]).abs() > 1e-6
                assert not wrong.any(), f"{int(wrong.sum())} of {len(wrong)} {role.name} labels are of other inputs"
        for path in self.storage.glob("artefacts/*"):
            assert digest(path) == path.name.split(".")[0], f"{path} is not what its name says"
        figures = [self.storage / ledger.folder / f"learning_curves.{kind}" for kind in ("png", "svg")]
        artifacts = [*figures, self.storage / ledger.folder / "matrix.parquet"]
        assert_shows(self.server.address, ledger.study.name, ledger.matrix(), ledger.trials(), artifacts)
        assert not (self.storage / "aside").exists(), "something was damaged"


def outcome(ledger: Ledger) -> tuple[Any, Any]:
    """Matrix and trials, without their times; lists as text, which is exact."""
    matrix, trials = ledger.matrix(), ledger.trials()
    matrix["sample_errors"] = [json.dumps(list(errors)) for errors in matrix["sample_errors"]]
    trials["parameters"] = [json.dumps(parameters, sort_keys=True) for parameters in trials["parameters"]]
    return tuple(frame.drop(columns=[c for c in TIMES if c in frame]) for frame in (matrix, trials))


def sessions(storage: Path) -> set[Path]:
    """Of drivers that are at work, or died at it."""
    return set((storage / "sessions").glob("*"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fail(text: str) -> None:
    raise AssertionError(text)


def campaign(folder: Path, rounds: int, seed: int, tell: Callable[[str], None] = print) -> None:
    """Run one; raises AssertionError at the first thing that does not hold. Every kind of fault comes in turn."""
    chance = random.Random(seed)
    faults: list[Any] = []
    while len(faults) < rounds:
        faults += chance.sample(FAULTS, len(FAULTS))
    begun = time.monotonic()
    with mlflow_server(f"sqlite:///{folder}/mlflow.db", folder) as server:
        course = Campaign(folder, server, chance)
        course.undisturbed()
        for number, fault in enumerate(faults[:rounds], 1):
            told = course.round(number, fault)
            tell(f"[{time.monotonic() - begun:4.0f} s] round {number}, {fault.__name__}: {told}")
        course.finish()
        tell(f"[{time.monotonic() - begun:4.0f} s] {course.studies} studies came to the undisturbed one's end")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="faults-"))
    print(f"logs and storages are in {place}", flush=True)  # and stay there if something does not hold
    campaign(place, options.rounds, options.seed, lambda text: print(text, flush=True))
    shutil.rmtree(place)
