"""The files that a user's Python file needs: modules beside it that it imports, and files that its strings may name.

Nothing is run: a part of a string that is computed may be anything.
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

USES_LOCATION = rb"__file__|__path__|__spec__|importlib|pkgutil|sys\.path"  # of a source that looks for files by itself
LISTS_FOLDERS = rb"listdir|iterdir|scandir|\bwalk\(|glob"
LISTS_RECURSIVELY = rb"\bwalk\(|rglob|\*\*/"
IMPORTS_BY_STRING = rb"import_module|__import__"
LISTS_MODULES = rb"iter_modules|walk_packages"
COMPILED = (*EXTENSION_SUFFIXES, ".pyc")
SUBSTITUTED = r"%(?:\(\w+\))?[-+ #\d.]*[a-zA-Z]|\{[^}]*\}|\$\{?\w+\}?"  # parts of a string that are replaced
NUMBER = r"[-+\d.]+(?:[eE][-+]?\d+)?"
DEPTH = 3  # levels of folders that are searched below one
LARGEST = 2**20  # bytes of files that are sent with every job
SEARCHED = 2**16  # bytes of a data file up to which it is searched for names of others
WHOLE = 2**26  # bytes of a data file up to which its checksum is of all of it


class TooLarge(ValueError):
    """The files are too large to be sent with every job; the text says how large."""


def collect(root: Path, own: str, content: bytes, packages: Iterable[str]) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files that a Python file needs.

    Args:
        root: the folder that modules are imported from; all paths are relative to it.
        own, content: path and content of the file.
        packages: paths of files that importing it runs.

    Returns:
        Contents by path of what is sent with every job, the sources first; and checksums of data files by path.

    Raises:
        TooLarge: the sources are too large to be sent with every job.
    """
    files = {own: content}
    early, late, others = list[str](), list[str](), list[str]()
    waiting = [own, *packages]
    while waiting:
        each = waiting.pop()
        if each not in files:
            if not isfile(root / each):
                continue
            files[each] = (root / each).read_bytes()
        imported, at_import, later = _imports_and_strings(files[each], each)
        early, late = early + at_import, late + later
        names, programs = _imports_by_string(root, each, files[each], imported, [*at_import, *later])
        waiting += [path for name in (*imported, *names) for path in _module_files(name) if path not in files]
        others += [f"{name.replace('.', '/')}{end}" for name in imported for end in COMPILED] + programs
    code = b"\n".join(files.values())
    # Calls run in an empty folder: what a function names is a file beside the source only if one uses its location.
    strings = early + (late if re.search(USES_LOCATION, code) else [])
    folders = {PurePath(each).parent for each in files}
    listed, deep = bool(re.search(LISTS_FOLDERS, code)), bool(re.search(LISTS_RECURSIVELY, code))
    named = {*_named_files(root, folders, strings, listed, deep), *others} - files.keys()
    named = {path for path in named if isfile(root / path)}
    if (size := sum(map(len, files.values()))) > LARGEST:
        raise TooLarge(
            f"{root / own} and the modules that it imports have {size:,} bytes; {LARGEST:,} go with every job"
        )
    checksums: dict[str, str] = {}
    for path in sorted(named):
        _add_checksum(root, path, checksums, files.keys())
    for path in sorted(checksums.keys() - files.keys(), key=lambda path: (root / path).stat().st_size):
        if sum(map(len, files.values())) + (root / path).stat().st_size <= LARGEST:
            files[path] = (root / path).read_bytes()
    return files, dict(sorted(checksums.items()))


def _imports_by_string(
    root: Path, path: str, content: bytes, imported: list[str], strings: list[str]
) -> tuple[list[str], list[str]]:
    """Modules that a source may import by a string, and Python files that it may use in other ways."""
    names: list[str] = []
    programs: list[str] = []
    dotted = [text for text in strings if text.replace(".", "").isidentifier()]
    if re.search(IMPORTS_BY_STRING, content):
        names += [text.lstrip(".") for text in dotted]
        names += [f"{base}{text}" for text in dotted for base in dotted if text.startswith(".") and base != text]
    if re.search(LISTS_MODULES, content):
        packages = {*imported, ".".join(PurePath(path).parent.parts)}
        its = [(name, each) for name in packages for each in visible(root / name.replace(".", "/"))]
        names += [f"{name}.{each.stem}".lstrip(".") for name, each in its if each.suffix == ".py"]
    if "-m" in strings:  # python -m module
        programs += [f"{text.replace('.', '/')}.py" for text in dotted]
    if b"sys.path" in content:  # a string may name a folder of modules
        programs += [f"{text}/{name.replace('.', '/')}.py" for text in strings for name in imported]
    return names, programs


