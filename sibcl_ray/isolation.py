"""Restores the state of a process that a user's code changes.

A user's module may, when it is imported or called, set torch's default type, switch gradients off, change the
working directory, an environment variable or a signal handler. In its sandbox (see `data.sandbox`) this state stays.
In all other processes it is restored after each call, and the module gets copies of tensors and arrays.
"""

from __future__ import annotations

import locale
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, wraps
from multiprocessing import get_start_method, set_start_method
from typing import Any

import numpy as np
import torch

LIBRARY = __name__.partition(".")[0] + "."
SIGNALS = [signal.Signals[f"SIG{n}"] for n in ("INT", "TERM", "HUP", "ALRM", "CHLD", "USR1", "USR2", "PIPE", "FPE")]
CPU = torch.device("cpu")

paths: list[str] = []  # folders of a user's modules, which are first in sys.path while one of them runs
_thread = threading.local()
_disabled = False


def disable() -> None:
    """This process runs only a user's code, so its state is not restored."""
    global _disabled
    _disabled = True


def _is_isolated() -> bool:
    return _disabled or getattr(_thread, "call", False)


def is_guest(kind: type) -> bool:
    """Whether a class is not from this library."""
    return not kind.__module__.startswith(LIBRARY)


def _set_handlers(handlers: list[Any]) -> None:
    if threading.current_thread() is threading.main_thread():  # no other thread can change a handler
        for number, handler in zip(SIGNALS, handlers, strict=True):
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _set_environment(variables: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - variables.keys():
        del os.environb[name]
    os.environb.update(variables)


def _working_folder() -> str | None:
    with suppress(OSError):  # it has been removed
        return os.getcwd()
    return None


def _get_logging() -> tuple:
    root = logging.root
    return root.level, tuple(root.handlers), tuple(root.filters), root.disabled, root.manager.disable


def _set_logging(state: tuple) -> None:
    root = logging.root
    root.setLevel(state[0])
    root.handlers[:], root.filters[:] = state[1:3]
    root.disabled, root.manager.disable = state[3:]


def _set_streams(streams: tuple) -> None:
    sys.stdout, sys.stderr, sys.excepthook = streams


STATE: tuple[tuple[Callable[[], Any], Callable[[Any], object]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda device: torch.set_default_device(None if device == CPU else device)),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (np.geterr, lambda handling: np.seterr(**handling)),
    (_get_logging, _set_logging),
    (_working_folder, lambda folder: os.chdir(folder or ".")),
    (lambda: os.environ._data.copy(), _set_environment),  # type: ignore[attr-defined]  # the public way takes 40 times as long
    (lambda: list(map(signal.getsignal, SIGNALS)), _set_handlers),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (sys.getrecursionlimit, sys.setrecursionlimit),
    (lambda: get_start_method(allow_none=True), lambda how: set_start_method(how, force=True)),
    (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    (lambda: (sys.stdout, sys.stderr, sys.excepthook), _set_streams),
)


@contextmanager
def state_restored() -> Iterator[None]:
    """Restore the state of this process at the end."""
    if _is_isolated():
        yield
        return
    before = [get() for get, _ in STATE]
    path = list(sys.path)
    sys.path[:0] = paths
    _thread.call = True
    try:
        with warnings.catch_warnings():
            yield
    finally:
        _thread.call = False
        sys.path[:] = path
        for (get, put), state in zip(STATE, before, strict=True):
            if get() != state:
                put(state)


def guard(kind: type, names: tuple[str, ...]) -> None:
    """Have methods and properties of a class that a user has written run `state_restored`, on copies of arguments."""
    for name in names:
        owner = next((k for k in kind.__mro__ if name in vars(k)), None)
        if owner is not None and is_guest(owner) and (guarded := _guarded(vars(owner)[name])) is not None:
            setattr(kind, name, guarded)
            if isinstance(guarded, cached_property):
                guarded.__set_name__(kind, name)


def _guarded(found: Any) -> Any:
    if isinstance(found, (staticmethod, classmethod)):
        return type(found)(_isolated(found.__func__))
    if isinstance(found, property):
        return property(_isolated(found.fget), found.fset, found.fdel, found.__doc__) if found.fget else None
    if isinstance(found, cached_property):
        return cached_property(_isolated(found.func))
    return _isolated(found) if callable(found) and not isinstance(found, type) else None


def _isolated(function: Callable[..., Any]) -> Callable[..., Any]:
    if getattr(function, "_restores_state", False) or not hasattr(function, "__name__"):
        return function

    @wraps(function)
    def isolated(*arguments: Any, **named: Any) -> Any:
        if _is_isolated():
            return function(*arguments, **named)
        with state_restored():
            result = function(*map(_copy, arguments), **{name: _copy(value) for name, value in named.items()})
            return np.array(result) if isinstance(result, np.ndarray) else result

    isolated._restores_state = True  # type: ignore[attr-defined]
    return isolated


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value
