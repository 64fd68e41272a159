"""Numbers in pages are those that were measured, and say with what code."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measurements  # noqa: E402
import readme  # noqa: E402

PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in readme.pages()}
MARKED = {name: text for name, text in PAGES.items() if readme.MARKED.search(text)}
SHOWN = {found[1] for text in MARKED.values() for found in re.finditer("<!-- table: (.*?) -->", text)}


@pytest.mark.parametrize("name", MARKED)
def test_a_page_shows_what_is_stored(name):
    assert readme.rendered(MARKED[name]) == MARKED[name], "write its tables by python benchmarks/readme.py"


@pytest.mark.parametrize("measurement", readme.MEASUREMENTS, ids=lambda m: m.name)
def test_a_result_is_shown_with_what_code_it_was_measured(measurement):
    of_it = [name for name, table in readme.TABLES.items() if measurement in table.of and table.says_origin]
    texts = [table for text in PAGES.values() for _, name, table, _ in readme.MARKED.findall(text) if name in of_it]
    result = measurement.stored
    says = f"commit {result.commit}, {result.date}" if result else "Not measured yet."
    assert texts and all(says in text for text in texts)
    if not measurement.is_todays:
        assert all("Not measured" in text for text in texts)


def test_what_has_changed_is_said():
    result = measurements.Result(
        command="", date="2026-01-01", package="0.1", commit="abc", versions={"a": "1"}, rows=[]
    )
    assert result.origin({"a": "1"}) == "Measured with today's code: commit abc, 2026-01-01."
    assert result.origin({"a": "2", "b": "1"}).endswith("version 0.1, commit abc, 2026-01-01; changed since: a, b.")
    assert replace(result, versions={}).origin({"a": "1"}).endswith("changes since are not recorded.")


def test_stored_results_have_a_measurement_and_its_command():
    by_name = {m.name: m for m in readme.MEASUREMENTS}
    assert len(by_name) == len(readme.MEASUREMENTS)
    for file in measurements.RESULTS.glob("*.json"):
        assert by_name[file.stem].stored.rows and by_name[file.stem].stored.command == by_name[file.stem].command
    assert readme.TABLES.keys() >= SHOWN


SCRIPTS = [m for m in readme.MEASUREMENTS if isinstance(m, readme.Script)]


@pytest.mark.parametrize("measurement", SCRIPTS, ids=lambda m: m.name)
def test_options_of_a_command_exist(measurement):
    script, *arguments = measurement.arguments
    text = (ROOT / script).read_text()
    assert all(f'"{option}"' in text for option in arguments if option.startswith("--"))


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page of a table of two results, which nothing has measured yet."""
    its = tuple(readme.Script(title=name, call=f"guests.py --labels {name}", code=()) for name in ("1", "2"))
    monkeypatch.setattr(readme, "TABLES", {"both": readme.Table(its, readme.as_measured)})
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: both -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "pages", lambda: [page])
    return page


def test_a_table_is_continued_where_it_was_interrupted(page, monkeypatch):
    run = []

    def measure(self, fails):
        run.append(self.name)
        if self.name == fails:
            raise KeyboardInterrupt
        return [{"labels": self.name, "ms": "1"}]

    monkeypatch.setattr(readme.Script, "measure", lambda self: measure(self, fails="2"))
    with pytest.raises(KeyboardInterrupt):
        readme.main(["both"])
    monkeypatch.setattr(readme.Script, "measure", lambda self: measure(self, fails=None))
    readme.main(["both"])
    readme.main(["both"])
    assert run == ["1", "2", "2"]
    begin, end = (
        "before\n<!-- table: both -->\n| labels | ms |\n| --- | --- |\n| 1 | 1 |\n| 2 | 1 |\n\n*Measured",
        "after\n",
    )
    assert page.read_text().startswith(begin) and page.read_text().endswith(f"*\n<!-- end -->\n{end}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<!-- table: bth -->\n<!-- end -->\n", "no table 'bth'; give one of both"),
        ("<!-- table: both -->\n", "no line"),
    ],
)
def test_markers_that_cannot_be_are_one_line(text, says, page, capsys):
    page.write_text(text)
    with pytest.raises(SystemExit) as ended:
        readme.main([])
    assert ended.value.code == 2 and says in capsys.readouterr().err.splitlines()[-1] and page.read_text() == text
