"""Results that outlive the process: named blobs and records in a folder or a bucket, written atomically.

A name is a relative path. What is expensive is named by the fingerprint of everything that decides its content, so
looking a name up tells whether work is still to be done.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from pyarrow.fs import FileSystem

from sibcl_ray.storage.folders import DRAFTS, Folder

if TYPE_CHECKING:
    from sibcl_ray.storage.buckets import Bucket

VERSION = 1  # of the layout of a store; a store says which it has
VERSION_NAME = "sibcl_ray.json"
CHANGES = ("written", "moved", "removed")
OPENING = 10.0  # seconds for which a bucket may fail at first
Warn = Callable[[str], None]


class StoreError(OSError):
    """The storage does not take or give what was asked: full, read-only, gone. No fault of the work itself."""


class Damaged(Exception):
    """What lies under a name is not what was written there, with the reason."""


class NewerStore(ValueError):
    """The storage was written by a later version of this library."""


@dataclass(frozen=True)
class Store:
    """A folder on a local disk or in the cloud. Failures of the storage raise `StoreError`."""

    uri: str  # an absolute path, or the URL of a place in a bucket
    patience: float = field(default=180.0, compare=False, repr=False)  # seconds for which a bucket may fail
    read_only: bool = field(default=False, compare=False, repr=False)  # it refuses to change anything

    @property
    def _place(self) -> Folder | Bucket:
        return _place(self.uri, self.patience, os.getpid())

    @property
    def is_local(self) -> bool:
        return isinstance(self._place, Folder)

    @property
    def is_distant(self) -> bool:
        """Whether reading needs another machine, as for buckets in a cloud."""
        return not (self.is_local or self.uri.startswith("memory:"))

    def arrow(self, name: str) -> tuple[FileSystem, str]:
        """A name for those who want Arrow's interface: a file system, and the path on it."""
        return self._place.arrow(_inside(name))

    def path(self, name: str) -> str:
        """Where ``name`` lies: an absolute path, or a URL."""
        return self._place.path(_inside(name))

    @contextmanager
    def _doing(self, what: str, name: str, *passing: type[Exception]) -> Iterator[Folder | Bucket]:
        """Turns the errors of a folder or bucket into StoreError, except those of a wrong call."""
        if self.read_only and what in CHANGES:
            raise StoreError(f"{name} cannot be {what} in {self.uri}: it was opened to be read only")
        _inside(name)
        passing += (ValueError, TypeError)
        try:
            yield self._place
        except passing:
            raise
        except Exception as error:
            raise StoreError(f"{name} cannot be {what} in {self.uri}: {_reason(error)}") from error

    def exists(self, name: str) -> bool:
        with self._doing("looked up", name) as place:
            return place.exists(name)

    def read(self, name: str) -> bytes:
        """The bytes of ``name``; FileNotFoundError where it is not there."""
        with self._doing("read", name, FileNotFoundError) as place:
            return place.read(name)

    def write(self, name: str, data: bytes) -> None:
        """Write ``name`` whole or not at all, and so that it survives a loss of power."""
        with self._doing("written", name) as place:
            place.write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        """Write ``name`` unless it is there; whether this call has written it. One of several callers wins.

        What they write must differ: a request whose answer is lost is sent again, and then finds what it has written.
        """
        with self._doing("written", name) as place:
            return place.create(name, data)

    def names(self, folder: str) -> list[str]:
        """The names directly in ``folder``, sorted; none where there is no such folder."""
        with self._doing("listed", folder) as place:
            return place.names(folder)

    def move(self, source: str, target: str) -> None:
        """Rename a file, or a folder with all that is in it, if it is there."""
        _inside(target)
        with self._doing("moved", source) as place, suppress(FileNotFoundError):  # another process has moved it
            place.move(source, target)

    def remove(self, name: str) -> None:
        """Forget ``name``, if it is there."""
        with self._doing("removed", name) as place, suppress(FileNotFoundError):
            place.remove(name)

    def clear(self, folder: str) -> None:
        """Forget all that is in a folder, if it is there."""
        with self._doing("removed", folder) as place, suppress(FileNotFoundError):
            place.clear(folder)

    def set_aside(self, name: str) -> str:
        """Move what is damaged out of the way, keeping it; its new name. In a store that is read only it stays."""
        if self.read_only:
            return name
        target = f"aside/damaged/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}/{name}"
        self.move(name, target)
        return target

    def set_aside_damaged(self, name: str, damage: Damaged, warn: Warn) -> None:
        """Do that with what will be made again, and say so."""
        warn(f"{damage}; it is kept as {self.set_aside(name)} and made again")

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The JSON record of that name, None where there is none; Damaged where it is not what was written."""
        try:
            return _decoded(name, self.read(name))
        except FileNotFoundError:
            return None

    def usable_record(self, name: str, warn: Warn = lambda text: None) -> dict[str, Any] | None:
        """The same, but a damaged one is set aside, of which ``warn`` is told, and counts as none."""
        try:
            return self.read_record(name)
        except Damaged as damage:
            self.set_aside_damaged(name, damage, warn)
            return None

    def read_records(self, names: Sequence[str], warn: Warn | None = None) -> dict[str, dict[str, Any]]:
        """The records that are there and not damaged, by name; with ``warn`` those that are damaged are set aside."""
        with self._doing("read", f"{len(names)} records") as place:
            found = place.read_all(names)
        records = {}
        for name, data in found.items():
            try:
                records[name] = _decoded(name, data)
            except Damaged as damage:
                if warn:
                    self.set_aside_damaged(name, damage, warn)
        return records

    def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON record with its checksum, whole or not at all."""
        self.write(name, record_bytes(record))

    def open(self, reading: bool = False) -> None:
        """Check that the store can be used, as far as that shows without writing if it is read only; clear old drafts.

        With ``reading`` it need not be one that could be written.

        Raises:
            NewerStore: a later version of this library has written it.
            StoreError: it cannot be written, or lets one writer replace what another has created.
        """
        quick = replace(self, patience=OPENING)
        if not self.read_only:
            quick._try_to_write()
        elif isinstance(self._place, Folder):
            self._place.check_permission(os.R_OK if reading else os.W_OK)
        else:
            quick.names(DRAFTS)  # which fails where there is no such bucket
        found = quick.usable_record(VERSION_NAME) or {}
        if not (found or self.read_only):
            quick.write_record(VERSION_NAME, {"version": VERSION})
        if (version := found.get("version", 0)) > VERSION:
            raise NewerStore(
                f"the storage {self.uri} has version {version} of the ledger and this sibcl_ray knows {VERSION}; "
                "install a newer sibcl_ray, or give another storage"
            )

    def _try_to_write(self) -> None:
        trial = f"{DRAFTS}/{uuid.uuid4().hex}"
        self.write(trial, b"first")
        if self.create(trial, b"second"):
            raise StoreError(
                f"{self.uri} writes over what should only be created if it is not there, as some old S3-compatible "
                "servers do; two drivers could do the same work"
            )
        if isinstance(self._place, Folder):
            self._place.clear_drafts(trial)
        self.remove(trial)


