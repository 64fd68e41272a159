"""A process for the code of a problem, which may hang, crash or change global state there.

It serves one problem, call by call. Each call runs in a new folder, which is removed afterwards, or kept if the call
failed and left files; what the code prints goes to a log. The process ends with the process that uses it, and after a
minute without a call, together with all programs that it started.
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
from sibcl_ray.problems.problem import Problem, SolverFailed
from sibcl_ray.storage.folders import private_folder

IDLE = 60.0  # seconds without a call after which a process ends
TURN = 0.5  # seconds of waiting for an answer after which interrupts are handled
KEPT = 5  # folders of failed calls that are kept
TOLD = 300  # characters at the end of what was printed that a message contains
# A shell that leads the process group of the sandbox, and kills the group when its standard input is closed: then the
# process that started it has ended or was killed, and the process of the sandbox may be inside a library.
LEADER = 'read _; rm -rf -- "$1"; kill -s KILL 0'


class CallFailed(Exception):
    """The problem's code failed on its arguments; the text says how, ``left`` what it printed and its files."""

    def __init__(self, reason: str, left: str = "", too_long: bool = False) -> None:
        super().__init__(reason)
        self.left, self.too_long = left, too_long


def call(problem: Problem, method: str, *arguments: Any, seconds: float | None = None) -> Any:
    """What a method of a problem returns; in a sandbox if the problem is a user's or there is a time limit.

    A method that draws takes the generator as its last argument; it comes back with the sample, as it is afterwards.

    Raises:
        CallFailed: it raised an exception, took longer than ``seconds`` or took its process down.
        SolverFailed: no process can be started.
    """
    if isolation.is_guest(type(problem)) or seconds is not None:
        return _sandbox(problem)(method, *arguments, seconds=seconds)
    try:
        return result_of(problem, method, arguments)
    except SolverFailed:
        raise
    except Exception as error:
        raise CallFailed(_reason(error)) from error


def result_of(problem: Problem, method: str, arguments: tuple) -> Any:
    """What a method returns; of one that draws with the generator, as `call` says."""
    result = getattr(problem, method)(*arguments)
    return (result, arguments[-1]) if method.startswith("sample") else result


