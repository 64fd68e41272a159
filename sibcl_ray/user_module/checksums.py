"""Checksums of what a statement says, the same on every version of Python and for every layout."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from typing import Any

from sibcl_ray.user_module import syntax


def unevaluated(node: ast.AST, in_class: bool) -> set[int]:
    """Annotations of variables that cannot be read at run time: the identities of their syntax trees."""
    places = [n for n in syntax.walk(node) if isinstance(n, syntax.Function)]
    places += [] if in_class or isinstance(node, syntax.Definition) else [node]  # type: ignore[list-item]
    return {id(n.annotation) for place in places for n in syntax.scope(place) if isinstance(n, ast.AnnAssign)}


class _Mark(str):
    """A word that is no text of the source."""


def checksum(node: ast.AST, in_class: bool = False, annotated: bool = False) -> str:
    """Of what a statement computes; with the annotations of functions where they may be read."""
    return digest(*_words(node, in_class, annotated))


def _words(node: ast.AST, in_class: bool, annotated: bool) -> Iterator[str]:
    """A syntax tree as words: the same on every version of Python and for every layout."""
    functions = [f for f in syntax.walk(node) if isinstance(f, syntax.Function)]
    seen = {id(a) for f in functions for a in syntax.annotations_of(f)}
    unseen = set() if annotated else unevaluated(node, in_class)
    waiting: list[Any] = [node]
    while waiting:
        value = waiting.pop()
        if isinstance(value, ast.JoinedStr):  # Python 3.12 ends some with an empty text
            value = ast.JoinedStr([part for part in value.values if getattr(part, "value", None) != ""])
        if isinstance(value, ast.AnnAssign) and id(value.annotation) in unseen and value.value:
            value = ast.Assign([value.target], value.value)
        if isinstance(value, ast.AST):
            parts: list[Any] = []
            for name, part in ast.iter_fields(value):
                of_function = name == "returns" or (name == "annotation" and isinstance(value, ast.arg))
                said = (
                    annotated or id(part) in seen
                    if of_function
                    else name not in syntax.UNSAID and id(part) not in unseen
                )
                if said and part is not None and part != []:
                    parts += [_Mark(name), part]
            yield f"({type(value).__name__}"
            waiting += [_Mark(")"), *reversed(parts)]
        elif isinstance(value, list):
            said_ones = [part for part in value if not (syntax.is_text(part) or isinstance(part, ast.Pass))]
            waiting += [_Mark("]"), *reversed(said_ones), _Mark("[")]
        elif isinstance(value, _Mark):
            yield value
        else:
            yield f"{type(value).__name__} {hex(value) if isinstance(value, int) else ascii(value)}"


def digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]
