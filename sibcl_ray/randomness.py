"""Named randomness: every random draw comes from a seed derived from what it is for."""

from __future__ import annotations

import hashlib
import json


def named_seed(*name: str | int) -> int:
    """A 63-bit seed that depends on the whole ``name`` alone, such as (study seed, role, index)."""
    digest = hashlib.sha256(json.dumps(name).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
