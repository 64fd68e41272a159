"""Output on any terminal: also on one with few letters, and after its reader has gone."""

import codecs
import io
import os
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SPELLED = str.maketrans({"±": "+-", "×": "x", "≥": ">=", "–": "-", "—": "-", "−": "-", "…": "...", "·": "*", "’": "'"})


def spelled(text: str) -> str:
    """The text in ASCII."""
    return text.translate(SPELLED).encode("ascii", "replace").decode()


def _instead(error: UnicodeError) -> tuple[str, int]:
    """What is written for letters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return spelled(error.object[error.start : error.end]), error.end


codecs.register_error("sibcl_ray.spelled", _instead)


def take_any_letter() -> None:
    """From now on nothing is wrong with printing a letter that the encoding of standard output or error lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="sibcl_ray.spelled")


def plain(table: Table) -> Table:
    """The table in ASCII, without colours: replacements have other widths, so they come before it is laid out."""
    made = Table(
        title=_plain(table.title),
        caption=_plain(table.caption),
        title_justify=table.title_justify,
        show_header=table.show_header,
        box=table.box,
    )
    for column in table.columns:
        made.add_column(_plain(column.header), justify=column.justify)
    for row in zip(*(column.cells for column in table.columns), strict=True):
        made.add_row(*map(_plain, row))
    return made


def fitting(table: Table, console: Console) -> list[Table]:
    """The table in as many parts as are needed for no number to be cut, each with the first column."""
    natural = [console.measure(_part(table, [column])).maximum for column in range(len(table.columns))]
    parts, width = [[0]], natural[0]
    for column in range(1, len(table.columns)):
        if len(parts[-1]) > 1 and width + natural[column] - 1 > console.width:
            parts.append([0])
            width = natural[0]
        parts[-1].append(column)
        width += natural[column] - 1  # columns share a border
    return [table] if len(parts) == 1 else [_part(table, p, p is parts[0], p is parts[-1]) for p in parts]


def _part(table: Table, columns: list[int], first: bool = False, last: bool = False) -> Table:
    made = Table(
        title=table.title if first else None,
        caption=table.caption if last else None,
        title_justify=table.title_justify,
        show_header=table.show_header,
        box=table.box,
    )
    made.columns = [table.columns[i] for i in columns]
    made.rows = table.rows
    return made


def _plain(shown: Any) -> Any:
    return None if shown is None else Text(spelled(str(shown)))


class Screen(Console):
    """Standard output. Where nothing can be written to it any more, what is printed is lost and the work goes on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Like Rich's, on an ASCII terminal with plain tables."""
        if self.options.ascii_only:
            objects = tuple(plain(o) if isinstance(o, Table) else o for o in objects)
        parts = [part for o in objects for part in (fitting(o, self) if isinstance(o, Table) else [o])]
        try:
            super().print(*parts, **options)
        except OSError as error:
            self.quiet = True
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
            if isinstance(error, BrokenPipeError):  # the reader has just read enough, as `head` does
                return
            with suppress(OSError):
                print(f"warning: standard output cannot be written ({error.strerror})", file=sys.stderr, flush=True)

    def on_broken_pipe(self) -> None:
        """Leave it to `print`: Rich would end the process."""
        raise
