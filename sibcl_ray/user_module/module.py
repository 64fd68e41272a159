"""A user's Python file as a module that every process on every machine can import by its name.

The file is read once, with the modules beside it that it imports and the small files that it names. On each machine all
of them are unpacked into a private folder, named by their content, and imported from there: so workers on other
machines need no file, process pools that a solver starts can import it, later edits have no effect, and no bytecode or
cache is written beside the file. Other files beside it are linked to, on machines where they exist.
"""

from __future__ import annotations

import ast
import contextlib
import copyreg
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from sibcl_ray import isolation
from sibcl_ray.problems.problem import Problem
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.folders import private_folder
from sibcl_ray.user_module import files as its_files
from sibcl_ray.user_module.dependencies import Sources
from sibcl_ray.user_module.files import LARGEST, TooLarge, visible

UNUSED = 3 * 86_400.0  # seconds after which an unpacked module that was not imported is removed
FOLDER = "sibcl_ray-modules"

_loading = threading.RLock()
_modules: dict[UserModule, ModuleType] = {}


@dataclass(frozen=True)
class UserModule:
    """A module, and the files beside it that it needs."""

    file: str  # the name of the user's file
    name: str  # by which it is imported
    files: tuple[tuple[str, bytes], ...]  # by path below the folder that is first in sys.path; the module's own first
    data: tuple[tuple[str, str], ...]  # path and checksum of the files that a string of it names
    origin: str  # that folder, on the machine where the files were read

    @property
    @lru_cache(maxsize=8)  # noqa: B019
    def sources(self) -> Sources:
        """Its code, to find what methods depend on."""
        data = dict(self.data)  # also of Python files that are not imported
        code = {path: content for path, content in self.files if path.endswith(".py") and path not in data}
        return Sources(code, data)

    def defines(self, kind: type) -> bool:
        """Whether the class is defined in its code."""
        return kind.__module__ in self.sources.modules

    @property
    def version(self) -> int:
        """A number for all of its code and data, which named labels in earlier versions of this library."""
        contents = [content for path, content in self.files if path.endswith(".py")]
        try:
            code = fingerprint([ast.unparse(_without_docstrings(ast.parse(content))) for content in contents])
        except (RecursionError, SyntaxError, ValueError):  # a very deep expression, a very long number, or Python 2
            code = fingerprint([_decoded(content) for content in contents])
        return int(fingerprint(code, list(self.data)) if self.data else code, 16)

    def module(self) -> ModuleType:
        """The module, imported once in a process; its errors are not caught."""
        with _loading:
            if self not in _modules:
                root = self._unpacked()
                _forget_others(root.parent)
                isolation.paths[:] = [str(root)]
                importlib.invalidate_caches()
                here = contextlib.chdir(root) if os.path.isdir(root) else contextlib.nullcontext()
                with isolation.state_restored(), here, self._unhidden():
                    if str(root) not in sys.path:  # in a sandbox it stays there, for the processes that it starts
                        sys.path.insert(0, str(root))
                    module = importlib.import_module(self.name)
                for name, kind in classes(module).items():
                    if issubclass(kind, Problem):
                        kind.version, kind.source = self.version, self
                    if kind.__reduce__ is object.__reduce__ and kind.__reduce_ex__ is object.__reduce_ex__:
                        copyreg.pickle(kind, partial(self._reduce, name))
                _modules[self] = module
            return _modules[self]

    def _reduce(self, name: str, thing: Any) -> tuple:
        reduced: Any = object.__reduce_ex__(thing, 2)
        _, (_, *arguments), *state = reduced
        return _remade, (self, name, *arguments), *state

    @contextlib.contextmanager
    def _unhidden(self) -> Iterator[None]:
        """Meanwhile no module of this process, but Python's and installed ones, hides a module of the user's."""
        tops = {PurePosixPath(path).parts[0].removesuffix(".py") for path, _ in self.files} - {"sibcl_ray"}
        hiding = [n for n, m in sys.modules.items() if n.partition(".")[0] in tops and not _is_installed(n, m)]
        away = {name: sys.modules.pop(name) for name in hiding}
        try:
            yield
        finally:
            sys.modules.update(away)

    def _unpacked(self) -> Path:
        """A private folder with all files of the module."""
        place = private_folder(Path(tempfile.gettempdir()), FOLDER)
        root = place / hashlib.sha256(repr(self).encode()).hexdigest()[:16]
        if root.is_dir():
            os.utime(root)
            return root
        for old in place.iterdir():
            with suppress(OSError):
                if old.stat().st_mtime < time.time() - UNUSED:
                    shutil.rmtree(old, ignore_errors=True)
        draft = place / f"{uuid.uuid4().hex}.draft"
        for path, content in self.files:
            if not (os.path.isabs(path) and os.path.exists(path)):  # the user's own file is never written to
                (draft / path).parent.mkdir(parents=True, exist_ok=True)
                (draft / path).write_bytes(content)
        for folder in {PurePosixPath(path).parent for path, _ in self.files}:
            for each in visible(Path(self.origin) / folder):
                if not os.path.lexists(draft / folder / each.name):
                    (draft / folder / each.name).symlink_to(each)
        try:
            draft.rename(root)
        except OSError:  # another process was first
            shutil.rmtree(draft, ignore_errors=True)
        return root


