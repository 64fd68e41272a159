"""The data of a study: named Parquet shards, nested label budgets and the folds inside a budget.

A dataset is a problem and a seed; each kind of its data is named by the code that decides it (see `versions`). A shard
is fixed by that, the seed, its role and its number alone, so more shards, or more machines, change no byte of the
others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import safetensors.numpy
import torch
from torch import Tensor

from sibcl_ray.data.definitions import deciding, version_of
from sibcl_ray.data.shard_files import decode, encode
from sibcl_ray.data.versions import SECONDS, Kind, LabelsChanged, Line, Versions
from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import Problem, Sample
from sibcl_ray.randomness import named_seed
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.node_cache import read_once
from sibcl_ray.storage.store import Damaged, Store, StoreError

READERS = 16  # requests to a distant store at a time
CHECKED = "checked"  # the name of a record
T = TypeVar("T")
SHARD = 50  # samples of a shard, if they are no target labels; the last one of a finite role may hold fewer


@dataclass(frozen=True)
class Role:
    """What a part of the data is for. ``surrogate`` inputs come from the cheap family."""

    name: str
    labelled: bool
    kind: Kind
    surrogate: bool = False


LABELS = Kind("labels", ("sample", "solve"), ("target", "test"))
CHEAP = Kind("surrogate", ("sample_surrogate", "solve_surrogate"), ("surrogate",))
INPUTS = Kind("unlabelled", ("sample",), ("unlabelled",))
TARGET = Role("target", True, LABELS)  # the pool of expensive labels; budget n is its first n
SURROGATE = Role("surrogate", True, CHEAP, surrogate=True)
UNLABELLED = Role("unlabelled", False, INPUTS)
TEST = Role("test", True, LABELS)  # read by evaluate.py and by nothing else
ROLES = (SURROGATE, TARGET, TEST, UNLABELLED)


@dataclass(frozen=True)
class Split:
    """Inputs (count, *input_shape), float32, and, where there are any, labels (count, *label_shape).

    Labels are float32, or float64 where they were given so: far from zero a difference may be lost in float32.
    """

    inputs: Tensor
    labels: Tensor | None
    estimates: Tensor | None = None  # of the labels, where they are asked for

    def rows(self, which: Tensor) -> Split:
        labels, estimates = (t if t is None else t[which] for t in (self.labels, self.estimates))
        return Split(self.inputs[which], labels, estimates)


class Shard(NamedTuple):
    """One shard, by what it is for and its number."""

    role: Role
    index: int  # type: ignore[assignment]  # not the method of tuples


@dataclass(frozen=True)
class Dataset:
    """The shards of one problem drawn from one seed."""

    problem: Problem
    seed: int
    store: Store
    _lines: dict[Kind, Line] = field(default_factory=dict, init=False, repr=False, compare=False)

    def line(self, role: Role) -> Line:
        """Where a role's shards are, and what they are named by."""
        if role.kind not in self._lines:
            size = self.problem.labels_per_task if role.kind == LABELS else SHARD
            self._lines[role.kind] = self._versions(role).line(size)
        return self._lines[role.kind]

    def _versions(self, role: Role) -> Versions:
        return Versions(self.problem, self.seed, self.store, role.kind)

    def settle(
        self, roles: Iterable[Role], labels: str | None = None, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        """Find out which stored data the problem's code goes on with, and record it.

        Args:
            roles: those that are needed.
            labels: what is to become of labels that other code has made: ``keep`` them and make what is missing by the
                new code, or make all ``new``, and leave those alone.
            tell: is told once of labels that an older version of this library has left.

        Raises:
            LabelsChanged: there are such labels, and nothing was said; in one line, with what changed.
        """
        needed = {role.kind: role for role in roles}
        found = {role: self._versions(role).change(self.line(role)) for role in needed.values()}
        changes = {role: change for role, change in found.items() if change is not None}
        asked = [change for role, change in changes.items() if role.labelled]
        if asked and labels is None:
            raise LabelsChanged(
                f"{asked[0].what} of {self.problem.name} changed since {', and '.join(map(str, asked))} were made; "
                "--labels keep uses them and makes what is missing by the new code, --labels new makes all anew and "
                "keeps the old ones"
            )
        for role, change in changes.items():
            if labels == "keep":
                self._lines[role.kind] = change.kept(self.line(role))
                self._check_shapes(role)
            else:
                self._lines[role.kind] = self._versions(role).anew(change, self.line(role))
        if self.store.read_only:
            return
        begun = [role for role in found if self._versions(role).begin(self.line(role), role in changes)]
        if any(self.line(role).is_old for role in begun):
            tell(
                f"labels of {self.problem.name} that an older sibcl_ray has made are used; what it has learned from "
                "them is not, and is made anew"
            )

    def _check_shapes(self, role: Role) -> None:
        split = self.read_shard(*next(shard for shard in self.stored() if shard.role.kind == role.kind))
        there = split.inputs.shape[1:], None if split.labels is None else split.labels.shape[1:]
        label_shape = None if split.labels is None else torch.Size(self.problem.label_shape)
        now = torch.Size(self.problem.input_shape), label_shape
        if there != now:
            raise LabelsChanged(
                f"the {role.name} inputs and labels that are stored have shapes {there}, and now they have {now}, so "
                "they cannot be kept; give --labels new"
            )

    def named(self, *roles: Role) -> str:
        """A name of the content of all shards of these roles."""
        return fingerprint([self.line(role).name for role in roles])

    def size(self, role: Role) -> int:
        """Samples that a shard of the role holds."""
        return self.line(role).size

    def shards_for(self, role: Role, count: int) -> int:
        """How many shards hold ``count`` samples."""
        return -(-count // self.size(role))

    def shard_name(self, role: Role, index: int, ending: str = ".parquet") -> str:
        """The name in the store of a shard, or of what lies beside it."""
        return f"{self.line(role).folder}/{role.name}-{index:05d}{ending}"

    def rng(self, role: Role, index: int) -> np.random.Generator:
        """The generator of everything random in a shard."""
        return np.random.default_rng(named_seed(self.seed, role.name, index))

    def write(
        self, role: Role, index: int, sample: Sample, labels: np.ndarray | None, redrawn: Sequence[str] = ()
    ) -> None:
        """Store a shard; its Parquet metadata say what the numbers are, and why inputs were drawn anew."""
        arrays = {"input": sample.inputs, **sample.parameters, **({} if labels is None else {"label": labels})}
        problem, line = self.problem, self.line(role)
        about: dict[str, Any] = {
            "fingerprint": line.fingerprint,
            "version": line.version,
            "role": role.name,
            "shard": index,
            "seed": self.seed,
            "problem": repr(problem),
            "units": {"input": problem.input_units, "label": problem.label_units},
            "parameters": sorted(sample.parameters),
            "redrawn": list(redrawn),
        }
        self.store.write(self.shard_name(role, index), encode(arrays, about))

    def record_seconds(self, role: Role, index: int, seconds: float) -> None:
        """Store how long a shard's labels took, in seconds of one core: beside it, as its bytes do not depend on it."""
        self.store.write_record(self.shard_name(role, index, SECONDS), {"seconds": seconds})

    def label_seconds(self, surrogate: bool = False) -> float | None:
        """Seconds of one core that a label took, the target's or the surrogate's; None if none is recorded."""
        role = SURROGATE if surrogate else TARGET
        seconds = self._versions(role).seconds(self.line(role))
        return seconds and seconds / self.size(role)

    def stored(self) -> list[Shard]:
        """The shards that there are, whole or damaged, by role and number."""
        return [
            Shard(role, int(found[1]))
            for role in ROLES
            for name in self.store.names(self.line(role).folder)
            if (found := re.fullmatch(rf".*/{role.name}-(\d{{5,}})\.parquet", name))
        ]

    def is_checked(self) -> bool:
        """Whether the shards that there are have been compared with each other, and their labels looked at."""
        return self.store.usable_record(f"{self.line(TARGET).folder}/{CHECKED}") == self._all()

    def note_checked(self) -> None:
        self.store.write_record(f"{self.line(TARGET).folder}/{CHECKED}", self._all())

    def _all(self) -> dict[str, str]:
        return {"shards": fingerprint([self.shard_name(*shard) for shard in self.stored()])}

    def read_shard(self, role: Role, index: int) -> Split:
        """One shard, checked; Damaged where it is not what was written, FileNotFoundError if absent."""
        return self._checked(role, index, self.store.read(self.shard_name(role, index)))

    def _checked(self, role: Role, index: int, data: bytes) -> Split:
        name = self.shard_name(role, index)
        try:
            about, columns, whole = decode(data, ("input", "label")[: 1 + role.labelled])
            found = (about["fingerprint"], about["role"], about["shard"])
        except Exception as error:  # Parquet's footer has no checksum, so damage in it can raise anything
            raise Damaged(f"{name} cannot be read: {one_line(error)}") from error
        expected = (self.line(role).fingerprint, role.name, index)
        if not whole or found != expected:
            raise Damaged(f"{name} is not what was written there (it says {found})")
        return Split(columns["input"], columns.get("label"))

    def holds(self, shard: Shard, warn: Callable[[str], None]) -> bool:
        """Whether a shard is there as it was written; a damaged one is set aside."""
        try:
            self.read_shard(*shard)
        except FileNotFoundError:
            return False
        except Damaged as damage:
            self.store.set_aside_damaged(self.shard_name(*shard), damage, warn)
            return False
        return True

    def missing(self, sizes: Mapping[Role, int], warn: Callable[[str], None] = print) -> list[Shard]:
        """The shards that ``sizes``, samples per role, needs and the store does not hold.

        Those on a local disk must be intact; of a distant store only the names are looked at.
        """
        if self.store.is_distant:
            return self._unnamed(sizes, self.shard_name)
        return [shard for shard in self._wanted(sizes) if not self.holds(shard, warn)]

    def estimate_name(self, role: Role, index: int) -> str:
        return self.shard_name(role, index, f".{version_of(deciding(self.problem, 'estimate'))}.estimates")

    def write_estimates(self, role: Role, index: int, estimates: np.ndarray) -> None:
        """Store estimates of a shard's labels beside it."""
        content = safetensors.numpy.save({"estimates": np.ascontiguousarray(estimates)})
        self.store.write(self.estimate_name(role, index), hashlib.sha256(content).digest() + content)

    def missing_estimates(self, sizes: Mapping[Role, int]) -> list[Shard]:
        """The shards that ``sizes`` needs and that have no estimates."""
        return self._unnamed(sizes, self.estimate_name)

    def _wanted(self, sizes: Mapping[Role, int]) -> list[Shard]:
        return [Shard(role, index) for role, count in sizes.items() for index in range(self.shards_for(role, count))]

    def _unnamed(self, sizes: Mapping[Role, int], name: Callable[[Role, int], str]) -> list[Shard]:
        """The shards that are wanted, and of which the store has no file of that name."""
        there = {n for folder in {self.line(role).folder for role in sizes} for n in self.store.names(folder)}
        return [shard for shard in self._wanted(sizes) if name(*shard) not in there]

    @lru_cache(maxsize=16)  # noqa: B019  # equal data sets share it
    def read(self, role: Role, count: int, estimated: bool = False) -> Split:
        """The first ``count`` samples of a role, with estimates if asked; kept in memory for the next call.

        Raises:
            StoreError: a shard is damaged, and has been set aside, or is gone. The next run makes it anew.
        """
        if not count:
            nothing = [torch.zeros(0, *shape) for shape in (self.problem.input_shape, self.problem.label_shape)]
            return Split(nothing[0], nothing[1] if role.labelled else None)

        def shard(index: int) -> Split:
            return self._from_node(self.shard_name(role, index), partial(self._checked, role, index))

        def estimates_of(index: int) -> Tensor:
            return self._from_node(self.estimate_name(role, index), _checked_estimates)

        with ThreadPoolExecutor(READERS if self.store.is_distant else 1) as readers:
            indices = range(self.shards_for(role, count))
            shards = list(readers.map(shard, indices))
            estimates = list(readers.map(estimates_of, indices)) if estimated else []
        inputs = torch.cat([s.inputs for s in shards])[:count]
        if len(inputs) < count:
            raise ValueError(f"there are {len(inputs)} {role.name} samples and {count} were asked for; ask for fewer")
        labels = torch.cat([s.labels for s in shards if s.labels is not None])[:count] if role.labelled else None
        return Split(inputs, labels, torch.cat(estimates)[:count] if estimated else None)

    def _from_node(self, name: str, check: Callable[[bytes], T]) -> T:
        """What has to be there, from this node's disk if one of its processes has read it before."""
        try:
            return read_once(self.store, name, check)
        except Damaged as damage:
            raise StoreError(f"{damage}; it is kept as {self.store.set_aside(name)}, to be made again") from damage
        except FileNotFoundError as error:
            raise StoreError(f"{name} is no longer in {self.store.uri}, and is to be made again") from error


def _checked_estimates(data: bytes) -> Tensor:
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        raise Damaged("estimates are not what was written")
    return torch.from_numpy(safetensors.numpy.load(data[32:])["estimates"].copy())


def folds(count: int, number: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Cross-validation inside a budget: ``number`` pairs of (fitted, held-out) indices of ``count`` labels."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    parts = [order[i::number] for i in range(number)]
    return [(torch.cat(parts[:i] + parts[i + 1 :]), held_out) for i, held_out in enumerate(parts)]
