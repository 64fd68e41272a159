"""Statements of user modules: the names that each gives a meaning to, and those that it reads."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from sibcl_ray.user_module import syntax
from sibcl_ray.user_module.checksums import unevaluated

DYNAMIC = {"dir", "eval", "exec", "globals", "locals", "vars", "__import__"}
DYNAMIC_ATTRIBUTES = {"__annotations__", "__dict__", "__getattribute__", "__subclasses__"}
DYNAMIC_IMPORTS = (
    "builtins", "importlib.import_module", "importlib.machinery", "importlib.reload", "importlib.util.module_from_spec",
    "importlib.util.spec_from_file_location", "inspect", "operator.attrgetter", "operator.methodcaller", "runpy",
    "typing.get_type_hints",
)  # fmt: skip
FIELDS = "__dataclass_fields__"  # read by what looks at all fields of a dataclass
ALL_FIELDS = {"dataclasses.asdict", "dataclasses.astuple", "dataclasses.fields"}
PROGRAM = "sys.executable"  # read by what runs programs; stands for what modules do as such
CHANCE = "random"  # stands for the state of all generators that have no name
LOOKED_UP = {"getattr", "hasattr", "setattr", "delattr"}


class Unit:
    """A statement, which counts as a whole: what it gives a meaning to, and what it reads.

    Attributes:
        names: those that it gives a meaning to, or may change.
        reads: identifiers, as spelled, also those of attributes and in texts.
        bare: names of which it reads more than attributes.
        texts: its constants.
        dynamic: the source does not tell what it reads.
        always: it counts for every method.
        owner: the class without which it does not count.
        head, members: of a class, for where its statements count one by one.
    """

    def __init__(self, module: Module, node: ast.stmt, owner: Unit | None = None) -> None:
        self.module, self.node, self.owner = module, node, owner
        self.is_statement = not isinstance(node, syntax.Definition)
        self.bound = syntax.bound(node)
        self.names, self.reads, self.bare = set(self.bound), set[str](), set[str]()
        self.texts: list[str] = []
        self.dynamic = False
        first = next(iter(self.bound), "a statement")
        self.label = f"{f'{owner.bound[0]}.{first}' if owner else first} in {module.path}"
        hook = first.startswith("__") and (owner or isinstance(node, syntax.Function))  # which Python calls by itself
        self.always = bool(hook or (owner and syntax.is_odd(node)))
        self._look()
        self.head: Unit | None = None
        self.members: list[Unit] = []
        if isinstance(node, ast.ClassDef) and owner is None:
            bare = ast.ClassDef(node.name, node.bases, node.keywords, [], node.decorator_list)
            self.head = Unit(module, ast.copy_location(bare, node), self)
            self.head.label, self.head.always = self.label, True
            self.members = [Unit(module, part, self) for part in node.body if not syntax.is_text(part)]

    @property
    def acts(self) -> bool:
        """Whether it changes something of other modules when its own is imported."""
        if self.owner is not None or not self.is_statement:
            return False
        written = (syntax.root(part) for part in syntax.scope(self.node) if syntax.writes_into(part))
        return self.always or any(name in self.module.imported for name in written)

    def _look(self) -> None:
        inside = syntax.own_names(self.node) if isinstance(self.node, syntax.Scope) else set()
        outside = syntax.outside(self.node) if isinstance(self.node, syntax.Scope) else []
        unseen = unevaluated(self.node, self.owner is not None)
        anywhere = {n.id for n in syntax.walk(self.node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        anywhere |= {n.arg for n in syntax.walk(self.node) if isinstance(n, ast.arg)}
        waiting = [(part, inside) for part in syntax.parts(self.node)] + [(part, set[str]()) for part in outside]
        while waiting:
            part, hidden = waiting.pop()
            if isinstance(part, ast.Attribute):
                base, attributes = syntax.chain(part)
                name = base.id if isinstance(base, ast.Name) else ""
                if name in anywhere or name not in self.module.foreign:  # attributes of others' modules are not ours
                    self.reads.update(attributes)
                elif CHANCE in (name, *attributes[:-1]) and attributes[-1].islower():
                    self.reads.add(CHANCE)
                    self.names |= {CHANCE} if self.is_statement else set()
                self.dynamic |= bool(DYNAMIC_ATTRIBUTES & set(attributes))
                self._read(name, attributes, hidden)
                waiting += [] if name else [(base, hidden)]
            elif isinstance(part, ast.Name):
                self.bare.add(part.id)
                self._read(part.id, [], hidden)
            elif isinstance(part, ast.Compare) and isinstance(part.left, ast.Constant) and _is_lookup(part):
                self.texts.append(str(part.left.value))  # "google.colab" in sys.modules
            elif isinstance(part, ast.Call) and getattr(part.func, "attr", "") == "__setattr__":
                waiting += [(each, hidden) for each in part.args[1:]]  # of a frozen dataclass, by itself
            elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in LOOKED_UP:
                of_ours = part.func.id == "setattr" or syntax.root((*part.args, part)[0]) not in self.module.foreign
                self.dynamic |= of_ours and not isinstance(getattr((*part.args, None, None)[1], "value", None), str)
                waiting += [(each, hidden) for each in part.args]
            elif isinstance(part, syntax.Scope):
                waiting += [(each, hidden) for each in syntax.outside(part)]
                inside = hidden | syntax.own_names(part)
                waiting += [(each, inside) for each in syntax.parts(part)]
            else:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    self.texts.append(part.value)
                    self.reads |= syntax.names_in(part.value)
                self.reads.update(part.kwd_attrs if isinstance(part, ast.MatchClass) else ())
                for _, target in syntax.imports(part, self.module.package):
                    self.reads.add(target.rpartition(".")[2])
                    self.dynamic |= _is_dynamic(target)
                waiting += [(each, hidden) for each in syntax.parts(part) if id(each) not in unseen]

    def _read(self, name: str, attributes: list[str], hidden: set[str]) -> None:
        if name and name not in hidden:
            self.reads.add(name)
            self.dynamic |= name in DYNAMIC | LOOKED_UP and name not in self.module.variables
            self.dynamic |= name == "sys" and attributes[:1] == ["modules"]
            for target in self.module.imported.get(name, ()):
                whole = ".".join([target, *attributes])
                self.reads |= {target.rpartition(".")[2]} if self.module.is_ours(target) else set()
                self.reads |= {FIELDS} if whole in ALL_FIELDS else {PROGRAM} if whole == PROGRAM else set()
                self.dynamic |= _is_dynamic(whole)


class Module:
    """The statements of a module, and what it imports."""

    def __init__(self, path: str, source: bytes, modules: Collection[str]) -> None:
        self.path, self.name, self.modules = path, module_name(path), modules
        self.package = PurePosixPath(path).parts[:-1]
        tree = ast.parse(source)
        self.documents = [ast.dump(node) for node in syntax.walk(tree) if syntax.is_text(node)]
        self.imported: dict[str, list[str]] = defaultdict(list)  # more than one where one stands in for another
        for node in syntax.walk(tree):
            for name, target in syntax.imports(node, self.package):
                self.imported[name] += [target] if target not in self.imported[name] else []
        body = [statement for statement in tree.body if syntax.computes(statement)]
        self.variables = {name for statement in body for name in syntax.variables(statement)}
        self.bound = Counter(name for statement in body for name in syntax.bound(statement))
        elsewhere = (n for n, its in self.imported.items() if n not in self.bound and not any(map(self.is_ours, its)))
        self.foreign = set(elsewhere)  # names that always stand for something that is imported from elsewhere
        self.units = [Unit(self, statement) for statement in body]
        self.programs = [Unit(self, statement) for statement in tree.body if syntax.is_program(statement)]
        self.imports = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
        made = [s for s in body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Call)]
        others = self.foreign - syntax.HARMLESS
        self.given = {name for s in made if syntax.root(s.value) in others for name in syntax.bound(s)}  # by libraries

    def is_ours(self, target: str) -> bool:
        """Whether a dotted name is that of one of these modules, of something in one, or of a folder of them."""
        parts = target.split(".")
        inside = any(".".join(parts[:end]) in self.modules for end in range(1, len(parts) + 1))
        return inside or any(name.startswith(f"{target}.") for name in self.modules)

    def meant(self, names: Iterable[str]) -> set[str]:
        """Names, and those by which what they stand for is known in other of these modules."""
        found = set(names)
        found.update(t.rpartition(".")[2] for n in names for t in self.imported.get(n, ()) if self.is_ours(t))
        return found


def _is_dynamic(target: str) -> bool:
    return any(f"{target}.".startswith(f"{name}.") for name in DYNAMIC_IMPORTS)


def _is_lookup(node: ast.Compare) -> bool:
    """Whether it is asked if there is a module, or a variable, of a name."""
    where = ast.unparse(node.comparators[0])
    return isinstance(node.ops[0], ast.In | ast.NotIn) and where in ("globals()", "locals()", "sys.modules")


def module_name(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
