"""The package from Python: names, recipes, and runs that do what the command does."""

import runpy
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import ray
from processes import environment
from toy import ARCHITECTURE, Moments

import sibcl_ray as sr
from sibcl_ray.problems import PROBLEMS

ROOT = Path(__file__).parents[1]


def tiny(problem: sr.Problem, **changes) -> sr.Study:
    """One method, one budget, one seed."""
    changes = {"methods": (sr.METHODS["SL"],), "budgets": (10,), "seeds": 1, "trials": 1, "folds": 2} | changes
    smoke = sr.recipes.smoke(problem)
    return replace(smoke, space=replace(smoke.space, architectures=(ARCHITECTURE,)), **changes)


def test_importing_it_loads_and_changes_nothing():
    code = (
        "import os, sys, time; before = dict(os.environ); begun = time.process_time()\nimport sibcl_ray as sr\n"
        "spent, heavy = time.process_time() - begun, {'torch', 'ray', 'numpy', 'mlflow', 'optuna'} & set(sys.modules)\n"
        "print(heavy, dict(os.environ) == before, spent < 0.3, sorted(sr.__all__) == sorted(dir(sr)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["set()", "True", "True", "True"], done


def test_every_name_is_there():
    for name in sr.__all__:
        assert getattr(sr, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = sr.nonsense


def test_a_recipe_takes_a_problem_its_name_or_a_file():
    assert sr.recipes.quick("photonic-dos") == sr.recipes.quick(PROBLEMS["photonic-dos"])
    drum = sr.recipes.smoke(f"{ROOT}/studies/my_problem.py:Drum", seed=3)
    assert (drum.problem.name, drum.seed) == ("drum", 3)
    with pytest.raises(ValueError, match=r"there is no problem 'photonic-dso'; did you mean photonic-dos\?"):
        sr.recipes.quick("photonic-dso")


SCRIPT = """
import sys
from dataclasses import dataclass
import numpy as np
import sibcl_ray as sr

@dataclass(frozen=True)
class Mine(sr.Simulation):
    name = "mine"
    input_shape, label_shape = (32, 32), (1,)
    factor: float = 1.0

    def sample(self, count, rng):
        return sr.Sample(rng.uniform(0, 1, (count, 32, 32)).astype("f4"))

    def solve(self, inputs):
        return self.factor * inputs.mean((1, 2))[:, None]
"""
ASKS = """
    from sibcl_ray.data.dataset import TARGET, Dataset
    from sibcl_ray.storage.store import Store
    study = sr.recipes.smoke(Mine(factor=float(sys.argv[1])))
    print(Dataset(study.problem, 0, Store(sys.argv[2])).named(TARGET), study.problem.factor)
"""


def named_in(folder, *edit, factor="2", guard="if __name__ == '__main__':"):
    """What a script says of the labels of its own class, as one that is run here."""
    (folder / "mine.py").write_text(SCRIPT.replace(*edit or ("", "")) + guard + ASKS)
    arguments = [str(folder / "mine.py"), factor, str(folder / "runs")]
    with patch.object(sys, "argv", arguments), redirect_stdout(StringIO()) as said:
        runpy.run_path(arguments[0], run_name="__main__")
    return said.getvalue()


def test_labels_of_a_class_in_a_script_are_named_by_what_it_does(tmp_path):
    plain = named_in(tmp_path)
    command = [sys.executable, str(tmp_path / "mine.py"), "2", str(tmp_path / "runs")]
    assert plain.endswith(" 2.0\n") and subprocess.run(command, capture_output=True, text=True).stdout == plain
    assert named_in(tmp_path, "import sys", "import sys  # a comment") == plain
    edited = [named_in(tmp_path, "self.factor *", "self.factor +"), named_in(tmp_path, factor="3")]
    assert len({said.split()[0] for said in (plain, *edited)}) == 3, edited
    with pytest.raises(ValueError, match=r"mine\.py runs a study when it is imported; put what runs it below if __n"):
        named_in(tmp_path, guard="if True:")


def test_a_class_in_no_file_is_refused():
    made = {}
    exec(SCRIPT, {"__name__": "__main__"} | made, made)
    with pytest.raises(sr.BadProblem, match=r"Mine is not a class at the top of a file.*give 'FILE.py:Mine'"):
        sr.recipes.smoke(made["Mine"]())


def test_the_study_of_the_example_is_one():
    sys.path.insert(0, str(ROOT))
    try:
        from studies.my_study import temperatures
    finally:
        sys.path.remove(str(ROOT))
    assert temperatures().space.temperatures == (0.03, 0.1, 0.3, 1.0)


def test_a_study_runs_on_the_cluster_there_is_and_is_read_again(cluster, tmp_path):
    said: list[str] = []
    study, storage = tiny(Moments()), tmp_path / "runs"
    results = sr.run(study, storage, workers=1, say=said.append)
    assert ray.is_initialized(), "a cluster that was there stays"
    assert list(results.matrix.state) == ["done"] and results.matrix.error.between(0, 10).all()
    assert results.folder == str(storage / "studies" / study.name) and not results.savings()
    assert any("s labels, " in line for line in said) and (storage / "mlflow.db").exists()
    for again in (sr.run(study, storage, say=said.append), sr.load_results(results.folder)):
        pd.testing.assert_frame_equal(again.matrix, results.matrix)
        assert np.array_equal(again.curves()["SL"].error, results.curves()["SL"].error)


@pytest.mark.thorough
def test_what_a_run_starts_ends_with_it_and_changes_nothing_else(tmp_path):
    """Of its process: handlers of signals, variables, Ray."""
    code = (
        "import os, signal, ray; import sibcl_ray as sr; from sibcl_ray.cluster.connection import connect, disconnect\n"
        "kept = lambda: (signal.getsignal(2), signal.getsignal(15), dict(os.environ)); before = kept()\n"
        "assert connect() and ray.is_initialized() and not connect(); disconnect()\n"
        "assert kept() == before and not ray.is_initialized()"
    )
    for variables in ({}, {"RAY_API_SERVER_ADDRESS": "http://192.0.2.1:8265"}):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment(**variables)
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workers": 0}, "^workers is 0; it must be at least 1$"),
        ({"pretraining_workers": 1000}, "^pretraining_workers is 1000, and too many"),
        ({"labels": "old"}, "^labels is 'old'; give keep or new$"),
        ({"tracking_uri": "nonsense://x"}, "^tracking_uri nonsense://x is neither a server nor a database"),
        ({"storage": "nonsense://x"}, "^storage nonsense://x cannot be used"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_compute(options, says, tmp_path):
    with pytest.raises(ValueError, match=says) as refused:
        sr.run(tiny(Moments()), **{"storage": tmp_path / "runs", **options})
    assert "\n" not in str(refused.value) and not list(tmp_path.rglob("*.parquet"))


def test_results_that_are_not_there_are_said_to_be(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no study in .*/studies/none; give STORAGE/studies/NAME"):
        sr.load_results(tmp_path / "studies" / "none")
    assert not list(tmp_path.iterdir())