def _imports_and_strings(content: bytes, path: str) -> tuple[list[str], list[str], list[str]]:
    """Full names of what a source imports; its strings that are used when it is imported, and those used in functions.

    What is computed in a string, as in ``f"table{n}.txt"``, is an asterisk.
    """
    try:
        tree = ast.parse(content) if path.endswith(".py") else ast.Module([], [])
    except (SyntaxError, ValueError):  # the user is told when it is imported
        return [], [], []
    package = PurePath(path).parent.parts
    names: list[str] = []
    early: list[str] = []
    late: list[str] = []
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(part) for function in functions for statement in function.body for part in ast.walk(statement)}
    called = {getattr(n.func, "id", "") for n in ast.walk(tree) if isinstance(n, ast.Call) and id(n) not in inside}
    at_import = {id(part) for function in functions if function.name in called for part in ast.walk(function)}
    for statement in tree.body:
        for node in ast.walk(statement):
            strings = late if id(node) in inside and id(node) not in at_import else early
            if isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = syntax.imported_module(node, package)
                names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) < 200:
                strings.append(re.sub(SUBSTITUTED, "*", node.value))
                strings += node.value.split() if len(node.value.split()) > 1 else []
            elif isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
                strings.append("".join(parts))
    return names, early, late


def _named_files(
    root: Path, folders: Collection[PurePath], strings: Iterable[str], listed: bool = False, deep: bool = False
) -> Iterator[str]:
    """The files, by path, that strings may name in one of the folders, or in a folder below that a string names.

    All files of a folder that a string names are among them if ``listed``, with those in folders below if ``deep``.
    """
    patterns = {each.removeprefix("./") for each in strings}
    patterns |= {text.removeprefix("*").lstrip("/") for text in patterns}
    patterns = {f"*{text}" if text.startswith(".") else text for text in patterns if text.strip("*./")}
    patterns = {text for text in patterns if not text.startswith("/") and ".." not in PurePath(text).parts}
    below: set[PurePath] = set()
    for _ in range(DEPTH):
        for folder in {*folders, *below}:
            below.update(path for text in patterns for path in _matches(root, folder, text, isdir))
    for folder in {*folders, *below}:
        whole = folder in below and (listed or "." in folder.name)  # a folder as a file, such as data.zarr
        levels = DEPTH if deep or (whole and not listed) else 0
        asked = [*patterns, *["*"] * whole]
        asked += ["*/" * level + text for text in asked if "*" in text for level in range(1, levels + 1)]
        yield from (path.as_posix() for text in asked for path in _matches(root, folder, text, isfile))
        named_apart = (p for p in visible(root / folder) if p.stem in patterns and p.suffix[1:] in patterns)
        yield from (path.relative_to(root).as_posix() for path in named_apart if isfile(path))


def _matches(root: Path, folder: PurePath, pattern: str, is_kind: Callable[[Path], bool]) -> Iterator[PurePath]:
    """What a pattern matches in a folder, but for hidden files and those that studies write, by path below the root."""
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


def _add_checksum(root: Path, path: str, found: dict[str, str], sources: Collection[str]) -> str:
    """The checksum of a data file and of those that it names in turn, which are all added to those found."""
    if path not in found:
        found[path] = its = _checksum(root / path)  # before those of others, as files may name each other
        if (root / path).stat().st_size <= SEARCHED:
            words = set(re.findall(r"[\w./+-]+", (root / path).read_bytes().decode(errors="ignore")))
            modules = {f"{word.replace('.', '/')}.py" for word in words if path.endswith(".py")}
            words = {word for word in words if re.search(r"\w[./]\w", word) and not re.fullmatch(NUMBER, word)}
            named = set(_named_files(root, {PurePath(path).parent, PurePath()}, words | modules))
            if others := sorted(named - {path, *sources}):
                found[path] = fingerprint(its, *(_add_checksum(root, other, found, sources) for other in others))
    return found[path]


def _module_files(name: str) -> Iterator[str]:
    """Where the files can be that importing a module of this full name runs."""
    parts = [part for part in name.split(".") if part]
    for end in range(1, len(parts) + 1):
        path = "/".join(parts[:end])
        yield from (f"{path}.py", f"{path}/__init__.py")


def _checksum(path: Path) -> str:
    """Of a file's content; of a very large file, of its size and its ends."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= WHOLE:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(str(size).encode() + file.read(LARGEST))
        file.seek(-LARGEST, os.SEEK_END)
        digest.update(file.read())
        return digest.hexdigest()


def visible(folder: Path) -> Iterator[Path]:
    """The files and folders in a folder that are not hidden; none if it cannot be read."""
    with suppress(OSError):
        yield from (p for p in folder.iterdir() if not p.name.startswith(".") and p.name != "__pycache__")
