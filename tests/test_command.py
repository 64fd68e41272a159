"""The command `sibcl-ray`: its options, files of settings, and what its subcommands show."""

import csv
import io
import itertools
import json
import re
import time
import tomllib
from dataclasses import replace

import folders
import pytest
from processes import told, typed
from rich.console import Console
from rich.table import Table
from test_label_sweep import finished, matrix_of, written
from typer.main import get_command

from sibcl_ray import recipes
from sibcl_ray.cli.commands import FORMATS, app, say
from sibcl_ray.results.progress import Count, Snapshot, seconds_left
from sibcl_ray.results.terminal import Screen, fitting
from sibcl_ray.settings import Settings, settings_of
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.study.plan import plan

COMMAND = get_command(app)
NO_SERVER = ("--tracking-uri", "http://127.0.0.1:1")


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("name", COMMAND.commands)
def test_every_option_is_in_its_help(name, columns, capfd):
    code, printed = typed(capfd, name, "--help", COLUMNS=columns)
    assert code == 0 and max(map(len, printed.out.splitlines())) <= int(columns)
    options = {o for p in COMMAND.commands[name].params if not getattr(p, "hidden", False) for o in p.opts}
    assert {o for o in options if o.startswith("--") and o not in printed.out} == set()
    assert "default: runs]" in re.sub(r"[\s│]+", " ", printed.out) and "\\[" not in printed.out
    assert typed(capfd, name, "-h", COLUMNS=columns)[1].out == printed.out


def test_without_a_command_its_help_is_shown(capfd):
    code, printed = typed(capfd)
    assert code == 2 and "compare" in printed.out and not printed.err


def test_the_command_says_its_version_and_completes(capfd):
    code, printed = typed(capfd, "--version")
    assert code == 0 and re.search(r"^torch \d+\.\d+", printed.out, re.MULTILINE)
    for shell in ("bash", "zsh", "fish"):  # what --install-completion puts into a shell's start
        code, printed = typed(capfd, _SIBCL_RAY_COMPLETE=f"source_{shell}")
        assert code == 0 and "sibcl-ray" in printed.out
    asked = {"_SIBCL_RAY_COMPLETE": "complete_bash", "COMP_WORDS": "sibcl-ray swe", "COMP_CWORD": "1"}
    assert typed(capfd, **asked)[1].out.split() == ["sweep"]