def classes(module: ModuleType) -> dict[str, type]:
    """The classes that a module defines, and problems that it imports from another of the user's, by name."""
    kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    own = {name: kind for name, kind in kinds.items() if kind.__module__ == module.__name__}
    return own | {name: kind for name, kind in kinds.items() if issubclass(kind, Problem) and isolation.is_guest(kind)}


def _remade(module: UserModule, name: str, *arguments: Any) -> Any:
    """An unpickled object of a class in the module, still without its state."""
    kind = getattr(module.module(), name)
    return kind.__new__(kind, *arguments)


def _forget_others(place: Path) -> None:
    """Remove modules of other user files, which are unpacked in the same place, from those imported."""
    for name, module in list(sys.modules.items()):
        if any(where.startswith(f"{place}{os.sep}") for where in _places(module)):
            del sys.modules[name]


def _is_installed(name: str, module: ModuleType) -> bool:
    places = _places(module)
    return (
        name.partition(".")[0] in sys.stdlib_module_names or any("-packages" in place for place in places) or not places
    )


def _places(module: ModuleType) -> list[str]:
    """Where the module's file is, or where the folders of a package without one are."""
    file = getattr(module, "__file__", None)
    return [file] if file else list(map(str, getattr(module, "__path__", ())))


def read(path: Path) -> UserModule:
    """The module of a file.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is no text.
        TooLarge: it is too large to be sent with every job.
    """
    path = path.absolute()
    content = path.read_bytes()
    if len(content) > LARGEST:
        raise TooLarge(f"{path} has more than {LARGEST:,} bytes; a problem is a page of Python, so keep data out")
    importlib.util.decode_source(content)
    levels = _levels(path, content)
    root, package = path.parents[levels], path.parent.relative_to(path.parents[levels])
    stem = re.sub(r"\W", "_", path.stem)
    if stem != path.stem or (not levels and _is_taken(stem, path)):
        stem = f"own_{stem}"
    own = (package / f"{stem}.py").as_posix()
    packages = ((parent / "__init__.py").as_posix() for parent in (package, *package.parents) if levels)
    files, data = its_files.collect(root, own, content, packages)
    name = ".".join((*package.parts, stem))
    return UserModule(path.name, name, tuple(files.items()), tuple(data.items()), str(root))


def _levels(path: Path, content: bytes) -> int:
    """How many folders above the file are packages."""
    levels = 0
    while (path.parents[levels] / "__init__.py").is_file() and levels < len(path.parents) - 1:
        levels += 1
    with suppress(SyntaxError, ValueError):
        relative = [node.level for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ImportFrom)]
        levels = max(levels, *relative, 0)
    return min(levels, len(path.parents) - 1)


def _is_taken(stem: str, path: Path) -> bool:
    """Whether a module of Python's, or another one that can be imported, has the name."""
    if stem in sys.stdlib_module_names:
        return True
    there = _places(sys.modules[stem]) if stem in sys.modules else []
    if not there:
        try:
            spec = importlib.util.find_spec(stem)
        except (ImportError, ValueError):
            return False
        there = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    others = (place for place in there if f"{os.sep}{FOLDER}-" not in place)
    return any(not (os.path.exists(place) and os.path.samefile(place, path)) for place in others)


def _decoded(content: bytes) -> str:
    with suppress(SyntaxError, UnicodeDecodeError):
        return importlib.util.decode_source(content)
    return content.decode("latin-1")


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def line_of(error: BaseException, module: UserModule) -> str:
    """` in line 12`, or nothing: where in the module's own file an exception came from."""
    own = f"{os.sep}{module.files[0][0]}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.endswith(own) and f"{os.sep}{FOLDER}-" in frame.filename
    ]
    if isinstance(error, SyntaxError) and (error.filename or "").endswith(own):
        lines.append(error.lineno)
    return f" in line {lines[-1]}" if lines else ""
