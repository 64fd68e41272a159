"""Rows of tables: cells, as text, by the headings of their columns."""

from collections.abc import Iterable

Row = dict[str, str]


def markdown(rows: Iterable[Row]) -> str:
    """A table of Markdown; a cell that a row does not have is empty."""
    rows = list(rows)
    columns = list(dict.fromkeys(heading for row in rows for heading in row))
    lines = [columns, ["---"] * len(columns), *([row.get(heading, "") for heading in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
