"""A process for the code of a problem, which can be ended where it hangs, may take itself down, and changes nothing.

It serves one problem, call by call. Each call runs in a new folder, which is removed afterwards, or kept if the call
failed and left something; what the code prints goes to a log. The process ends with the one that uses it, and after a
minute without a call, together with all programs that were started from it.
"""

import faulthandler
import math
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from contextlib import suppress
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import psutil
import torch

from sibcl_ray import isolation
from sibcl_ray.data.fork_server import STARTING, Fork, NoProcess, Server, print_to
from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import Problem, Sample, SolverFailed
from sibcl_ray.storage.folders import private_folder

IDLE = 60.0  # seconds without a call after which a process ends
TURN = 0.5  # seconds for which nothing else is heard while an answer is waited for
KEPT = 5  # folders of calls that failed
TOLD = 300  # last characters of what was printed
# Leads the group of the process and of all that it starts, and ends it as soon as nobody holds the other end of this
# one's input: the process that made them is gone, perhaps killed, and the process may be deaf inside a library.
LEADER = 'read _; rm -rf -- "$1"; kill -s KILL 0'


class CallFailed(Exception):
    """The problem's code failed on what it was called with; the text says how, ``left`` what it printed and wrote."""

    def __init__(self, reason: str, left: str = "", too_long: bool = False) -> None:
        super().__init__(reason)
        self.left, self.too_long = left, too_long


def call(problem: Problem, method: str, *arguments: Any, seconds: float | None = None) -> Any:
    """What a method of a problem returns: of a problem of ours that has no time limit in this process, else apart.

    Raises:
        CallFailed: it raised an exception, took longer than ``seconds`` or took its process down.
        SolverFailed: there is no process to be had.
    """
    if isolation.is_guest(type(problem)) or seconds is not None:
        return _sandbox(problem)(method, *arguments, seconds=seconds)
    try:
        return getattr(problem, method)(*arguments)
    except SolverFailed:
        raise
    except Exception as error:
        raise CallFailed(_reason(error)) from error


def draw(problem: Problem, surrogate: bool, count: int, rng: np.random.Generator) -> tuple[Sample, np.random.Generator]:
    """Inputs of one of the problem's families, and the generator as it is after the draw; raises as `call`."""
    drawn = call(problem, "sample_surrogate" if surrogate else "sample", count, rng)
    return drawn if isolation.is_guest(type(problem)) else (drawn, rng)


