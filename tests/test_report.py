"""Tables say what is known and what is not; figures are whole, stable files."""

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from test_curves import exact, noisy, power_law

from sibcl_ray.curves import label_savings
from sibcl_ray.report import (
    COLOURS,
    colour,
    interval_in_words,
    labels_in_words,
    learning_curve_figure,
    matrix_table,
    saving_in_words,
    saving_table,
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
    assert "measure" in interval_in_words(early) and "measure" in interval_in_words(never)


def test_matrix_table_shows_numbers_failures_and_reasons(matrix):
    matrix.loc[0, ["state", "error", "reason"]] = ["failed", np.nan, "diverged: loss is NaN"]
    matrix.loc[3:5, ["state", "error"]] = ["missing", np.nan]
    text = shown(matrix_table(matrix))
    mean = 100 * matrix.query("method == 'SIB-CL' and budget == 400")["error"].mean()
    assert f"{mean:.2f} ±" in text
    assert "1 failed" in text and "3 missing" in text and "diverged: loss is NaN" in text
    assert "at least 2" in text  # seeds


def test_tables_of_unfinished_studies(matrix):
    one_seed = matrix[matrix["seed"] == 0]
    assert "one seed" in shown(matrix_table(one_seed))
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


def test_the_figure_is_written_whole_and_the_same_twice(matrix, tmp_path):
    png, svg = learning_curve_figure(matrix, tmp_path / "new" / "curves", "planted")
    first = png.read_bytes(), svg.read_bytes()
    again = learning_curve_figure(matrix, tmp_path / "new" / "curves", "planted")
    assert first == tuple(path.read_bytes() for path in again)
    assert sorted(path.name for path in png.parent.iterdir()) == ["curves.png", "curves.svg"]
    text = svg.read_text()
    assert text.rstrip().endswith("</svg>") and "<dc:date>" not in text
    pixels = imread(png)[..., :3]
    for method in ("SL-I", "SIB-CL"):
        target = np.array([int(COLOURS[method][i : i + 2], 16) for i in (1, 3, 5)]) / 255
        assert (np.abs(pixels - target).max(axis=2) < 0.01).sum() > 300, f"no line in {method}'s colour"


def test_a_figure_of_nothing_and_of_one_budget(matrix, tmp_path):
    learning_curve_figure(matrix.assign(state="missing"), tmp_path / "nothing", "nothing yet")
    learning_curve_figure(matrix[matrix["budget"] == 25], tmp_path / "one", "one budget")
    assert len(list(tmp_path.iterdir())) == 4


def test_colours_are_stable_and_distinct():
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert colour("my method") == colour("my method")
