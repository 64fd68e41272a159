"""The library's page says how it is extended: each of its blocks is a complete file, and learns something."""

import importlib.util
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import sibcl_ray as sr
from sibcl_ray.data.dataset import SURROGATE, TARGET, UNLABELLED
from sibcl_ray.data.shards import make_shard
from sibcl_ray.learning.jobs import execute
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger

PAGE = Path(__file__).parents[1] / "sibcl_ray" / "README.md"
BLOCKS = dict(re.findall(r"^\*\*An? (\w+)\*\*.*?```python\n(.*?)```", PAGE.read_text(), re.M | re.S))


@pytest.fixture
def module(request, tmp_path, monkeypatch):
    """The block of this name as a module of a file of its own."""
    file = tmp_path / f"my_{request.param}.py"
    file.write_text(BLOCKS[request.param])
    spec = importlib.util.spec_from_file_location(file.stem, file)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, file.stem, loaded)
    spec.loader.exec_module(loaded)
    return loaded


def learn(study, method, folder):
    """The error of the first trial of a method, as a worker would find it."""
    ledger = Ledger(study, Store(str(folder / "runs")))
    data = ledger.dataset
    for shard in data.missing({TARGET: 10, SURROGATE: study.surrogate, UNLABELLED: study.unlabelled}):
        make_shard(data, shard)
    for role, index in data.missing_estimates({TARGET: 10} if method.delta else {}):
        inputs = data.read_shard(role, index).inputs.numpy()
        data.write_estimates(role, index, study.problem.estimate(inputs))
    search = ledger.search(method, 10)
    trial = search.job(search.tuning.choice(search.start))
    records = [execute(job, torch.device("cpu"), lambda done, loss: None) for job in (*trial.requires, trial)]
    assert {r["state"] for r in records} == {"done"}, records
    return records[-1]["error"]


def test_there_are_four_short_ones():
    assert BLOCKS.keys() == {"method", "encoder", "problem", "loss"}
    assert all(block.count("\n") < 40 for block in BLOCKS.values())


@pytest.mark.parametrize("module", ["method", "encoder"], indirect=True)
def test_what_a_study_is_made_of(module, tmp_path):
    study = module.study()
    assert 0 < learn(study, study.methods[-1], tmp_path) < math.inf


@pytest.mark.parametrize("module", ["problem", "loss"], indirect=True)
def test_a_problem_in_a_file(module, tmp_path):
    [name] = (n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__)
    study = sr.recipes.smoke(f"{module.__file__}:{name}")
    assert 0 < learn(study, study.methods[-1], tmp_path) < math.inf


@pytest.mark.parametrize("module", ["encoder"], indirect=True)
def test_the_encoder_does_not_see_translations(module):
    build = module.SpectrumEncoder().build(1, (16, 16), (True, True)).double()
    x = torch.rand(3, 1, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(build(x.roll((3, 5), (2, 3))), build(x))


def test_every_public_name_is_on_the_page():
    shown = PAGE.read_text().partition("## From Python")[2]
    missing = [name for name in sr.__all__ if not re.search(rf"\b{name}\b", shown)]
    assert not missing