class Sandbox:
    """The process of a problem, which the first call starts, and the next call after one that ended it."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._fork: Fork | None = None
        self._leader: subprocess.Popen | None = None
        self._folder = Path()
        self._end: Any = lambda: None
        self._environment: dict[str, str] = {}
        self._used = -math.inf
        self._number = 0
        self._lock = threading.Lock()

    def __call__(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """As `call`, always in the process."""
        with self._lock:
            try:
                return self._call(method, arguments, seconds)
            except (CallFailed, SolverFailed):
                raise
            except BaseException:  # an interrupt: the answer would be read as that to the next call
                self.close()
                raise

    def _call(self, method: str, arguments: tuple, seconds: float | None) -> Any:
        if time.monotonic() - self._used > IDLE / 2 or dict(os.environ) != self._environment:
            self.close()  # it may be about to end, or have other GPUs
        fork = self._fork or self._start()
        place = self._folder / str(self._number)
        self._number += 1
        try:
            fork.connection.send_bytes(cloudpickle.dumps((method, arguments, place)))
            if not _answers(fork.connection, seconds):
                reason = f"no end after {seconds:g} s, the timeout of {self.problem.name}"
                raise CallFailed(reason, self._end_failed(place), too_long=True)
            reason, result = fork.connection.recv()
        except (EOFError, OSError):
            how = _SERVER.how_it_ended(fork)
            raise CallFailed(f"it takes its process down ({how})", self._end_failed(place)) from None
        self._used = time.monotonic()
        if method.startswith("solve") and not reason and _nowhere_finite(result):
            reason = "a label that is not finite"
        if reason:
            raise CallFailed(reason, _keep_files(place, self.problem.name))
        shutil.rmtree(place, ignore_errors=True)
        place.with_suffix(".log").unlink(missing_ok=True)
        return result

    def _end_failed(self, place: Path) -> str:
        """End the process; what it printed and left in its folder."""
        if self._leader:
            _kill_all(self._fork, self._leader)
        left = _keep_files(place, self.problem.name)
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
            # As many threads as the caller has, as their number may change rounding.
            fork.connection.send(torch.get_num_threads())
            fork.connection.send_bytes(problem)
            started = _answers(fork.connection, STARTING)
            reason = fork.connection.recv() if started else f"no sign of life after {STARTING:g} s"
        except (EOFError, OSError):
            reason = f"its process ends ({_SERVER.how_it_ended(fork)}){_printed(log)}"
        if reason:
            self.close()
            raise SolverFailed(
                f"the solver of {self.problem.name} cannot be started: {reason}; it must run in a process of its own"
            )
        return fork

    def close(self) -> None:
        """End the process and all that it started."""
        self._end()
        self._fork = self._leader = None

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def leads(command: list[str]) -> bool:
    """Whether a command is that of the leader of such a group, which ends by itself when this process has ended."""
    return command[1:3] == ["-c", LEADER]


_SERVER = Server(__name__, "serve")
_sandbox = lru_cache(maxsize=1)(Sandbox)  # of the problem that this process called last


def end() -> None:
    """End the processes that this one has started for sandboxes; the next call starts new ones."""
    _sandbox.cache_clear()
    _SERVER.close()


def _answers(connection: Connection, seconds: float | None) -> bool:
    """Wait for an answer, in short turns, as interrupts by Ray are handled only between them."""
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
    leader.wait()  # only from now on can its process number be reused
    assert leader.stdin
    leader.stdin.close()
    if fork:
        fork.connection.close()
        _SERVER.how_it_ended(fork)  # the server waits for it, so no zombie is left
    shutil.rmtree(folder, ignore_errors=True)


def _kill_all(fork: Fork | None, leader: subprocess.Popen) -> None:
    """Kill the process group, and processes that were started from it in other groups."""
    with suppress(psutil.Error, ProcessLookupError):
        if fork and os.getpgid(fork.number) == leader.pid:  # else the number is that of another process by now
            for process in psutil.Process(fork.number).children(recursive=True):
                with suppress(psutil.Error):
                    process.kill()
    with suppress(ProcessLookupError, PermissionError):  # the latter where all have ended, on some systems
        os.killpg(leader.pid, signal.SIGKILL)


def _keep_files(place: Path, name: str) -> str:
    """What a failed call printed, and where its files are kept, as are those of the last few failed calls."""
    log = place.with_suffix(".log")
    said = _printed(log)
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


def _printed(log: Path) -> str:
    """The end of what was printed, for a message."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 2**16))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ""
    crash = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
    where = [line for line in lines[crash:] if line.startswith("File ")]  # by faulthandler, the innermost call first
    told = [" | ".join(filter(None, lines[:crash]))[-TOLD:], *lines[crash : crash + 1], *where[:1]]
    return f"; it printed: {' | '.join(filter(None, told))}" if any(told) else ""


def serve(connection: Connection) -> None:
    """What the process does: answer calls that come through the connection."""
    isolation.disable()
    faulthandler.enable()
    os.register_at_fork(after_in_child=connection.close)  # workers of a process pool may outlive this process
    here = Path.cwd()
    threads = connection.recv()
    try:
        problem = connection.recv()
    except Exception as error:  # for example, a library is missing on this machine
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
    os.killpg(0, signal.SIGKILL)  # with all programs that are still running


def _answer(problem: Problem, method: str, arguments: tuple, place: Path) -> bytes:
    """The reason of a failure, or empty, and the result, pickled."""
    place.mkdir()
    os.chdir(place)
    print_to(os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    try:
        result = result_of(problem, method, arguments)
        answer = pickle.dumps(("", result if method.startswith("sample") else _plain(result)))
    except Exception as error:
        answer = pickle.dumps((_reason(error), None))
    sys.stdout.flush()
    sys.stderr.flush()
    return answer


def _plain(result: Any) -> np.ndarray:
    """What a method returned as an array; if it is one of objects, only its shape counts."""
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
    """An exception in one line, with the line of the user's file."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if any(f.filename.startswith(p) for p in isolation.paths)
    ]
    where = f" (line {frames[-1].lineno} of {os.path.basename(frames[-1].filename)})" if frames else ""
    said = one_line(error, 500)
    if isinstance(error, FileNotFoundError) and not os.path.isabs(str(error.filename)):
        said += "; calls run in an empty folder: name a file beside yours by Path(__file__).parent"
    return f"{type(error).__name__}: {said}{where}"
