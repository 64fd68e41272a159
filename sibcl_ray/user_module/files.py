"""What belongs to a user's Python file: the modules beside it that it imports, and the files that it names.

Nothing is run. What a source computes, such as a part of a file's name, may be anything.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from importlib.machinery import EXTENSION_SUFFIXES
from os.path import isdir, isfile
from pathlib import Path, PurePath

from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.store import VERSION_NAME
from sibcl_ray.user_module import syntax

PLACES = rb"__file__|__path__|__spec__|importlib|pkgutil|sys\.path"  # how a source asks where files are
LISTING = rb"listdir|iterdir|scandir|\bwalk\(|glob"  # and which there are
DEEP = rb"\bwalk\(|rglob|\*\*/"  # and in folders of folders
COMPILED = (*EXTENSION_SUFFIXES, ".pyc")
COMPUTED = r"%(?:\(\w+\))?[-+ #\d.]*[a-zA-Z]|\{[^}]*\}|\$\{?\w+\}?"  # parts of a text that are put in its place
DEPTH = 3  # folders below a folder that are looked at
IMPORTING = rb"import_module|__import__"  # how modules are imported by a text
ALL_MODULES = rb"iter_modules|walk_packages"  # how all of a package are found
LARGEST = 2**20  # bytes of what goes along with every job
NAMING = 2**16  # bytes up to which it is looked for names of others
WHOLE = 2**26  # bytes of a file of data that are looked at to name it
NUMBER = r"[-+\d.]+(?:[eE][-+]?\d+)?"


class TooLarge(ValueError):
    """More than should go along with every job; the text says how much."""


def collect(root: Path, own: str, content: bytes, packages: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """What belongs to a file.

    Args:
        root: the folder that modules are imported from.
        own, content: of the file; its path is below that folder, as all others.
        packages: files that are run with it.

    Returns:
        Files by path, the sources first, as far as they go with every job; and checksums of the files of data by path.

    Raises:
        TooLarge: the sources are larger than a page of Python.
    """
    files, early, late, others = {own: content}, list[str](), list[str](), list[str]()
    waiting = [own, *packages]
    while waiting:
        each = waiting.pop()
        if each not in files:
            if not isfile(root / each):
                continue
            files[each] = (root / each).read_bytes()
        imported, at_once, later = _asks_for(files[each], each)
        early, late = early + at_once, late + later
        names, programs = _by_text(root, each, files[each], imported, [*at_once, *later])
        waiting += [path for name in (*imported, *names) for path in _run_by(name) if path not in files]
        others += [f"{name.replace('.', '/')}{end}" for name in imported for end in COMPILED] + programs
    # What functions name is written where they are called, if no source asks for a place.
    texts = early + late * _any(PLACES, files)
    folders = {PurePath(each).parent for each in files}
    named = {*_named(root, folders, texts, _any(LISTING, files), _any(DEEP, files)), *others} - files.keys()
    named = {path for path in named if isfile(root / path)}
    if (size := sum(map(len, files.values()))) > LARGEST:
        raise TooLarge(
            f"{root / own} and the modules that it imports have {size:,} bytes; {LARGEST:,} go with every job"
        )
    checksums: dict[str, str] = {}
    for path in sorted(named):
        _sum_up(root, path, checksums, files.keys())
    for path in sorted(checksums.keys() - files.keys(), key=lambda path: (root / path).stat().st_size):
        if sum(map(len, files.values())) + (root / path).stat().st_size <= LARGEST:
            files[path] = (root / path).read_bytes()
    return files, dict(sorted(checksums.items()))


def _any(pattern: bytes, files: dict[str, bytes]) -> bool:
    return any(re.search(pattern, content) for content in files.values())


def _by_text(
    root: Path, path: str, content: bytes, imported: list[str], texts: list[str]
) -> tuple[list[str], list[str]]:
    """Modules that a source may import by a text, and Python files that it may use in other ways."""
    names: list[str] = []
    programs: list[str] = []
    dotted = [text for text in texts if text.replace(".", "").isidentifier()]
    if re.search(IMPORTING, content):
        names += [text.lstrip(".") for text in dotted]
        names += [f"{base}{text}" for text in dotted for base in dotted if text.startswith(".") and base != text]
    if re.search(ALL_MODULES, content):
        packages = {*imported, ".".join(PurePath(path).parent.parts)}
        its = [(name, each) for name in packages for each in beside(root / name.replace(".", "/"))]
        names += [f"{name}.{each.stem}".lstrip(".") for name, each in its if each.suffix == ".py"]
    if "-m" in texts:  # a module as a program
        programs += [f"{text.replace('.', '/')}.py" for text in dotted]
    if b"sys.path" in content:  # any folder put there has modules
        programs += [f"{text}/{name.replace('.', '/')}.py" for text in texts for name in imported]
    return names, programs


def _asks_for(content: bytes, path: str) -> tuple[list[str], list[str], list[str]]:
    """The modules that a source imports, by full names, and the texts in it that could name files beside it.

    Of the texts first those that are read while it is imported. What is computed in one, as in ``f"table{n}.txt"``, is
    an asterisk.
    """
    try:
        tree = ast.parse(content) if path.endswith(".py") else ast.Module([], [])
    except (SyntaxError, ValueError):  # told when it is imported
        return [], [], []
    package = PurePath(path).parent.parts
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
                module = syntax.module_of(node, package)
                names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 200:
                texts.append(re.sub(COMPUTED, "*", node.value))
                texts += node.value.split() if len(node.value.split()) > 1 else []
            elif isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
                texts.append("".join(parts))
    return names, early, late


def _named(
    root: Path, folders: Collection[PurePath], texts: Iterable[str], listed: bool = False, deep: bool = False
) -> Iterator[str]:
    """The files that texts may name in one of the folders, or in one below that a text names, by path."""
    patterns = {each.removeprefix("./") for each in texts}
    patterns |= {text.removeprefix("*").lstrip("/") for text in patterns}
    patterns = {f"*{text}" if text.startswith(".") else text for text in patterns if text.strip("*./")}
    patterns = {text for text in patterns if not text.startswith("/") and ".." not in PurePath(text).parts}
    below: set[PurePath] = set()
    for _ in range(DEPTH):
        for folder in {*folders, *below}:
            below.update(path for text in patterns for path in _matches(root, folder, text, isdir))
    for folder in {*folders, *below}:
        whole = folder in below and (listed or "." in folder.name)  # as those of zarr
        levels = DEPTH if deep or (whole and not listed) else 0
        asked = [*patterns, *["*"] * whole]
        asked += ["*/" * level + text for text in asked if "*" in text for level in range(1, levels + 1)]
        yield from (path.as_posix() for text in asked for path in _matches(root, folder, text, isfile))
        named_apart = (p for p in beside(root / folder) if p.stem in patterns and p.suffix[1:] in patterns)
        yield from (path.relative_to(root).as_posix() for path in named_apart if isfile(path))


def _matches(root: Path, folder: PurePath, pattern: str, is_kind: Callable[[Path], bool]) -> Iterator[PurePath]:
    """What a pattern stands for in a folder, by path below the root; nothing hidden, and nothing that studies write."""
    place = root / folder
    found = [place / pattern]
    if "*" in pattern:
        found = []
        with suppress(OSError, ValueError):
            found = [p for p in place.glob(pattern) if "__pycache__" not in p.parts]
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(place).parts)]
    for path in filter(is_kind, found):
        its = path.relative_to(root)
        if not any(isfile(root / each / VERSION_NAME) for each in (its, *its.parents[:-1])):
            yield its


def _sum_up(root: Path, path: str, found: dict[str, str], sources: Collection[str]) -> str:
    """A checksum of a file of data, and of those that it names in turn, which are found too."""
    if path not in found:
        found[path] = its = _checksum(root / path)  # first, as files may name each other
        if (root / path).stat().st_size <= NAMING:
            words = set(re.findall(r"[\w./+-]+", (root / path).read_bytes().decode(errors="ignore")))
            modules = {f"{word.replace('.', '/')}.py" for word in words if path.endswith(".py")}
            words = {word for word in words if re.search(r"\w[./]\w", word) and not re.fullmatch(NUMBER, word)}
            others = sorted(set(_named(root, {PurePath(path).parent, PurePath()}, words | modules)) - {path, *sources})
            if others:
                found[path] = fingerprint(its, *(_sum_up(root, other, found, sources) for other in others))
    return found[path]


def _run_by(name: str) -> Iterator[str]:
    """The files that importing a module of this full name runs, as far as they are there."""
    parts = [part for part in name.split(".") if part]
    for end in range(1, len(parts) + 1):
        path = "/".join(parts[:end])
        yield from (f"{path}.py", f"{path}/__init__.py")


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


def beside(folder: Path) -> Iterator[Path]:
    """What lies in a folder, but for hidden files."""
    with suppress(OSError):
        yield from (p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__pycache__")
