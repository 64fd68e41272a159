"""The statements of user modules: the names that each defines, and those that it refers to."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from pathlib import PurePosixPath

from sibcl_ray.user_module import syntax

DYNAMIC = {"dir", "eval", "exec", "globals", "locals", "vars", "__import__"}
DYNAMIC_ATTRIBUTES = {"__annotations__", "__dict__", "__getattribute__", "__subclasses__"}
DYNAMIC_IMPORTS = (
    "builtins", "importlib.import_module", "importlib.machinery", "importlib.reload", "importlib.util.module_from_spec",
    "importlib.util.spec_from_file_location", "inspect", "operator.attrgetter", "operator.methodcaller", "runpy",
    "typing.get_type_hints",
)  # fmt: skip
LOOKUPS = {"getattr", "hasattr", "setattr", "delattr"}
HARMLESS = {  # libraries and objects, by their usual names, whose calls change nothing that is computed
    "print", "warnings", "logging", "logger", "log", "plt", "matplotlib", "mpl", "tqdm",
}  # fmt: skip
# Names that stand for what has none in the source.
FIELDS = "__dataclass_fields__"  # all fields of a dataclass, referred to by what lists them
ALL_FIELDS = {"dataclasses.asdict", "dataclasses.astuple", "dataclasses.fields"}
PROGRAM = "sys.executable"  # what modules do as scripts, referred to by what runs programs
RANDOM = "random"  # the state of the global random generators


class Statement:
    """A statement of a module, or of the body of a class, which counts as a whole.

    Attributes:
        assigned: the names that it assigns or defines, the first in its label.
        defined: these, and those whose values it may change.
        references: identifiers that it reads, also of attributes and in strings.
        bare: names that it reads other than for an attribute of them.
        strings: its string constants.
        dynamic: the source does not tell what it reads.
        always: it counts for every method.
        owner: the class in whose body it is.
        head, members: of a class at the top of a module: the class without its body, and the statements of that.
    """

    def __init__(self, module: Module, node: ast.stmt, owner: Statement | None = None) -> None:
        self.module, self.node, self.owner = module, node, owner
        self.assigned = syntax.assigned(node)
        self.defined, self.references, self.bare = set(self.assigned), set[str](), set[str]()
        self.strings: set[str] = set()
        self.dynamic = False
        name = next(iter(self.assigned), "a statement")
        self.label = f"{f'{owner.assigned[0]}.{name}' if owner else name} in {module.path}"
        hook = name.startswith("__") and (owner or isinstance(node, syntax.Function))  # which Python calls by itself
        self.always = bool(hook or (owner and not _only_defines(node)))
        self._find_references()
        self.head: Statement | None = None
        self.members: list[Statement] = []
        if isinstance(node, ast.ClassDef) and owner is None:
            without_body = ast.ClassDef(node.name, node.bases, node.keywords, [], node.decorator_list)
            self.head = Statement(module, ast.copy_location(without_body, node), self)
            self.head.label, self.head.always = self.label, True
            self.members = [Statement(module, part, self) for part in node.body if not syntax.is_docstring(part)]

    @property
    def changes_others(self) -> bool:
        """Whether importing its module changes something of other modules by it."""
        if self.owner is not None or isinstance(self.node, syntax.Definition):
            return False
        written = (syntax.root(part) for part in syntax.scope(self.node) if syntax.writes_into(part))
        return self.always or any(name in self.module.imported for name in written)

    def _find_references(self) -> None:
        unread = syntax.unread_annotations(self.node, self.owner is not None)
        nodes = syntax.walk(self.node)
        stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        stored |= {n.arg for n in nodes if isinstance(n, ast.arg)}
        first: Iterable[ast.AST] = [self.node] if isinstance(self.node, syntax.Scope) else syntax.parts(self.node)
        waiting = [(part, set[str]()) for part in first]  # with the local names that hide others there
        while waiting:
            part, hidden = waiting.pop()
            below: Iterable[ast.AST] = [each for each in syntax.parts(part) if id(each) not in unread]
            if isinstance(part, ast.Attribute | ast.Name):
                base, attributes = syntax.attribute_chain(part)
                name = base.id if isinstance(base, ast.Name) else ""
                self._read(name, attributes, name in hidden, name in stored)
                below = [] if name else [base]
            elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                self.strings.add(part.value)
                self.references |= syntax.names_in_string(part.value)
            elif isinstance(part, ast.Compare) and isinstance(part.left, ast.Constant) and _is_lookup(part):
                self.strings.add(str(part.left.value))  # "google.colab" in sys.modules
                below = []
            elif isinstance(part, ast.Call) and getattr(part.func, "attr", "") == "__setattr__":
                below = part.args[1:]  # object.__setattr__(self, "name", value)
            elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in LOOKUPS:
                of_ours = part.func.id == "setattr" or syntax.root((*part.args, part)[0]) not in self.module.foreign
                self.dynamic |= of_ours and not isinstance(getattr((*part.args, None, None)[1], "value", None), str)
                below = part.args
            elif isinstance(part, syntax.Scope):
                waiting += [(each, hidden) for each in syntax.evaluated_outside(part)]
                hidden = hidden | syntax.local_names(part)
            elif isinstance(part, ast.MatchClass):
                self.references.update(part.kwd_attrs)
            for _, target in syntax.imports(part, self.module.package):
                self.references.add(target.rpartition(".")[2])
                self.dynamic |= _is_dynamic(target)
            waiting += [(each, hidden) for each in below]

    def _read(self, name: str, attributes: list[str], is_hidden: bool, is_stored: bool) -> None:
        """Add a name that is read, with attributes of it; or, without a name, attributes of something computed."""
        if not attributes:
            self.bare.add(name)
        elif is_stored or name not in self.module.foreign:  # attributes of libraries are not of this code
            self.references.update(attributes)
        elif RANDOM in (name, *attributes[:-1]) and attributes[-1].islower():
            self.references.add(RANDOM)
            self.defined |= set() if isinstance(self.node, syntax.Definition) else {RANDOM}
        self.dynamic |= bool(DYNAMIC_ATTRIBUTES & set(attributes))
        if name and not is_hidden:
            self.references.add(name)
            self.dynamic |= name in DYNAMIC | LOOKUPS and name not in self.module.variables
            self.dynamic |= name == "sys" and attributes[:1] == ["modules"]
            for target in self.module.imported.get(name, ()):
                full = ".".join([target, *attributes])
                self.references |= {target.rpartition(".")[2]} if self.module.is_ours(target) else set()
                self.references |= {FIELDS} if full in ALL_FIELDS else {PROGRAM} if full == PROGRAM else set()
                self.dynamic |= _is_dynamic(full)


class Module:
    """The statements of a module, and what it imports."""

    def __init__(self, path: str, source: bytes, modules: Collection[str]) -> None:
        self.path, self.name, self.modules = path, module_name(path), modules
        self.package = PurePosixPath(path).parts[:-1]
        tree = ast.parse(source)
        self.docstrings = [ast.dump(node) for node in syntax.walk(tree) if syntax.is_docstring(node)]
        self.imported: dict[str, list[str]] = defaultdict(list)  # full names; several where one is a fallback
        for node in syntax.walk(tree):
            for name, target in syntax.imports(node, self.package):
                self.imported[name] += [target] if target not in self.imported[name] else []
        self.imports = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
        by_name = [each for each in self.imports if each.names[0].name != "*"]
        programs = [statement for statement in tree.body if syntax.is_program(statement)]
        body = [s for s in tree.body if not (s in by_name or s in programs or syntax.is_docstring(s))]
        self.variables = {name for statement in body for name in syntax.variables(statement)}
        self.assigned = Counter(name for statement in body for name in syntax.assigned(statement))  # and how often
        ours = {name for name, targets in self.imported.items() if any(map(self.is_ours, targets))}
        self.foreign = self.imported.keys() - ours - self.assigned.keys()  # always imported from elsewhere
        calls = [s for s in body if isinstance(s, ast.Assign) and isinstance(s.value, ast.Call)]
        libraries = self.foreign - HARMLESS
        self.library_objects = {n for s in calls if syntax.root(s.value) in libraries for n in syntax.assigned(s)}
        self.statements = [Statement(self, statement) for statement in body]
        self.programs = [Statement(self, statement) for statement in programs]

    def is_ours(self, target: str) -> bool:
        """Whether a full name is that of one of these modules, of something in one, or of a folder of them."""
        parts = target.split(".")
        inside = any(".".join(parts[:end]) in self.modules for end in range(1, len(parts) + 1))
        return inside or any(name.startswith(f"{target}.") for name in self.modules)

    def resolved(self, names: Iterable[str]) -> set[str]:
        """These names, and those that what they import has in the other modules."""
        names = set(names)
        targets = [target for name in names for target in self.imported.get(name, ())]
        return names | {target.rpartition(".")[2] for target in targets if self.is_ours(target)}


def _only_defines(node: ast.stmt) -> bool:
    """Whether a statement of a class does no more than to define names of it."""
    if isinstance(node, ast.AnnAssign):
        return "InitVar" not in ast.unparse(node.annotation)
    return isinstance(node, syntax.Definition | ast.Assign | ast.AugAssign | ast.Pass)


def _is_dynamic(target: str) -> bool:
    return any(f"{target}.".startswith(f"{name}.") for name in DYNAMIC_IMPORTS)


def _is_lookup(node: ast.Compare) -> bool:
    """Whether it asks if there is a module or a variable of a name."""
    where = ast.unparse(node.comparators[0])
    return isinstance(node.ops[0], ast.In | ast.NotIn) and where in ("globals()", "locals()", "sys.modules")


def module_name(path: str) -> str:
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
