"""Files of a store that are no longer needed: weights, checkpoints and claims that were left behind.

A study may run meanwhile: claims are taken before they are cleared, and while a driver lives, what it may be about to
enter in the ledger is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sibcl_ray.storage.leases import Claims, Session, is_gone
from sibcl_ray.storage.records import is_final
from sibcl_ray.storage.store import Store

PRETRAININGS = "ledger/pretraining"


@dataclass(frozen=True)
class Unneeded:
    """Names in a store, by what they are."""

    weights: tuple[str, ...]  # to which no pretraining in the ledger refers
    checkpoints: tuple[str, ...]  # of pretrainings that have come to an end
    claims: tuple[str, ...]  # what is claimed by drivers that are gone, at least in part
    sessions: tuple[str, ...]  # those drivers' signs of life
    running: tuple[str, ...]  # drivers that live

    def __bool__(self) -> bool:
        return bool(self.weights or self.checkpoints or self.claims or self.sessions)


def unneeded(store: Store, claims: Claims, tell: Callable[[str], None] | None = None) -> Unneeded:
    """What may go; weights only if no driver lives, which with ``tell`` is found out as by `Claims.living`."""
    sessions = [name.rpartition("/")[2] for name in store.names("sessions")]
    sessions = [s for s in sessions if not s.endswith(".dead") and s != claims.session]
    running = claims.living(sessions, tell)
    names = store.names(PRETRAININGS)
    records = store.read_records(names)
    ended = {name.rpartition("/")[2].removesuffix(".json") for name, record in records.items() if is_final(record)}
    whole = len(records) == len(names)  # a damaged record may refer to any weights
    referred = {record.get("weights") for record in records.values()}
    artefacts = store.names("artefacts") if whole and not running else []
    held = {name.rpartition(".")[0].removeprefix("claims/") for name in _below(store, "claims")}
    return Unneeded(
        tuple(a for a in artefacts if a.rpartition("/")[2].removesuffix(".safetensors") not in referred),
        tuple(c for c in store.names("checkpoints") if c.rpartition("/")[2] in ended),
        tuple(sorted(held)) if not running else (),
        tuple(s for s in sessions if s not in running),
        running,
    )


def free(store: Store, session: Session, found: Unneeded) -> None:
    """Remove what was found and is still not needed."""
    for name in found.claims:
        if session.claims.take(name):
            session.claims.release(name)  # with all those of the dead before it
    still = unneeded(store, session.claims)
    for name in (*found.checkpoints, *(name for name in found.weights if name in still.weights)):
        store.remove(name)
    for name in found.sessions:
        if is_gone(store, name):  # one that may wake up has to find out that it was taken for dead
            store.remove(f"sessions/{name}.dead")
        store.remove(f"sessions/{name}")


def _below(store: Store, folder: str) -> Iterator[str]:
    """The names of all claims below a folder."""
    for name in store.names(folder):
        yield from [name] if re.search(r"\.\d+$", name) else _below(store, name)
