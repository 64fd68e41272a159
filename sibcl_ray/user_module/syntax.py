"""Python's syntax trees: which names a statement gives a meaning to, or may change."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import Any

from sibcl_ray import PLACES

CHANGING = {  # methods that change what they are called of; those of generators that draw from them as well
    "choice", "choices", "exponential", "gauss", "integers", "normal", "permutation", "permuted", "poisson", "rand",
    "randint", "randn", "random", "randrange", "read", "readline", "sample", "send", "standard_normal", "uniform",
    "add", "append", "clear", "discard", "extend", "fill", "insert", "pop", "popitem", "put", "register", "remove",
    "resize", "reverse", "setdefault", "shuffle", "sort", "update", "load_state_dict", "__setitem__",
}  # fmt: skip
CHANGING_FIRST = {  # and functions that change what they are given first
    "copyto", "fill_diagonal", "heapify", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "next",
    "place", "putmask", "shuffle",
}  # fmt: skip
BLIND = {  # decorators that look at no annotation
    "abstractmethod", "cache", "cached_property", "classmethod", "compile", "contextmanager", "getter", "guvectorize",
    "inference_mode", "jit", "lru_cache", "njit", "no_grad", "override", "overload", "property", "setter",
    "staticmethod", "vectorize", "wraps",
}  # fmt: skip
HARMLESS = {  # calls of these, by their usual names, change nothing that is computed
    "print", "warnings", "logging", "logger", "log", "plt", "matplotlib", "mpl", "tqdm",
}  # fmt: skip
UNSAID = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}  # parts of syntax trees
Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = Function | ast.ClassDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
Scope = Function | ast.Lambda | Comprehension  # has names of its own
Block = Scope | ast.ClassDef


def children(node: ast.AST) -> tuple[ast.AST, ...]:
    """The nodes right below one, found once: trees are walked many times."""
    found: tuple[ast.AST, ...] | None = node.__dict__.get("_children")
    if found is None:
        node.__dict__["_children"] = found = tuple(ast.iter_child_nodes(node))
    return found


def walk(node: ast.AST) -> list[ast.AST]:
    """All nodes of a tree that does not change any more, as of `ast.walk`."""
    found = [node]
    for part in found:
        found.extend(children(part))
    return found


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a syntax tree that decide what it computes."""
    for name, value in ast.iter_fields(node):
        if name not in UNSAID and name != "returns" and not (name == "annotation" and isinstance(node, ast.arg)):
            inside = value if isinstance(value, list) else [value]
            yield from (part for part in inside if isinstance(part, ast.AST) and not is_text(part))


def scope(node: ast.AST) -> Iterator[ast.AST]:
    """All parts of a statement but those of functions, classes and comprehensions in it."""
    waiting = [node]
    while waiting:
        part = waiting.pop()
        yield part
        if part is node or not isinstance(part, Block):
            waiting += children(part)


def bound(node: ast.AST) -> list[str]:
    """The names that a statement gives a meaning to, also those of attributes, and of tables in which it writes."""
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
            names += _of(part)
    return list(dict.fromkeys(filter(None, names)))


