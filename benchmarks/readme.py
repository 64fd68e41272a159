"""The tables of the pages, each between its markers: `<!-- table: NAME -->` and `<!-- end -->`.

    python benchmarks/readme.py              writes all tables into the pages, from stored results
    python benchmarks/readme.py TABLE        measures first what of this table is not of today's code

What is interrupted continues by the same command: a result is stored when its command ends, and studies continue by
themselves. `--again` measures what is of today's code too, as on another machine.
"""

from __future__ import annotations

import argparse
import difflib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measurements import ROOT, Measurement, QuickStudy, Script
from rows import Row, markdown

MARKED = re.compile(r"(<!-- table: (.*?) -->\n)(.*?)(<!-- end -->)", re.S)
FOLDERS = ("benchmarks", "cluster", "sibcl_ray", "studies", "tests")  # with pages
UNKNOWN = dict.fromkeys(("below range", "above range", "below measure", "beyond measure"), "?")  # two: earlier words
SHORT = {"at least ": "≥ ", "less than ": "< ", **UNKNOWN}
Rows = Callable[[tuple[Measurement, ...]], Iterable[Row]]


@dataclass(frozen=True)
class Table:
    """Results, and the rows that they are shown in."""

    of: tuple[Measurement, ...]
    rows: Rows
    show: Callable[[Iterable[Row]], str] = markdown
    says_origin: bool = True  # below the rows

    @property
    def text(self) -> str:
        """What stands between the markers."""
        shown = self.show(self.rows(self.of))
        return f"{shown}\n\n{self.origin}\n" if self.says_origin else f"{shown}\n"

    @property
    def origin(self) -> str:
        """In words, with what code the results were measured."""
        found: dict[str, list[str]] = {}
        for measurement in self.of:
            found.setdefault(measurement.origin, []).append(measurement.name)
        names = len(found) > 1
        return "  \n".join(f"*{', '.join(its) + ': ' if names else ''}{words}*" for words, its in found.items())


def rows_of(measurement: Measurement) -> list[Row]:
    return measurement.stored.rows if measurement.stored else []


def as_measured(its: tuple[Measurement, ...]) -> Iterable[Row]:
    """The rows of one result."""
    return [row for measurement in its for row in rows_of(measurement)]


def side_by_side(*headings: str) -> Rows:
    """Values of the same quantities, a column for each result."""

    def rows(its: tuple[Measurement, ...]) -> Iterable[Row]:
        columns = [{row["quantity"]: row["value"] for row in rows_of(measurement)} for measurement in its]
        for quantity in dict.fromkeys(name for column in columns for name in column):
            values = (column.get(quantity, "") for column in columns)
            yield {"quantity": quantity, **dict(zip(headings, values, strict=True))}

    return rows


def _saving(row: Row) -> str:
    words = f"{row['label saving']} ({row['interval']})" if "label saving" in row else ""
    return re.sub("|".join(SHORT), lambda found: SHORT[found[0]], words)


def savings(its: tuple[Measurement, ...]) -> Iterable[Row]:
    """A row a study: the error of SL at its largest budget, and the savings of the others."""
    for study in its:
        if rows := {row["method"]: row for row in rows_of(study)}:
            baseline = rows.pop("SL")
            shown = {"`--problem`": f"`{study.arguments[2]}`", "SL": f"{baseline['400']} {baseline['units']}".strip()}
            yield shown | {method: _saving(row) for method, row in rows.items()}


def draws(its: tuple[Measurement, ...]) -> Iterable[Row]:
    """A row a method and study: its errors and its saving."""
    for number, study in enumerate(its):
        for row in rows_of(study):
            errors = {heading: cell for heading, cell in row.items() if heading.isdigit()}
            yield {"data": str(number), "method": row["method"], **errors, "label saving": _saving(row)}


def caption(rows: Iterable[Row]) -> str:
    """A sentence for a figure of learning curves."""
    needed = [f"{row['method']} with {row['labels']}" for row in rows if row.get("labels", "").isdigit()]
    *others, last = needed
    return f"SL needs 400 labels for the error that is reached by {', '.join(others)} and {last}."


def commands(its: tuple[Measurement, ...]) -> Iterable[Row]:
    """A row a result: its command, and with what code it was measured."""
    for m in its:
        code = "today's" if m.is_todays else "earlier" if m.stored else "not yet"
        made = f"{m.stored.commit}, {m.stored.date}" if m.stored else ""
        yield {"result": m.name, "command": f"`{m.command}`", "commit": made, "code": code}


