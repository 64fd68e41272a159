"""Tables say what is known and what is not; figures are whole, stable files."""

import re

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from test_curves import exact, noisy, power_law

from sibcl_ray.results.curves import label_savings
from sibcl_ray.results.figure import learning_curve_figure
from sibcl_ray.results.tables import (
    COLOURS,
    colour,
    failures_in_words,
    interval_in_words,
    labels_in_words,
    matrix_table,
    saving_in_words,
    saving_table,
    units_of,
)


def shown(table):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


@pytest.fixture
def matrix():
    return noisy(np.random.default_rng(0), {"SL": 1, "SL-I": 2, "SIB-CL": 8}, seeds=3)


def test_censored_savings_are_words():
    early, never, plain = label_savings(
        exact({"SL": power_law(1), "early": power_law(40), "never": power_law(0.5), "plain": power_law(8)})
    )
    assert (labels_in_words(early), saving_in_words(early)) == ("at most 25", "at least 16×")
    assert (labels_in_words(never), saving_in_words(never)) == ("more than 400", "less than 1×")
    assert (labels_in_words(plain), saving_in_words(plain)) == ("50", "8×")
    assert interval_in_words(plain) == "8× to 8×"
    assert interval_in_words(early) == "16× to above range"
    assert interval_in_words(never) == "below range to 1×"


def test_matrix_table_shows_numbers_failures_and_reasons(matrix):
    matrix.loc[0, ["state", "error", "reason"]] = ["failed", np.nan, "diverged: loss is NaN"]
    matrix.loc[3:5, ["state", "error"]] = ["missing", np.nan]
    text = shown(matrix_table(matrix))
    mean = 100 * matrix.query("method == 'SIB-CL' and budget == 400")["error"].mean()
    assert f"{mean:.2f} ±" in text
    assert "1 failed" in text and "3 missing" in text
    assert list(failures_in_words(matrix)) == ["1 cell failed: diverged: loss is NaN"]
    assert "at least 2" in text  # repetitions


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_tables_of_unfinished_studies(matrix):
    one_seed = matrix[matrix["seed"] == 0]
    for known in (one_seed, one_seed.assign(sample_errors=None)):
        assert "one repetition" in shown(matrix_table(known))
    assert "no interval" in shown(saving_table(one_seed.assign(sample_errors=None)))
    nothing = matrix.assign(state="missing", error=np.nan)
    assert "3 missing" in shown(matrix_table(nothing))
    assert "No label saving" in shown(saving_table(nothing))
    assert "No label saving" in shown(saving_table(matrix[matrix["method"] != "SL"]))


def test_saving_table(matrix):
    text = shown(saving_table(matrix))
    saving = {s.method: s for s in label_savings(matrix)}["SIB-CL"]
    assert f"{saving.labels:.0f}" in text and saving_in_words(saving) in text
    assert f"{100 * saving.target_error:.2f} %" in text


def of(matrix, units, factor):
    """The same study with errors in another unit."""
    samples = [None if errors is None else errors * factor for errors in matrix["sample_errors"]]
    return matrix.assign(error=matrix["error"] * factor, sample_errors=samples, error_units=units)


UNITS = [  # of errors, the factor to a fraction; how 0.0335 is shown, and in a title
    ("fraction", 1, "3.35", "3.35 %", "(%)"),
    ("fraction", 1e-3, "0.00335", "0.00335 %", "(%)"),
    ("meV", 14650, "491", "491 meV", "(meV)"),
    ("%", 100, "3.35", "3.35 %", "(%)"),  # in percents already
    ("absolute", 146.5, "4.91", "4.91 absolute", "(absolute)"),
    ("", 1, "0.0335", "0.0335", ""),
    ("[kcal/mol] of [/b]", 1, "0.0335", "0.0335 [kcal/mol] of [/b]", "([kcal/mol] of [/b])"),
    ("$ per $", 1e-6, "3.35e-08", "3.35e-08 $ per $", "($ per $)"),
    ("J", 1e9, "3.35e+07", "3.35e+07 J", "(J)"),
]


