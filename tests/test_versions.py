"""Results have versions: what built-in code computes is compared with what it computed when it got its version.

`python tests/test_versions.py` writes the numbers anew. Where they have changed, raise the version that names them: of
a problem's method in its `versions`, of an encoder or of a job in its `version`.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import ARCHITECTURE, Moments

from sibcl_ray.data.dataset import SURROGATE, TARGET, TEST, UNLABELLED, Dataset
from sibcl_ray.data.definitions import deciding, version_of
from sibcl_ray.learning.jobs import CellJob, PretrainJob, TrialJob, execute
from sibcl_ray.learning.networks import InvariantEncoder
from sibcl_ray.learning.training import Finetuning, Pretraining
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.schrodinger import Schrodinger2D
from sibcl_ray.storage.store import Store

GOLDEN = Path(__file__).with_suffix(".json")
METHODS = ("sample", "solve", "sample_surrogate", "solve_surrogate", "estimate", "features", "offset")
METHODS += ("label_loss", "surrogate_loss", "error")
COUNT = 3


def results(problem):
    """A few numbers that each method of a problem gives, by its name."""
    sample, cheap = (
        problem.sample(COUNT, np.random.default_rng(0)),
        problem.sample_surrogate(COUNT, np.random.default_rng(1)),
    )
    labels, others = problem.solve(sample.inputs), problem.solve_surrogate(cheap)
    pair = torch.from_numpy(others), torch.from_numpy(labels)
    less = tuple(values - torch.from_numpy(problem.offset) for values in pair)
    found = {
        "sample": sample.inputs, "sample_surrogate": cheap.inputs, "solve": labels, "solve_surrogate": others,
        "features": problem.features(torch.from_numpy(sample.inputs)), "offset": problem.offset,
        "label_loss": problem.label_loss(*less), "surrogate_loss": problem.surrogate_loss(*less),
        "error": problem.error(*pair),
    }  # fmt: skip
    if not problem.missing_requirement(contrastive=False, surrogate=False, invariant=False, delta=True):
        found["estimate"] = problem.estimate(sample.inputs)
    return {name: numbers(values) for name, values in found.items()}


def numbers(values):
    flat = np.asarray(values, float).ravel()
    steps = np.linspace(0, len(flat) - 1, 5).astype(int)
    return [*flat[steps], flat.mean(), flat.std()]


def versions(problem):
    return {m: deciding(problem, m) and version_of(deciding(problem, m)) for m in METHODS}


ENCODERS = {
    "reference": ARCHITECTURE,
    "invariant": replace(ARCHITECTURE, encoder=InvariantEncoder(channels=4, dilations=(1, 2), latent=8)),
}


def learned(architecture):
    """Errors that jobs come to, and their versions."""
    with tempfile.TemporaryDirectory() as folder:
        data = Dataset(Moments(), 0, Store(folder))
        for role in (TARGET, SURROGATE, UNLABELLED, TEST):
            rng = data.rng(role, 0)
            sample = (data.problem.sample_surrogate if role.surrogate else data.problem.sample)(50, rng)
            data.write(role, 0, sample, data.problem.solve(sample.inputs) if role.labelled else None)
        pretraining = PretrainJob(
            dataset=data,
            unlabelled=50,
            surrogate=50,
            configuration=Pretraining(
                architecture=architecture, contrastive=True, surrogate_labels=True, views=(("translation", 0.5),),
                augmentation=(("point_group", 0.5),), contrastive_batch=50, epochs=2,
            ),
        )  # fmt: skip
        moving = (("translation", 0.5), ("point_group", 0.5))
        finetuning = Finetuning(architecture=architecture, augmentation=moving, views=2, batch=10, steps=10)
        shared = {
            "dataset": data,
            "method": "SIB-CL",
            "budget": 20,
            "pretraining": pretraining,
            "configuration": finetuning,
        }
        jobs = (pretraining, TrialJob(**shared, folds=2), CellJob(**shared, seed=0, test=50))
        records = [execute(job, torch.device("cpu"), lambda fraction, loss: None) for job in jobs]
        weights = [w for _, w in sorted(pretraining.weights().items())]
        found = {
            "pretraining": numbers(torch.cat([w.double().flatten() for w in weights])),
            "trial": [records[1]["error"]],
            "cell": numbers(records[2]["sample_errors"]),
        }
        return found, {job.kind: [job.version, architecture.encoder.version] for job in jobs}


PROBLEMS_HERE = {**PROBLEMS, "schrodinger-2d": Schrodinger2D()}


def written():
    of_problems = {n: {"versions": versions(p), "results": results(p)} for n, p in PROBLEMS_HERE.items()}
    of_jobs = {name: dict(zip(("results", "versions"), learned(a), strict=True)) for name, a in ENCODERS.items()}
    return of_problems | of_jobs


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


def compare(found, known, versions, known_versions):
    """Numbers within rounding; where they differ the version must, and the other way round."""
    assert found.keys() == known.keys()
    for name in found:
        scale = max(map(abs, known[name]))
        same = np.allclose(found[name], known[name], rtol=1e-3, atol=1e-3 * scale)
        if versions[name] == known_versions[name]:
            assert same, f"{name} gives other numbers ({found[name]}, {known[name]} before): raise its version"
        else:
            pytest.fail(f"{name} has another version; write its numbers with python tests/test_versions.py")


@pytest.mark.parametrize("name", PROBLEMS_HERE)
def test_a_problem_gives_what_its_version_gave(name, golden):
    problem = PROBLEMS_HERE[name]
    known = golden[name]
    compare(results(problem), known["results"], versions(problem), known["versions"])


@pytest.mark.parametrize("name", ENCODERS)
def test_a_job_comes_to_what_its_version_came_to(name, golden):
    found, its = learned(ENCODERS[name])
    compare(found, golden[name]["results"], its, golden[name]["versions"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps(written(), indent=1) + "\n")
