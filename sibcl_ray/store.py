"""Results that outlive the process: named blobs and records on any fsspec file system, written atomically.

A name is a relative path. What is expensive is named by the fingerprint of everything that decides its
content, so looking a name up tells whether work is still to be done. Whatever is read is checked against
the checksum it was written with.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import os
import textwrap
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

import fsspec
import pyarrow.fs
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

VERSION = 1  # of the layout of a store; a store says which it has
VERSION_NAME = "sibcl_ray.json"
DRAFTS = "drafts"  # where local files are written before they get their names
DRAFTS_KEPT = 3600.0  # seconds; no write takes so long


class StoreError(OSError):
    """The storage does not take or give what was asked: full, read-only, gone. No fault of the work itself."""


class Damaged(Exception):
    """What lies under a name is not what was written there, with the reason."""


class NewerStore(ValueError):
    """The storage was written by a later version of this library."""


@dataclass(frozen=True)
class Store:
    """A folder on a local disk or in the cloud; ``uri`` is an absolute path or an fsspec URL.

    Whatever the file system cannot do raises `StoreError`; only a name that is not there raises
    FileNotFoundError.
    """

    uri: str

    @property
    def _location(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return _location(self.uri, os.getpid())

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return isinstance(self._location[0], LocalFileSystem)

    @property
    def is_distant(self) -> bool:
        """Whether whoever reads asks another machine, as for buckets in a cloud."""
        return not isinstance(self._location[0], (LocalFileSystem, MemoryFileSystem))

    def arrow(self) -> pyarrow.fs.FileSystem:
        """What `path` is a path on, for those who want Arrow's interface."""
        return pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(self._location[0]))

    def path(self, name: str) -> str:
        """Where ``name`` lies on the file system."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise ValueError(f"the name {name!r} leaves the store; use a relative path without '..'")
        return f"{self._location[1].rstrip('/')}/{name}"

    @contextmanager
    def _doing(self, what: str, name: str, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Turns whatever a file system raises, each its own, into StoreError; but what is wrong with the call."""
        passing = (*passing, ValueError, TypeError)
        try:
            yield
        except passing:
            raise
        except Exception as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise StoreError(f"{name} cannot be {what} in {self.uri}: {reason or type(error).__name__}") from error

    def exists(self, name: str) -> bool:
        """Whether ``name`` has been written, whole."""
        with self._doing("looked up", name):
            return self._location[0].exists(self.path(name))

    def read(self, name: str) -> bytes:
        """The bytes of ``name``; FileNotFoundError where there are none."""
        with self._doing("read", name, (FileNotFoundError,)):
            return self._location[0].cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write ``name`` whole or not at all, and so that it survives a loss of power; object stores do so anyway."""
        with self._doing("written", name):
            if self.is_local:
                self._publish(name, data, os.replace)
            else:
                self._location[0].pipe_file(self.path(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write ``name`` unless it is there; whether this call has written it. One of several callers wins.

        What they write must differ: a request whose answer is lost is sent again, and then finds what it has written.
        """
        with self._doing("written", name):
            try:
                if self.is_local:
                    self._publish(name, data, _give_new_name)
                else:
                    self._location[0].pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return not self.is_local and self._says(name, data)
        return True

    def _says(self, name: str, data: bytes) -> bool:
        with suppress(FileNotFoundError):
            return self.read(name) == data
        return False

    def _publish(self, name: str, data: bytes, give_name: Callable[[str, str], None]) -> None:
        path, draft = self.path(name), self.path(f"{DRAFTS}/{uuid.uuid4().hex}")
        for folder in (os.path.dirname(path), os.path.dirname(draft)):
            os.makedirs(folder, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            give_name(draft, path)
            _sync_folder(os.path.dirname(path))
        finally:
            with suppress(FileNotFoundError):
                os.unlink(draft)

    def names(self, folder: str) -> list[str]:
        """The names directly in ``folder``, sorted."""
        fs, root = self._location[0], self._location[1].rstrip("/") + "/"
        with self._doing("listed", folder):
            try:
                entries = fs.ls(self.path(folder), detail=False)
            except FileNotFoundError:
                return []
            return sorted(entry.split(root, 1)[1] for entry in entries)

    def move(self, source: str, target: str) -> None:
        """Rename a file, or a folder with all that is in it, if it is there."""
        fs, old, new = self._location[0], self.path(source), self.path(target)
        with self._doing("moved", source), suppress(FileNotFoundError):  # somebody else has moved it
            if not self.is_local:
                files = fs.find(old)
                fs.copy(files, [new + file[len(old) :] for file in files], on_error="raise")
                fs.rm(files)
            elif fs.exists(old):
                os.makedirs(os.path.dirname(new), exist_ok=True)
                os.rename(old, new)

    def remove(self, name: str) -> None:
        """Forget ``name``, if it is there."""
        with self._doing("removed", name), suppress(FileNotFoundError):
            self._location[0].rm_file(self.path(name))

    def clear(self, folder: str) -> None:
        """Forget all that is in a folder, if it is there."""
        with self._doing("removed", folder), suppress(FileNotFoundError):
            self._location[0].rm(self.path(folder), recursive=True)

    def set_aside(self, name: str) -> str:
        """Move what is damaged out of the way, keeping it; its new name."""
        target = f"aside/damaged/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}/{name}"
        self.move(name, target)
        return target

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The JSON record of that name, or None where there is none.

        Raises:
            Damaged: it is not what was written.
        """
        try:
            return _checked(name, self.read(name))
        except FileNotFoundError:
            return None

    def read_records(self, names: Sequence[str]) -> dict[str, dict[str, Any] | Damaged]:
        """The records that are there, by name, read side by side where the file system can.

        A damaged one is given as the exception that `read_record` would raise.
        """
        records: dict[str, dict[str, Any] | Damaged] = {}
        for name, data in self._read_all(names).items():
            try:
                records[name] = _checked(name, data)
            except Damaged as damage:
                records[name] = damage
        return records

    def _read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        found = {}
        if self.is_local or not names:
            for name in names:
                with suppress(FileNotFoundError):
                    found[name] = self.read(name)
            return found
        paths = {self.path(name): name for name in names}
        with self._doing("read", f"{len(names)} records"):
            for path, data in self._location[0].cat(list(paths), on_error="return").items():
                if isinstance(data, bytes):
                    found[paths[path]] = data
                elif not isinstance(data, FileNotFoundError):
                    raise data
        return found

    def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON record with its checksum, whole or not at all."""
        self.write(name, record_bytes(record))

    def open(self) -> None:
        """Prepare the store for use: check its version and that it takes what is written; clear forgotten drafts.

        Raises:
            NewerStore: a later version of this library has written it.
            StoreError: it cannot be written, or lets one writer replace what another has created.
        """
        trial = f"{DRAFTS}/{uuid.uuid4().hex}"
        self.write(trial, b"first")
        if self.create(trial, b"second"):
            raise StoreError(
                f"{self.uri} writes over what should only be created if it is not there, as some old S3-compatible "
                "servers do; two drivers could do the same work"
            )
        if self.is_local:
            self._clear_drafts(os.stat(self.path(trial)).st_mtime - DRAFTS_KEPT)
        self.remove(trial)
        try:
            there = self.read_record(VERSION_NAME)
        except Damaged:
            self.set_aside(VERSION_NAME)
            there = None
        if there is None:
            self.write_record(VERSION_NAME, {"version": VERSION})
        elif there.get("version", 0) > VERSION:
            raise NewerStore(
                f"the storage {self.uri} has version {there['version']} of the ledger and this sibcl_ray knows "
                f"{VERSION}; install a newer sibcl_ray, or give another storage"
            )

    def _clear_drafts(self, before: float) -> None:
        """Remove what writers that died have left, by the storage's own clock."""
        for name in self.names(DRAFTS):
            with suppress(FileNotFoundError):
                if os.stat(self.path(name)).st_mtime < before:
                    os.unlink(self.path(name))


@lru_cache
def _location(uri: str, process: int) -> tuple[fsspec.AbstractFileSystem, str]:
    """A file system has threads and connections of its own, which a forked process does not get along with."""
    return fsspec.url_to_fs(uri, use_listings_cache=False)  # others write here too


def record_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as it is stored: JSON with a checksum, under a key that the record must not have."""
    if "sha256" in record:
        raise ValueError("a record has a key 'sha256', which is that of its checksum; give it another name")
    return json.dumps({**record, "sha256": _digest(record)}, indent=1, allow_nan=False).encode()


def _give_new_name(draft: str, path: str) -> None:
    """Like a rename, but FileExistsError where there is something."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(draft, "rb") as source, open(path, "xb") as target:
            target.write(source.read())


def _sync_folder(folder: str) -> None:
    """Make a new name in a folder survive a loss of power, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _checked(name: str, data: bytes) -> dict[str, Any]:
    """A record, if it is what was written."""
    try:
        record = json.loads(data)
        digest = record.pop("sha256")
        whole = digest == _digest(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"{name} is not a record ({type(error).__name__})") from error
    if not whole:
        raise Damaged(f"{name} does not have the checksum it was written with")
    return record


def describe(value: Any) -> Any:
    """A configuration as plain JSON values; each dataclass says its type, so that no two are confused."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot name a result; use plain values")


def fingerprint(*values: Any) -> str:
    """The name, 16 hexadecimal digits, of whatever these values decide."""
    text = json.dumps([describe(v) for v in values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache
def code_version(code: tuple[ModuleType | Callable, ...]) -> str:
    """A name for what modules and functions compute: comments, docstrings and layout leave it unchanged."""
    return source_version(*(textwrap.dedent(inspect.getsource(part)) for part in code))


def source_version(*sources: str) -> str:
    """`code_version` of code that is given as text."""
    return fingerprint([ast.unparse(_without_docstrings(ast.parse(source))) for source in sources])


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body: Iterable[ast.stmt] | None = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