class Sandbox:
    """The process of a problem. It is started by the first call, and anew after one that it did not survive."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._fork: Fork | None = None
        self._leader: subprocess.Popen | None = None
        self._folder = Path()
        self._end: Any = lambda: None
        self._environment: dict[str, str] = {}
        self._used = -math.inf
        self._number = 0
        self._alone = threading.Lock()

    def __call__(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """As `call`; for what draws, the generator comes with the sample."""
        with self._alone:
            try:
                return self._called(method, arguments, seconds)
            except (CallFailed, SolverFailed):
                raise
            except BaseException:  # an interrupt: the answer would be taken for that to the next call
                self.close()
                raise

    def _called(self, method: str, arguments: tuple, seconds: float | None) -> Any:
        if time.monotonic() - self._used > IDLE / 2 or dict(os.environ) != self._environment:
            self.close()  # it may be about to end; or have another's GPUs
        fork = self._fork or self._start()
        place = self._folder / str(self._number)
        self._number += 1
        try:
            fork.connection.send_bytes(cloudpickle.dumps((method, arguments, place)))
            if not _answers(fork.connection, seconds):
                reason = f"no end after {seconds:g} s, the timeout of {self.problem.name}"
                raise CallFailed(reason, self._ended_at(place), too_long=True)
            reason, result = fork.connection.recv()
        except (EOFError, OSError):
            how = _SERVER.how_it_ended(fork)
            raise CallFailed(f"it takes its process down ({how})", self._ended_at(place)) from None
        self._used = time.monotonic()
        if method.startswith("solve") and not reason and _nowhere_finite(result):
            reason = "a label that is not finite"
        if reason:
            raise CallFailed(reason, _kept(place, self.problem.name))
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink(missing_ok=True)
        return result

    def _ended_at(self, place: Path) -> str:
        """End the process; what it left."""
        if self._leader:
            _kill_all(self._fork, self._leader)
        left = _kept(place, self.problem.name)
        self.close()
        return left

    def _start(self) -> Fork:
        try:
            problem = cloudpickle.dumps(self.problem)
        except Exception as error:
            raise SolverFailed(
                f"{self.problem.name} cannot be sent to a process of its own ({type(error).__name__}: {error}); "
                "make in solve what cannot be"
            ) from None
        self._folder = Path(tempfile.mkdtemp(prefix="sibcl_ray-call-"))
        self._environment = dict(os.environ)
        log = self._folder / "log"
        self._leader = leader = subprocess.Popen(
            ["/bin/sh", "-c", LEADER, "sh", str(self._folder)],
            process_group=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._fork = fork = _SERVER.fork(self._folder, log, leader.pid)
        except NoProcess as error:
            _end(None, leader, self._folder)
            raise SolverFailed(f"the solver of {self.problem.name} cannot be started: {error}") from None
        self._end = weakref.finalize(self, _end, fork, leader, self._folder)
        try:
            # The number of threads may change rounding, so it is that of the caller.
            fork.connection.send(torch.get_num_threads())
            fork.connection.send_bytes(problem)
            started = _answers(fork.connection, STARTING)
            reason = fork.connection.recv() if started else f"no sign of life after {STARTING:g} s"
        except (EOFError, OSError):
            reason = f"its process ends ({_SERVER.how_it_ended(fork)}){_said(log)}"
        except BaseException:
            self.close()
            raise
        if reason:
            self.close()
            raise SolverFailed(
                f"the solver of {self.problem.name} cannot be started: {reason}; it must run in a process of its own"
            )
        return fork

    def close(self) -> None:
        """End the process, and all that it has started."""
        self._end()
        self._fork = self._leader = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def leads(command: list[str]) -> bool:
    """Whether a command is that of such a group's leader, which ends with the process that made it, and clears up."""
    return command[1:3] == ["-c", LEADER]


_SERVER = Server(__name__, "serve")
_sandbox = lru_cache(maxsize=1)(Sandbox)  # of a process, for all that it calls


def end() -> None:
    """End what this process has started here; the next call starts it anew."""
    _sandbox.cache_clear()
    _SERVER.close()


def _answers(connection: Connection, seconds: float | None) -> bool:
    """Wait for an answer; by turns, as Ray's interrupts are heard between them only."""
    until = math.inf if seconds is None else time.monotonic() + seconds
    while not connection.poll(max(0.0, min(TURN, until - time.monotonic()))):
        if time.monotonic() >= until:
            return False
    return True


def _nowhere_finite(labels: np.ndarray) -> bool:
    if isinstance(labels, np.ma.MaskedArray) or labels.dtype.kind != "f" or not labels.ndim:
        return False
    return not np.isfinite(labels).reshape(len(labels), -1).all(1).any()


def _end(fork: Fork | None, leader: subprocess.Popen, folder: Path) -> None:
    _kill_all(fork, leader)
    leader.wait()  # until now its number was not reused
    assert leader.stdin
    leader.stdin.close()
    if fork:
        fork.connection.close()
        _SERVER.how_it_ended(fork)  # so that nothing is left of it
    shutil.rmtree(folder, ignore_errors=True)


def _kill_all(fork: Fork | None, leader: subprocess.Popen) -> None:
    """End the group of the process, and those that it has started in groups of their own."""
    with suppress(psutil.Error, ProcessLookupError):
        if fork and os.getpgid(fork.number) == leader.pid:  # the number may be another's by now
            for process in psutil.Process(fork.number).children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
    with suppress(ProcessLookupError, PermissionError):  # the latter where all have ended, on some systems
        os.killpg(leader.pid, signal.SIGKILL)


