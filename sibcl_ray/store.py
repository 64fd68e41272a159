"""Results that outlive the process: named blobs and records on any fsspec file system, written atomically.

A name is a relative path. What is expensive is named by the fingerprint of everything that decides its
content, so looking a name up tells whether work is still to be done.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import inspect
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


@dataclass(frozen=True)
class Store:
    """A folder on a local disk or in the cloud; ``uri`` is an absolute path or an fsspec URL."""

    uri: str

    @cached_property
    def _location(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return fsspec.url_to_fs(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine."""
        return isinstance(self._location[0], LocalFileSystem)

    def path(self, name: str) -> str:
        """Where ``name`` lies on the file system."""
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise ValueError(f"the name {name!r} leaves the store; use a relative path without '..'")
        return f"{self._location[1].rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether ``name`` has been written, whole."""
        return self._location[0].exists(self.path(name))

    def read(self, name: str) -> bytes:
        """The bytes of ``name``; FileNotFoundError where there are none."""
        return self._location[0].cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write ``name`` whole or not at all. Object stores do so by themselves."""
        fs, path = self._location[0], self.path(name)
        if not self.is_local:
            fs.pipe_file(path, data)
            return
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        draft = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            fs.pipe_file(draft, data)
            fs.mv(draft, path)
        except BaseException:
            if fs.exists(draft):
                fs.rm_file(draft)
            raise

    def names(self, folder: str) -> list[str]:
        """The names directly in ``folder``, sorted."""
        fs, root = self._location[0], self._location[1].rstrip("/") + "/"
        if not fs.exists(self.path(folder)):
            return []
        found = (entry.split(root, 1)[1] for entry in fs.ls(self.path(folder), detail=False))
        return sorted(name for name in found if not name.endswith(".tmp"))

    def move(self, source: str, target: str) -> None:
        """Rename a file, or a folder with all that is in it, if it is there."""
        fs = self._location[0]
        if fs.exists(self.path(source)):
            if self.is_local:
                fs.makedirs(self.path(target).rsplit("/", 1)[0], exist_ok=True)
            fs.mv(self.path(source), self.path(target), recursive=True)

    def remove(self, name: str) -> None:
        """Forget ``name``."""
        self._location[0].rm_file(self.path(name))

    def read_record(self, name: str) -> dict[str, Any] | None:
        """The JSON record of that name, or None where there is none."""
        return json.loads(self.read(name)) if self.exists(name) else None

    def write_record(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a JSON record, whole or not at all."""
        self.write(name, json.dumps(record, indent=1, allow_nan=False).encode())


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
def code_version(modules: tuple[ModuleType, ...]) -> str:
    """A name for what the modules compute: comments, docstrings and layout leave it unchanged."""
    return fingerprint([ast.unparse(_without_docstrings(ast.parse(inspect.getsource(m)))) for m in modules])


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body: Iterable[ast.stmt] | None = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree
