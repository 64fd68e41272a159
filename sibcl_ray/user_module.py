"""A user's Python file as a module that is importable by its name in every process, wherever that runs.

The file is read once, with the modules beside it that it imports and the small files that it names. All of them are
unpacked into a folder of this user's on each machine, named by its content, and imported from there: so workers
elsewhere need no file, the pools of processes that a solver starts can import it, what is changed meanwhile changes
nothing, and no bytecode or cache is written beside the file. What else lies there is linked to, where it is seen.
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
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from sibcl_ray import guest
from sibcl_ray.folders import private_folder
from sibcl_ray.problems.problem import Problem
from sibcl_ray.reach import Sources
from sibcl_ray.store import fingerprint

PLACES = rb"__file__|__path__|__spec__|importlib|pkgutil|sys\.path"  # how a source asks where files are
LISTING = rb"listdir|iterdir|scandir|walk|glob"  # and which there are
DEEP = rb"walk|rglob|\*\*/"  # and in folders of folders
COMPILED = (*EXTENSION_SUFFIXES, ".pyc")
COMPUTED = r"%(?:\(\w+\))?[-+ #\d.]*[a-zA-Z]|\{[^}]*\}|\$\{?\w+\}?"  # parts of a text that are put in its place
DEPTH = 3  # folders below a folder that are looked at
IMPORTING = rb"import_module|__import__"  # how modules are imported by a text
ALL_MODULES = rb"iter_modules|walk_packages"  # how all of a package are found
LARGEST = 2**20  # bytes of what goes along with every job
NAMING = 2**16  # bytes up to which it is looked for names of others
WHOLE = 2**26  # bytes of a file of data that are looked at to name it
UNUSED = 3 * 86_400.0  # seconds after which an unpacked module that nobody has imported is removed
FOLDER = "sibcl_ray-modules"

_loading = threading.RLock()
_modules: dict[UserModule, ModuleType] = {}


@lru_cache(maxsize=8)
def _sources(module: UserModule) -> Sources:
    data = dict(module.data)  # programs in Python among them, which are not imported
    return Sources({path: content for path, content in module.files if path.endswith(".py") and path not in data}, data)


class TooLarge(ValueError):
    """More than should go along with every job; the text says how much."""


@dataclass(frozen=True)
class UserModule:
    """A module, and what it needs of what lies beside it."""

    file: str  # its name, as the user has it
    name: str  # by which it is imported
    files: tuple[tuple[str, bytes], ...]  # by path below the folder that is first in sys.path; the module's own first
    data: tuple[tuple[str, str], ...]  # path and checksum of the files that it names in a text
    origin: str  # that folder, on the machine where the files were read

    @property
    def sources(self) -> Sources:
        """Its code, to find out what decides what."""
        return _sources(self)

    def defines(self, kind: type) -> bool:
        """Whether the class is one of its code."""
        return kind.__module__ in self.sources.modules

    @property
    def version(self) -> int:
        """What named its labels before they were named by what decides them."""
        sources = [importlib.util.decode_source(content) for path, content in self.files if path.endswith(".py")]
        try:
            code = fingerprint([ast.unparse(_without_docstrings(ast.parse(source))) for source in sources])
        except (RecursionError, ValueError):  # of source so long, or of so long a number, that there was none
            code = fingerprint(sources)
        return int(fingerprint(code, list(self.data)) if self.data else code, 16)

    def module(self) -> ModuleType:
        """The module, imported once in a process; raises whatever it raises."""
        with _loading:
            if self not in _modules:
                root = self._unpacked()
                _forget_others(root.parent)
                guest.paths[:] = [str(root)]
                importlib.invalidate_caches()
                here = contextlib.chdir(root) if os.path.isdir(root) else contextlib.nullcontext()
                with guest.kept_apart(), here, self._unhidden():
                    if str(root) not in sys.path:  # in a process of its own it stays there, for those that it starts
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
        """Modules of this process with names of the user's are out of the way, but for Python's and installed ones."""
        tops = {PurePosixPath(path).parts[0].removesuffix(".py") for path, _ in self.files} - {"sibcl_ray"}
        hiding = [n for n, m in sys.modules.items() if n.partition(".")[0] in tops and not _is_installed(n, m)]
        away = {name: sys.modules.pop(name) for name in hiding}
        try:
            yield
        finally:
            sys.modules.update(away)

    def _unpacked(self) -> Path:
        """The folder, below one that is this user's alone, with all that belongs to the module."""
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
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_bytes(content)
        for folder in {PurePosixPath(path).parent for path, _ in self.files}:
            for beside in _beside(Path(self.origin) / folder):
                if not os.path.lexists(draft / folder / beside.name):
                    (draft / folder / beside.name).symlink_to(beside)
        try:
            draft.rename(root)
        except OSError:  # another process was first
            shutil.rmtree(draft, ignore_errors=True)
        return root


def classes(module: ModuleType) -> dict[str, type]:
    """The classes that a module defines, and problems that it has from another of the user's, by name."""
    kinds = {name: kind for name, kind in vars(module).items() if isinstance(kind, type)}
    own = {name: kind for name, kind in kinds.items() if kind.__module__ == module.__name__}
    return own | {name: kind for name, kind in kinds.items() if issubclass(kind, Problem) and guest.is_guest(kind)}


def _remade(module: UserModule, name: str, *arguments: Any) -> Any:
    """In whichever process: an object of a class in the module, still without its state."""
    kind = getattr(module.module(), name)
    return kind.__new__(kind, *arguments)


def _forget_others(place: Path) -> None:
    """Have no module that was imported from another user's file answer to a name."""
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


def _beside(folder: Path) -> Iterator[Path]:
    try:
        yield from (p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__pycache__")
    except OSError:
        return


def read(path: Path) -> UserModule:
    """The module of a file.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is no text.
        TooLarge: it, and what goes along with it, is larger than a page of Python.
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
    files, early, late, compiled = {own: content}, list[str](), list[str](), list[str]()
    waiting = [own, *((parent / "__init__.py").as_posix() for parent in (package, *package.parents) if levels)]
    while waiting:
        each = waiting.pop()
        if each not in files:
            if not (root / each).is_file():
                continue
            files[each] = (root / each).read_bytes()
        imported, at_once, later = _asks_for(files[each], each)
        dotted = [t for t in (*at_once, *later) if t.replace(".", "").isidentifier()]
        if re.search(IMPORTING, files[each]):
            imported += [t.lstrip(".") for t in dotted]
            imported += [f"{base}{t}" for t in dotted for base in dotted if t.startswith(".") and base != t]
        if re.search(ALL_MODULES, files[each]):
            packages = {*imported, ".".join(PurePosixPath(each).parent.parts)}
            found = [
                (name, p) for name in packages for p in _beside(root / name.replace(".", "/")) if p.suffix == ".py"
            ]
            imported += [f"{name}.{p.stem}".lstrip(".") for name, p in found]
        waiting += [path for name in imported for path in _found(root, name) if path not in files]
        compiled += [f"{name.replace('.', '/')}{end}" for name in imported for end in COMPILED]
        if "-m" in (*at_once, *later):  # a module as a program
            compiled += [f"{t.replace('.', '/')}.py" for t in dotted]
        if b"sys.path" in files[each]:  # whatever is put there has modules
            compiled += [f"{t}/{name.replace('.', '/')}.py" for t in (*at_once, *later) for name in imported]
        early, late = early + at_once, late + later
    # What functions name is written where they are called, if no source asks for a place.
    texts = early + late * any(re.search(PLACES, content) for content in files.values())
    folders = {PurePosixPath(each).parent for each in files}
    listed, deep = (any(re.search(how, content) for content in files.values()) for how in (LISTING, DEEP))
    named = {beside: root / beside for beside in _named(root, folders, texts, listed, deep) if beside not in files}
    named |= {beside: root / beside for beside in compiled if beside not in files and _is_file(root / beside)}
    for beside, where in sorted(named.items(), key=lambda item: item[1].stat().st_size):
        if sum(map(len, files.values())) + where.stat().st_size <= LARGEST:
            files[beside] = where.read_bytes()
    if (size := sum(map(len, files.values()))) > LARGEST:
        raise TooLarge(f"{path} and the modules that it imports have {size:,} bytes; {LARGEST:,} go with every job")
    data = tuple((beside, _checksum_with_named(root, beside)) for beside in sorted(named))
    name = ".".join((*package.parts, stem))
    return UserModule(path.name, name, tuple(files.items()), data, str(root))


def _levels(path: Path, content: bytes) -> int:
    """How many folders up its package begins."""
    levels = 0
    while (path.parents[levels] / "__init__.py").is_file() and levels < len(path.parents) - 1:
        levels += 1
    with suppress(SyntaxError, ValueError):
        relative = [node.level for node in ast.walk(ast.parse(content)) if isinstance(node, ast.ImportFrom)]
        levels = max(levels, *relative, 0)
    return min(levels, len(path.parents) - 1)


def _is_taken(stem: str, path: Path) -> bool:
    """Whether a module of Python, or one that is installed, has the name."""
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


def _asks_for(content: bytes, path: str) -> tuple[list[str], list[str], list[str]]:
    """The modules that a source imports, by full names, and the texts in it that could name files beside it.

    Of the texts first those that are read while it is imported. What is computed in one, as in ``f"table{n}.txt"``, is
    an asterisk.
    """
    try:
        tree = ast.parse(content) if path.endswith(".py") else ast.Module([], [])
    except (SyntaxError, ValueError):  # told when it is imported
        return [], [], []
    package = PurePosixPath(path).parent.parts
    names: list[str] = []
    early: list[str] = []
    late: list[str] = []
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(part) for function in functions for statement in function.body for part in ast.walk(statement)}
    called = {getattr(n.func, "id", "") for n in ast.walk(tree) if isinstance(n, ast.Call) and id(n) not in inside}
    at_once = {id(part) for function in functions if function.name in called for part in ast.walk(function)}
    for statement in tree.body:
        for node in ast.walk(statement):
            texts = late if id(node) in inside - at_once else early
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) - node.level + 1]] if node.level else []
                whole = ".".join([*base, *([node.module] if node.module else [])])
                names += [whole, *(f"{whole}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 200:
                texts.append(re.sub(COMPUTED, "*", node.value))
                texts += node.value.split() if len(node.value.split()) > 1 else []
            elif isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
                )
    return names, early, late


def _named(
    root: Path, folders: set[PurePosixPath], texts: list[str], listed: bool = False, deep: bool = False
) -> Iterator[str]:
    """The files that texts may name in one of the folders, or in one below that a text names, by path."""
    patterns = {each.removeprefix("./") for each in texts}
    patterns |= {text.removeprefix("*").lstrip("/") for text in patterns}
    patterns = {f"*{text}" if text.startswith(".") else text for text in patterns if text.strip("*./")}
    patterns = {text for text in patterns if not text.startswith("/") and ".." not in PurePosixPath(text).parts}
    below: set[PurePosixPath] = set()
    for _ in range(DEPTH):
        for folder in folders | below:
            below |= {
                PurePosixPath(_path(p, root))
                for text in patterns
                for p in _matches(root / folder, text)
                if _is_folder(p)
            }
    for folder in folders | below:
        whole = folder in below and (listed or "." in folder.name)  # as those of zarr
        levels = DEPTH if deep or (whole and not listed) else 0
        asked = [(text, levels if "*" in text else 0) for text in patterns] + [("*", levels)] * whole
        for text, depth in asked:
            for level in range(depth + 1):
                yield from (_path(p, root) for p in _matches(root / folder, "*/" * level + text) if _is_file(p))
        named_apart = (p for p in _beside(root / folder) if p.stem in patterns and p.suffix[1:] in patterns)
        yield from (_path(p, root) for p in named_apart if _is_file(p))


def _matches(folder: Path, pattern: str) -> list[Path]:
    if "*" not in pattern:
        return [folder / pattern]
    with suppress(OSError, ValueError):
        found = (p for p in folder.glob(pattern) if "__pycache__" not in p.parts)
        return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
    return []


def _path(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _checksum_with_named(root: Path, path: str, above: tuple[str, ...] = ()) -> str:
    """A checksum of a file, and of those that it names in turn."""
    its, where = _checksum(root / path), root / path
    if where.stat().st_size > NAMING or len(above) == DEPTH:
        return its
    words = re.findall(r"[\w./+-]+", where.read_bytes().decode(errors="ignore"))
    words += [f"{word.replace('.', '/')}.py" for word in words if path.endswith(".py")]
    others = set(_named(root, {PurePosixPath(path).parent, PurePosixPath()}, words)) - {path, *above}
    if not others:
        return its
    return fingerprint(its, *(_checksum_with_named(root, other, (*above, path)) for other in sorted(others)))


def _found(root: Path, name: str) -> Iterator[str]:
    """The files, below a folder, that importing a module of this full name runs."""
    parts = name.split(".") if name else []
    for end in range(1, len(parts) + 1):
        path = PurePosixPath(*parts[:end])
        yield from (p.as_posix() for p in (path.with_suffix(".py"), path / "__init__.py") if _is_file(root / p))


def _is_file(path: Path) -> bool:
    return _is_there(path, Path.is_file)


def _is_folder(path: Path) -> bool:
    return _is_there(path, Path.is_dir)


def _is_there(path: Path, is_kind: Callable[[Path], bool]) -> bool:
    try:
        return is_kind(path)
    except (OSError, ValueError):  # a text that is no name
        return False


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return tree


def _checksum(path: Path) -> str:
    """Of a file's content; of one that would take long, of its size and its ends."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode() + file.read(LARGEST))
        file.seek(-LARGEST, os.SEEK_END)
        digest.update(file.read())
        return digest.hexdigest()


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
