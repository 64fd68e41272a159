"""What statements may change besides the names that they assign: the effects of `TABLE.update(x)` or `configure()`.

They are read from the syntax alone: everything that has the same name counts as the same object, and the name of a
method tells whether it changes its object.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TypeGuard

from sibcl_ray.user_module import syntax
from sibcl_ray.user_module.statements import HARMLESS, Module, Statement
from sibcl_ray.user_module.syntax import Definition, identifier, root, target_name, walk, writes_into

MUTATING = {  # methods that change their object; those of random generators that draw from them too
    "choice", "choices", "exponential", "gauss", "integers", "normal", "permutation", "permuted", "poisson", "rand",
    "randint", "randn", "random", "randrange", "read", "readline", "sample", "send", "standard_normal", "uniform",
    "add", "append", "clear", "discard", "extend", "fill", "insert", "pop", "popitem", "put", "register", "remove",
    "resize", "reverse", "setdefault", "shuffle", "sort", "update", "load_state_dict", "__setitem__",
}  # fmt: skip
MUTATING_ARGUMENT = {  # functions that change their first argument
    "copyto", "fill_diagonal", "heapify", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "next",
    "place", "putmask", "shuffle",
}  # fmt: skip


class Effects:
    """The effects of all statements of some modules."""

    def __init__(self, statements: Sequence[Statement]) -> None:
        definitions = {s: s.assigned[0] for s in statements if isinstance(s.node, Definition)}
        self.variables = {name for s in statements if s not in definitions for name in s.defined}
        self.variables |= {name for s in definitions for member in s.members for name in member.assigned}
        self.callables = {n.name for s in definitions for n in walk(s.node) if isinstance(n, Definition)}
        self.values = {  # names of what is computed, and may be any function
            name
            for s in statements
            if isinstance(s.node, ast.Assign | ast.AnnAssign) and not isinstance(s.node.value, ast.Lambda)
            for name in s.assigned
        }
        self.mutated: set[str] = set()  # names of objects that some statement changes
        self.mutated = set[str]().union(*(self.changed(s.node) for s in statements))
        # Of what functions and classes change, call and return, by their names:
        self.effects: dict[str, set[str]] = defaultdict(set)
        self.call_graph: dict[str, set[str]] = defaultdict(set)
        self.returned: dict[str, set[str]] = {}
        for s, name in definitions.items():
            self.effects[name] |= s.module.resolved(self.changed(s.node))
            self.call_graph[name] |= s.module.resolved(s.references).intersection(definitions.values())
            returns = [n for n in syntax.scope(s.node) if isinstance(n, ast.Return)]
            self.returned[name] = self.variables & {root(n.value) for n in returns if n.value}

    def add_to(self, statement: Statement) -> None:
        """Add names that a statement may change when its module is imported to those that it defines.

        A statement that may change something without a name in these modules counts for every method.
        """
        module = statement.module
        for part in syntax.run_when_defined(statement.node):
            called = module.resolved(map(identifier, walk(part))) & self.effects.keys()
            statement.defined |= module.resolved(self.changed(part))
            statement.defined.update(*(self.effects[name] for name in _reachable(called, self.call_graph)))
            if statement.defined & self.mutated:  # which a function may have returned
                statement.defined.update(*(self.returned[name] for name in called))
            if statement.owner is None:
                is_definition = isinstance(statement.node, Definition)
                unknown = not is_definition and (statement.dynamic or self._calls_value(part))
                statement.always |= unknown or self._changes_others(part, module)

    def changed(self, node: ast.AST) -> set[str]:
        """Names whose values a statement, or a function when it is called, may change besides those that it assigns."""
        found: set[str] = set()
        for part in walk(node):
            if isinstance(part, ast.Global):
                found.update(part.names)
            elif writes_into(part):
                name = target_name(part)
                found |= {name} if isinstance(part, ast.Attribute) else {name} & self.variables
            elif isinstance(part, ast.Call):
                found.update(self._changed_by_call(part))
            elif _is_for_effect(part) and root(part.value) not in HARMLESS:
                found |= self.variables & {n.id for n in walk(part) if isinstance(n, ast.Name)}
            elif isinstance(part, ast.AugAssign):
                found.add(target_name(part.target))
            elif isinstance(part, ast.Assign | ast.AnnAssign | ast.For | ast.withitem):
                found |= self.variables & self._aliased(part)
        return found - {""}

    def _changed_by_call(self, call: ast.Call) -> Iterator[str]:
        """`queue` of `queue.append(x)` and `heappush(queue, x)`, `total` of `np.add(x, y, out=total)`."""
        name = syntax.last_name(call.func)
        its = [call.func.value] if isinstance(call.func, ast.Attribute) else []
        in_place = name.endswith("_") and not name.startswith("_")
        changed = [k.value for k in call.keywords if k.arg == "out"]
        changed += its if in_place or any(k.arg == "inplace" for k in call.keywords) else []
        changed += call.args[:1] if in_place or name in MUTATING_ARGUMENT else []
        yield from self.variables.intersection(map(root, changed))
        if name in self.callables:
            yield from self.variables.intersection(map(target_name, call.args))
        if name in self.callables or name in MUTATING:
            yield from map(target_name, its)
        if name == "setattr" and isinstance(text := getattr((*call.args, None, None)[1], "value", None), str):
            yield text

    def _aliased(self, node: ast.Assign | ast.AnnAssign | ast.For | ast.withitem) -> set[str]:
        """Names in what is assigned to a name under which it may be changed; or to the variable of a loop."""
        targets = [each for each in syntax.children(node) if isinstance(getattr(each, "ctx", None), ast.Store)]
        names = {n.id for target in targets for n in walk(target) if isinstance(n, ast.Name)}
        value = getattr(node, "value", getattr(node, "iter", getattr(node, "context_expr", None)))
        if value is None or not (isinstance(node, ast.For) or names & self.mutated):
            return set()
        return set(map(identifier, walk(value)))

    def _changes_others(self, node: ast.AST, module: Module) -> bool:
        """Whether a statement may change what is not of these modules: `mp.dps = 5`, `old = np.seterr(all="raise")`."""
        libraries = module.foreign - HARMLESS
        for part in syntax.scope(node):
            sets = isinstance(part, ast.Call) and re.match("set|seed|manual_seed", syntax.last_name(part.func))
            if (sets or writes_into(part)) and root(part) in libraries:
                return True
            if isinstance(part, ast.Attribute) and writes_into(part) and root(part) in module.library_objects:
                return True
            if _is_for_effect(part) and hasattr(part, "lineno"):  # decorators have none
                calls = [n for n in walk(part) if isinstance(n, ast.Call) and root(n) not in HARMLESS]
                if not all(isinstance(call.func, ast.Attribute) and root(call) in self.variables for call in calls):
                    return True
        return False

    def _calls_value(self, node: ast.AST) -> bool:
        """Whether it calls something computed, so that the source does not tell what runs: `TABLE["a"](3)`."""
        calls = [n for n in syntax.scope(node) if isinstance(n, ast.Call) and not isinstance(n.func, ast.Attribute)]
        return any(root(call.func) in self.values for call in calls)


def _is_for_effect(node: ast.AST) -> TypeGuard[ast.Expr | ast.Assign]:
    """Whether the value that it computes is not used: an expression as a statement, or `_ = ...`."""
    thrown = isinstance(node, ast.Assign) and all(getattr(target, "id", "") == "_" for target in node.targets)
    return thrown or isinstance(node, ast.Expr)


def _reachable(names: set[str], graph: dict[str, set[str]]) -> set[str]:
    """These names and all that can be reached from them."""
    found, waiting = set(names), list(names)
    while waiting:
        new = graph[waiting.pop()] - found
        found |= new
        waiting += new
    return found