def variables(node: ast.AST) -> set[str]:
    """Of the names that a statement gives a meaning to those that are asked for without a dot."""
    if isinstance(node, Definition):
        return {node.name}
    names = {n.id for n in scope(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return names | {n.name for n in scope(node) if isinstance(n, Definition)}


def _of(node: ast.expr) -> list[str]:
    """The name of what an expression is, or is a part of; of an attribute that an object gives to itself none."""
    own = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("self", "cls")
    while isinstance(node, ast.Subscript | ast.Starred):
        node = node.value
    if isinstance(node, ast.Attribute):
        return [] if own and not isinstance(node.ctx, ast.Load) else [node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def writes_into(node: ast.AST) -> bool:
    """Whether it stands for an attribute or an entry that is given a value, or deleted."""
    return isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)


def changed(node: ast.AST, variables: set[str], ours: set[str], mutated: Collection[str] = ()) -> set[str]:
    """Names of which a statement, or what is called, may change the meaning, besides those that it binds itself.

    Those in ``mutated`` are changed somewhere, and with them what they are parts of.
    """
    found: set[str] = set()
    for part in walk(node):
        if isinstance(part, ast.Global):
            found.update(part.names)
        elif isinstance(part, ast.expr) and writes_into(part):
            found.update(name for name in _of(part) if isinstance(part, ast.Attribute) or name in variables)
        elif isinstance(part, ast.Call):
            name = _last(part.func)
            if isinstance(part.func, ast.Attribute) and (name in CHANGING or name in ours):
                found.update(_of(part.func.value))
            if name in ours:
                found.update(n for each in part.args for n in _of(each) if n in variables)
            found.update(n for n in map(root, _changed_in_place(part, name)) if n in variables)
            if name == "setattr" and isinstance(text := getattr((*part.args, None, None)[1], "value", None), str):
                found.add(text)
        elif is_for_effect(part) and root(part.value) not in HARMLESS:  # type: ignore[attr-defined]
            found.update(n.id for n in walk(part) if isinstance(n, ast.Name) and n.id in variables)
        elif isinstance(part, ast.AugAssign):
            found.update(_of(part.target))
        elif isinstance(part, ast.Assign | ast.AnnAssign | ast.For | ast.withitem):
            targets = [each for each in children(part) if isinstance(getattr(each, "ctx", None), ast.Store)]
            given = {n.id for each in targets for n in walk(each) if isinstance(n, ast.Name)}
            value = getattr(part, "value", getattr(part, "iter", getattr(part, "context_expr", None)))
            if value and (isinstance(part, ast.For) or not given.isdisjoint(mutated)):
                found |= variables & {_last(n) for n in walk(value) if isinstance(n, ast.Name | ast.Attribute)}
    return found


def _changed_in_place(call: ast.Call, name: str) -> Iterator[ast.expr]:
    """What a call of this name writes into: `heappush(queue, x)`, `np.add(x, y, out=total)`, `weights.zero_()`."""
    in_place = name.endswith("_") and not name.startswith("_")
    if in_place or name in CHANGING_FIRST:
        yield from call.args[:1]
    if (in_place or any(k.arg == "inplace" for k in call.keywords)) and isinstance(call.func, ast.Attribute):
        yield call.func.value
    yield from (k.value for k in call.keywords if k.arg == "out")


def returned(node: ast.AST) -> set[str]:
    """Names of which a function returns the meaning, or a part of it."""
    return {root(n.value) for n in scope(node) if isinstance(n, ast.Return) and n.value}


def gives_value(node: ast.AST) -> bool:
    """Whether a name is given something computed, and not a function."""
    return isinstance(node, ast.Assign | ast.AnnAssign) and not isinstance(node.value, ast.Lambda)


def is_for_effect(node: ast.AST) -> bool:
    """Whether a value is computed that nothing is done with."""
    thrown = isinstance(node, ast.Assign) and all(getattr(target, "id", "") == "_" for target in node.targets)
    return thrown or isinstance(node, ast.Expr)


def sets_others(node: ast.AST, foreign: Collection[str], given: Collection[str]) -> bool:
    """Whether a statement changes something of another library: `mp.dps = 5`, `old = np.seterr(all="raise")`.

    ``foreign`` are names that stand for other libraries, ``given`` those of what they gave, of which attributes may be
    their state.
    """
    for part in scope(node):
        writes = writes_into(part)
        calls = isinstance(part, ast.Call) and re.match("set|seed|manual_seed", _last(part.func))
        if (writes or calls) and root(part) in foreign and root(part) not in HARMLESS:
            return True
        if writes and isinstance(part, ast.Attribute) and root(part) in given:
            return True
    return False


def acts(node: ast.AST, variables: Collection[str]) -> bool:
    """Whether a statement calls something for what it does elsewhere: `np.random.seed(1)`."""
    statements = [part for part in scope(node) if is_for_effect(part)]
    calls = [part for statement in statements for part in walk(statement) if isinstance(part, ast.Call)]
    methods = [call for call in calls if isinstance(call.func, ast.Attribute) and root(call) in variables]
    return any(call not in methods and root(call) not in HARMLESS for call in calls)


def calls_a_value(node: ast.AST, values: Collection[str]) -> bool:
    """Whether it calls what has been computed, so that source does not tell what the call does: `TABLE["a"](3)`."""
    calls = [n for n in scope(node) if isinstance(n, ast.Call) and not isinstance(n.func, ast.Attribute)]
    return any(root(call.func) in values for call in calls)


def run_when_defined(node: ast.AST) -> list[ast.AST]:
    """The parts of a function or a class that are run where it is defined; decorators as what they are: called."""
    if not isinstance(node, Definition):
        return [node]
    called = [ast.Expr(ast.Call(d, [], [])) for d in node.decorator_list]
    if isinstance(node, Function):
        return [*called, *outside(node)]
    inside = [part for statement in node.body for part in run_when_defined(statement)]
    return [*called, *node.bases, *(k.value for k in node.keywords), *inside]


def outside(node: Scope) -> list[ast.AST]:
    """What of a function, or a comprehension, does not see the names that are its own."""
    if isinstance(node, Comprehension):
        return [node.generators[0].iter]
    defaults: list[ast.AST] = [*node.args.defaults, *(d for d in node.args.kw_defaults if d)]
    if isinstance(node, ast.Lambda):
        return defaults
    return [*node.decorator_list, *defaults, *annotations_of(node)]


def annotations_of(node: Function) -> list[ast.expr]:
    """Of a function that is decorated by something which may look at them."""
    if all(_last(d) in BLIND for d in node.decorator_list):
        return []
    arguments = [n.annotation for n in walk(node.args) if isinstance(n, ast.arg)]
    return [each for each in (*arguments, node.returns) if each]


def own_names(node: Scope) -> set[str]:
    """Names that are a function's, or a comprehension's, own wherever they stand in it."""
    own = set[str]().union(*(variables(part) for part in ast.iter_child_nodes(node)))
    own |= {n.name for n in scope(node) if isinstance(n, ast.ExceptHandler) and n.name}
    if not isinstance(node, Comprehension):
        own |= {each.arg for each in children(node.args) if isinstance(each, ast.arg)}
    return own - {name for n in walk(node) if isinstance(n, ast.Global) for name in n.names}


def names_in(text: str) -> set[str]:
    """Names that a text may mean: of a word, an expression, or what is to be put in its place in it."""
    if not re.search(r"\s", text):
        return set(re.findall(r"[^\W\d]\w*", text))
    found = set(re.findall(r"[^\W\d]\w*", " ".join(re.findall(r"\{[^{}]*\}|\$\w+|@\w+", text))))
    if len(text) < 200:  # most are no expressions
        with suppress(SyntaxError, ValueError, MemoryError, RecursionError), warnings.catch_warnings(action="ignore"):
            found |= {n.id for n in walk(ast.parse(text.strip(), mode="eval")) if isinstance(n, ast.Name)}
    return found


def selves(node: ast.AST) -> set[str]:
    """The names that an object may have in a member of its class."""
    if isinstance(node, Function):
        functions: list[Any] = [] if any(_last(d) == "staticmethod" for d in node.decorator_list) else [node]
    else:
        functions = [n for n in walk(node) if isinstance(n, Function | ast.Lambda)]
    return {a.arg for f in functions for a in (*f.args.posonlyargs, *f.args.args)[:1]}


def fields(node: ast.AST) -> Iterator[str]:
    """Of a dataclass."""
    if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and not re.search("ClassVar|InitVar", ast.unparse(part.annotation)):
                yield from bound(part)


def roots(node: ast.AST) -> set[str]:
    """The names of what a statement gives attributes to; an empty one if it does anything else."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {root(t) if isinstance(t, ast.Attribute) else "" for t in targets}


def chain(node: ast.expr) -> tuple[ast.expr, list[str]]:
    """What attributes are asked of, and their names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return node, names


def root(node: ast.AST) -> str:
    """The name that a chain of attributes and calls begins with, or an empty one."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _last(node: ast.AST) -> str:
    """The last of a chain of names, also where it is subscripted or called."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_text(node: Any) -> bool:
    """Whether a statement is a docstring, or another constant that nothing is done with."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_odd(node: ast.AST) -> bool:
    """Whether a statement of a class does more than to give names a meaning."""
    if isinstance(node, ast.AnnAssign):
        return "InitVar" in ast.unparse(node.annotation)
    return not isinstance(node, Definition | ast.Assign | ast.AugAssign | ast.Pass)


def computes(node: ast.stmt) -> bool:
    """Whether a statement of a module is more than an import by name, a text, or what is run as a script."""
    if isinstance(node, ast.ImportFrom):
        return node.names[0].name == "*"
    return not (isinstance(node, ast.Import) or is_text(node) or is_program(node))


def is_program(node: ast.stmt) -> bool:
    """Whether it is what a module does when it is run as a script."""
    asked = ("__name__ == '__main__'", "'__main__' == __name__")
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) in asked


def imports(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Names that are given by an import, and what they stand for."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2
    elif isinstance(node, ast.ImportFrom):
        module = module_of(node, package)
        for alias in node.names:
            if alias.name == "*":
                yield f"* {module}", module
            else:
                place = PLACES.get(alias.name, module) if module == "sibcl_ray" else module
                yield alias.asname or alias.name, f"{place}.{alias.name}" if place else alias.name


def module_of(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    """The full name of the module that something is imported from."""
    base = package[: len(package) - node.level + 1] if node.level else ()
    return ".".join([*base, *([node.module] if node.module else [])])
