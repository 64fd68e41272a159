"""The study as people run it, as a process, and the Ray processes under it: found in /proc, ended one by one."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "studies" / "label_sweep.py")
NAME = "photonic-dos-smoke-0"
PATIENCE = 240.0  # seconds after which a study of this size hangs, whatever else the machine does
VANISH = 15.0  # seconds in which the processes of a driver are gone after it

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # of a node that was killed: look for it for a minute


class Hang(AssertionError):
    """Something did not end; with what was running."""


@dataclass(frozen=True)
class Process:
    """A line of /proc."""

    number: int
    parent: int
    session: int
    state: str
    title: str

    @property
    def program(self) -> str:
        """What it runs, or what Ray says that it does."""
        return Path(self.title.split(" ")[0]).name.split(".")[0]

    def kill(self, how: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.number, how)


def processes() -> list[Process]:
    """All that run now; those that have ended and wait for their parent are none."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, parent, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(Process(int(folder.name), int(parent), int(session), state, title))
    return [p for p in found if p.state != "Z"]


def of_session(session: int) -> list[Process]:
    """Ray's workers have process groups of their own, but stay in the session that their driver was started in."""
    return [p for p in processes() if p.session == session]


def environment(**more: str) -> dict[str, str]:
    """Of a user: not of the tests, and no terminal's width."""
    others = ("RAY_ADDRESS", "RAY_ENABLE_", "MLFLOW_", "SIBCL_RAY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(others)}
    return {**kept, "COLUMNS": "200", "PYTHONFAULTHANDLER": "1", **more}


def told(capture: Any, *options: str, **variables: str) -> tuple[int, Any]:
    """The exit code of `label_sweep.py`, run in this process, and what it printed, by pytest's `capfd`."""
    return typed(capture, "sweep", *options, **variables)


def typed(capture: Any, *arguments: str, **variables: str) -> tuple[int, Any]:
    """The same of `sibcl-ray`."""
    from sibcl_ray.cli.main import command_line

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv = patch.object(sys, "argv", ["sibcl-ray", *arguments])
    try:
        with argv, patch.dict(os.environ, environment(**variables), clear=True):
            code = command_line()
    finally:  # signals that other tests send are none of a command's
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, capture.readouterr()


def interpreter() -> str:
    """This one; by a link where its path has blanks, which `ray start` does not bear."""
    if " " not in sys.prefix:
        return sys.executable
    link = Path(tempfile.gettempdir()) / "environment"
    if not link.is_symlink():
        link.symlink_to(sys.prefix)
    return str(link / "bin" / "python")


def ray_program() -> list[str]:
    """Ray's command, as it is typed."""
    return [interpreter(), "-m", "ray.scripts.scripts"]


class Driver:
    """`label_sweep.py --scale smoke` on a storage, in a session of its own; what it prints goes to a file."""

    def __init__(
        self, storage: Path | str, log: Path, *options: str, python: Path | str = sys.executable, **variables: str
    ) -> None:
        command = [python, SCRIPT, "--scale", "smoke", "--storage", str(storage), *options]
        self.log, self.started = log, time.monotonic()
        with open(log, "w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment(**variables), start_new_session=True, cwd=ROOT
            )

    def processes(self) -> list[Process]:
        """Those of this driver, itself left out; on a cluster that was there before they are not its own."""
        return [p for p in of_session(self.process.pid) if p.number != self.process.pid]

    def listens(self) -> set[str]:
        """The addresses, in hexadecimal, at which it and its processes accept TCP connections."""
        sockets = set()
        for process in of_session(self.process.pid):
            with suppress(OSError):  # one may have ended, and files be closed, meanwhile
                sockets.update(os.readlink(link) for link in Path(f"/proc/{process.number}/fd").glob("*"))
        lines = [line.split() for t in ("tcp", "tcp6") for line in Path(f"/proc/net/{t}").read_text().splitlines()[1:]]
        return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}

    def send(self, how: int) -> None:
        self.process.send_signal(how)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code.

        Raises:
            Hang: it does not end; everything of it is ended then.
        """
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # Python writes where its threads are into the log
            titles = "\n".join(f"{p.number} {p.state} {p.title[:150]}" for p in of_session(self.process.pid))
            self.process.wait(30)
            self.end()
            raise Hang(f"no end after {seconds:.0f} s; running were\n{titles}\n{self.printed()}") from None

    def leftovers(self, spared: Collection[str] = ()) -> list[Process]:
        """What still runs when all should be gone, but for some programs."""
        deadline = time.monotonic() + VANISH
        while left := [p for p in self.processes() if p.program not in spared]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        return left

    def end(self) -> None:
        """Leave nothing behind."""
        with suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()
        for process in self.processes():
            process.kill()

    def printed(self) -> str:
        return self.log.read_text()
