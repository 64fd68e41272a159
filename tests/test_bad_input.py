"""What the command refuses, before any compute and in one line that says what came, what was expected, what to do."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import folders
import numpy as np
import own_files
import pytest
from test_label_sweep import sweep

from sibcl_ray.storage.store import Store

TABULATED = ("--problem", "tabulated", "--data", "data")


def nothing(folder: Path) -> None:
    """No preparation."""


def newer_store(folder: Path) -> None:
    Store(str(folder / "newer")).write_record("sibcl_ray.json", {"version": 99})


def a_file(folder: Path) -> None:
    (folder / "file").write_text("not a folder")


def data(toml: str = folders.ALL, side: int = 32, **changed: Callable) -> Callable[[Path], None]:
    """A maker of a folder of arrays, some of them changed."""

    def fill(folder: Path) -> None:
        arrays = folders.arrays(side=side)
        folders.fill(folder / "data", toml, **{**arrays, **{name: change(arrays) for name, change in changed.items()}})

    return fill


def with_nan(arrays):
    x = arrays["x"].copy()
    x[3, 1, 2] = np.nan
    return x


def cut(folder: Path) -> None:
    data()(folder)
    file = folder / "data" / "data.npz"
    file.write_bytes(file.read_bytes()[:-5000])


def kind_of(suffix: str) -> Callable[[Path], None]:
    """A maker of a folder whose target is a file of another kind, cut in half."""

    def fill(folder: Path) -> None:
        data(folders.ALL.replace('[target]\nfile = "data.npz"', f'[target]\nfile = "target{suffix}"'))(folder)
        folders_write(folder / "data" / f"target{suffix}")

    return fill


def folders_write(path: Path) -> None:
    import h5py
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = folders.arrays(side=32)
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["x"], file["y"] = arrays["x"], arrays["y"]
    else:
        rows = {name: pa.array(list(arrays[name].reshape(len(arrays[name]), -1))) for name in ("x", "y")}
        pq.write_table(pa.table(rows), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def own(*changes: tuple[str, str]) -> Callable[[Path], None]:
    """A maker of a Python file with a problem, changed."""
    return lambda folder: str(own_files.written(folder, *changes))


def binary(folder: Path) -> None:
    (folder / "mine.py").write_bytes(b"\xff\xfe")


MEAN = ("--problem", "mine.py:Mean")

REFUSED = [
    # names
    (nothing, ("--problem", "photonic-dose"), r"no problem 'photonic-dose'; did you mean photonic-dos\?"),
    (nothing, ("--problem", ""), r"there is no problem ''.*known: photonic-dos"),
    (nothing, ("--scale", "quik"), r"no scale 'quik'; did you mean quick\?"),
    (nothing, ("--scale", "SMOKE"), r"no scale 'SMOKE'; did you mean smoke\?"),
    (nothing, ("--methods", "SL,SIBCL"), r"no method 'SIBCL'; did you mean SIB-CL\?"),
    (nothing, ("--methods", ""), r"no method ''"),
    (nothing, ("--methods", "SL,,TL"), r"no method ''"),
    (nothing, ("--methods", "sl-i"), r"no method 'sl-i'; did you mean SL-I\?"),
    (nothing, ("--nonsense",), r"No such option: --nonsense"),
    (nothing, ("--budget", "10"), r"No such option: --budget.*--budgets"),
    (nothing, ("smoke",), r"unexpected extra argument"),
    # numbers
    (nothing, ("--budgets", "ten"), r"--budgets is 'ten'; give whole numbers separated by commas"),
    (nothing, ("--budgets", ""), r"--budgets is ''; give whole numbers separated by commas"),
    (nothing, ("--budgets", "10.5"), r"--budgets is '10.5'; give whole numbers"),
    (nothing, ("--budgets", "nan"), r"--budgets is 'nan'; give whole numbers"),
    (nothing, ("--budgets", "3"), r"budgets are \[3\]; they must ascend from 4 or more"),
    (nothing, ("--budgets", "10,-20"), r"budgets are \[-20, 10\]"),
    (nothing, ("--budgets", "0"), r"budgets are \[0\]; they must ascend from 4 or more"),
    (nothing, ("--budgets", "10,1000000"), r"budget 1000000 is larger than the pool of 200 "),
    (nothing, ("--budgets", "9" * 30), r"budget 9{30} is larger than the pool of 200 "),
    (nothing, ("--temperatures", "-0.1"), r"temperature is -0.1; it must be positive"),
    (nothing, ("--temperatures", "0"), r"temperature is 0.0; it must be positive"),
    (nothing, ("--temperatures", "0.1,nan"), r"temperature is nan; it must be positive"),
    (nothing, ("--temperatures", "inf"), r"temperature is inf; it must be positive"),
    (nothing, ("--temperatures", "warm"), r"--temperatures is 'warm'; give numbers separated by commas"),
    (nothing, ("--temperatures", "0.1;0.5"), r"--temperatures is '0.1;0.5'; give numbers separated by commas"),
    (nothing, ("--repeats", "0"), r"repeats is 0; it must be at least 1"),
    (nothing, ("--repeats", "two"), r"valid integer.*'two'"),
    (nothing, ("--repeats", "1.5"), r"valid integer.*'1.5'"),
    (nothing, ("--data-seed", "x"), r"valid integer.*'x'"),
    (nothing, ("--trials", "0"), r"trials is 0; it must be at least 1"),
    (nothing, ("--trials", "-1"), r"trials is -1; it must be at least 1"),
    (nothing, ("--trials", "many"), r"valid integer.*'many'"),
    (nothing, ("--pretraining-workers", "0"), r"--pretraining-workers is 0; it must be at least 1"),
    (nothing, ("--pretraining-workers", "a"), r"valid integer.*'a'"),
    (nothing, ("--workers", "0"), r"--workers is 0; it must be at least 1"),
    (nothing, ("--workers", "-3"), r"--workers is -3; it must be at least 1"),
    (nothing, ("--gpus-per-worker", "-1"), r"--gpus-per-worker is -1.0; it must be 0 or more"),
    (nothing, ("--gpus-per-worker", "nan"), r"--gpus-per-worker is nan; it must be 0 or more"),
    (nothing, ("--gpus-per-worker", "inf"), r"--gpus-per-worker is inf; it must be 0 or more"),
    (nothing, ("--gpus-per-worker", "1.5"), r"--gpus-per-worker is 1.5; give a fraction below 1, or a whole number"),
    # options that contradict each other
    (nothing, ("--fresh", "--sync-tracking"), r"--fresh and --sync-tracking were given; use one of them at a time"),
    (nothing, ("--dry-run", "--sync-tracking"), r"--dry-run and --sync-tracking were given"),
    (nothing, ("--fresh", "--dry-run"), r"--fresh and --dry-run were given"),
    (nothing, ("--retry-failed", "--dry-run"), r"--retry-failed and --dry-run were given"),
    # storage, histories, tracking
    (nothing, ("--storage", ""), r"--storage is empty; give a folder"),
    (nothing, ("--storage", "/proc/nowhere"), r"--storage /proc/nowhere cannot be used .* choose another folder"),
    (nothing, ("--storage", "nosuch://bucket"), r"--storage nosuch://bucket cannot be used .*nosuch"),
    (nothing, ("--storage", "memory://bucket"), r"not a local folder.*--search-storage"),
    (a_file, ("--storage", "file"), r"--storage file cannot be used .*choose another folder"),
    (a_file, ("--storage", "file/below"), r"--storage file/below cannot be used .*Not a directory"),
    (newer_store, ("--storage", "newer"), r"has version 99 of the ledger .* install a newer"),
    (nothing, ("--search-storage", "nonsense"), r"--search-storage nonsense cannot be opened .*URL of a database"),
    (nothing, ("--search-storage", "nosuchdb://here"), r"--search-storage nosuchdb://here cannot be opened"),
    (nothing, ("--search-storage", "sqlite:////proc/x.db"), r"--search-storage sqlite:////proc/x.db cannot be opened"),
    (
        nothing,
        ("--search-storage", "postgresql+psycopg://me:hunter22@127.0.0.1:1/db"),
        r"--search-storage postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/db cannot be opened",
    ),
    (nothing, ("--tracking-uri", "file:mlruns"), r"--tracking-uri file:mlruns is neither a server nor a database"),
    (nothing, ("--tracking-uri", "./mlruns"), r"--tracking-uri ./mlruns is neither"),
    (nothing, ("--tracking-uri", "ftp://host/x"), r"--tracking-uri ftp://host/x is neither"),
    (nothing, ("--tracking-uri", "http://"), r"--tracking-uri http:// is neither"),
    (nothing, ("--tracking-uri", ""), r"--tracking-uri  is neither|--tracking-uri is neither"),
    # the user's own arrays; test_tabulated_refusals.py has all of them
    (nothing, ("--data", "data"), r"--data is for --problem tabulated, and the problem is photonic-dos"),
    (nothing, ("--problem", "tabulated"), r"--problem tabulated needs --data FOLDER"),
    (nothing, TABULATED, r"data"),
    (data("name = [", 32), TABULATED, r"problem.toml is not TOML.*text needs quotes"),
    (data(x=with_nan), TABULATED, r"x.*NaN"),
    (data(y=lambda a: a["y"][:-1]), TABULATED, r"129.*130|130.*129"),
    (data(u=lambda a: a["u"][:, :16]), TABULATED, r"\(16, 32\)"),
    (data(u=lambda a: np.concatenate([a["u"], a["x"][:2]])), TABULATED, r"unlabelled"),
    (data(x=lambda a: np.concatenate([a["x"][:-1], a["x"][:1]])), TABULATED, r"the same input more than once"),
    (
        data(folders.ALL.replace("periodic = true", "periodic = [true, false]")),
        TABULATED,
        r"translation in \[symmetry\] needs inputs without a boundary .* give translation = \[true, false\] if not",
    ),
    (cut, TABULATED, r"data.npz"),
    (kind_of(".h5"), TABULATED, r"target.h5"),
    (kind_of(".parquet"), TABULATED, r"target.parquet"),
    (data(folders.TARGET_ONLY), (*TABULATED, "--methods", "TL-I"), r"TL-I needs surrogate labels; .* leave TL-I out"),
    (data(), (*TABULATED, "--budgets", "10,101"), r"budget 101 is larger than the pool of 100 target labels"),
    (data(folders.ALL.replace('"moments"', '"photonic-dos"')), TABULATED, r"'photonic-dos' .* a name of its own"),
    # the user's own file; test_own.py has more
    (own(), ("--problem", "mind.py:Mean"), r"there is no file mind.py; did you mean 'mine.py'\?"),
    (nothing, MEAN, r"there is no file mine.py; give FILE.py:CLASS"),
    (nothing, ("--problem", "nowhere/mine.py:Mean"), r"there is no file nowhere/mine.py; give FILE.py:CLASS"),
    (lambda folder: (folder / "mine.py").mkdir(), MEAN, r"mine.py cannot be read \(Is a directory\)"),
    (binary, MEAN, r"mine.py is not UTF-8 text"),
    (own(), ("--problem", "mine.py"), r"mine.py was given without the name of a class; give mine.py:Mean"),
    (own(), ("--problem", "mine.py:mean"), r"mine.py has no class 'mean'; did you mean 'Mean'\?"),
    (own(("Mean(Simulation)", "Mean")), MEAN, r"Mean is no Problem; derive it from sibcl_ray.problems.simulation"),
    (own(("def solve(", "def solved(")), MEAN, r"mine.py: Mean lacks solve; write what is missing"),
    (own(("def sample(", "def draw("), ("def solve(", "def f(")), MEAN, r"mine.py: Mean lacks sample, solve"),
    (
        own(("import os", "import nowhere_to_be_found")),
        MEAN,
        r"mine.py raises ModuleNotFoundError in line 3: No module",
    ),
    (own(("SHIFT = 0.0", "SHIFT = = 0")), MEAN, r"mine.py raises SyntaxError in line 9: invalid syntax"),
    (own(("SHIFT = 0.0", "SHIFT = 1 / 0")), MEAN, r"mine.py raises ZeroDivisionError in line 9"),
    (own(("SHIFT = 0.0", "exit()")), MEAN, r"mine.py raises SystemExit in line 9"),
    (own(('name = "mean"', "")), MEAN, r"Mean.name is None; give small letters"),
    (own(('"mean"', '"../mean"')), MEAN, r"Mean.name is '../mean'; give small letters"),
    (own(('"mean"', '"photonic-dos"')), MEAN, r"the name 'photonic-dos' in mine.py:Mean is that of another problem"),
    (own(("(1,)", "1")), MEAN, r"Mean.label_shape is 1; give a tuple of whole numbers"),
    (own(("(8, 8), ", "(4, 4), ")), MEAN, r"Mean.sample draws is float32 of shape \(2, 8, 8\); .* \(2, 4, 4\)"),
    (
        own(("(8, 8), (1,)", "(8, 8), (1,)\n    periodic = (True,)")),
        MEAN,
        r"Mean.periodic is \(True,\); give True, False or a tuple of 2, one for each axis of the grid",
    ),
    (
        own(
            ("(8, 8), (1,)", "(8, 8), (1,)\n    periodic, symmetries = (True, False), {'shift': Translations(8)}"),
            ("import numpy as np", "import numpy as np\nfrom sibcl_ray import Translations"),
        ),
        MEAN,
        r"Mean, 'shift' shifts inputs along axis -1 .* leave it out, or give periodic = True, or a tuple",
    ),
    (
        own(("8, 8", "32, 32")),
        (*MEAN, "--methods", "TL"),
        r"TL needs surrogate labels; give Mean an estimate.*leave TL",
    ),
    (own(), (*MEAN, "--data", "data"), r"--data is for --problem tabulated, and the problem is mine.py:Mean"),
]


@pytest.mark.parametrize(("prepare", "options", "expected"), REFUSED, ids=[" ".join(o)[:60] for _, o, _ in REFUSED])
def test_bad_input_is_one_line_before_any_compute(prepare, options, expected, tmp_path, monkeypatch, capfd):
    from sibcl_ray.cli.main import command_line

    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["label_sweep.py", "--scale", "smoke", *options])
    assert command_line("sweep") == 2
    printed = capfd.readouterr()
    assert re.search(expected, printed.err), printed.err
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1 and "hunter22" not in printed.err
    assert not list(tmp_path.glob("**/ledger")) and not list(tmp_path.glob("**/datasets"))


def test_there_are_many():
    assert len(REFUSED) >= 60


def test_what_the_cluster_can_never_give_is_refused(cluster, tmp_path, monkeypatch, capfd):
    """By a driver that is connected to it."""
    from sibcl_ray.cli.main import command_line

    for options, expected in (
        (("--workers", "1000"), r"1000 workers fit on the cluster, which has .* ask for at most \d+"),
        (("--gpus-per-worker", "8"), r"no workers fit on the cluster, which has .* 0 GPUs"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("sibcl_ray.cluster.connection.connect", lambda: None)
            patch.setattr(sys, "argv", ["label_sweep.py", "--scale", "smoke", "--storage", str(tmp_path), *options])
            assert command_line("sweep") == 2
        printed = capfd.readouterr().err
        assert re.search(expected, printed) and printed.count("error: ") == 1, printed
        assert not (tmp_path / "datasets").exists()


LARGE = ("8, 8", "32, 32")
FIRST = [  # what only a label shows, and the line that says so
    ((("(1,)", "(2,)"),), r"labels? .*shape \(1,\).*\(2,\)|shape \(\d+, 1\).* \(\d+, 2\)"),
    ((own_files.before("nonsense()"),), r"NameError: name 'nonsense'"),
    ((own_files.before("return inputs.mean((1, 2))[:, None] * 1j"),), r"complex"),
]


@pytest.mark.thorough  # without the command around it in test_sandbox
@pytest.mark.parametrize(("changes", "expected"), FIRST)
def test_what_the_first_label_shows_ends_the_study_in_one_line(
    changes, expected, cluster, tmp_path, monkeypatch, capfd
):
    from sibcl_ray.cli.main import command_line

    problem = own_files.written(tmp_path, LARGE, *changes)
    monkeypatch.setattr("sibcl_ray.cluster.connection.connect", lambda: None)
    options = ["--scale", "smoke", "--methods", "SL", "--problem", problem, "--storage", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["label_sweep.py", *options])
    assert command_line("sweep") in (1, 2)
    printed = capfd.readouterr().err
    assert re.search(expected, printed) and printed.count("error: ") == 1 == printed.count("\n"), printed
    assert not (tmp_path / "runs" / "ledger").exists()


def test_a_cluster_that_is_not_there_is_refused(tmp_path):
    done, _ = sweep(tmp_path / "runs", RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 2, done.stderr
    assert re.search(r"RAY_ADDRESS is 127.0.0.1:1 and cannot be reached", done.stderr)
    assert done.stderr.count("error: ") == 1 and not (tmp_path / "runs" / "datasets").exists()
