"""What lies in a store, seen from outside."""

from pathlib import Path

import obstore


def names_in(store, folder=""):
    """All names in a folder of a store, at any depth."""
    if store.is_local:
        return sorted(str(p.relative_to(store.uri)) for p in Path(store.uri, folder).rglob("*") if p.is_file())
    bucket = store._place
    start = len(bucket._key(""))
    return sorted(o["path"][start:] for o in obstore.list(bucket._store, bucket._key(folder).strip("/")).collect())
