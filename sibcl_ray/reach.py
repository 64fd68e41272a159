"""What a computation depends on, read from its source: the definitions that methods of a class reach, with checksums.

Nothing is run. A name stands for whatever it may stand for, so that too much is reached rather than too little; where
the source cannot tell, as for ``getattr`` of a computed name, all of it counts. Checksums are of syntax trees without
layout, comments, docstrings and the annotations of functions, and are the same on every version of Python.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

UNSAID = {"ctx", "kind", "type_comment", "type_ignores", "type_params", "returns"}  # parts of syntax trees
DYNAMIC = {"eval", "exec", "globals", "locals", "vars", "__import__", "__dict__", "__getattribute__", "__subclasses__"}
DYNAMIC_IMPORTS = ("importlib", "runpy", "inspect", "operator.attrgetter", "operator.methodcaller", "sys.modules")
LOOKED_UP = ("getattr", "hasattr", "setattr", "delattr")

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, eq=False)
class _Definition:
    """A statement that gives a name its meaning, in a module or in the body of a class."""

    module: _Module
    name: str  # as people write it, with that of its class
    node: ast.stmt
    owner: _Class | None = None


@dataclass(eq=False)
class _Class:
    """A class: its ``head`` counts wherever it is used, its ``members`` where they are asked for by name."""

    module: _Module
    node: ast.ClassDef
    head: list[_Definition] = field(default_factory=list)
    members: dict[str, list[_Definition]] = field(default_factory=lambda: defaultdict(list))
    fields: set[str] = field(default_factory=set)  # of a dataclass

    def __post_init__(self) -> None:
        name = self.node.name
        decorated = any("dataclass" in ast.unparse(decorator) for decorator in self.node.decorator_list)
        bare = ast.ClassDef(name, self.node.bases, self.node.keywords, [], self.node.decorator_list)
        self.head.append(_Definition(self.module, name, bare, self))
        for statement in self.node.body:
            names = _bound(statement)
            definition = _Definition(self.module, f"{name}.{names[0] if names else '…'}", statement, self)
            if not _is_text(statement) and (not names or names[0].startswith("__")):
                self.head.append(definition)
            for each in names:
                self.members[each].append(definition)
            if (
                decorated
                and isinstance(statement, ast.AnnAssign)
                and "ClassVar" not in ast.unparse(statement.annotation)
            ):
                self.fields.update(names)


class _Module:
    """What the names of a module stand for, and the statements that count whatever is asked for."""

    def __init__(self, path: str, source: bytes) -> None:
        parts = PurePosixPath(path).with_suffix("").parts
        self.path, self.package = path, parts[:-1]
        self.dotted = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        self.classes: dict[str, _Class] = {}
        self.bindings: dict[str, list[_Definition]] = defaultdict(list)
        self.always: list[_Definition] = []
        tree = ast.parse(source)
        self.imported: dict[str, list[str]] = defaultdict(list)  # more than one where one stands in for another
        for name, target in _imports(tree, self.package):
            self.imported[name].append(target)
        rest = []
        for statement in tree.body:
            names = _bound(statement)
            if isinstance(statement, ast.ClassDef):
                self.classes[statement.name] = _Class(self, statement)
            elif isinstance(statement, Function):
                names += [name for node in ast.walk(statement) if isinstance(node, ast.Global) for name in node.names]
                self._bind(names, statement)
            elif names and isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
                self._bind(names, statement)
            elif not (isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement) or _is_main(statement)):
                rest.append(statement)
        for statement in rest:  # one that fills a table belongs to the table; one that belongs to nothing always counts
            nodes = list(ast.walk(statement))
            used = {node.id for node in nodes if isinstance(node, ast.Name)}
            called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            variables = {n for n in used if any(not isinstance(d.node, Function) for d in self.bindings.get(n, ()))}
            touched = {name for node in nodes if isinstance(node, ast.stmt) for name in _bound(node)} | variables
            self._bind(sorted(touched), statement)
            if not touched or called & self.bindings.keys():
                self.always.append(_Definition(self, f"line {statement.lineno}", statement))

    def _bind(self, names: Iterable[str], statement: ast.stmt) -> None:
        for name in dict.fromkeys(names):
            self.bindings[name].append(_Definition(self, name, statement))


@dataclass(frozen=True)
class Reached:
    """What decides: checksums by name of definition, import or file; and the fields whose values do."""

    checksums: Mapping[str, str]
    fields: frozenset[str]


class Sources:
    """Modules that belong together.

    Args:
        files: their sources, by path below the folder that they are imported from.
        data: checksums of files of data that they name, by path.
    """

    def __init__(self, files: Mapping[str, bytes], data: Mapping[str, str]) -> None:
        self.data = data
        self.modules: dict[str, _Module] = {}
        self.unread: dict[str, str] = {}  # checksums of what is no Python of this version, and counts as a whole
        for path, source in files.items():
            try:
                module = _Module(path, source)
            except (SyntaxError, ValueError):
                self.unread[path] = _digest([path, hashlib.sha256(source).hexdigest()])
            else:
                self.modules[module.dotted] = module

    def reached(self, module: str, kind: str, members: Iterable[str], excluded: Collection[str] = ()) -> Reached:
        """What ``members`` of the class ``kind`` in ``module`` reach, all but what its members in ``excluded`` are."""
        its = self.modules[module].classes.get(kind) or self._class(self.modules[module], kind)
        if its is None:  # made in a way that source does not show
            return _Walk(self, [], excluded).everything()
        return _Walk(self, self._lineage(its), excluded).from_members(members)

    def _class(self, module: _Module, name: str, seen: tuple[_Class | _Module, ...] = ()) -> _Class | None:
        """The class, none of those ``seen``, that a dotted name stands for in a module, if it is one of these."""
        first, *rest = name.split(".")
        if not rest and module.classes.get(first) not in (None, *seen):
            return module.classes[first]
        for target in module.imported.get(first, [first]):
            where, _, last = ".".join([target, *rest]).rpartition(".")
            other = self.modules.get(where)
            if other is not None and other not in (module, *seen):
                return self._class(other, last, (*seen, module))
        return None

    def _lineage(self, kind: _Class) -> list[_Class]:
        """A class and those of these sources that it is derived from, in the order in which members are looked up."""
        found = [kind]
        for base in kind.node.bases:
            name = _dotted(base.value if isinstance(base, ast.Subscript) else base)
            if name and (its := self._class(kind.module, name, (kind,))) is not None:  # it may have its base's name
                found = [c for c in found if c not in (line := self._lineage(its))] + line
        return found


class _Walk:
    """From definition to definition."""

    def __init__(self, sources: Sources, lineage: list[_Class], excluded: Collection[str]) -> None:
        self.sources, self.lineage, self.excluded = sources, lineage, excluded
        self.checksums = dict(sources.unread)
        self.fields: set[str] = set()
        self.seen: set[int] = set()
        self.passed: set[tuple] = set()  # names that were followed, as imports may lead round in a circle
        self.waiting: list[_Definition] = []
        self.classes: list[_Class] = []
        self.attributes: set[str] = set()  # asked of objects of which the source does not say what they are
        self.whole = self.escaped = False  # all counts; the problem itself is handed to somebody

    def from_members(self, members: Iterable[str]) -> Reached:
        for kind in self.lineage:
            self._use(kind)
        for name in members:
            self._ask(name)
        for module in self.sources.modules.values():
            self.waiting += module.always
            for definition in (d for bound in module.bindings.values() for d in bound):
                decorators = definition.node.decorator_list if isinstance(definition.node, Function) else []
                if any(self._is_own(module, each) for each in decorators):
                    self.waiting.append(definition)
            for kind in module.classes.values():
                if any(self._is_own(module, e) for e in kind.node.decorator_list):
                    self._use(kind)
        while self.waiting and not self.whole:
            self._follow(self.waiting.pop())
            if not self.waiting:
                self._match()
        return self.everything() if self.whole else Reached(self.checksums, frozenset(self.fields))

    def everything(self) -> Reached:
        for module in self.sources.modules.values():
            members = [(n, d, c) for c in module.classes.values() for n, ds in c.members.items() for d in ds]
            left_out = {id(d) for name, d, kind in members if kind in self.lineage and name in self.excluded}
            inside = [d for _, d, _ in members] + [d for kind in module.classes.values() for d in kind.head]
            outside = [d for ds in module.bindings.values() for d in ds] + module.always
            for definition in inside + outside:
                if id(definition) not in left_out:
                    self._note(definition)
            for name, targets in module.imported.items():
                self.checksums[f"import {name} in {module.path}"] = _digest([name, *targets])
        self.checksums |= {path: _digest([path, checksum]) for path, checksum in self.sources.data.items()}
        self.fields.update(*(kind.fields for kind in self.lineage))
        return Reached(self.checksums, frozenset(self.fields) - set(self.excluded))

    def _note(self, definition: _Definition) -> None:
        name = f"{definition.name} in {definition.module.path}"
        there = self.checksums.get(name)
        new = _digest(_plain(definition.node))
        self.checksums[name] = new if there in (None, new) else _digest(sorted([there or "", new]))

    def _is_own(self, module: _Module, decorator: ast.expr) -> bool:
        name = _dotted(decorator.func if isinstance(decorator, ast.Call) else decorator) or ""
        first = name.partition(".")[0]
        targets = [target.split(".") for target in module.imported.get(first, ())]
        imported = any(".".join(t[:end]) in self.sources.modules for t in targets for end in range(1, len(t) + 1))
        return first in module.bindings or first in module.classes or imported

    def _use(self, kind: _Class) -> None:
        if kind not in self.classes:
            self.classes.append(kind)
            self.waiting += kind.head
            if "__init_subclass__" in kind.members or kind.node.keywords:  # it may know those derived from it
                everywhere = [c for m in self.sources.modules.values() for c in m.classes.values()]
                for other in everywhere:
                    if kind not in self.lineage and kind in self.sources._lineage(other):
                        self._use(other)

    def _ask(self, name: str, inherited: bool = False) -> None:
        """For a member of the problem; by ``super()`` for any that one may inherit."""
        if name in self.excluded:
            return
        for kind in self.lineage:
            if name in kind.members:
                if name in kind.fields:
                    self.fields.add(name)
                else:
                    self.waiting += kind.members[name]
                if not inherited:
                    return

    def _match(self) -> None:
        """Members that may be meant where an attribute is asked of something unknown."""
        for kind in list(self.classes):
            for name in self.attributes & kind.members.keys():
                if kind not in self.lineage:
                    self.waiting += [d for d in kind.members[name] if id(d) not in self.seen]
        if self.escaped:
            asked = set().union(*(kind.fields for kind in self.lineage)) | self.attributes
            for name in asked - self.fields:
                self._ask(name)
            self.waiting = [d for d in self.waiting if id(d) not in self.seen]

    def _follow(self, definition: _Definition) -> None:
        if id(definition) in self.seen:
            return
        self.seen.add(id(definition))
        self._note(definition)
        self._visit(definition.node, definition)

    def _visit(self, node: ast.AST, where: _Definition) -> None:
        if isinstance(node, ast.Attribute):
            self._attribute(node, where)
        elif isinstance(node, ast.Name):
            self._name(node.id, [], where)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOOKED_UP:
            self._look_up(node, where)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            self._text(node.value, where.module)
        else:
            for part in _parts(node):
                self._visit(part, where)

    def _attribute(self, node: ast.Attribute, where: _Definition) -> None:
        names: list[str] = []
        base: ast.expr = node
        while isinstance(base, ast.Attribute):
            names.insert(0, base.attr)
            base = base.value
        self.whole |= bool(DYNAMIC & set(names))
        if isinstance(base, ast.Name):
            self._name(base.id, names, where)
        elif isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super":
            self._ask(names[0], inherited=True)
            self.attributes.update(names)
        else:
            self.attributes.update(names)
            self._visit(base, where)

    def _name(self, name: str, attributes: list[str], where: _Definition) -> None:
        """What a name, and attributes asked of it one after another, may stand for."""
        module, step = where.module, (where.module.path, name, tuple(attributes), id(where.node))
        if step in self.passed:
            return
        self.passed.add(step)
        if where.owner in self.lineage and name in _first_arguments(where.node):
            self.escaped |= not attributes
            for each in attributes[: 1 + attributes[0].startswith("__")] if attributes else ():  # also of __class__
                self._ask(each)
        self.attributes.update(attributes if name not in module.imported else ())  # of other modules' they are not ours
        for target in module.imported.get(name, ()):
            self._dotted(target.split(".") + attributes, name, where)
        if name in module.classes:
            self._its_class(module.classes[name], attributes, where)
        self.waiting += module.bindings.get(name, ())  # a name may be imported, and given another meaning
        if not (name in module.imported or name in module.classes or name in module.bindings):
            self.whole |= name in DYNAMIC
            for star, (whole, *_) in module.imported.items():
                if not star.startswith("* "):
                    continue
                if other := self.sources.modules.get(whole):
                    self._name(name, attributes, _Definition(other, name, where.node))
                elif not hasattr(builtins, name):
                    self.checksums[f"import {star} in {module.path}"] = _digest(whole)

    def _its_class(self, kind: _Class, attributes: list[str], where: _Definition) -> None:
        if kind not in self.lineage:
            self._use(kind)
        elif attributes:
            self._ask(attributes[0])
        elif not isinstance(where.node, ast.ClassDef):  # which is derived from it
            self.escaped = True

    def _dotted(self, names: list[str], imported: str, where: _Definition) -> None:
        """What is imported: from one of these modules, or from another, whose name then counts."""
        for end in range(len(names), 0, -1):
            if (module := self.sources.modules.get(".".join(names[:end]))) is not None:
                if module is where.module and end == len(names):
                    return
                if end < len(names):
                    self._name(names[end], names[end + 1 :], _Definition(module, names[end], where.node))
                else:  # handed on as a whole
                    for name in (*module.bindings, *module.classes):
                        self._name(name, [], _Definition(module, name, where.node))
                    self.attributes.update(*(kind.members for kind in module.classes.values()))
                return
        whole = ".".join(names)
        self.whole |= any(f"{whole}.".startswith(f"{dynamic}.") for dynamic in DYNAMIC_IMPORTS)
        told = f"import {imported} in {where.module.path}"
        self.checksums[told] = _digest([imported, *where.module.imported[imported]])

    def _look_up(self, call: ast.Call, where: _Definition) -> None:
        name = call.args[1] if len(call.args) > 1 else None
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            self.whole = True
            return
        self._attribute(ast.Attribute(call.args[0], name.value), where)
        for other in call.args[2:]:
            self._visit(other, where)

    def _text(self, text: str, module: _Module) -> None:
        """A text that names a file, or the end of the name of one in a folder."""
        for path, checksum in self.sources.data.items():
            if (
                text
                and f"/{path}".endswith(f"/{text.removeprefix('./')}")
                and path.startswith("/".join(module.package))
            ):
                self.checksums[path] = _digest([path, checksum])


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a syntax tree that decide what it computes."""
    for name, value in ast.iter_fields(node):
        if name in UNSAID or (isinstance(node, ast.arg) and name == "annotation"):
            continue
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST) and not _is_text(part):
                yield part


