"""What is printed can be read on any terminal, and whoever stops reading stops nothing."""

import io
import os
import sys

import pytest
from rich.table import Table
from rich.text import Text

from sibcl_ray.results.terminal import Screen, plain, spelled, take_any_letter

WORDS = "0.31 ± 0.02, at least 16×, 91–95 °C, Erdős, naïve, ≥ 5 …"


def a_table():
    table = Table(title=Text("errors (µeV) [kg]"), caption="± half")
    for header in ("method", "25 × 2"):
        table.add_column(header, justify="right")
    table.add_row("SL", Text("4.72 ± 0.31", "bold green"))
    table.add_row("SL-I", "–")
    return table


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "iso8859-15", "utf-8"])
def test_tables_and_words_can_be_read_with_any_encoding(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # as the environment says
    monkeypatch.setattr(sys, "stdout", stream)
    take_any_letter()
    screen = Screen()
    screen.print(a_table())
    screen.print(Text(f"{WORDS} \udcff"), soft_wrap=True)
    print(f"error: {WORDS} \udcff")
    stream.flush()
    text = stream.buffer.getvalue().decode(encoding)
    if encoding == "utf-8":
        assert "4.72 ± 0.31" in text and "┃" in text and WORDS in text
    else:
        *table, _, words, said = text.splitlines()
        assert text.isascii() or encoding != "ascii"
        assert "".join(table).isascii() and any("| 4.72 +- 0.31 |" in line for line in table)
        assert len({len(line) for line in table if line[0] in "|+"}) == 1, "columns are straight"
        assert "at least 16" in words and "at least 16" in said and "\udcff" not in text


def test_letters_are_spelled_in_ascii():
    assert spelled("4.72 ± 0.31, 11×, 1–2, ≥ 3…") == "4.72 +- 0.31, 11x, 1-2, >= 3..."
    assert spelled("Å") == "?" and plain(Table()).row_count == 0


def test_who_stops_reading_stops_nothing(monkeypatch, capfd):
    reads, writes = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writes, "w"))
    screen = Screen()
    screen.print("read")
    assert os.read(reads, 10) == b"read\n"
    os.close(reads)
    for _ in range(3):
        screen.print(a_table())
    print("neither is this", flush=True)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_under_standard_output_is_told_once(monkeypatch, capfd):
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    screen = Screen()
    for _ in range(3):
        screen.print("lost")
    assert capfd.readouterr() == ("", "warning: standard output cannot be written (No space left on device)\n")


def test_no_standard_output_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    take_any_letter()
    Screen().print(a_table())
