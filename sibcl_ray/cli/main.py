"""The command: its signals, errors and exit codes."""

import os
import signal
import sys
from contextlib import suppress
from itertools import pairwise
from typing import Any, NoReturn

import psutil
import typer

from sibcl_ray.cli.commands import PROGRAM, SOME_FAILED, app
from sibcl_ray.cli.options import Sweep, renamed, spelled
from sibcl_ray.cluster.scheduler import Unfinished
from sibcl_ray.data.sandbox import leads
from sibcl_ray.messages import one_line, redact
from sibcl_ray.problems.problem import SolverFailed
from sibcl_ray.results.terminal import take_any_letter
from sibcl_ray.settings import SETTINGS
from sibcl_ray.storage.store import StoreError

BAD_INPUT = 2  # an exit code; 128 and the signal's number where one ended the run
AGAIN = "the same command continues where it stopped"
UsageError: Any = typer.BadParameter.__bases__[0]  # Typer brings a click of its own, or not, by version

_signals: list[int] = []  # that told this process to end: Ctrl-C, the system, or `ray job stop`


def _stop(number: int, frame: object) -> None:
    _signals.append(number)
    raise KeyboardInterrupt  # the one exception that Ray lets through wherever it is


def _obey_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)


def command_line(*first: str) -> int:
    """Run the command with ``first`` before its arguments; errors that the user can mend become one line and a code."""
    _signals.clear()  # of what this process did before
    _obey_signals()
    take_any_letter()
    arguments, notes = renamed([*first, *sys.argv[1:]])
    for note in notes:
        print(f"note: {note}", file=sys.stderr, flush=True)
    try:
        command = app(arguments, prog_name=PROGRAM, standalone_mode=False)
        code = command.run() if hasattr(command, "run") else 0  # of --help
    except UsageError as error:
        message = error.format_message()  # empty where no command was given: its help has been shown
        return _complain(message + _given(error, arguments), BAD_INPUT) if message else BAD_INPUT
    except ValueError as error:
        return _complain(_by_option(error), BAD_INPUT)
    except (Unfinished, StoreError, SolverFailed) as error:
        return _complain(f"{error}; {AGAIN}", SOME_FAILED)
    except SystemExit as end:
        if not end.code or isinstance(end.__context__, BrokenPipeError):  # as by `--help | head`
            return 0
        _signals.append(signal.SIGTERM)  # Ray answers it in its own way while it starts
        code = SOME_FAILED
    except (KeyboardInterrupt, typer.Abort):
        code = SOME_FAILED
    if _signals:
        return _complain(f"stopped by {signal.Signals(_signals[0]).name}; {AGAIN}", 128 + _signals[0])
    return code


def _by_option(error: ValueError) -> str:
    """Its text; one that begins with the name of an argument begins with that of the option instead."""
    name, _, rest = str(error).partition(" ")
    known = type(error) is ValueError and SETTINGS.get(name, name) in Sweep.__dataclass_fields__
    return f"{spelled(name)} {rest}" if known else str(error)


def _given(error: Any, arguments: list[str]) -> str:
    """What came in the place of a value that Typer refuses, which it does not always say."""
    if (param := getattr(error, "param", None)) is None:
        return ""
    given = [value for option, value in pairwise(arguments) if option in param.opts]
    file = getattr(getattr(error, "ctx", None), "default_map", None) or {}
    if not given and param.name in file:
        given = [file[param.name]]
    return f", not {given[-1]!r}" if given else ""


def _complain(text: str, code: int) -> int:
    with suppress(OSError):  # the reader is gone
        print(f"error: {redact(one_line(text))}", file=sys.stderr, flush=True)
    return code


def main_program(*first: str) -> NoReturn:
    """The command `sibcl-ray`, and with ``sweep`` before its arguments `python studies/label_sweep.py`.

    If it has used Ray, this process and all that it has started end at once, as everything is on disk: Ray's own
    shutdown may end a process, with a code of its own, whose threads still talk to it.
    """
    code = command_line(*first)
    if "ray" not in sys.modules:
        sys.exit(code)
    with suppress(OSError, AttributeError):  # the reader is gone
        sys.stdout.flush()
    for _ in range(2):  # again for processes started meanwhile
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if not leads(process.cmdline()):
                    process.kill()
    os._exit(code)