@lru_cache
def _place(uri: str, patience: float, process: int) -> Folder | Bucket:
    """Connections of its own are not for a forked process."""
    scheme, found, _ = uri.partition("://")
    if not found:
        return Folder(uri)
    from sibcl_ray.storage.buckets import SCHEMES, Bucket  # half a second that a folder does without

    if scheme not in SCHEMES:
        raise ValueError(
            f"{scheme}:// is no storage that can be used; give a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or "
            "az://CONTAINER/PREFIX"
        )
    return Bucket(uri, patience)


def _reason(error: Exception) -> str:
    """What went wrong, as the system or the server of a bucket says it, in a line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).partition("\n\nDebug source")[0]  # obstore's
    told = re.search(r"<Message>(.*?)[\n<]", text)
    return told[1] if told else text.strip().partition("\n")[0] or type(error).__name__


def _inside(name: str) -> str:
    """The name; ValueError where it is none in a store."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise ValueError(f"the name {name!r} leaves the store; use a relative path without '..'")
    return name


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as it is stored: JSON with a checksum, under a key that the record must not have."""
    if "sha256" in record:
        raise ValueError("a record has a key 'sha256', which is that of its checksum; give it another name")
    return json.dumps({**record, "sha256": _digest(record)}, indent=1, allow_nan=False).encode()


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _decoded(name: str, data: bytes) -> dict[str, Any]:
    """A record; Damaged where it is not what was written."""
    try:
        record = json.loads(data)
        whole = record.pop("sha256") == _digest(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{name} is not a record ({type(error).__name__})") from error
    if not whole:
        raise Damaged(f"{name} does not have the checksum it was written with")
    return record