def _kept(place: Path, name: str) -> str:
    """What a call that failed has printed, and where its files are now: the last few are kept."""
    log = place.with_suffix(".log")
    said = _said(log)
    if place.is_dir() and any(place.iterdir()):
        with suppress(OSError):
            there = private_folder(Path(tempfile.gettempdir()), "sibcl_ray-failed")
            mine = there / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}-{place.name}"
            shutil.move(place, mine)
            shutil.move(log, mine.with_suffix(".log"))
            for old in sorted((p for p in there.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
                old.with_suffix(".log").unlink(missing_ok=True)
            said += f"; its files are kept in {mine} on {socket.gethostname()}"
    else:
        shutil.rmtree(place, ignore_errors=True)
    log.unlink(missing_ok=True)
    return said


def _said(log: Path) -> str:
    """The last lines that were printed."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 2**16))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
    where = [line for line in lines[crash:] if line.startswith("File ")]  # faulthandler's, the last call first
    told = [" | ".join(filter(None, lines[:crash]))[-TOLD:], *lines[crash : crash + 1], *where[:1]]
    return f"; it printed: {' | '.join(filter(None, told))}" if any(told) else ""


# What the process does


def serve(connection: Connection) -> None:
    """Answer calls, with the process's end of the connection."""
    isolation.at_home()
    faulthandler.enable()
    os.register_at_fork(after_in_child=connection.close)  # a pool's workers may outlive this process, or it them
    here = Path.cwd()
    threads = connection.recv()
    try:
        problem = connection.recv()
    except Exception as error:  # a library that this machine does not have, for one
        connection.send(_reason(error))
        return
    os.chdir(here)
    torch.set_num_threads(threads)
    connection.send("")
    with suppress(EOFError, OSError):
        while connection.poll(IDLE):
            answer = _answer(problem, *connection.recv())
            os.chdir(here)
            connection.send_bytes(answer)
    os.killpg(0, signal.SIGKILL)  # with what was left running


def _answer(problem: Problem, method: str, arguments: tuple, place: Path) -> bytes:
    """A reason or a result, pickled."""
    place.mkdir()
    os.chdir(place)
    print_to(os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    try:
        result = getattr(problem, method)(*arguments)
        result = (result, arguments[-1]) if method.startswith("sample") else _plain(result)
        answer = pickle.dumps(("", result))
    except Exception as error:
        answer = pickle.dumps((_reason(error), None))
    sys.stdout.flush()
    sys.stderr.flush()
    return answer


def _plain(result: Any) -> np.ndarray:
    """What a method gives as an array, if it is one; of objects only how many they are."""
    if isinstance(result, torch.Tensor):
        result = result.detach().cpu()
        result = result.float() if result.dtype == torch.bfloat16 else result
    if isinstance(result, (list, tuple)) and _masked_within(result):
        result = np.ma.masked_all(len(result))
    array = result if isinstance(result, np.ma.MaskedArray) else np.asarray(result)
    return np.full(array.shape, None) if array.dtype.hasobject else array


def _masked_within(values: Any) -> bool:
    return any(map(_masked_within, values)) if isinstance(values, (list, tuple)) else bool(np.ma.is_masked(values))


def _reason(error: Exception) -> str:
    """An exception in a line, with the place in the user's file."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if any(f.filename.startswith(p) for p in isolation.paths)
    ]
    where = f" (line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)})" if frames else ""
    said = one_line(error, 500)
    if isinstance(error, FileNotFoundError) and not os.path.isabs(str(error.filename)):
        said += "; calls run in an empty folder: name a file beside yours by Path(__file__).parent"
    return f"{type(error).__name__}: {said}{where}"
