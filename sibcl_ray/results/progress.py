"""What a person sees while a study runs: live bars on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

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
    """Where a study is."""

    shards: Count = Count()
    pretrainings: Count = Count()
    trials: Count = Count()
    cells: Count = Count()
    running: tuple[tuple[str, float, float], ...] = ()  # title, finished fraction, loss


Watch = Callable[[Snapshot], None]
ROWS = {"shards": "label shards", "pretrainings": "pretrainings", "trials": "search trials", "cells": "matrix cells"}


class Display:
    """A context that shows snapshots.

    Args:
        console: a terminal, or what becomes a log.
        interval: the longest time between the lines of a log, seconds; the beginning and the end of each kind of
            work are told at once.
    """

    def __init__(self, console: Console, interval: float = 30.0) -> None:
        self._console, self._interval = console, interval
        self._told: set[tuple[str, bool]] = set()  # which kinds of work have begun, and which have ended
        self._start = self._last = time.monotonic()
        columns = TextColumn("{task.description:<14}"), BarColumn(36), MofNCompleteColumn(), TimeElapsedColumn()
        self._bars = Progress(*columns, console=console)
        for text in ROWS.values():
            self._bars.add_task(text, start=False, total=None)
        self._live = Live(self._bars, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __call__(self, snapshot: Snapshot) -> None:
        """Show where the study is."""
        counts: dict[str, Count] = {name: getattr(snapshot, name) for name in ROWS}
        if not self._console.is_terminal:
            self._log(counts, bool(snapshot.running))
            return
        self._live.start()
        for task, count in zip(self._bars.tasks, counts.values(), strict=True):
            if count.total and task.start_time is None:
                self._bars.start_task(task.id)
            self._bars.update(task.id, completed=count.done, total=count.total or None)
            if count.total and count.done == count.total and not snapshot.running:
                self._bars.stop_task(task.id)
        running = Table.grid(padding=(0, 2))
        for title, fraction, loss in snapshot.running:
            running.add_row(f"  [dim]{title}", f"[dim]{fraction:4.0%}", f"[dim]loss {loss:.4f}" if loss == loss else "")
        self._live.update(Group(self._bars, running))

    def _log(self, counts: dict[str, Count], running: bool) -> None:
        now, some = time.monotonic(), {name: count for name, count in counts.items() if count.total}
        ended = {name: count.done == count.total for name, count in some.items()}
        if not some or (ended.items() <= self._told and now - self._last < self._interval):
            return
        self._last = now
        self._told.update(ended.items())
        minutes, seconds = divmod(int(now - self._start), 60)
        parts = [f"{ROWS[name]} {count.done}/{count.total}" for name, count in some.items()]
        if not running and ended.get("shards", True) and False in (ended.get("trials"), ended.get("cells")):
            parts.append("waiting for workers")  # which may be machines that are only being started
        line = f"[{minutes:02d}:{seconds:02d}] {', '.join(parts)}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
