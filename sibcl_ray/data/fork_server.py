"""A server process that has loaded the libraries, which takes seconds, and forks others, which takes milliseconds.

Code of users runs only in the forked processes, not in the server, nor in the process that asks for them.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import Any, NamedTuple

STARTING = 300.0  # seconds in which libraries are loaded, also from a slow disk
IDLE = 60.0  # seconds without a request after which a server ends if all its processes have ended
ENDING = 5.0  # seconds in which a process that has closed its connection should end
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[4:]; from sibcl_ray.data.fork_server import _serve; _serve(*sys.argv[1:4])"
)
RUNNING = "it does not answer"  # how a process ended, if it has not
UNKNOWN = "it cannot be said how"  # and if the server that forked it has ended
SIGNALS = {each.value: each.name for each in signal.Signals}  # most real-time signals have no name


class NoProcess(OSError):
    """No process can be started; the text says why."""


class Fork(NamedTuple):
    """A process, and the connection to it."""

    number: int
    connection: Connection


class Server:
    """The server, started when it is first needed; its processes call a function, of a module, with a `Connection`."""

    def __init__(self, module: str, function: str) -> None:
        self._function = module, function
        self._process: subprocess.Popen | None = None
        self._connection: Connection | None = None
        self._lock = threading.RLock()  # one request at a time
        self._asking = False  # the garbage collector may end a sandbox, and ask, in the middle of another request

    def fork(self, folder: Path, log: Path, group: int) -> Fork:
        """Start a process in a folder and a group, with this process's environment and path, that prints into a file.

        Raises:
            NoProcess: the libraries cannot be loaded.
        """
        ours, theirs = Pipe()
        with open(log, "ab") as output, theirs, self._request():
            number = self._request_fork(theirs.fileno(), output.fileno())
        ours.send((dict(os.environ), _path(), str(folder), group))
        return Fork(number, ours)

    @contextmanager
    def _request(self) -> Iterator[bool]:
        """A request's time; False where this thread is in the middle of another one."""
        with self._lock:
            alone, self._asking = not self._asking, True
            try:
                yield alone
            finally:
                self._asking = not alone

    def _request_fork(self, *descriptors: int) -> int:
        for again in (True, False):
            try:
                server = self._connection or self._start()
                server.send(None)
                for descriptor in descriptors:
                    send_handle(server, descriptor, None)
                return _receive(server, STARTING)
            except (EOFError, OSError) as error:  # a server that was idle has ended
                code = self.close()
                if not again:
                    reason = str(error) or f"exit code {code}"
                    raise NoProcess(f"the libraries cannot be loaded ({reason})") from None
        raise AssertionError

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), *self._function, *_path()],
                pass_fds=(theirs.fileno(),),
                process_group=0,  # Ctrl+C does not reach it
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._connection = ours
        return ours

    def how_it_ended(self, fork: Fork) -> str:
        """How a process ended that has closed its connection or was killed: its exit code or signal."""
        with self._request() as alone:
            if self._connection and alone:
                try:
                    self._connection.send(fork.number)
                    return _receive(self._connection, 2 * ENDING)
                except (EOFError, OSError):
                    self.close()  # an answer that comes late would be read as that to the next request
        return UNKNOWN

    def close(self) -> int | None:
        """End the server, not the processes that it has forked."""
        if self._connection:
            self._connection.close()
        code = None
        if self._process:
            self._process.kill()
            code = self._process.wait()
        self._process = self._connection = None
        return code


def _path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path]


def _receive(connection: Connection, seconds: float) -> Any:
    if not connection.poll(seconds):
        raise TimeoutError(f"no sign of life after {seconds:g} s")
    return connection.recv()


def _serve(descriptor: str, module: str, function: str) -> None:
    """Answer requests until the other end of the connection is closed."""
    run: Callable[[Connection], None] = getattr(import_module(module), function)
    client = Connection(int(descriptor))
    ends: dict[int, str] = {}  # how each process ended
    with suppress(EOFError):
        while client.poll(IDLE) or any(_how_it_ended(ends, number, 0) == RUNNING for number in ends):
            if client.poll():
                _answer(client, run, ends)


def _answer(client: Connection, run: Callable[[Connection], None], ends: dict[int, str]) -> None:
    """Fork a process and send its number, or send how a process ended."""
    number = client.recv()
    if number is not None:
        client.send(_how_it_ended(ends, number, ENDING))
        return
    descriptors = [recv_handle(client), recv_handle(client)]
    if (number := os.fork()) == 0:
        client.close()
        _run(run, *descriptors)
    for each in descriptors:
        os.close(each)
    ends[number] = RUNNING
    client.send(number)


def _how_it_ended(ends: dict[int, str], number: int, seconds: float) -> str:
    """How a process ended, which is waited for."""
    until = time.monotonic() + seconds
    while ends.get(number) == RUNNING:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            ends[number] = f"exit code {code}" if code >= 0 else SIGNALS.get(-code, f"signal {-code}")
        elif time.monotonic() >= until:
            break
        else:
            time.sleep(0.005)
    return ends.get(number, UNKNOWN)


def _run(run: Callable[[Connection], None], descriptor: int, log: int) -> None:
    """In a forked process: never returns."""
    code = 1
    try:
        print_to(log)
        connection = Connection(descriptor)
        environment, path, folder, group = connection.recv()
        os.setpgid(0, group)
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        os.chdir(folder)
        run(connection)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def print_to(descriptor: int) -> None:
    """Have this process, and those that it starts, print into an open file, whose descriptor is closed."""
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
