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
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow.parquet as pq

from sibcl_ray.data.definitions import changed, deciding, version_of
from sibcl_ray.problems.problem import Problem
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import Damaged, Store, record_bytes

BEFORE = 2  # the format of shards when datasets were named by all of a problem's code
READING = 3  # of what decides in users' source; others have other checksums
SECONDS = ".seconds"  # ends the name of a record of how long a shard's labels took
RECORDS_READ = 20  # of these, at most, for an estimate
SHARD_NAME = re.compile(r"(?P<folder>.*)/(?P<role>[a-z]+)-(?P<index>\d{5,})\.parquet")


@dataclass(frozen=True)
class Kind:
    """Data that the same methods of a problem decide."""

    name: str
    methods: tuple[str, ...]
    roles: tuple[str, ...]
    labelled: bool


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


def line_of(problem: Problem, seed: int, store: Store, kind: Kind, size: int) -> Line:
    """The line that the problem's code, as it is now, goes on with; one of its own if none is recorded."""
    definitions = deciding(problem, *kind.methods)
    version = version_of(definitions)
    record = _read(store, _record_name(problem, seed, kind, version))
    if record is not None:
        return _recorded(record)
    name = fingerprint(kind.name, seed, version)
    old = fingerprint(BEFORE, problem.labels_per_task, problem.version, problem, seed)
    there = bool(_shards(store, f"datasets/{problem.name}-{old}", kind))
    its = old if there else name
    return Line(name, f"datasets/{problem.name}-{its}", its, size, version, (), definitions)


def begin(problem: Problem, seed: int, store: Store, kind: Kind, line: Line, decided: bool) -> bool:
    """Record that the code goes on with the line, if that was just decided or nothing is recorded; whether it was."""
    name = _record_name(problem, seed, kind, line.version)
    if new := decided or not store.exists(name):
        record = {
            "kind": kind.name, "seed": seed, "name": line.name, "folder": line.folder, "fingerprint": line.fingerprint,
            "size": line.size, "version": line.version, "earlier": list(line.earlier),
            "definitions": dict(line.definitions), "made": time.time(), "by": uuid.uuid4().hex,
            "reading": READING, "shards": len(_shards(store, line.folder, kind)),
        }  # fmt: skip
        if decided:
            store.write_record(name, record)
        else:
            store.create(name, record_bytes(record))
    return new


@dataclass(frozen=True)
class Change:
    """Labels of an earlier version of the code."""

    kind: Kind
    line: Line
    definitions: list[str]  # that differ
    labels: int
    seconds: float | None  # of one core, that they took
    back: bool  # this code has made labels of the line before the other did

    def __str__(self) -> str:
        cost = "of unknown cost" if self.seconds is None else f"of {self.seconds / 3600:.3g} core hours"
        return f"{self.labels:,} {' and '.join(self.kind.roles)} labels {cost}"

    @property
    def what(self) -> str:
        """The definitions that differ, the first of them by name."""
        first, more = self.definitions[:3], len(self.definitions) - 3
        return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def change_of(problem: Problem, seed: int, store: Store, kind: Kind, line: Line) -> Change | None:
    """What there is of other versions, if this one has neither data nor a decision, or they have added to its data."""
    if problem.available is not None:
        return None
    decided = _read(store, _record_name(problem, seed, kind, line.version))
    if decided is None and _shards(store, line.folder, kind):
        return None
    for other, made, then in _others(problem, seed, store, kind):
        names = _shards(store, other.folder, kind)
        if decided is not None and (other.folder != line.folder or made <= decided["made"] or then == len(names)):
            continue
        differs = changed(other.definitions, line.definitions)
        if not names or (problem.source is None and not _same_problem(other, line)):
            continue
        if not other.definitions:
            differs = [f"what decides them may have changed since an older sibcl_ray made them, {problem.name}"]
        seconds = shard_seconds(store, other, kind)
        labels, cost = len(names) * other.size, seconds and seconds * len(names)
        return Change(kind, other, differs, labels, cost, back=decided is not None)
    return None