CHANGES = [
    {},
    {"scale": "smoke", "data_seed": 3},
    {"scale": "paper", "target": 300, "surrogate": 20, "unlabelled": 30, "test": 40, "folds": 2, "repeats": 4},
    {"methods": ("SL", "SIB-CL-plain"), "budgets": (30, 60), "searched": (60,), "name": "mine", "trials": 9},
    {"scale": "standard", "encoders": ("invariant:1-2", "reference"), "temperatures": (0.2,)},
    {"encoders": ("reference", "invariant", "perceptron")},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_study_is_written_down_as_settings_and_read_again(changes):
    study = Settings(problem="photonic-dos", **changes).study()
    settings = settings_of(study)
    assert settings.study() == study
    said = tomllib.loads(settings.toml({"torch": "1"}))
    assert said.pop("versions") == {"torch": "1"}
    listed = {name.replace("-", "_"): tuple(v) if isinstance(v, list) else v for name, v in said.items()}
    assert Settings(**listed) == settings


def test_arrays_are_written_down_by_their_folder_and_found_beside_the_file(tmp_path, capfd):
    folders.fill(tmp_path / "data", folders.ALL, **folders.arrays(side=32))
    study = Settings(problem="tabulated", data=str(tmp_path / "data"), scale="smoke").study()
    assert settings_of(study).data == str(tmp_path / "data") and settings_of(study).study() == study
    (tmp_path / "my.toml").write_text('problem = "tabulated"\ndata = "data"\nscale = "smoke"')
    options = ("--storage", str(tmp_path / "runs"), "--dry-run")
    code, printed = told(capfd, "--config", str(tmp_path / "my.toml"), *options)
    assert code == 0 and f"Plan of {study.name}" in printed.out, printed


def test_settings_say_what_they_change():
    base = recipes.quick("photonic-dos")
    study = Settings(problem="photonic-dos", target=150, encoders=("reference", "invariant:1-2")).study()
    assert study.budgets == (25, 50, 100, 150) and study.pool == 150
    labels = [a.encoder.label for a in study.space.architectures]
    assert labels == [base.space.architectures[0].encoder.label, "invariant 16 d1-2"]
    space = replace(base.space, epochs=(7,))
    assert settings_of(replace(base, space=space)) is None, "no option changes it"


def test_a_study_leaves_the_settings_that_give_it(tmp_path, capfd):
    place = finished(written(tmp_path))
    settings = settings_of(place.ledger().study)
    file = tmp_path / "study.toml"
    file.write_text(settings.toml({"torch": "0.1", "labels": "other"}))
    options = ("--storage", str(tmp_path / "runs"))
    code, printed = told(capfd, "--config", str(file), *options, "--dry-run", "--trials", "5")
    assert code == 0 and "is of other labels than these" in printed.out, printed
    assert "Plan of counted-smoke-0" in printed.out
    assert re.search(r"trials, 2 folds each +│ +\d+ │", printed.out), "the command line comes first"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("budgts = [10]", r"study.toml has 'budgts', which is no option; did you mean 'budgets'\?"),
        ("trials = 'many'", r"Invalid value for '--trials': .*, not 'many'"),
        ("budgets = [10, 'x']", r"--budgets is '10,x'; give whole numbers separated by commas"),
        ("[space]\nepochs = 3", r"study.toml has 'space', which is no option"),
        ("[budgets]\nsmall = 3", r"budgets is a table; give budgets = "),
        ("trials = true", r"trials is true; give its value"),
        ("scale = ", r"study.toml is not TOML \(.*\); mend it"),
        ("config = 'other.toml'", r"study.toml has 'config', which is no option"),
        (None, r"study.toml cannot be read \(No such file or directory\)"),
    ],
)
def test_a_file_of_settings_that_cannot_be_is_refused_in_a_line(text, expected, tmp_path, capfd):
    file = tmp_path / "study.toml"
    if text is not None:
        file.write_text(text)
    code, printed = told(capfd, "--config", str(file), "--storage", str(tmp_path / "runs"), "--dry-run")
    assert code == 2 and re.search(expected, printed.err) and printed.err.count("\n") == 1, printed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--encoders", "resnet"), r"there is no encoder 'resnet'"),
        (("--encoders", "invariant:a"), r"--encoders has 'invariant:a'; give dilations as in invariant:1-2-4"),
        (("--encoders", "reference:1"), r"--encoders has 'reference:1'; reference has no dilations"),
        (("--folds", "1"), r"--folds is 1; cross-validation needs at least 2"),
        (("--target", "3"), r"--budgets are \[3\]; they must ascend"),
        (("--repeats", "0"), r"--repeats is 0; it must be at least 1"),
        (("--target", "0"), r"--target is 0; it must be at least 1"),
        (("--searched", "1"), r"--searched is \[1\]; give budgets of 4 or more"),
        (("--surrogate", "0"), r"--surrogate is 0, and TL-I learns from such samples; give some, or leave it out"),
        (("--name", "my", "study"), r"unexpected extra argument"),
        (("--quiet", "--verbose"), r"--quiet and --verbose were given; use one of them at a time"),
    ],
)
def test_options_that_cannot_be_are_refused_in_a_line(options, expected, tmp_path, capfd):
    code, printed = told(capfd, "--scale", "smoke", *options, "--storage", str(tmp_path / "runs"), "--dry-run")
    assert code == 2 and re.search(expected, printed.err) and printed.err.count("\n") == 1, printed


def test_old_names_of_options_are_taken_and_said_once(tmp_path, capfd):
    options = ("--scale", "smoke", "--storage", str(tmp_path / "runs"), "--dry-run")
    code, printed = told(capfd, *options, "--seeds=3", "--seed", "2", "--seed", "1")
    assert code == 0 and "photonic-dos-smoke-1" in printed.out and re.search(r"cells +│ +30 │", printed.out)
    assert printed.err.count("--seeds is now called --repeats") == printed.err.count("--seed is now") == 1


