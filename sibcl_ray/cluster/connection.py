"""The Ray cluster that a driver is connected to."""

import logging
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray

from sibcl_ray.messages import one_line

DASHBOARD, NOBODY = "RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9"  # which refuses at once
# Ray has a shell start its actors' interpreters, whose paths may have blanks.
INTERPRETER = {"py_executable": shlex.quote(sys.executable)} if shlex.quote(sys.executable) != sys.executable else {}

_replaced: dict[str, str | None] = {}  # variables of the environment that a connection has set, as they were


def connect() -> bool:
    """Connect to the cluster that RAY_ADDRESS names, as in a submitted job, or start one here, behind a token.

    False where this process is connected already, and stays so. Raises ValueError, in one line, if there is no cluster.
    """
    if ray.is_initialized():
        return False
    address = os.environ.get("RAY_ADDRESS")
    alone: dict[str, Any] = {} if address else {"include_dashboard": False, "runtime_env": INTERPRETER}
    if alone:
        # Ray Train asks a dashboard all the same: it would look for it for 40 s at every end, or ask another's.
        _replaced[DASHBOARD] = os.environ.get(DASHBOARD)
        os.environ[DASHBOARD] = NOBODY
    try:
        host, _, port = (address or "").rpartition(":")
        if port.isdigit() and "/" not in host:  # Ray would go on trying where nothing listens
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        with keeping_signals():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except Exception as error:  # also bare ones, where a part of Ray dies on the way
        disconnect()
        if not address:
            raise ValueError(f"Ray does not start here: {one_line(error, 300)}") from None
        raise ValueError(
            f"RAY_ADDRESS is {address} and cannot be reached ({one_line(error, 300)}); "
            "start that cluster, or unset it to use this machine"
        ) from None
    return True


def disconnect() -> None:
    """End the connection, with the cluster if it was started here, and put back what was set for it."""
    ray.shutdown()
    for name, value in _replaced.items():
        os.environ.pop(name)
        if value is not None:
            os.environ[name] = value
    _replaced.clear()


@contextmanager
def keeping_signals() -> Iterator[None]:
    """Puts handlers back that Ray replaces while it starts, and raises the signals that it lost meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    heard, told = socket.socketpair()
    with heard, told:
        heard.setblocking(False)
        told.setblocking(False)
        before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            for number, handler in handlers.items():
                if handler is not None:  # one that was not set from Python cannot be put back
                    signal.signal(number, handler)
        with suppress(BlockingIOError):
            for lost in heard.recv(1000):
                if lost in handlers:
                    signal.raise_signal(lost)
