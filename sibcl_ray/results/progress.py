"""What a person sees while a study runs: live bars on a terminal, a line now and then in a log."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sibcl_ray.messages import duration


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
Work = Mapping[str, tuple[int, float | None]]  # by kind: how many, and the core seconds of all if they are known
ROWS = {"shards": "label shards", "pretrainings": "pretrainings", "trials": "search trials", "cells": "matrix cells"}
LEAST = 1.0  # seconds between two lines of a log
SOME = 0.05  # of the work: what has to be done before the time left is told


def seconds_left(snapshot: Snapshot, work: Work, elapsed: float) -> float | None:
    """An estimate, from the seconds that what is done has taken; None before there is enough of it."""
    counts: dict[str, Count] = {name: getattr(snapshot, name) for name in work}
    ended = snapshot.trials.done + snapshot.cells.done
    rest = sum(work[name][0] for name in ("trials", "cells") if name in work) - ended
    done = everything = 0.0
    for name, (expected, seconds) in work.items():
        count = counts[name]
        if seconds is None and count.done < expected:
            return None  # nobody knows how long a label takes before there are some
        if not expected or not seconds:
            continue
        total = expected
        if name == "pretrainings" and ended:  # jobs share them: those to come need no more than those that ended did
            total = max(count.total, min(expected, round(count.total * (1 + rest / ended))))
        everything += seconds * total / expected
        done += seconds * count.done / expected
    return elapsed * (everything - done) / done if done > SOME * everything else None


class Display:
    """A context that shows snapshots.

    Args:
        console: a terminal, or what becomes a log.
        interval: the longest time between the lines of a log, seconds; the beginning and the end of each kind of
            work are told at once, though a second apart.
        verbose: whether a log tells when each job begins and ends.
    """

    def __init__(self, console: Console, interval: float = 30.0, verbose: bool = False) -> None:
        self._console, self._interval, self._verbose = console, interval, verbose
        self._work: Work = {}
        self._told: set[tuple[str, bool]] = set()  # which kinds of work have begun, and which have ended
        self._jobs: dict[str, float] = {}  # titles that run, and since when
        self._start = self._last = time.monotonic()
        self._worked, self._seen = 0.0, self._start  # seconds in which work was done, and until when they are counted
        columns = TextColumn("{task.description:<14}"), BarColumn(None), MofNCompleteColumn(), TimeElapsedColumn()
        self._bars = Progress(*columns, console=console)
        for text in ROWS.values():
            self._bars.add_task(text, start=False, total=None)
        self._live = Live(self._bars, console=console, transient=True, refresh_per_second=4)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def expect(self, work: Work) -> None:
        """Tell the time left by what all of the work, which begins now, is."""
        self._work, self._seen = work, time.monotonic()

    def __call__(self, snapshot: Snapshot) -> None:
        """Show where the study is."""
        if self._console.quiet:
            return
        counts: dict[str, Count] = {name: getattr(snapshot, name) for name in ROWS}
        now = time.monotonic()
        labels = snapshot.shards.done < snapshot.shards.total and self._work.get("shards", (0, None))[1] is not None
        if snapshot.running or labels:  # and not while machines are started, or what is done has no known cost
            self._worked += now - self._seen
        self._seen = now
        left = seconds_left(snapshot, self._work, self._worked)
        if self._verbose:
            self._tell_jobs({title for title, _, _ in snapshot.running})
        if not self._console.is_terminal or self._console.is_jupyter:
            self._log(counts, bool(snapshot.running), left)
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
        time_left = Text(f"about {duration(left)} left" if left else "")
        self._live.update(Group(self._bars, time_left, running))

    def _tell_jobs(self, running: set[str]) -> None:
        now = time.monotonic()
        for title in sorted(self._jobs.keys() - running):
            self._print(f"{title}: ended after {duration(now - self._jobs.pop(title))}")
        for title in sorted(running - self._jobs.keys()):
            self._jobs[title] = now
            self._print(f"{title}: begins")

    def _log(self, counts: dict[str, Count], running: bool, left: float | None) -> None:
        now, some = time.monotonic(), {name: count for name, count in counts.items() if count.total}
        ended = {name: count.done == count.total for name, count in some.items()}
        wait = self._interval if ended.items() <= self._told else LEAST * bool(self._told)
        if not some or now - self._last < wait:
            return
        self._last = now
        self._told.update(ended.items())
        parts = [f"{ROWS[name]} {count.done}/{count.total}" for name, count in some.items()]
        if not running and ended.get("shards", True) and False in (ended.get("trials"), ended.get("cells")):
            parts.append("waiting for workers")  # which may be machines that are only being started
        if left:
            parts.append(f"about {duration(left)} left")
        self._print(", ".join(parts))

    def _print(self, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        line = f"[{minutes:02d}:{seconds:02d}] {text}"
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
