"""What a computation depends on, read from its source: the statements that methods of a class reach, with checksums.

Nothing is run, and names are followed by their spelling: a statement that reads a name reaches all, in any of the
modules, that give it a meaning or may change what it stands for. So too much is reached rather than too little. Where
the source cannot tell, as for ``getattr`` of a computed name, all of it counts. Checksums are of syntax trees without
layout, comments, docstrings and the annotations of functions, and are the same on every version of Python.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from sibcl_ray.user_module import syntax
from sibcl_ray.user_module.checksums import checksum, digest
from sibcl_ray.user_module.statements import FIELDS, PROGRAM, Module, Unit, module_name


@dataclass(frozen=True)
class Reached:
    """What decides: checksums by name of statement, import or file; and which fields do, or are known not to."""

    checksums: Mapping[str, str]
    fields: frozenset[str]
    unread: frozenset[str]


class Sources:
    """Modules that belong together.

    Args:
        files: their sources, by path below the folder that they are imported from.
        data: checksums of files of data that they name, by path.
    """

    def __init__(self, files: Mapping[str, bytes], data: Mapping[str, str]) -> None:
        self.data = data
        self.modules: dict[str, Module] = {}
        self.unread: dict[str, str] = {}  # checksums of what is no Python of this version, and counts as a whole
        names = {module_name(path): path for path in files}
        for name, path in names.items():
            try:
                self.modules[name] = Module(path, files[path], names.keys())
            except (SyntaxError, ValueError):
                self.unread[path] = digest(path, hashlib.sha256(files[path]).hexdigest())
        self.units = [unit for module in self.modules.values() for unit in module.units]
        for unit in self.units:
            if isinstance(unit.node, ast.ImportFrom):  # of all that another module has
                other = self.modules.get(next(syntax.imports(unit.node, unit.module.package))[1])
                unit.names = {*other.bound, *other.imported} if other else set()
                unit.reads.add("__all__")
        self._connect()

    def _connect(self) -> None:
        """Have statements count for all names that they may change when the modules are imported."""
        defined = {unit: unit.bound[0] for unit in self.units if not unit.is_statement}
        variables = {name for unit in self.units if unit.is_statement for name in unit.names}
        variables |= {name for unit in defined for member in unit.members for name in member.bound}
        ours = {n.name for unit in defined for n in syntax.walk(unit.node) if isinstance(n, syntax.Definition)}
        values = {name for unit in self.units if syntax.gives_value(unit.node) for name in unit.bound}
        mutated = set[str]().union(*(syntax.changed(unit.node, variables, ours) for unit in self.units))
        effects: dict[str, set[str]] = defaultdict(set)  # of calling what has the name
        for unit, name in defined.items():
            effects[name] |= unit.module.meant(syntax.changed(unit.node, variables, ours, mutated))
        size = -1
        while size < (size := sum(map(len, effects.values()))):  # until those of all that they call are among them
            for unit, name in defined.items():
                effects[name].update(*(effects[each] for each in unit.module.meant(unit.reads) & effects.keys()))
        returned = {name: syntax.returned(unit.node) & variables for unit, name in defined.items()}
        for unit in [*self.units, *(member for kind in self.units for member in kind.members)]:
            for part in [unit.node] if unit.is_statement else syntax.run_when_defined(unit.node):
                unit.names |= unit.module.meant(syntax.changed(part, variables, ours, mutated))
                called = {getattr(n, "id", getattr(n, "attr", "")) for n in syntax.walk(part)}
                unit.names.update(*(effects[name] for name in unit.module.meant(called) & effects.keys()))
                if unit.names & mutated:  # what a function hands out may be changed by another name
                    unit.names.update(*(returned[name] for name in unit.module.meant(called) & returned.keys()))
                if unit.owner is None:
                    others = syntax.sets_others(part, unit.module.foreign, unit.module.given)
                    acts = hasattr(part, "lineno") and syntax.acts(part, variables)  # decorators have none
                    unknown = unit.is_statement and (unit.dynamic or syntax.calls_a_value(part, values))
                    unit.always |= others or acts or unknown

    def reached(
        self, lineage: Sequence[tuple[str, str]], members: Iterable[str], excluded: Collection[str] = ()
    ) -> Reached:
        """What ``members`` of a class reach.

        Args:
            lineage: module and name of the class, and of those of its bases that are in these sources.
            members: names.
            excluded: names of members of these classes that never count.
        """
        kinds = {(n, u.bound[0]): u for n, m in self.modules.items() for u in m.units if u.head}
        found = [kinds[each] for each in lineage if each in kinds]
        walk = _Walk(self, found, set(excluded))
        if len(found) < len(lineage):  # made in a way that source does not show
            return walk.everything()
        return walk.from_members(members)


class _Walk:
    """From statement to statement."""

    def __init__(self, sources: Sources, lineage: list[Unit], excluded: set[str]) -> None:
        self.sources, self.lineage, self.excluded = sources, lineage, excluded
        self.kinds = {unit.bound[0] for unit in lineage}
        self.fields = {name for unit in lineage for name in syntax.fields(unit.node)} - excluded
        self.names: set[str] = set()  # that are read
        self.found: dict[Unit, None] = {}
        self.escaped = False  # the problem itself is passed on, and all its fields may be read
        self.giving: dict[str, list[Unit]] = defaultdict(list)
        for unit in sources.units:
            for each in (unit, *(unit.members if unit in lineage else ())):
                if not self._is_setting(each):
                    for name in self._given_by(each):
                        self.giving[name].append(each)
        self.giving[PROGRAM] = [unit for module in sources.modules.values() for unit in module.programs]

    def _given_by(self, unit: Unit) -> set[str]:
        return unit.names | ({FIELDS} if self._is_field(unit) else set())

    def _is_setting(self, unit: Unit) -> bool:
        """Whether it gives a meaning to excluded members alone."""
        if not unit.names or unit.names - self.excluded:
            return False
        return unit.owner in self.lineage or syntax.roots(unit.node) <= self.kinds

    def from_members(self, members: Iterable[str]) -> Reached:
        waiting = [*self.lineage, *(unit for unit in self.sources.units if unit.always)]
        asked = [*members, *self.kinds]  # the name of a class may be given another meaning after it
        while waiting or asked:
            while asked:
                if (name := asked.pop()) not in self.names:
                    self.names.add(name)
                    asked += [n for m in self.sources.modules.values() for n in m.meant([name])]
                    waiting += [u for u in self.giving[name] if u.owner is None or u.owner in self.found]
            if waiting and (unit := waiting.pop()) not in self.found:
                self.found[unit] = None
                if unit in self.lineage:
                    its = [m for m in unit.members if m.always or self._given_by(m) & self.names]
                    waiting += [m for m in its if not self._is_setting(m)]
                    unit = unit.head or unit
                if unit.dynamic:
                    return self.everything()
                asked += unit.reads
                self.escaped |= self._hands_on(unit)
        return self._result()

    def _hands_on(self, unit: Unit) -> bool:
        """Whether it reads the problem, or its class, and not only attributes of it."""
        if isinstance(unit.node, ast.ClassDef):  # which may be derived from it
            return bool(unit.bare & self.kinds) and bool(unit.node.body)
        its = syntax.selves(unit.node) & (unit.bare if unit.owner else {"self", "cls"})
        return bool(unit.bare & (its | self.kinds))

    def everything(self) -> Reached:
        for unit in self.sources.units:
            self.found[unit] = None
            if unit in self.lineage:
                self.found |= dict.fromkeys(m for m in unit.members if not self._is_setting(m))
        self.names.update(*(unit.reads for unit in self.found))
        self.names.add(FIELDS)
        self.found |= dict.fromkeys(self.giving[PROGRAM] if PROGRAM in self.names else ())
        return self._result(whole=True)

    def _result(self, whole: bool = False) -> Reached:
        texts = {text for unit in self._seen for text in unit.texts}
        for module in self.sources.modules.values():  # imports of what is no source
            texts |= self.names & module.imported.keys()
        data = {p: its for p, its in self.sources.data.items() if whole or any(_names(text, p) for text in texts)}
        fields = self.fields if whole or self.escaped else self.fields & self.names
        checksums = self._checksums(data, annotated=whole)
        return Reached(checksums, frozenset(fields), frozenset(self.fields - fields))

    @property
    def _seen(self) -> list[Unit]:
        """What was found; of classes whose members are found one by one the heads."""
        return [unit.head if unit.head and unit in self.lineage else unit for unit in self.found]

    def _checksums(self, data: Mapping[str, str], annotated: bool) -> dict[str, str]:
        meanings: dict[str, list[str]] = defaultdict(list)
        for unit in sorted(self._seen, key=lambda unit: unit.node.lineno):
            if FIELDS in self.names or not self._is_field(unit):
                meanings[unit.label].append(checksum(unit.node, unit.owner is not None, annotated))
        found = {label: its[0] if len(its) == 1 else digest(*its) for label, its in meanings.items()}
        found |= self.sources.unread | {path: digest(path, checksum) for path, checksum in data.items()}
        acting = self._acting()
        for module in self.sources.modules.values():
            if order := self._order([unit for unit in module.units if unit in self.found], acting):
                found[f"the order in {module.path}"] = order
            if "__doc__" in self.names:
                found[f"the docstrings in {module.path}"] = digest(*module.documents)
        for kind in self.lineage:
            if order := self._order([unit for unit in kind.members if unit in self.found]):
                found[f"the order of {kind.label}"] = order
        if FIELDS in self.names:
            found["the order of fields"] = digest(*(name for kind in self.lineage for name in syntax.fields(kind.node)))
        return found | self._imports()

    def _runs(self, unit: Unit) -> bool:
        """Whether something is run where it stands; of a class whose members count one by one in one of these."""
        its = self.found.keys() & unit.members if unit in self.lineage else [unit]
        return any(syntax.run_when_defined(each.node) for each in its)

    def _is_field(self, unit: Unit) -> bool:
        """Whether it says nothing but what has values, which count instead."""
        return unit.owner in self.lineage and bool(unit.bound) and not set(unit.bound) - self.fields

    def _acting(self) -> set[str]:
        """Modules that change something of others when they are imported, or import such."""
        modules = self.sources.modules
        acting = {unit.module.name for unit in self.found if unit.acts}
        size = -1
        while size < (size := len(acting)):
            acting |= {
                name for name, module in modules.items() if any(_leads_to(i, module, acting) for i in module.imports)
            }
        return acting

    def _order(self, units: list[Unit], acting: Collection[str] = ()) -> str:
        """A checksum of the order of what is run where it stands, if it has a part in what names mean; or nothing."""
        given = Counter(name for unit in units for name in unit.names)
        twice = {name for name, count in given.items() if count > 1}
        imports = [i for i in units[0].module.imports if _leads_to(i, units[0].module, acting)] if units else []
        run = [unit for unit in units if unit.names & twice or self._runs(unit)]
        if not twice and sum(unit.acts for unit in run) + len(imports) < 2:
            return ""
        said = [(unit.node, unit.bound if unit in self.lineage or self._is_field(unit) else None) for unit in run]
        said += [(node, None) for node in imports]
        said.sort(key=lambda each: each[0].lineno)
        return digest(*(" ".join(names) if names else checksum(node) for node, names in said))

    def _imports(self) -> dict[str, str]:
        """What names stand for that are imported from elsewhere, or by another name, or stand for more than one."""
        found: dict[str, set[str]] = defaultdict(set)
        for module in self.sources.modules.values():
            for name in self.names & module.imported.keys():
                ours = [target for target in module.imported[name] if module.is_ours(target)]
                if others := [target for target in module.imported[name] if target not in ours]:
                    found[f"import {name}"].add(" or ".join(others))
                if any(name != t.rpartition(".")[2] for t in ours) or (ours and module.bound[name] + len(ours) > 1):
                    found[f"import {name} in {module.path}"].add(" or ".join(module.imported[name]))
            stars = [name for name in module.imported if name.startswith("* ")]
            for star in stars:
                found[f"import {star}"].update(t for t in module.imported[star] if not module.is_ours(t))
            if len(stars) > 1 and not all(module.is_ours(star.removeprefix("* ")) for star in stars):
                found[f"import stars in {module.path}"].add(" then ".join(stars))
        return {label: digest(*sorted(targets)) for label, targets in found.items() if targets}


def _leads_to(node: ast.stmt, module: Module, names: Collection[str]) -> bool:
    """Whether an import runs one of these modules."""
    targets = [target for _, target in syntax.imports(node, module.package)]
    targets += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return any(f"{target}.".startswith(f"{name}.") for target in targets for name in names)


def _names(text: str, path: str) -> bool:
    """Whether a text may be, or be a part of, the name of a file."""
    parts = PurePosixPath(path).parts
    wholes = {*parts, PurePosixPath(path).stem}
    return text in wholes or any(
        f in wholes or ("." in f and f in path) or any(p.startswith(f) for p in parts)
        for f in re.findall(r"[\w.+-]{3,}", text)
    )
