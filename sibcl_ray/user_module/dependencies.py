"""What the methods of a class depend on, read from the source: the statements that they reach, with checksums.

Nothing is run, and names are followed by their spelling: a statement that reads a name depends on all statements, in
any of the modules, that define this name or may change its value. So too much is reached rather than too little. Where
the source does not tell what is read, as for ``getattr`` of a computed name, everything counts.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from sibcl_ray.user_module import syntax
from sibcl_ray.user_module.effects import Effects
from sibcl_ray.user_module.statements import FIELDS, PROGRAM, Module, Statement, module_name


@dataclass(frozen=True)
class Reached:
    """What members of a class depend on."""

    checksums: Mapping[str, str]  # of statements, imports and files, by what messages call them
    fields: frozenset[str]  # whose values they read
    unread: frozenset[str]  # the other fields


class Sources:
    """Modules that belong together.

    Args:
        files: their sources, by path below the folder that they are imported from.
        data: checksums of data files that they name, by path.
    """

    def __init__(self, files: Mapping[str, bytes], data: Mapping[str, str]) -> None:
        self.data = data
        self.modules: dict[str, Module] = {}
        self.unparsed: dict[str, str] = {}  # checksums of files that are no Python of this version
        names = {module_name(path): path for path in files}
        for name, path in names.items():
            try:
                self.modules[name] = Module(path, files[path], names.keys())
            except (SyntaxError, ValueError):
                self.unparsed[path] = digest(path, hashlib.sha256(files[path]).hexdigest())
        self.statements = [statement for module in self.modules.values() for statement in module.statements]
        for statement in self.statements:
            if isinstance(statement.node, ast.ImportFrom):  # of all names of another module
                other = self.modules.get(syntax.imported_module(statement.node, statement.module.package))
                statement.defined = {*other.assigned, *other.imported} if other else set()
                statement.references.add("__all__")
        effects = Effects(self.statements)
        for statement in self.statements:
            for each in (statement, *statement.members):
                effects.add_to(each)

    def reached(
        self, lineage: Sequence[tuple[str, str]], members: Iterable[str], excluded: Collection[str] = ()
    ) -> Reached:
        """What ``members`` of a class depend on.

        Args:
            lineage: module and name of the class, and of those of its bases that are in these sources.
            members: names.
            excluded: names of members of these classes that never count.
        """
        classes = {(s.module.name, s.assigned[0]): s for s in self.statements if s.head}
        found = [classes[each] for each in lineage if each in classes]
        reachability = _Reachability(self, found, set(excluded))
        if len(found) < len(lineage):  # one is made in a way that the source does not show
            return reachability.everything()
        return reachability.from_members(members)


class _Reachability:
    """Follows references from statement to statement; members of the classes in ``lineage`` count one by one."""

    def __init__(self, sources: Sources, lineage: list[Statement], excluded: set[str]) -> None:
        self.sources, self.lineage, self.excluded = sources, lineage, excluded
        self.class_names = {kind.assigned[0] for kind in lineage}
        self.ordered_fields = [name for kind in lineage for name in syntax.dataclass_fields(kind.node)]
        self.fields = set(self.ordered_fields) - excluded
        self.names: set[str] = set()  # that are referred to
        self.found = dict.fromkeys(lineage)  # statements that are reached
        self.escaped = False  # the object itself is passed on, and all its fields may be read
        members = [member for kind in lineage for member in kind.members if not self._is_setting(member)]
        self.statements = [*sources.statements, *(kind.head for kind in lineage if kind.head), *members]
        self.definitions: dict[str, list[Statement]] = defaultdict(list)
        for statement in self.statements:
            if not self._is_setting(statement):
                for name in statement.defined | ({FIELDS} if self._is_field(statement) else set()):
                    self.definitions[name].append(statement)
        self.definitions[PROGRAM] = [program for module in sources.modules.values() for program in module.programs]

    def _is_setting(self, statement: Statement) -> bool:
        """Whether it defines nothing but excluded members."""
        if not statement.defined or statement.defined - self.excluded:
            return False
        return statement.owner in self.lineage or syntax.objects_written(statement.node) <= self.class_names

    def _is_field(self, statement: Statement) -> bool:
        """Whether it defines nothing but fields, whose values count instead."""
        assigned = set(statement.assigned)
        return statement.owner in self.lineage and bool(assigned) and assigned <= self.fields

    def from_members(self, members: Iterable[str]) -> Reached:
        waiting = [statement for statement in self.statements if statement.always]
        asked = [*members, *self.class_names]  # something else may be assigned to the name of a class
        while waiting or asked:
            while asked:
                if (name := asked.pop()) not in self.names:
                    self.names.add(name)
                    asked += [n for m in self.sources.modules.values() for n in m.resolved([name])]
                    waiting += self.definitions[name]
            if waiting and (statement := waiting.pop()) not in self.found:
                self.found[statement] = None
                if statement.dynamic:
                    return self.everything()
                asked += statement.references
                self.escaped |= self._passes_on_object(statement)
        return self._result()

    def _passes_on_object(self, statement: Statement) -> bool:
        """Whether it reads the object or its class other than for an attribute."""
        if isinstance(statement.node, ast.ClassDef):  # which may be derived from the class
            return bool(statement.bare & self.class_names) and bool(statement.node.body)
        its = syntax.self_names(statement.node)
        its &= statement.bare if statement.owner else {"self", "cls"}
        return bool(statement.bare & (its | self.class_names))

    def everything(self) -> Reached:
        """All statements, where the source does not tell which are reached."""
        self.found |= dict.fromkeys(self.statements)
        self.names.update(*(statement.references for statement in self.found))
        self.names.add(FIELDS)
        self.found |= dict.fromkeys(self.definitions[PROGRAM] if PROGRAM in self.names else ())
        return self._result(whole=True)

    def _result(self, whole: bool = False) -> Reached:
        counted = [statement for statement in self.found if statement not in self.lineage]
        strings = {text for statement in counted for text in statement.strings}
        for module in self.sources.modules.values():
            strings |= self.names & module.imported.keys()  # a module may be a file that is no source
        data = {p: its for p, its in self.sources.data.items() if whole or any(_may_name(text, p) for text in strings)}
        checksums = self._checksums(counted, annotated=whole)
        checksums |= self.sources.unparsed | {path: digest(path, its) for path, its in data.items()}
        fields = self.fields if whole or self.escaped else self.fields & self.names
        return Reached(checksums | self._orders() | self._imports(), frozenset(fields), frozenset(self.fields - fields))

    def _checksums(self, statements: list[Statement], annotated: bool) -> dict[str, str]:
        found: dict[str, list[str]] = defaultdict(list)
        for statement in sorted(statements, key=lambda statement: statement.node.lineno):
            if FIELDS in self.names or not self._is_field(statement):
                found[statement.label].append(checksum(statement.node, statement.owner is not None, annotated))
        return {label: its[0] if len(its) == 1 else digest(*its) for label, its in found.items()}

    def _orders(self) -> dict[str, str]:
        """Checksums of the order of statements, and of all docstrings, where these are read."""
        found: dict[str, str] = {}
        acting = self._modules_that_change_others()
        for module in self.sources.modules.values():
            found[f"the order in {module.path}"] = self._order(module.statements, acting)
            if "__doc__" in self.names:
                found[f"the docstrings in {module.path}"] = digest(*module.docstrings)
        for kind in self.lineage:
            found[f"the order of {kind.label}"] = self._order(kind.members)
        if FIELDS in self.names:
            found["the order of fields"] = digest(*self.ordered_fields)
        return {label: order for label, order in found.items() if order}

    def _modules_that_change_others(self) -> set[str]:
        """Names of modules that change something of others when they are imported, or import such a module."""
        acting = {statement.module.name for statement in self.found if statement.changes_others}
        modules = self.sources.modules.items()
        while more := {n for n, m in modules if any(_imports_one_of(acting, i, m) for i in m.imports)} - acting:
            acting |= more
        return acting

    def _order(self, statements: list[Statement], acting: Collection[str] = ()) -> str:
        """A checksum of the order in which statements run, empty if that decides nothing."""
        reached = [statement for statement in statements if statement in self.found]
        count = Counter(name for statement in reached for name in statement.defined)
        repeated = {name for name, times in count.items() if times > 1}
        module = statements[0].module if reached else None
        imports = [i for i in module.imports if _imports_one_of(acting, i, module)] if module else []
        run = [statement for statement in reached if statement.defined & repeated or self._runs(statement)]
        if not repeated and sum(statement.changes_others for statement in run) + len(imports) < 2:
            return ""
        by_name = [s for s in run if s.assigned and (s in self.lineage or self._is_field(s))]
        texts = [(s.node.lineno, " ".join(s.assigned) if s in by_name else checksum(s.node)) for s in run]
        texts += [(node.lineno, checksum(node)) for node in imports]
        return digest(*(text for _, text in sorted(texts, key=lambda each: each[0])))

    def _runs(self, statement: Statement) -> bool:
        """Whether some of it runs when its module is imported; of a class of the lineage, of what is reached of it."""
        its = self.found.keys() & statement.members if statement in self.lineage else [statement]
        return any(syntax.run_when_defined(each.node) for each in its)

    def _imports(self) -> dict[str, str]:
        """What names refer to that are imported from elsewhere, or under another name, or are assigned as well."""
        found: dict[str, set[str]] = defaultdict(set)
        for module in self.sources.modules.values():
            for name in self.names & module.imported.keys():
                ours = [target for target in module.imported[name] if module.is_ours(target)]
                if others := [target for target in module.imported[name] if target not in ours]:
                    found[f"import {name}"].add(" or ".join(others))
                if any(name != t.rpartition(".")[2] for t in ours) or (ours and module.assigned[name] + len(ours) > 1):
                    found[f"import {name} in {module.path}"].add(" or ".join(module.imported[name]))
            stars = [name for name in module.imported if name.startswith("* ")]
            for star in stars:
                found[f"import {star}"].update(t for t in module.imported[star] if not module.is_ours(t))
            if len(stars) > 1 and not all(module.is_ours(star.removeprefix("* ")) for star in stars):
                found[f"import stars in {module.path}"].add(" then ".join(stars))
        return {label: digest(*sorted(targets)) for label, targets in found.items() if targets}


def _imports_one_of(names: Collection[str], node: ast.stmt, module: Module) -> bool:
    """Whether an import runs one of these modules."""
    targets = [target for _, target in syntax.imports(node, module.package)]
    targets += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return any(f"{target}.".startswith(f"{name}.") for target in targets for name in names)


def _may_name(text: str, path: str) -> bool:
    """Whether a string may be, or be a part of, the name of a file."""
    parts = PurePosixPath(path).parts
    wholes = {*parts, PurePosixPath(path).stem}
    return text in wholes or any(
        f in wholes or ("." in f and f in path) or any(p.startswith(f) for p in parts)
        for f in re.findall(r"[\w.+-]{3,}", text)
    )


class _Token(str):
    """A part of a syntax tree as text that is no string of the source."""


def checksum(node: ast.AST, in_class: bool = False, annotated: bool = False) -> str:
    """Of what a statement computes; with annotations that cannot be read only if ``annotated``.

    The same on every version of Python, and for every layout, comment and docstring.
    """
    ignored = set() if annotated else syntax.unread_annotations(node, in_class)
    return digest(*_tokens(node, ignored))


def _tokens(node: ast.AST, ignored: Collection[int]) -> Iterator[str]:
    waiting: list[Any] = [node]
    while waiting:
        value = waiting.pop()
        if isinstance(value, ast.JoinedStr):  # Python 3.12 ends some with an empty string
            value = ast.JoinedStr([part for part in value.values if getattr(part, "value", None) != ""])
        if isinstance(value, ast.AnnAssign) and id(value.annotation) in ignored and value.value:
            value = ast.Assign([value.target], value.value)
        if isinstance(value, ast.AST):
            yield f"({type(value).__name__}"
            waiting.append(_Token(")"))
            for name, part in reversed([*ast.iter_fields(value)]):
                if name not in syntax.IGNORED and id(part) not in ignored and part is not None and part != []:
                    waiting += [part, _Token(name)]
        elif isinstance(value, list):
            counted = [part for part in value if not (syntax.is_docstring(part) or isinstance(part, ast.Pass))]
            waiting += [_Token("]"), *reversed(counted), _Token("[")]
        elif isinstance(value, _Token):
            yield value
        else:
            yield f"{type(value).__name__} {hex(value) if isinstance(value, int) else ascii(value)}"


def digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
