"""Names of results, from all that decides them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any


def describe(value: Any) -> Any:
    """A configuration as plain JSON values; each dataclass says its type, so that no two are confused.

    Fields whose metadata have ``names`` False are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = (f.name for f in dataclasses.fields(value) if f.metadata.get("names", True))
        fields = {name: describe(getattr(value, name)) for name in named}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} cannot name a result; use plain values")


def fingerprint(*values: Any) -> str:
    """The name, 16 hexadecimal digits, of a result that these values decide."""
    text = json.dumps([describe(v) for v in values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
