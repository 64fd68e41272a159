"""Where searches keep their histories: Optuna's storage, on a journal file or a database.

Each line of the journal carries its checksum. What a torn or damaged journal has lost is found again at no
cost: the same trials are proposed, and their results are in the ledger.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from sibcl_ray.storage.store import Store, StoreError


class Journal(BaseJournalBackend):
    """Optuna's operations as lines of JSON in a file that one driver writes at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offsets = [0]  # of each line read so far
        if not path.exists():
            with _doing("made", path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Operations from the given number on, as far as they are whole."""
        start = min(log_number_from, len(self._offsets) - 1)
        with _doing("read", self._path), open(self._path, "rb") as file:
            file.seek(self._offsets[start])
            for number, line in enumerate(file, start):
                if (operation := _operation(line)) is None:
                    return
                if number + 1 == len(self._offsets):
                    self._offsets.append(self._offsets[number] + len(line))
                if number >= log_number_from:
                    yield operation

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write operations so that they survive a loss of power."""
        with _doing("written", self._path), open(self._path, "ab") as file:
            file.write(b"".join(map(_line, logs)))
            file.flush()
            os.fsync(file.fileno())

    def mend(self, warn: Callable[[str], None]) -> None:
        """Cut off what a writer that died has left half-written; to be called by who writes next."""
        for _ in self.read_logs(0):
            pass
        whole, size = self._offsets[-1], self._path.stat().st_size
        if whole == size:
            return
        with _doing("mended", self._path):
            rest = self._path.read_bytes()[whole:]
            if rest.count(b"\n"):  # not just the last line of a writer that died
                kept = self._path.with_suffix(f".damaged-{size}")
                shutil.copy(self._path, kept)
                line = len(self._offsets)
                warn(f"{self._path} is damaged from line {line} on; it is kept as {kept.name} and made again")
            os.truncate(self._path, whole)


@contextmanager
def _doing(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} cannot be {what}: {error.strerror}") from error


def _line(operation: dict[str, Any]) -> bytes:
    text = json.dumps(operation, separators=(",", ":"))
    return json.dumps({**operation, "crc32": zlib.crc32(text.encode())}, separators=(",", ":")).encode() + b"\n"


def _operation(line: bytes) -> dict[str, Any] | None:
    """What a line says, None if it is not whole."""
    try:
        operation = json.loads(line)
        checksum = operation.pop("crc32")
        text = json.dumps(operation, separators=(",", ":"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return operation if line.endswith(b"\n") and zlib.crc32(text.encode()) == checksum else None


def open_history(store: Store, folder: str, url: str | None, warn: Callable[[str], None] | None = None) -> BaseStorage:
    """Optuna's storage of a study: the database at ``url``, or else a journal in its folder of a local store.

    Of a store that is read only nothing is made, a database's tables neither. ``warn`` is given by the one driver that
    writes, and told of damage that was mended. ValueError, in one line, where there is no such storage.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            return InMemoryStorage() if store.read_only and not _begun(url) else RDBStorage(url)
        except Exception as error:  # of the database's driver, each its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"--search-storage {url} cannot be opened ({reason[:300]}); give the URL of a database that answers, "
                "such as postgresql+psycopg://USER:PASSWORD@HOST/NAME"
            ) from None
    if not store.is_local:
        raise ValueError(
            f"the store {store.uri} is not a local folder, where a search's journal could be; "
            "give --search-storage with a database URL"
        )
    path = Path(store.path(f"{folder}/search.journal"))
    if store.read_only and not path.exists():
        return InMemoryStorage()
    journal = Journal(path)
    if warn:
        journal.mend(warn)
    return JournalStorage(journal)


def _begun(url: str) -> bool:
    """Whether a database has Optuna's tables; SQLite would make a file to find out."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        return False
    return inspect(create_engine(address, poolclass=NullPool)).has_table("alembic_version")


def load(storage: BaseStorage, name: str) -> optuna.Study | None:
    """A search's history, if it was begun."""
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


def names(storage: BaseStorage) -> list[str]:
    """All searches that were begun, oldest first, as Optuna's storages list them."""
    return [study.study_name for study in storage.get_all_studies()]


def running(history: optuna.Study, most: int) -> list[optuna.Trial]:
    """The trials, at most so many, that an ended driver has left running; their number in the storage is not public."""
    left = history.get_trials(deepcopy=False, states=(TrialState.RUNNING,))[:most]
    return [optuna.Trial(history, trial._trial_id) for trial in left]


def set_aside(storage: BaseStorage, searches: Iterable[str], stamp: str) -> None:
    """Rename histories, so that no search finds them."""
    for name in searches:
        optuna.copy_study(
            from_study_name=name, from_storage=storage, to_storage=storage, to_study_name=f"aside {stamp}, {name}"
        )
        optuna.delete_study(study_name=name, storage=storage)
