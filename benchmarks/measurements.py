"""What is measured: commands, the rows of numbers that they give, and the code that decides these.

A result is a small file in `results/`, which has the versions of that code. It is today's as long as they are.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from rows import Row

from sibcl_ray.data.definitions import LEARNED, deciding, version_of
from sibcl_ray.driver import load_results
from sibcl_ray.learning.jobs import CellJob, PretrainJob, TrialJob
from sibcl_ray.recipes import quick
from sibcl_ray.results.tables import interval_in_words, labels_in_words, saving_in_words, units_of
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.user_module.dependencies import checksum

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Runs a script's main in a process of its own, whose rows it writes to a file.
CALL = "import importlib, json, sys; rows = importlib.import_module(sys.argv[1]).main(sys.argv[3:])"
CALL += "; json.dump(rows, open(sys.argv[2], 'w'))"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The rows that a command gave, when, and with what code."""

    command: str
    date: str
    package: str  # version of sibcl_ray
    commit: str
    versions: dict[str, str]  # of the code that decides the rows; empty: they were not recorded
    rows: list[Row]

    def origin(self, today: dict[str, str]) -> str:
        """In words, with what code it was measured; ``today`` are the versions of today's."""
        if self.versions == today:
            return f"Measured with today's code: commit {self.commit}, {self.date}."
        changed = [name for name in today if self.versions.get(name) != today[name]]
        since = f"changed since: {', '.join(changed)}" if self.versions else "changes since are not recorded"
        return f"Not measured with today's code: version {self.package}, commit {self.commit}, {self.date}; {since}."


@dataclass(frozen=True, kw_only=True)
class Measurement(ABC):
    """A command that gives rows."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its result."""

    @property
    @abstractmethod
    def arguments(self) -> list[str]:
        """A script and its arguments."""

    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Of the code that decides the rows, as it is today."""

    @abstractmethod
    def measure(self) -> list[Row]:
        """Run the command; CalledProcessError where it fails."""

    @property
    def command(self) -> str:
        return " ".join(["python", *self.arguments])

    @property
    def stored(self) -> Result | None:
        """The result of the last run, if there is one."""
        file = RESULTS / f"{self.name}.json"
        return Result(**json.loads(file.read_text())) if file.exists() else None

    @property
    def is_todays(self) -> bool:
        return self.stored is not None and self.stored.versions == self.versions()

    @property
    def origin(self) -> str:
        return self.stored.origin(self.versions()) if self.stored else "Not measured yet."

    def run(self) -> None:
        """Measure, and store the result."""
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        about = {  # before, as the code may be edited meanwhile
            "command": self.command,
            "date": time.strftime("%Y-%m-%d"),
            "package": version("sibcl_ray"),
            "commit": commit.stdout.strip(),
            "versions": self.versions(),
        }
        result = Result(**about, rows=self.measure())
        new = RESULTS / f"{self.name}.tmp"
        new.write_text(json.dumps(asdict(result), indent=1, ensure_ascii=False) + "\n")
        os.replace(new, new.with_suffix(".json"))


@dataclass(frozen=True, kw_only=True)
class Script(Measurement):
    """A script beside this one, whose ``main`` takes arguments and returns rows."""

    call: str  # the script and its arguments
    code: tuple[str, ...]  # files that decide the rows, besides the script
    title: str = ""  # if the script has several results

    @property
    def name(self) -> str:
        return self.title or self.call.split()[0].removesuffix(".py")

    @property
    def arguments(self) -> list[str]:
        script, *options = self.call.split()
        return [f"benchmarks/{script}", *options]

    def versions(self) -> dict[str, str]:
        return {path: of_source(path) for path in (self.arguments[0], *self.code)}

    def measure(self) -> list[Row]:
        script, *options = self.call.split()
        paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "rows.json")
            command = [sys.executable, "-c", CALL, script.removesuffix(".py"), str(file), *options]
            subprocess.run(command, cwd=ROOT, check=True, env=os.environ | {"PYTHONPATH": paths})
            return json.loads(file.read_text())


@cache
def of_source(path: str) -> str:
    """A version of a file: what it computes, whatever its layout and comments."""
    return checksum(ast.parse((ROOT / path).read_text()))


@dataclass(frozen=True, kw_only=True)
class QuickStudy(Measurement):
    """The main job at scale `quick`; interrupted, it continues in `runs/`."""

    problem: str
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.problem}-quick-{self.seed}"

    @property
    def arguments(self) -> list[str]:
        seed = ["--data-seed", str(self.seed)] if self.seed else []
        return ["studies/label_sweep.py", "--problem", self.problem, *seed]

    def versions(self) -> dict[str, str]:
        """All that names its labels and jobs, and what is asked for; not what proposes trials."""
        study = quick(self.problem, self.seed)
        labels = deciding(study.problem, "sample", "solve", "sample_surrogate", "solve_surrogate")
        learned = deciding(study.problem, *LEARNED, "error", "surrogate_loss", "estimate")
        jobs = {f"{job.kind} job": str(job.version) for job in (PretrainJob, TrialJob, CellJob)}
        encoders = {f"encoder {e.label}": str(e.version) for e in (a.encoder for a in study.space.architectures)}
        given = {"labels": version_of(labels), "losses and error": version_of(learned), "recipe": fingerprint(study)}
        return given | jobs | encoders | {"intervals": of_source("sibcl_ray/results/curves.py")}

    def measure(self) -> list[Row]:
        subprocess.run([sys.executable, *self.arguments, "--storage", "runs"], cwd=ROOT, check=True)
        results = load_results(ROOT / "runs" / "studies" / self.name)
        if (shown := ROOT / "studies" / f"{self.name}.png").exists():  # in a page
            shutil.copy(Path(results.folder, "learning_curves.png"), shown)
        units, savings = units_of(results.matrix), {s.method: s for s in results.savings()}
        rows = []
        for method, curve in results.curves().items():
            errors = {f"{n:.0f}": units.number(e) for n, e in zip(curve.budgets, curve.error, strict=True)}
            row = {"method": method, "units": units.name, **errors}
            if saving := savings.get(method):
                row["labels"] = labels_in_words(saving)
                row |= {"label saving": saving_in_words(saving), "interval": interval_in_words(saving)}
            rows.append(row)
        return rows