def kept(change: Change, line: Line) -> Line:
    """The earlier line, as the code goes on with it."""
    told = f"{change.labels:,} {' and '.join(change.kind.roles)} labels were made before {change.what} changed"
    its, earlier = change.line, (*change.line.earlier, told)
    return Line(its.name, its.folder, its.fingerprint, its.size, line.version, earlier, line.definitions)


def anew(problem: Problem, change: Change, line: Line) -> Line:
    """A line of this code alone."""
    if not change.back:
        return line
    name = fingerprint(line.name, change.line.version, change.labels)
    return Line(name, f"datasets/{problem.name}-{name}", name, line.size, line.version, (), line.definitions)


def _same_problem(other: Line, line: Line) -> bool:
    """Whether nothing but versions of the library differs: another field is another problem."""
    both = [{n: v for n, v in each.definitions.items() if not v.startswith("version ")} for each in (other, line)]
    return both[0] == both[1] and other.definitions.keys() == line.definitions.keys()


def _others(problem: Problem, seed: int, store: Store, kind: Kind) -> Iterator[tuple[Line, float, int | None]]:
    """Lines of the problem that other code goes on with, the latest decision first; when and at how many shards."""
    names = [n for n in store.names(f"versions/{problem.name}") if f"/{kind.name}-{seed}-" in n]
    records = [r for r in store.read_records(names).values() if not isinstance(r, Damaged)]
    for record in sorted(records, key=lambda r: r["made"], reverse=True):
        line = _recorded(record)
        if problem.source is not None and record.get("reading") != READING:
            line = replace(line, definitions={})  # which are not comparable
        yield line, record["made"], record.get("shards")
    if problem.source is None:
        return
    known = {record["folder"] for record in records}
    for folder in store.names("datasets"):
        if re.fullmatch(rf"datasets/{re.escape(problem.name)}-[0-9a-f]{{16}}", folder) and folder not in known:
            for name in _shards(store, folder, kind)[:1]:
                table = pq.read_table(io.BytesIO(store.read(name)))
                about = json.loads((table.schema.metadata or {}).get(b"sibcl_ray", b"{}"))
                if about.get("seed") == seed:
                    its = about["fingerprint"]
                    line = Line(fingerprint(kind.name, its), folder, its, len(table), about.get("version", ""))
                    yield line, 0.0, None


def _recorded(record: Mapping[str, Any]) -> Line:
    named = {n: record[n] for n in ("name", "folder", "fingerprint", "size", "version", "definitions")}
    return Line(**named, earlier=tuple(record["earlier"]))


def _record_name(problem: Problem, seed: int, kind: Kind, version: str) -> str:
    return f"versions/{problem.name}/{kind.name}-{seed}-{version}.json"


def _read(store: Store, name: str) -> dict[str, Any] | None:
    try:
        return store.read_record(name)
    except Damaged:
        store.set_aside(name)
        return None


def _shards(store: Store, folder: str, kind: Kind) -> list[str]:
    return [n for n in store.names(folder) if (found := SHARD_NAME.fullmatch(n)) and found["role"] in kind.roles]


def shard_seconds(store: Store, line: Line, kind: Kind) -> float | None:
    """Seconds of one core that the labels of a shard took; None if none is recorded.

    The mean over some of the records, as a distant store takes a request for each.
    """
    names = [n for n in store.names(line.folder) if n.endswith(SECONDS)]
    names = [n for n in names if n.rpartition("/")[2].rpartition("-")[0] in kind.roles]
    some = names[:: max(1, -(-len(names) // RECORDS_READ))]
    found = [r for r in store.read_records(some).values() if not isinstance(r, Damaged)]
    return sum(r["seconds"] for r in found) / len(found) if found else None
