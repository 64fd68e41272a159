"""The help of the command on a narrow terminal, where Typer's columns would cut the options' names."""

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

COLUMNS = 72  # that a terminal needs for the table of `sweep`


def _print_list(command: Any, context: Any) -> None:
    """Options, and the subcommands of a group, each above what it does."""
    panels: dict[str, list[tuple[str, Text]]] = {}
    for parameter in command.get_params(context):
        if record := parameter.get_help_record(context):
            names, words = record
            text = getattr(parameter, "help", None) or ""
            default = words.removeprefix(text).replace("\\[", "[")  # which is no markup, and escaped by some versions
            argument = parameter.param_type_name == "argument"
            title = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else "Options")
            panels.setdefault(title, []).append((names, Text.from_markup(text) + default))
    for name, sub in getattr(command, "commands", {}).items():
        panels.setdefault("Commands", []).append((name, Text.from_markup(sub.get_short_help_str(300))))
    console = Console(highlight=False)
    console.print(Text(f"Usage: {context.command_path} {' '.join(command.collect_usage_pieces(context))}\n", "bold"))
    console.print(command.help or "")
    for title, records in panels.items():
        console.print(Text(f"\n{title}", "bold"))
        for names, described in records:
            console.print(Text(f"  {names}", "cyan"))
            console.print(Padding(described, (0, 0, 0, 4)))


class _Fitting:
    """Help that is a list where its table does not fit."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if Console().width < COLUMNS:
            _print_list(self, ctx)
        else:
            super().format_help(ctx, formatter)  # type: ignore[misc]


class Command(_Fitting, TyperCommand):
    """A command."""


class Group(_Fitting, TyperGroup):
    """A command with subcommands."""
