"""Copies, on a node's own disk, of what is written once: its processes together fetch a distant object one time.

Where there is no room, or no place that only this user can write to, everything is read where it lies.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from sibcl_ray.storage.folders import private_folder
from sibcl_ray.storage.store import Damaged, Store

UNUSED = 3 * 86_400.0  # seconds after which a copy that was not read is removed
FREE = 0.1  # share of the disk that is left to others
LOCKS = 64  # of which each guards a part of the names

Whole = TypeVar("Whole")


def read_once(store: Store, name: str, check: Callable[[bytes], Whole]) -> Whole:
    """What ``check`` makes of the bytes of a name that is never written with others; raises as `Store.read` does.

    Where bytes are not what was written ``check`` raises Damaged; so does this if that is so in the store.
    """
    folder = _folder(tempfile.gettempdir()) if store.is_distant else None
    if folder is None:
        return check(store.read(name))
    copy = folder / copy_of(store, name)
    with _alone(copy):
        with suppress(Damaged, OSError):
            whole = check(copy.read_bytes())
            os.utime(copy)
            return whole
        data = store.read(name)
        whole = check(data)
        with suppress(OSError):
            _keep(copy, data)
        return whole


def copy_of(store: Store, name: str) -> str:
    """The file name of a copy."""
    return hashlib.sha256(f"{store.uri}/{name}".encode()).hexdigest()


def _keep(copy: Path, data: bytes) -> None:
    disk = shutil.disk_usage(copy.parent)
    if disk.free - len(data) < FREE * disk.total:
        return
    draft = copy.with_name(f"{uuid.uuid4().hex}.draft")
    try:
        draft.write_bytes(data)
        draft.replace(copy)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _alone(copy: Path) -> Iterator[None]:
    """Alone on this node, in as far as its disk knows locks; one that is held ends with its process."""
    with open(copy.parent / f"{int(copy.name, 16) % LOCKS}.lock", "wb") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@lru_cache
def _folder(place: str) -> Path | None:
    """Where copies are, cleared of those that are old; None if it is not this user's alone."""
    try:
        folder = private_folder(Path(place), "sibcl_ray")
        for copy in folder.iterdir():
            with suppress(FileNotFoundError):
                if copy.suffix != ".lock" and copy.stat().st_mtime < time.time() - UNUSED:
                    copy.unlink()
    except OSError:
        return None
    return folder
