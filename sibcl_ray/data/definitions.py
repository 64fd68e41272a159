"""What decides what a problem's methods give: definitions by name, each with a checksum.

Of a class in a user's file it is what its source reaches (see `user_module.dependencies`), of all other
classes the version that stands beside the code. Nothing else names labels: no setting, no comment, no other method.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Protocol

from sibcl_ray.problems.problem import RENAMED, Problem
from sibcl_ray.problems.simulation import Simulation
from sibcl_ray.storage.fingerprint import describe, fingerprint

# Attributes that change neither labels nor predictions.
SETTINGS = ("name", "timeout", "retries", "resources", "labels_per_task", "label_seconds", "surrogate_seconds")
WORDS = ("input_units", "label_units", "error_units", "version", "versions", "missing_requirement", "available")
LEARNED = ("features", "label_loss", "offset", "label_scale", "symmetries", "equivariances")  # what fitting looks at
BEFORE = {now: before for before, now in RENAMED.items()}  # names of results keep the old ones
JUDGED = ("error", "surrogate_loss", "estimate")


@lru_cache
def deciding(problem: Problem, *methods: str) -> Mapping[str, str]:
    """The definitions, and values of fields, that decide what these methods give."""
    kind, source = type(problem), problem.source
    definers = {name: next(k for k in kind.__mro__ if name in vars(k)) for name in map(problem.behind, methods)}
    own = {k for k in kind.__mro__ if source is not None and source.defines(k)}
    found: dict[str, str] = {}
    for name, its in definers.items():
        if its not in own:
            sayer = its if own else kind
            number = getattr(sayer, "versions", {}).get(name, getattr(sayer, "version", 1))
            found[f"{its.__name__}.{BEFORE.get(name, name)}"] = f"version {number}"
    names = [f.name for f in fields(problem) if f.metadata.get("names", True)]  # type: ignore[arg-type]
    values = {name for name in names if not any(name in inspect.get_annotations(k) for k in own)}
    if source is not None:
        asked = [
            before if (before := BEFORE.get(name)) in vars(its) else name
            for name, its in definers.items()
            if its in own
        ]
        if set(kind.__mro__) - own - set(Simulation.__mro__) - {Protocol}:
            # Another base calls what is overridden, in ways that are not looked into.
            apart = (*LEARNED, *JUDGED, *WORDS, *RENAMED)
            asked += [n for k in own for n in vars(k) if not n.startswith("_") and n not in apart]
        lineage = [(k.__module__, k.__qualname__) for k in kind.__mro__ if k in own]
        reached = source.sources.reached(lineage, asked, SETTINGS)
        found |= reached.checksums
        values = set(names) - reached.unread - set(SETTINGS)
    given = {name: fingerprint(name, describe(getattr(problem, name))) for name in sorted(values)}
    return found | {f"the value of {name}": value for name, value in given.items()}


def version_of(definitions: Mapping[str, str]) -> str:
    """A name for what they decide; files have a part in it only where several define the same name."""
    places = Counter(name.partition(" in ")[0] for name in definitions)
    named = []
    for name, value in definitions.items():
        short = name.partition(" in ")[0]
        says_it = not (value.startswith("version ") or short.startswith("import ") or places[short] > 1)
        named.append(value if says_it else f"{name if places[short] > 1 else short} {value}")
    return fingerprint(sorted(named))


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The definitions that are others, new, and gone, in this order."""
    others = sorted(name for name in before.keys() & after.keys() if before[name] != after[name])
    return others + sorted(after.keys() - before.keys()) + sorted(before.keys() - after.keys())
