"""Who is making what: claims in a store, so that drivers and clusters that share it make nothing twice.

A driver is a session, which rewrites a record of its own every few seconds. A claim is a record that names a session;
it holds as long as the session lives. No clocks are compared: a session is dead when its record has not changed for
`DEAD_AFTER` seconds of the observer's own time, or at once where the observer sees that its process is gone. Who takes
over a dead session's claim writes the claim's next generation, which only one of several can create, so that no claim
in use is ever removed.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from sibcl_ray.storage.store import Damaged, Store, StoreError, record_bytes

BEAT = 5.0  # seconds between the signs of life of a session
DEAD_AFTER = 60.0  # seconds without one
SIDE_BY_SIDE = 16  # claims given up at a time: there may be thousands, and each takes a distant store some requests


@dataclass
class Claims:
    """What one session has claimed in a store; may be handed to the session's other processes."""

    store: Store
    session: str
    _held: dict[str, int] = field(default_factory=dict)  # generation, by name
    _seen: dict[str, tuple[Any, float]] = field(default_factory=dict)  # others' last beat, and since when

    def take(self, name: str) -> bool:
        """Claim ``name``; False while another living session holds it."""
        dead: list[str] = []  # who held the generations so far
        while name not in self._held:
            generation = len(dead)
            mine = record_bytes({"session": self.session, "taken": uuid.uuid4().hex})
            if self.store.create(_claim(name, generation), mine):
                if [self._holder(name, g) for g in range(generation)] == dead:
                    self._held[name] = generation
                else:  # cleared since, and perhaps begun anew
                    self.store.remove(_claim(name, generation))
                    dead.clear()
            elif (holder := self._holder(name, generation)) is not None:
                if self.alive(holder):
                    return False
                dead.append(holder)
        return True

    def release(self, name: str) -> None:
        """Give up a claim, and clear those of the dead before it: first these, or another chain could pass it."""
        generation = self._held.pop(name, -1)
        if self.store.exists(_tombstone(self.session)) or not self.store.exists(_life(self.session)):
            return  # by now it may stand on the claims of others
        for old in range(generation + 1):
            self.store.remove(_claim(name, old))

    def record_name(self, name: str) -> str:
        """What is in the store for as long as this session holds its claim to ``name``."""
        return _claim(name, self._held[name])

    def alive(self, session: str) -> bool:
        """Whether a session may still be at work."""
        if session == self.session:
            return True
        if self.store.exists(_tombstone(session)):
            return False
        try:
            about = self.store.read_record(_life(session))
        except Damaged:
            about = {"place": None, "beat": None}  # if it lives it will write another
        if about is None:
            return False
        if (runs := _runs_here(about)) is not None:
            return runs
        seen, now = self._seen.get(session), time.monotonic()
        if seen is None or seen[0] != about["beat"]:
            seen = self._seen[session] = (about["beat"], now)
        if now - seen[1] < DEAD_AFTER:
            return True
        if not self.store.read_only:
            self.store.write_record(_tombstone(session), {"by": self.session})  # should it wake up, it will know
        return False

    def living(self, sessions: Iterable[str], tell: Callable[[str], None] | None = None) -> tuple[str, ...]:
        """Those that may be at work; with ``tell``, which is told of it, waits for signs of life from elsewhere."""
        found = tuple(s for s in sessions if self.alive(s))
        if tell and (elsewhere := sum(s in self._seen for s in found)):
            tell(f"{elsewhere} drivers run elsewhere, if at all; waiting {DEAD_AFTER:.0f} s for a sign of life")
            time.sleep(DEAD_AFTER)
            found = tuple(s for s in found if self.alive(s))
        return found

    def holder(self, name: str) -> str:
        """Who holds ``name``, in words."""
        generation, last = 0, None
        while (session := self._holder(name, generation)) is not None:
            generation, last = generation + 1, session
        with suppress(Damaged):
            if last and (about := self.store.read_record(_life(last))):
                return f"process {about['process']} on {about['host']}"
        return "another process"

    def wait(self, name: str, tell: Callable[[str], None], poll: float = 1.0) -> None:
        """Claim ``name`` as soon as no other session does; ``tell`` is told once which does."""
        if not self.take(name):
            tell(self.holder(name))
            while not self.take(name):
                time.sleep(poll)

    def _holder(self, name: str, generation: int) -> str | None:
        try:
            about = self.store.read_record(_claim(name, generation))
        except Damaged:
            return "nobody"  # who lives
        return about["session"] if about else None


class Session:
    """A driver at work, as a context; its claims end with it."""

    def __init__(self, store: Store) -> None:
        self.claims = Claims(store, uuid.uuid4().hex)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self.lost = threading.Event()  # others took this session for dead, and may have taken over its work

    def __enter__(self) -> Self:
        self._beat(0)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            list(pool.map(self.claims.release, list(self.claims._held)))
        self.claims.store.remove(_life(self.claims.session))

    def _beat(self, number: int) -> None:
        process = os.getpid()
        about = {"beat": number, "host": socket.gethostname(), "place": _place()}
        about |= {"process": process, "started": _started(process)}
        self.claims.store.write_record(_life(self.claims.session), about)

    def _live(self) -> None:
        number = 0
        while not self._over.wait(BEAT):
            number += 1
            with suppress(StoreError):  # work that needs the storage will fail; if it is back in time nothing happened
                if self.claims.store.exists(_tombstone(self.claims.session)):
                    self.lost.set()
                    return
                self._beat(number)


def is_gone(store: Store, session: str) -> bool:
    """Whether the process of a session is known to have ended, and not only to be silent."""
    with suppress(Damaged):
        about = store.read_record(_life(session))
        return about is not None and _runs_here(about) is False
    return False


def _runs_here(about: dict[str, Any]) -> bool | None:
    """Whether the process of a session runs; None if it would not be seen here."""
    if about["place"] is None or about["place"] != _place():
        return None
    return _started(about["process"]) == about["started"]


def _claim(name: str, generation: int) -> str:
    return f"claims/{name}.{generation}"


def _life(session: str) -> str:
    return f"sessions/{session}"


def _tombstone(session: str) -> str:
    return f"sessions/{session}.dead"


@lru_cache
def _place() -> str | None:
    """Names the set of processes that can see each other; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(process: int) -> str | None:
    """When a process of this place began, in ticks since the machine did; None if it has ended."""
    with suppress(OSError):
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else rest[18]
    return None
