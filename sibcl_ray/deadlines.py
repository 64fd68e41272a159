"""Deadlines for calls that may hang."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


class DeadlineExceeded(Exception):
    """The deadline has passed, or was cancelled."""


class Deadline:
    """A deadline some seconds from now (None: never), which another thread can bring forward to now."""

    def __init__(self, seconds: float | None = None) -> None:
        self._begun = time.monotonic()
        self._end = math.inf if seconds is None else self._begun + seconds
        self._cancelled = threading.Event()

    def left(self) -> float:
        """Seconds; 0 at the end, inf without one."""
        return 0.0 if self._cancelled.is_set() else max(0.0, self._end - time.monotonic())

    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def cancel(self) -> None:
        """End it now."""
        self._cancelled.set()

    def check(self) -> None:
        """Raise DeadlineExceeded if it has passed."""
        if not self.left():
            raise DeadlineExceeded


def within(deadline: Deadline, work: Callable[[], Result], grace: float) -> Result:
    """The result of `work`; raises DeadlineExceeded `grace` seconds after the deadline if it has not ended by then.

    A resolver or a database driver that waits cannot be interrupted, so `work` runs in a thread, which is left behind.
    The deadline is cancelled then, so that the thread ends the next time it checks it.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    try:
        wait([result], min(deadline.left() + grace, threading.TIMEOUT_MAX))
    finally:  # also at an interrupt
        if not result.done():
            deadline.cancel()
    if not result.done():
        raise DeadlineExceeded
    return result.result()
