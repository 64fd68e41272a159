"""What a syntax tree shows: the names that it assigns and imports, its scopes, its annotations."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TypeGuard

from sibcl_ray import PLACES

IGNORE_ANNOTATIONS = {  # decorators that do not read the annotations of a function
    "abstractmethod", "cache", "cached_property", "classmethod", "compile", "contextmanager", "getter", "guvectorize",
    "inference_mode", "jit", "lru_cache", "njit", "no_grad", "override", "overload", "property", "setter",
    "staticmethod", "vectorize", "wraps",
}  # fmt: skip
IGNORED = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}  # fields of nodes that compute nothing
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Scope = Function | ast.Lambda | Comprehension  # has local names
Block = Scope | ast.ClassDef


def children(node: ast.AST) -> tuple[ast.AST, ...]:
    """The child nodes, which are stored with the node: trees are walked many times."""
    found: tuple[ast.AST, ...] | None = node.__dict__.get("_children")
    if found is None:
        node.__dict__["_children"] = found = tuple(ast.iter_child_nodes(node))
    return found


def walk(node: ast.AST) -> list[ast.AST]:
    """All nodes of a tree that does not change any more, in the order of `ast.walk`."""
    found = [node]
    for part in found:
        found.extend(children(part))
    return found


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """The child nodes that are evaluated: no docstrings, and no annotations of functions."""
    for name, value in ast.iter_fields(node):
        if name not in IGNORED and name != "returns" and not (name == "annotation" and isinstance(node, ast.arg)):
            inside = value if isinstance(value, list) else [value]
            yield from (part for part in inside if isinstance(part, ast.AST) and not is_docstring(part))


def scope(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree that are not inside a function, class or comprehension below its root."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if part is node or not isinstance(part, Block):
            waiting += children(part)


def assigned(node: ast.AST) -> list[str]:
    """The names that a statement assigns, defines or imports; also of attributes, and of containers it writes into."""
    if isinstance(node, Definition):
        return [node.name]
    names: list[str | None] = [n.target.id for n in walk(node) if isinstance(n, ast.NamedExpr)]
    for part in scope(node):
        if isinstance(part, Definition | ast.MatchAs | ast.MatchStar):
            names.append(part.name)
        elif isinstance(part, ast.MatchMapping):
            names.append(part.rest)
        elif isinstance(part, ast.alias) and part.name != "*":
            names.append(part.asname or part.name.partition(".")[0])
        elif isinstance(part, ast.Name | ast.Attribute | ast.Subscript) and not isinstance(part.ctx, ast.Load):
            names.append(target_name(part))
    return list(dict.fromkeys(filter(None, names)))


def variables(node: ast.AST) -> set[str]:
    """Of the names that a statement assigns or defines those of variables, functions and classes."""
    if isinstance(node, Definition):
        return {node.name}
    names = {n.id for n in scope(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | {n.name for n in scope(node) if isinstance(n, Definition)}


def local_names(node: Scope) -> set[str]:
    """The names that are local to a function or comprehension."""
    local = set[str]().union(*(variables(part) for part in ast.iter_child_nodes(node)))
    local |= {n.name for n in scope(node) if isinstance(n, ast.ExceptHandler) and n.name}
    if not isinstance(node, Comprehension):
        local |= {each.arg for each in children(node.args) if isinstance(each, ast.arg)}
    return local - {name for n in walk(node) if isinstance(n, ast.Global) for name in n.names}


def evaluated_outside(node: Scope) -> list[ast.AST]:
    """The parts of a function or comprehension that do not see its local names."""
    if isinstance(node, Comprehension):
        return [node.generators[0].iter]
    defaults: list[ast.AST] = [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]
    if isinstance(node, ast.Lambda):
        return defaults
    return [*node.decorator_list, *defaults, *(annotations_of(node) if may_read_annotations(node) else ())]


def run_when_defined(node: ast.AST) -> list[ast.AST]:
    """The parts of a statement that run when its module is imported; decorators as calls."""
    if not isinstance(node, Definition):
        return [node]
    called = [ast.Expr(ast.Call(d, [], [])) for d in node.decorator_list]
    if isinstance(node, Function):
        return [*called, *evaluated_outside(node)]
    inside = [part for statement in node.body for part in run_when_defined(statement)]
    return [*called, *node.bases, *(k.value for k in node.keywords), *inside]


def annotations_of(node: Function) -> list[ast.expr]:
    arguments = [n.annotation for n in walk(node.args) if isinstance(n, ast.arg)]
    return [each for each in (*arguments, node.returns) if each]


def may_read_annotations(node: Function) -> bool:
    """Whether a decorator of the function may read its annotations."""
    return any(last_name(d) not in IGNORE_ANNOTATIONS for d in node.decorator_list)


def unread_annotations(node: ast.AST, in_class: bool) -> set[int]:
    """The annotations in a statement that decide nothing, by `id`: of variables, but for those of a class, and of
    functions, but for those with a decorator that may read them."""
    functions = [n for n in walk(node) if isinstance(n, Function)]
    scopes = functions if in_class or isinstance(node, Definition) else [*functions, node]
    unread = {id(n.annotation) for each in scopes for n in scope(each) if isinstance(n, ast.AnnAssign)}
    return unread | {id(a) for each in functions if not may_read_annotations(each) for a in annotations_of(each)}


def names_in_string(text: str) -> set[str]:
    """Names that a string may refer to: of a word, of an expression, or of what is to be substituted in it."""
    if not re.search(r"\s", text):
        return set(re.findall(r"[^\W\d]\w*", text))
    found = set(re.findall(r"[^\W\d]\w*", " ".join(re.findall(r"\{[^{}]*\}|\$\w+|@\w+", text))))
    if len(text) < 200:  # longer ones are hardly expressions
        with suppress(SyntaxError, ValueError, MemoryError, RecursionError), warnings.catch_warnings(action="ignore"):
            found |= {n.id for n in walk(ast.parse(text.strip(), mode="eval")) if isinstance(n, ast.Name)}
    return found


def self_names(node: ast.AST) -> set[str]:
    """The names that the object itself may have in a statement of its class: first arguments."""
    if isinstance(node, Function):
        functions: list[Any] = [] if any(last_name(d) == "staticmethod" for d in node.decorator_list) else [node]
    else:
        functions = [n for n in walk(node) if isinstance(n, Function | ast.Lambda)]
    return {a.arg for f in functions for a in (*f.args.posonlyargs, *f.args.args)[:1]}


def dataclass_fields(node: ast.AST) -> list[str]:
    """The fields that a dataclass defines."""
    if not isinstance(node, ast.ClassDef) or not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return []
    annotated = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    its = [part for part in annotated if not re.search("ClassVar|InitVar", ast.unparse(part.annotation))]
    return [name for part in its for name in assigned(part)]


def objects_written(node: ast.AST) -> set[str]:
    """The names of the objects whose attributes a statement assigns; with an empty one if it does anything else."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {root(t) if isinstance(t, ast.Attribute) else "" for t in targets}


