"""What a run has said, in a file of the storage."""

import io
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import IO, cast

from rich.console import Console

from sibcl_ray.messages import redact
from sibcl_ray.storage.store import Store, StoreError

INTERVAL = 30.0  # seconds between two times that it is stored


class Log(io.TextIOBase):
    """Lines with their times. Once ``store`` is set they are stored as a whole, also in buckets, now and then."""

    def __init__(self, name: str) -> None:
        self._name, self._lines, self._lock, self._saved = name, list[str](), Lock(), 0.0
        self.store: Store | None = None

    def write(self, text: str) -> int:
        with self._lock:
            self._lines += [f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redact(line)}\n" for line in text.splitlines()]
        if time.monotonic() - self._saved > INTERVAL:
            self.save()
        return len(text)

    def save(self) -> None:
        """Store all lines."""
        with self._lock:
            self._saved = time.monotonic()
            if self.store:
                with suppress(StoreError):  # a log that cannot be stored ends nothing
                    self.store.write(self._name, "".join(self._lines).encode())

    def console(self) -> Console:
        """What prints into it, wherever this process prints to."""
        return Console(file=cast(IO[str], self), width=200, force_terminal=False, force_jupyter=False)

    def also(self, tell: Callable[[str], None]) -> Callable[[str], None]:
        """A function that tells something and logs it."""

        def both(text: str) -> None:
            tell(text)
            self.write(text)

        return both
