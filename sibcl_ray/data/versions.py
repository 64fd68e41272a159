"""Which stored data a problem goes on with when its code has changed.

A line is data that belong together: begun by one version of the code that decides them, and continued by those whose
user has said so. A record for each version says which line is its own, so a decision is made once.
"""

from __future__ import annotations

import io
import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow.parquet as pq

from sibcl_ray.data.definitions import changed, deciding, version_of
from sibcl_ray.problems.problem import Problem
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Store, record_bytes

BEFORE = 2  # the format of shards when datasets were named by all of a problem's code
READING = 3  # of what decides in users' source; others have other checksums
SECONDS = ".seconds"  # ends the name of a record of how long a shard's labels took
RECORDS_READ = 20  # of these, at most, for an estimate


@dataclass(frozen=True)
class Kind:
    """Data that the same methods of a problem decide."""

    name: str
    methods: tuple[str, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """Where data of a kind are, and what they are named by.

    ``name`` names results that are learned from them, ``fingerprint`` is what their shards say, ``size`` the samples of
    a shard, ``version`` the code that makes what is missing, and ``earlier`` which labels were made by other code.
    """

    name: str
    folder: str
    fingerprint: str
    size: int
    version: str
    earlier: tuple[str, ...] = ()
    definitions: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def is_old(self) -> bool:
        """Whether its data were named by a version of this library for which all of a problem's code counted."""
        return not self.folder.endswith(f"-{self.name}")


class LabelsChanged(ValueError):
    """There are labels that another version of the code has made, and it was not said what is to become of them."""


@dataclass(frozen=True)
class Change:
    """Labels of an earlier version of the code."""

    line: Line
    count: int
    labels: str  # how many of which roles
    seconds: float | None  # of one core, that they took
    what: str  # has changed: the first definitions that differ
    back: bool  # this code has made labels of the line before the other did

    def __str__(self) -> str:
        cost = "of unknown cost" if self.seconds is None else f"of {self.seconds / 3600:.3g} core hours"
        return f"{self.labels} {cost}"

    def kept(self, line: Line) -> Line:
        """The earlier line, as the code, which has a line of its own, goes on with it."""
        earlier = (*self.line.earlier, f"{self.labels} were made before {self.what} changed")
        return replace(self.line, version=line.version, earlier=earlier, definitions=line.definitions)


@dataclass(frozen=True)
class Versions:
    """What versions of a problem's code have made of a kind of data, from one seed."""

    problem: Problem
    seed: int
    store: Store
    kind: Kind

    def line(self, size: int) -> Line:
        """The line that the code, as it is now, goes on with; one of its own if none is recorded."""
        definitions = deciding(self.problem, *self.kind.methods)
        version = version_of(definitions)
        if record := self._decision(version):
            return _recorded(record)
        name = fingerprint(self.kind.name, self.seed, version)
        old = fingerprint(BEFORE, self.problem.labels_per_task, self.problem.version, self.problem, self.seed)
        its = old if self._files(self._folder(old)) else name
        return Line(name, self._folder(its), its, size, version, (), definitions)

    def begin(self, line: Line, decided: bool) -> bool:
        """Record that the code goes on with it, if that was just decided or nothing is recorded; whether it was."""
        name = self._decision_name(line.version)
        if not decided and self.store.exists(name):
            return False
        record = {
            "kind": self.kind.name, "seed": self.seed, **vars(line), "made": time.time(), "by": uuid.uuid4().hex,
            "reading": READING, "shards": len(self._files(line.folder)),
        }  # fmt: skip
        if decided:
            self.store.write_record(name, record)
        else:
            self.store.create(name, record_bytes(record))
        return True

    def change(self, line: Line) -> Change | None:
        """What there is of other versions, if this one has neither data nor a decision, or they have added to it."""
        if self.problem.available is not None:
            return None
        decided = self._decision(line.version)
        if decided is None and self._files(line.folder):
            return None
        for other, made, then in self._others():
            shards = len(self._files(other.folder))
            if decided is not None and (other.folder != line.folder or made <= decided["made"] or then == shards):
                continue
            if not shards or (self.problem.source is None and not _same_problem(other, line)):
                continue
            unknown = f"what decides them may have changed since an older sibcl_ray made them, {self.problem.name}"
            differs = changed(other.definitions, line.definitions) if other.definitions else [unknown]
            what = ", ".join(differs[:3]) + (f" and {len(differs) - 3} more" if len(differs) > 3 else "")
            count, seconds = shards * other.size, self.seconds(other)
            labels = f"{count:,} {' and '.join(self.kind.roles)} labels"
            return Change(other, count, labels, seconds and seconds * shards, what, back=decided is not None)
        return None

    def anew(self, change: Change, line: Line) -> Line:
        """A line of this code alone."""
        if not change.back:
            return line
        name = fingerprint(line.name, change.line.version, change.count)
        return replace(line, name=name, folder=self._folder(name), fingerprint=name, earlier=())

    def seconds(self, line: Line) -> float | None:
        """Seconds of one core that the labels of a shard took; None if none is recorded.

        The mean over some of the records, as a distant store takes a request for each.
        """
        names = self._files(line.folder, SECONDS)
        some = names[:: max(1, -(-len(names) // RECORDS_READ))]
        found = [record["seconds"] for record in self.store.read_records(some).values()]
        return sum(found) / len(found) if found else None

    def _others(self) -> Iterator[tuple[Line, float, int | None]]:
        """Lines that other code goes on with, the latest decision first; when and at how many shards."""
        problem, store = self.problem, self.store
        names = [n for n in store.names(f"versions/{problem.name}") if f"/{self.kind.name}-{self.seed}-" in n]
        records = list(store.read_records(names).values())
        for record in sorted(records, key=lambda r: r["made"], reverse=True):
            line = _recorded(record)
            if problem.source is not None and record.get("reading") != READING:
                line = replace(line, definitions={})  # which are not comparable
            yield line, record["made"], record.get("shards")
        if problem.source is None:
            return
        known = {record["folder"] for record in records}
        named = re.compile(rf"datasets/{re.escape(problem.name)}-[0-9a-f]{{16}}")
        for folder in (f for f in store.names("datasets") if named.fullmatch(f) and f not in known):
            for name in self._files(folder)[:1]:
                table = pq.read_table(io.BytesIO(store.read(name)))
                about = json.loads((table.schema.metadata or {}).get(b"sibcl_ray", b"{}"))
                if about.get("seed") == self.seed:
                    its, version = about["fingerprint"], about.get("version", "")
                    yield Line(fingerprint(self.kind.name, its), folder, its, len(table), version), 0.0, None

    def _folder(self, its: str) -> str:
        return f"datasets/{self.problem.name}-{its}"

    def _files(self, folder: str, ending: str = ".parquet") -> list[str]:
        named = re.compile(rf".*/({'|'.join(self.kind.roles)})-\d{{5,}}{re.escape(ending)}")
        return [name for name in self.store.names(folder) if named.fullmatch(name)]

    def _decision(self, version: str) -> dict[str, Any] | None:
        return self.store.usable_record(self._decision_name(version))

    def _decision_name(self, version: str) -> str:
        return f"versions/{self.problem.name}/{self.kind.name}-{self.seed}-{version}.json"


def _same_problem(other: Line, line: Line) -> bool:
    """Whether nothing but versions of the library differs: another field is another problem."""
    both = [{n: v for n, v in each.definitions.items() if not v.startswith("version ")} for each in (other, line)]
    return both[0] == both[1] and other.definitions.keys() == line.definitions.keys()


def _recorded(record: Mapping[str, Any]) -> Line:
    values = {f.name: record[f.name] for f in fields(Line)}
    return Line(**{**values, "earlier": tuple(values["earlier"])})