def writes_into(node: ast.AST) -> TypeGuard[ast.Attribute | ast.Subscript]:
    """Whether it is an attribute or an item that is assigned or deleted."""
    return isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)


def attribute_chain(node: ast.expr) -> tuple[ast.expr, list[str]]:
    """`x` and `["y", "z"]` of `x.y.z`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return node, names


def identifier(node: ast.AST) -> str:
    """The name of a variable or an attribute; empty for other nodes."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def root(node: ast.AST) -> str:
    """`x` of `x.y[0].z()`; empty if there is no name at the beginning."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def last_name(node: ast.AST) -> str:
    """`z` of `x.y.z`, `x.y.z[0]` and `x.y.z()`."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return identifier(node)


def target_name(node: ast.AST) -> str:
    """`z` of `x.y.z` and `x.y.z[0]`; empty for an attribute that an object assigns to itself."""
    if writes_into(node) and isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("self", "cls"):
        return ""
    while isinstance(node, ast.Subscript | ast.Starred):
        node = node.value
    return identifier(node)


def is_docstring(node: Any) -> bool:
    """Whether a statement is a docstring or another constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_program(node: ast.stmt) -> bool:
    """Whether a statement runs only if its module runs as a script."""
    tests = ("__name__ == '__main__'", "'__main__' == __name__")
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) in tests


def imports(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The names that an import assigns, and the full names of what they refer to."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom):
        module = imported_module(node, package)
        for alias in node.names:
            if alias.name == "*":
                yield f"* {module}", module
            else:
                place = PLACES.get(alias.name, module) if module == "sibcl_ray" else module
                yield alias.asname or alias.name, f"{place}.{alias.name}" if place else alias.name


def imported_module(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    """The full name of the module after ``from``."""
    base = package[: len(package) - node.level + 1] if node.level else ()
    return ".".join([*base, *([node.module] if node.module else [])])
