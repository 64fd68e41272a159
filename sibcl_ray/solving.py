"""A solver in a process of its own, which can be ended where it hangs, and may take itself down.

The process serves one problem, call by call. It ends with whoever uses it, and after a minute without a call,
together with all programs that its solver has started.
"""

import faulthandler
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Self

import numpy as np
import torch

from sibcl_ray.problems.problem import Problem, Sample, SolverFailed

STARTING = 300.0  # seconds in which a process loads its libraries, also from a slow disk
IDLE = 60.0  # seconds without a call after which a process ends
PROGRAM = "import sys; from sibcl_ray.solving import serve; serve(int(sys.argv[1]))"


class CallFailed(Exception):
    """The solver failed on what it was called with; the text says how."""


class Solver:
    """The solver of a problem. Its process is started by the first call, and anew after one that it did not survive.

    Args:
        problem: importable, or from a file (see `own`).
        seconds: that a call may take.
        quiet: whether what the solver prints is thrown away.
    """

    def __init__(self, problem: Problem, seconds: float, quiet: bool = False) -> None:
        self.problem, self.seconds, self._quiet = problem, seconds, quiet
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._used = -math.inf

    def __call__(self, sample: Sample, surrogate: bool) -> np.ndarray:
        """Labels of the sample, as the solver gives them.

        Raises:
            CallFailed: the solver raised an exception, took too long or took its process down.
            SolverFailed: there is no process to be had.
        """
        if time.monotonic() - self._used > IDLE / 2:
            self.close()  # it may be about to end
        connection = self._connection or self._start()
        try:
            connection.send((sample, surrogate))
            if not connection.poll(self.seconds):
                raise CallFailed(f"no end after {self.seconds:g} s, the timeout of {self.problem.name}")
            reason, labels = connection.recv()
        except (EOFError, OSError):
            ended = self._ended()
            self.close()
            raise CallFailed(f"it takes its process down ({ended})") from None
        except BaseException:
            self.close()
            raise
        self._used = time.monotonic()
        if reason:
            raise CallFailed(reason)
        return labels

    def _start(self) -> Connection:
        ours, theirs = socket.socketpair()
        output = subprocess.DEVNULL if self._quiet else None
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                process_group=0,  # its own, with all that the solver starts
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self._connection = connection = Connection(ours.detach())
        try:
            # The number of threads may change rounding, so it is that of the caller.
            connection.send((self.problem, torch.get_num_threads(), self.seconds))
            reason = connection.recv() if connection.poll(STARTING) else f"no sign of life after {STARTING:g} s"
        except (EOFError, OSError):
            reason = self._ended()
        except BaseException:
            self.close()
            raise
        if reason:
            self.close()
            raise SolverFailed(f"the solver of {self.problem.name} cannot be started: {reason}")
        return connection

    def _ended(self) -> str:
        """How the process ended."""
        assert self._process
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """End the process, and whatever its solver has started."""
        if self._connection:
            self._connection.close()
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._connection = self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def serve(descriptor: int) -> None:
    """What the process does, with its end of the connection."""
    connection = Connection(descriptor)
    try:
        problem, threads, seconds = connection.recv()
    except Exception as error:  # a library that this machine does not have, for one
        connection.send(_reason(error))
        return
    torch.set_num_threads(threads)
    calls: SimpleQueue[Any] = SimpleQueue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(connection, calls, busy), daemon=True).start()
    connection.send("")
    while True:
        sample, surrogate = calls.get()
        # Ends this process where nobody is left to do so and the solver holds Python's lock.
        faulthandler.dump_traceback_later(seconds + IDLE, exit=True)
        answer: tuple[str, np.ndarray | None]
        try:
            answer = "", np.asarray(problem.solve_surrogate(sample) if surrogate else problem.solve(sample.inputs))
        except Exception as error:
            answer = _reason(error), None
        faulthandler.cancel_dump_traceback_later()
        connection.send(answer)
        busy.clear()


def _listen(connection: Connection, calls: SimpleQueue, busy: threading.Event) -> None:
    """Hand calls on; end the process when there is nobody who could make one, or nobody does."""
    with suppress(EOFError, OSError):
        while connection.poll(IDLE) or busy.is_set():
            if connection.poll():
                call = connection.recv()
                busy.set()
                calls.put(call)
    os.killpg(0, signal.SIGKILL)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
