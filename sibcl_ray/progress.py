"""What a person sees while a study runs: live bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(frozen=True)
class Count:
    """How much of something is done."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a person who watches wants to know."""

    shards: Count = Count()
    pretrainings: Count = Count()
    trials: Count = Count()
    cells: Count = Count()
    running: tuple[tuple[str, float, float], ...] = ()  # title, finished fraction, loss


Watch = Callable[[Snapshot], None]


ROWS = {
    "shards": "label shards",
    "pretrainings": "pretrainings",
    "trials": "search trials",
    "cells": "matrix cells",
}


class Display:
    """A context that shows snapshots; ``interval`` is the time between the lines of a log, seconds."""

    def __init__(self, console: Console, interval: float = 15.0) -> None:
        self._console = console
        self._interval = interval
        self._last = 0.0
        self._start = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(36),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks = {name: self._bars.add_task(text, start=False, total=None) for name, text in ROWS.items()}
        self._live = Live(self._bars, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        """Show where the study is."""
        counts: dict[str, Count] = {name: getattr(snapshot, name) for name in ROWS}
        if not self._console.is_terminal:
            self._log(counts)
            return
        for name, count in counts.items():
            task = self._bars.tasks[self._tasks[name]]
            if count.total and task.start_time is None:
                self._bars.start_task(task.id)
            self._bars.update(task.id, completed=count.done, total=count.total or None)
            if count.total and count.done == count.total and not snapshot.running:
                self._bars.stop_task(task.id)
        running = Table.grid(padding=(0, 2))
        for title, fraction, loss in snapshot.running:
            running.add_row(f"  [dim]{title}", f"[dim]{fraction:4.0%}", f"[dim]loss {loss:.4f}" if loss == loss else "")
        self._live.update(Group(self._bars, running))

    def _log(self, counts: dict[str, Count]) -> None:
        now = time.monotonic()
        if now - self._last < self._interval:
            return
        self._last = now
        minutes, seconds = divmod(int(now - self._start), 60)
        parts = [f"{ROWS[name]} {c.done}/{c.total}" for name, c in counts.items() if c.total]
        self._console.print(f"[{minutes:02d}:{seconds:02d}] {', '.join(parts)}", markup=False, highlight=False)
