"""MLflow kept up to date while a study runs."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

import pandas as pd

from sibcl_ray.deadlines import Deadline
from sibcl_ray.messages import redact
from sibcl_ray.results.mlflow.tracking import Mirror, TrackingUnavailable, reason

PATIENCE = 300.0  # seconds after which a sync in the background is cut off


class Tracker:
    """A context in which a thread shows the ledger in MLflow every now and then; leaving takes a second at most.

    Args:
        tracking_uri, study: as for `Mirror`.
        look: the ledger's matrix and trials, as for `Mirror.sync`; called from the thread.
        warn: told in one line when MLflow stops being written, and when it is again; called from the thread.
        interval: seconds between syncs, at least; and at least ten times what the last one took.
    """

    def __init__(
        self,
        tracking_uri: str,
        study: str,
        look: Callable[[], tuple[pd.DataFrame, pd.DataFrame]],
        *,
        warn: Callable[[str], None],
        interval: float = 120.0,
    ) -> None:
        self._uri, self._study, self._look = tracking_uri, study, look
        self._warn, self._interval = warn, interval
        self._stopping, self._deadline, self._out = threading.Event(), Deadline(), False
        self._thread = threading.Thread(target=self._keep_up, name="tracker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self._thread.join(1.0)

    def finish(self, artifacts: Sequence[Path] = (), seconds: float = 60.0) -> str:
        """Stop the thread, if it was begun, between two requests, and show the ledger as `Mirror.sync` does."""
        deadline = Deadline(seconds)
        self._stop()
        try:
            return self._show(deadline, artifacts)
        except TrackingUnavailable:
            if deadline.left() < 2:
                raise
        time.sleep(1)  # a server whose database was restarted fails once before it connects again
        return self._show(deadline, artifacts)

    def _stop(self) -> None:
        self._stopping.set()
        self._deadline.cancel()

    def _keep_up(self) -> None:
        mirror = Mirror(self._uri, self._study)
        while True:
            self._deadline = deadline = Deadline(PATIENCE)
            if self._stopping.is_set():  # asked when there is a deadline that _stop can cut
                return
            try:
                self._show(deadline, mirror=mirror)
                self._report("")
            except TrackingUnavailable as error:
                mirror = Mirror(self._uri, self._study)
                self._report(error.what)
            if self._stopping.wait(max(self._interval, 10 * deadline.spent())):
                return

    def _show(self, deadline: Deadline, artifacts: Sequence[Path] = (), mirror: Mirror | None = None) -> str:
        mirror = mirror or Mirror(self._uri, self._study)
        try:
            return mirror.sync(*self._look(), artifacts, deadline)
        except TrackingUnavailable:
            raise
        except Exception as error:
            what = f"the ledger cannot be shown in MLflow: {reason(error)}"
            raise TrackingUnavailable(what, "synchronise again") from error

    def _report(self, problem: str) -> None:
        """Say that an outage began or ended, once."""
        if bool(problem) == self._out or self._stopping.is_set():
            return
        self._out = bool(problem)
        back = f"MLflow at {self._uri} shows the study again"
        text = f"{problem}. The study goes on, and MLflow will show it later" if problem else back
        with suppress(Exception):
            self._warn(redact(text))