@pytest.mark.parametrize(("units", "factor", "number", "in_words", "bracketed"), UNITS)
def test_errors_have_their_units_and_percents_are_for_fractions(units, factor, number, in_words, bracketed, tmp_path):
    matrix = of(exact({"SL": lambda n: 0.0335 * (400 / n) ** 0.5, "SL-I": power_law(8)}), units, factor)
    errors, savings = shown(matrix_table(matrix)), shown(saving_table(matrix))
    title = f"Test error {bracketed}".strip() + " by labels"
    assert title in errors and f" {number} ± 0" in errors.replace("± 0.0", "± 0")
    assert f"Labels for a test error of {in_words}, SL's at 400 labels" in " ".join(savings.split())
    assert units_of(matrix).in_words(0.0335 * factor) == in_words
    _, svg = learning_curve_figure([matrix], tmp_path / "curves", "planted")
    label = f"mean test error {bracketed}".strip()
    assert f"<!-- {label} -->" in svg.read_text()
    if "%" not in bracketed:
        assert "%" not in (errors + savings).replace("95 %", "")


def test_both_numbers_of_an_entry_have_the_same_decimals(matrix):
    for factor, expected in ((3000, r"│ +181 ± 10 │"), (3, r"│ +0\.181 ± 0\.010 │"), (3e-7, r"1.81e-08 ± 1e-09")):
        assert re.search(expected, shown(matrix_table(of(matrix, "meV", factor))))


def test_failures_are_told_by_their_reasons_a_line_each(matrix):
    def ended(state, reason, count):
        rows = matrix.index[matrix["state"] == "done"][:count]
        matrix.loc[rows, ["state", "reason", "error"]] = [state, reason, np.nan]

    ended("failed", "OSError: cannot\nopen [/data/x]", 1)
    ended("diverged", "the loss is nan", 2)
    ended("failed", "ValueError: no", 4)
    told = list(failures_in_words(matrix))
    assert told == [
        "4 cells failed: ValueError: no",
        "2 cells diverged: the loss is nan",
        "1 cell failed: OSError: cannot open [/data/x]",
    ]
    ended("failed", "word " * 400, 3)
    ended("failed", "one more", 1)
    first, second, _, more = failures_in_words(matrix)
    assert first == told[0] and more == "the matrix has 2 more reasons"
    assert second.startswith("3 cells failed: word word") and second.endswith("…") and len(second) < 550
    assert list(failures_in_words(matrix.assign(state="done"))) == []


def test_the_figure_is_written_whole_and_the_same_twice(matrix, tmp_path):
    png, svg = learning_curve_figure([matrix], tmp_path / "new" / "curves", "planted")
    first = png.read_bytes(), svg.read_bytes()
    again = learning_curve_figure([matrix], tmp_path / "new" / "curves", "planted")
    assert first == tuple(path.read_bytes() for path in again)
    assert sorted(path.name for path in png.parent.iterdir()) == ["curves.png", "curves.svg"]
    text = svg.read_text()
    assert text.rstrip().endswith("</svg>") and "<dc:date>" not in text
    pixels = imread(png)[..., :3]
    for method in ("SL-I", "SIB-CL"):
        target = np.array([int(COLOURS[method][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - target).max(axis=2) < 0.01).sum() > 300, f"no line in {method}'s colour"


def test_a_figure_of_nothing_and_of_one_budget(matrix, tmp_path):
    learning_curve_figure([matrix.assign(state="missing")], tmp_path / "nothing", "nothing yet")
    learning_curve_figure([matrix[matrix["budget"] == 25]], tmp_path / "one", "one budget")
    assert len(list(tmp_path.iterdir())) == 4


def test_colours_are_stable_and_distinct():
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert colour("my method") == colour("my method")