STUDIES = tuple(
    QuickStudy(problem=name)
    for name in ("photonic-dos", "photonic-bands", "photonic-gap", "schrodinger-2d", "schrodinger-3d", "magnet-sign")
)
DRAWS = tuple(QuickStudy(problem="photonic-dos", seed=seed) for seed in range(3))
PHOTONIC = ("sibcl_ray/problems/photonic.py", "sibcl_ray/problems/level_sets.py", "tests/mpb_reference.py")
DENSITY = ("sibcl_ray/solvers/planewave.py", "sibcl_ray/solvers/density_of_states.py", *PHOTONIC)
FINE = ("sibcl_ray/solvers/fine_bands.py", "sibcl_ray/solvers/planewave.py", *PHOTONIC)
GAPS = "mpb.py --label gap --complexity 6 --resolution 96 --cells 4 --every 24"
ASKED = ("sibcl_ray/study/ledger.py", "sibcl_ray/study/matrix.py", "sibcl_ray/storage/records.py")
ASKED += ("sibcl_ray/storage/store.py", "sibcl_ray/search/history.py", "sibcl_ray/results/curves.py")
RUN = ("sibcl_ray/cluster/run.py", "sibcl_ray/cluster/tune.py", "sibcl_ray/cluster/scheduler.py")
ALONE = ("sibcl_ray/data/sandbox.py", "sibcl_ray/data/fork_server.py", "sibcl_ray/data/shards.py")

TABLES = {
    "savings": Table(STUDIES, savings),
    "draws": Table(DRAWS, draws),
    "figure": Table(DRAWS[:1], as_measured, show=caption),
    "mpb": Table(
        (
            Script(title="mpb-tm", call="mpb.py --cells 24", code=DENSITY),
            Script(title="mpb-te", call="mpb.py --cells 20 --polarization te", code=DENSITY),
        ),
        side_by_side("TM", "TE"),
    ),
    "gaps": Table(
        (
            Script(title="gaps-tm", call=GAPS, code=FINE),
            Script(title="gaps-te", call=f"{GAPS} --polarization te", code=FINE),
        ),
        side_by_side("TM", "TE"),
    ),
}
SCRIPTS = (
    Script(call="intervals.py", code=("sibcl_ray/results/curves.py", "tests/test_curves.py")),
    Script(call="schrodinger.py", code=("sibcl_ray/solvers/schrodinger.py", "sibcl_ray/problems/schrodinger.py")),
    Script(call="generation.py", code=(*DENSITY[:3], "sibcl_ray/cluster/generate.py")),
    Script(call="guests.py", code=ALONE),
    Script(call="augmentation.py", code=("sibcl_ray/symmetry/groups.py",)),
    Script(call="resume.py", code=ASKED),
    Script(call="driver.py", code=("benchmarks/planted.py", *RUN)),
    Script(call="scaling.py", code=("benchmarks/planted.py", "sibcl_ray/search/search.py", *RUN[1:])),
)
TABLES |= {script.name: Table((script,), as_measured) for script in SCRIPTS}
MEASUREMENTS = tuple(dict.fromkeys(measurement for table in TABLES.values() for measurement in table.of))
TABLES["commands"] = Table(MEASUREMENTS, commands, says_origin=False)


def pages() -> list[Path]:
    """All pages, of which some have markers."""
    return [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]


def table_of(name: str) -> Table:
    """The table of this name; else ValueError, in one line."""
    if name not in TABLES:
        near = difflib.get_close_matches(name, TABLES)
        raise ValueError(f"there is no table {name!r}; give one of {', '.join(near or TABLES)}")
    return TABLES[name]


def rendered(page: str) -> str:
    """The text of a page with its tables as the stored results give them."""
    if page.count("<!-- table:") != len(MARKED.findall(page)):
        raise ValueError("a marker <!-- table: NAME --> has no line <!-- end --> after it")
    return MARKED.sub(lambda found: f"{found[1]}{table_of(found[2]).text}{found[4]}", page)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", help=f"one of {', '.join(TABLES)}")
    parser.add_argument("--again", action="store_true", help="measure also what is of today's code")
    options = parser.parse_args(arguments)
    try:
        for measurement in table_of(options.table).of if options.table else ():
            if options.again or not measurement.is_todays:
                print(f"{measurement.name}: {measurement.command}", flush=True)
                measurement.run()
        for page in pages():
            text = page.read_text()
            if (new := rendered(text)) != text:
                page.write_text(new)
                print(f"{page.relative_to(ROOT)} has new tables")
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"error: the command ended with exit code {error.returncode}; the same command continues\n")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