def test_studies_are_listed_shown_and_compared(tmp_path, capfd, monkeypatch):
    place = finished(written(tmp_path))
    runs = ("--storage", str(tmp_path / "runs"))
    assert told(capfd, *place.options, *runs, *NO_SERVER)[0] == 0
    other = (*place.options, *runs, *NO_SERVER, "--name", "another", "--sync-tracking")
    told(capfd, *other)  # of which nothing is done
    code, printed = typed(capfd, "list", *runs)
    assert code == 0 and re.search(r"counted-smoke-0 +│ counted +│ .*│ (\d+)/\1 cells +│ ", printed.out), printed

    matrix = matrix_of(tmp_path / "runs", "counted-smoke-0")
    settings = settings_of(place.ledger().study).toml({"labels": "these"})  # which a run would have written
    place.store.write("studies/counted-smoke-0/study.toml", settings.encode())
    shown = {name: typed(capfd, "show", "counted-smoke-0", *runs, "--format", name)[1].out for name in FORMATS}
    assert "Test error (volt) by labels" in shown["table"] and "| method | " in shown["markdown"]
    assert "smoke proves" in shown["table"] and "smoke proves" not in shown["csv"]
    assert [row["budget"] for row in json.loads(shown["json"])] == list(matrix.budget)
    rows = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [float(row["error"]) for row in rows] == pytest.approx(list(matrix.error))
    code, printed = typed(capfd, "show", "counted-smok-0", *runs)
    assert code == 2 and re.search(r"^error: there is no study in .*; did you mean 'counted-smoke-0'\?\n$", printed.err)

    store = Store(str(tmp_path / "runs"))
    for file in ("matrix.parquet", "study.toml"):
        with_file = f"studies/counted-smoke-0/{file}"
        if store.exists(with_file):
            store.write(f"studies/copy/{file}", store.read(with_file))
    monkeypatch.chdir(tmp_path)
    code, printed = typed(capfd, "compare", "counted-smoke-0", "copy", *runs)
    assert code == 0 and "SL-I (copy)" in printed.out and "Label saving" in printed.out
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    code, printed = typed(capfd, "compare", "copy", *runs)
    assert code == 2 and "give two to 8" in printed.err


def test_lines_are_broken_between_words_and_for_terminals_alone(monkeypatch):
    line = f"matrix {'/long-folder' * 9}/matrix.parquet and a few words more than one line can hold"
    for terminal in (True, False):
        screen = Screen(file=io.StringIO(), width=30, force_terminal=terminal, color_system=None)
        monkeypatch.setattr("sibcl_ray.cli.commands.console", screen)
        say(line)
        lines = screen.file.getvalue().splitlines()
        assert " ".join(lines) == line and (len(lines) > 3) == terminal


@pytest.mark.parametrize("width", range(40, 161, 20))
def test_no_number_is_cut_on_a_narrow_terminal(width):
    columns = [str(25 * 2**i) for i in range(7)]
    table = Table("method", *columns, title="a title", caption="a caption")
    entries = {name: [f"{i}.{j}7 ± 0.1{j}" for j in range(7)] for i, name in enumerate(("SL", "SSL-I-delta"))}
    for name, numbers in entries.items():
        table.add_row(name, *numbers)
    screen = Console(width=width, file=io.StringIO())
    for part in fitting(table, screen):
        screen.print(part)
    text = screen.file.getvalue()
    assert all(number in text for numbers in entries.values() for number in numbers)
    assert max(map(len, text.splitlines())) <= width and text.count("a title") == 1


def test_the_time_left_is_right_from_a_tenth_of_the_work_on():
    work = {"shards": (10, 20.0), "pretrainings": (8, 80.0), "trials": (20, 60.0), "cells": (30, 60.0)}
    speed = 1.7  # seconds of a core a second
    for done in itertools.product(range(0, 11, 5), range(0, 9, 2), range(0, 21, 5), range(0, 31, 10)):
        counts = dict(zip(work, map(Count, done, (10, 8, 20, 30)), strict=True))
        spent = sum(
            seconds * count.done / number
            for count, (number, seconds) in zip(counts.values(), work.values(), strict=True)
        )
        left = seconds_left(Snapshot(**counts), work, spent / speed)
        if spent >= 22:
            assert left == pytest.approx((220 - spent) / speed)
    assert seconds_left(Snapshot(), work, 3.0) is None


@pytest.mark.thorough
def test_the_largest_plan_takes_seconds(tmp_path):
    """Timed on whole batches it took minutes."""
    ledger = Ledger(recipes.paper("photonic-dos"), Store(str(tmp_path)))
    lacking, begun = ledger.missing(), time.process_time()
    work = plan(ledger.study, ledger.dataset, lacking)
    assert time.process_time() - begun < 20  # four here
    assert 1e6 < work.seconds < 1e9 and work.disk > 1e9
