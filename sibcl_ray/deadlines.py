"""Ends for work that may wait for others for ever."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Result = TypeVar("Result")


class OutOfTime(Exception):
    """Work came to its limit."""


class Limit:
    """Until when work may go on: for some seconds (None: without end), or until it is cut off from elsewhere."""

    def __init__(self, seconds: float | None = None) -> None:
        self._begun = time.monotonic()
        self._end = math.inf if seconds is None else self._begun + seconds
        self._cut = threading.Event()

    def left(self) -> float:
        """Seconds; 0 at the end, inf without one."""
        return 0.0 if self._cut.is_set() else max(0.0, self._end - time.monotonic())

    def spent(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def cut(self) -> None:
        """Be at the end now."""
        self._cut.set()

    def check(self) -> None:
        """Raise OutOfTime at the end."""
        if not self.left():
            raise OutOfTime

    def acquire(self, lock: threading.Lock) -> None:
        """Acquire the lock, or raise OutOfTime."""
        left = self.left()
        if not lock.acquire(timeout=left if left < math.inf else -1):
            raise OutOfTime


def within(limit: Limit, work: Callable[[], Result], grace: float) -> Result:
    """The result of `work`, which checks the limit now and then; OutOfTime `grace` seconds after the limit, if need be.

    Nothing interrupts a resolver or a driver that waits, so `work` runs in a thread, which is left behind with it. The
    limit is cut then: the thread ends at its next check.
    """
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="within", daemon=True).start()
    left = limit.left()
    try:
        wait([result], left + grace if left < math.inf else None)
    finally:  # also at an interrupt
        if not result.done():
            limit.cut()
    if not result.done():
        raise OutOfTime
    return result.result()
