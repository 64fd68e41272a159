"""A process that has the libraries loaded, which takes seconds, and forks others from itself, which takes milliseconds.

The code that the forked processes run never runs in it, or in the process that asks for them.
"""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

STARTING = 300.0  # seconds in which libraries are loaded, also from a slow disk
IDLE = 60.0  # seconds after which a server ends that has no processes and is not asked for any
ENDING = 5.0  # seconds in which a process that has closed its connection should end
PROGRAM = (
    "import sys; sys.path[:] = sys.argv[3:]; from sibcl_ray.data.fork_server import _serve; _serve(*sys.argv[1:3])"
)
_NUMBER, _STATUS = struct.Struct("q"), struct.Struct("i")
_RUNNING, _UNKNOWN = -1, -2  # for a status


class NoProcess(OSError):
    """No process is to be had; the text says why."""


class Fork:
    """A process, by its ``number`` and the ``connection`` to it."""

    def __init__(self, server: "Server", number: int, connection: Connection) -> None:
        self._server, self.number, self.connection = server, number, connection
        self._how = ""

    def how_it_ended(self) -> str:
        """In words, of one that has closed its connection or is killed."""
        self._how = self._how or self._server._how_it_ended(self.number)
        return self._how


class Server:
    """Forks processes that run a function of a `Connection`, by its module and name. Started when first needed."""

    def __init__(self, module: str, function: str) -> None:
        self._runs = module, function
        self._process: subprocess.Popen | None = None
        self._socket: socket.socket | None = None
        self._alone = threading.Lock()  # one question at a time

    def fork(self, folder: Path, log: Path, group: int) -> Fork:
        """A process of a group that works in a folder and prints into a file, with this process's environment and path.

        Raises:
            NoProcess: the libraries cannot be loaded.
        """
        ours, theirs = socket.socketpair()
        with open(log, "ab") as output, theirs, self._alone:
            number = self._ask(output, theirs)
        connection = Connection(ours.detach())
        connection.send((dict(os.environ), _path(), str(folder), group))
        return Fork(self, number, connection)

    def _ask(self, output: object, theirs: socket.socket) -> int:
        for again in (True, False):
            try:
                server = self._socket or self._start()
                socket.send_fds(server, [b"+"], [theirs.fileno(), output.fileno()])  # type: ignore[attr-defined]
                return _NUMBER.unpack(_exactly(server, _NUMBER.size, STARTING))[0]
            except (EOFError, OSError) as error:  # it was idle, and has ended
                code = self.close()
                if not again:
                    raise NoProcess(f"the libraries cannot be loaded ({error or code})") from None
        raise AssertionError

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), ":".join(self._runs), *_path()],
                pass_fds=(theirs.fileno(),),
                process_group=0,  # no key of a terminal reaches it
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self._socket = ours
        return ours

    def _how_it_ended(self, number: int) -> str:
        status = _UNKNOWN
        with self._alone, suppress(EOFError, OSError):
            if self._socket:
                self._socket.sendall(b"?" + _NUMBER.pack(number))
                (status,) = _STATUS.unpack(_exactly(self._socket, _STATUS.size, 2 * ENDING))
        if status == _UNKNOWN:  # it was of a server that has ended
            return "it cannot be said how"
        if status == _RUNNING:
            return "it does not answer"
        code = os.waitstatus_to_exitcode(status)
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def close(self) -> int | None:
        """End the server, not the processes that it has forked."""
        if self._socket:
            self._socket.close()
        code = None
        if self._process:
            self._process.kill()
            code = self._process.wait()
        self._process = self._socket = None
        return code


def _path() -> list[str]:
    return [os.path.abspath(entry) for entry in sys.path]


def _exactly(sock: socket.socket, size: int, seconds: float) -> bytes:
    data = b""
    while len(data) < size:
        if not select.select([sock], [], [], seconds)[0]:
            raise TimeoutError(f"no sign of life after {seconds:g} s")
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _serve(descriptor: str, runs: str) -> None:
    """What the server does."""
    from importlib import import_module

    module, function = runs.split(":")
    run: Callable[[Connection], None] = getattr(import_module(module), function)
    server = socket.socket(fileno=int(descriptor))
    numbers: dict[int, int] = {}  # the status of each process
    while True:
        if not select.select([server], [], [], IDLE)[0]:
            if all(_status(numbers, number, 0) != _RUNNING for number in numbers):
                return
            continue
        data, descriptors, *_ = socket.recv_fds(server, 1, 2)
        if not data:
            return
        if data == b"+":
            if (number := os.fork()) == 0:
                server.close()
                _run(run, *descriptors)
            numbers[number] = _RUNNING
            for each in descriptors:
                os.close(each)
            server.sendall(_NUMBER.pack(number))
        else:
            (number,) = _NUMBER.unpack(_exactly(server, _NUMBER.size, ENDING))
            server.sendall(_STATUS.pack(_status(numbers, number, ENDING)))


def _status(numbers: dict[int, int], number: int, seconds: float) -> int:
    """How a process ended, which may take a while."""
    until = time.monotonic() + seconds
    while numbers.setdefault(number, _UNKNOWN) == _RUNNING:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            numbers[number] = status
        elif time.monotonic() >= until:
            break
        else:
            time.sleep(0.005)
    return numbers[number]


def _run(run: Callable[[Connection], None], descriptor: int, log: int) -> None:
    """In a forked process: never returns."""
    code = 1
    try:
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
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