def _plain(value: Any) -> Any:
    """A syntax tree as plain values: the same on every Python, whatever the layout."""
    if isinstance(value, ast.JoinedStr):  # Python 3.12 ends some with an empty text
        return ["JoinedStr", *(_plain(v) for v in value.values if getattr(v, "value", None) != "")]
    if isinstance(value, ast.AST):
        kept = {
            name: _plain(part)
            for name, part in ast.iter_fields(value)
            if name not in UNSAID
            and part not in (None, [])
            and not (isinstance(value, ast.arg) and name == "annotation")
        }
        return [type(value).__name__, *sorted(kept.items())]
    if isinstance(value, list):
        return [_plain(part) for part in value if not _is_text(part)]
    return value if isinstance(value, str) else f"{type(value).__name__} {value!a}"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _first_arguments(node: ast.AST) -> set[str]:
    """The names that an object may have in its class's functions."""
    functions = (n.args for n in ast.walk(node) if isinstance(n, Function | ast.Lambda))
    return {"self", "cls"} | {a.arg for f in functions for a in (*f.posonlyargs, *f.args)[:1]}


def _is_text(node: Any) -> bool:
    """Whether a statement is a docstring, or another text that nothing is done with."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.dump(node.test) and "__main__" in ast.dump(node.test)


def _bound(node: ast.stmt) -> list[str]:
    """The names that a statement itself gives a meaning to."""
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For | ast.AsyncFor):
        targets = [node.target]
    elif isinstance(node, ast.With | ast.AsyncWith):
        targets = [item.optional_vars for item in node.items if item.optional_vars]
    return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names that are given by importing, anywhere in a module, and what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            whole = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                if alias.name == "*":
                    yield f"* {whole}", whole
                else:
                    yield alias.asname or alias.name, f"{whole}.{alias.name}" if whole else alias.name


def _dotted(node: ast.expr) -> str | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return ".".join([node.id, *names]) if isinstance(node, ast.Name) else None
