"""Files as they were published, with a dataset for every number, are read in place and in pieces."""

import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from folders import refusal

from sibcl_ray.problems.tabulated import load, tables

SIDE = 8


def toml(inputs, labels, test=10, rest=""):
    return (
        f'name = "published"\n[target]\nfile = "published.h5"\ninputs = "{inputs}"\nlabels = "{labels}"\n'
        f"test = {test}\n{rest}"
    )


def sib_cl_photonic(file, numbers, rng):
    """Unit cells, bands and density of states of SIB-CL's photonic crystals, and what else lies beside them."""
    for n in numbers:
        epsilon = rng.uniform(1, 20, (SIDE, SIDE))
        file[f"unitcell/mpbepsimage/{n}"] = epsilon
        file[f"unitcell/epsavg/{n}"] = epsilon.mean()
        file[f"unitcell/filling/{n}"] = rng.uniform()
        file[f"mpbcal/efreq/{n}"] = rng.uniform(0.1, 1, (25, 10))
        file[f"mpbcal/DOS/{n}"] = rng.uniform(0.1, 2, 500).astype(np.float32)
    file["unitcell/readme"] = "of no number"


def sib_cl_schrodinger(file, numbers, rng):
    """Potentials and energies of SIB-CL's Schrödinger problem."""
    for n in numbers:
        file[f"unitcell/potential_fil/{n}"] = rng.uniform(0, 1, (SIDE, SIDE))
        file[f"eigval_fil/{n}"] = rng.uniform(0.1, 1, 4)


def christensen(file, numbers, rng):
    """A group for every crystal, as in Christensen et al. (2020)."""
    for n in numbers:
        shape = file.create_group(f"shapes/{n}")
        shape["eigfreqs"] = rng.uniform(0.1, 1, (23, 6))
        shape["kvecs"] = rng.uniform(-0.5, 0.5, (23, 2))
        shape["bandgap_1"] = rng.uniform(0.01, 0.5)
        shape["unitcell/epsilon_comput"] = rng.uniform(1, 20, (SIDE, SIDE))
        shape.attrs["polarization"] = "TM"


PUBLISHED = [
    (sib_cl_photonic, "unitcell/mpbepsimage/*", "mpbcal/efreq/*"),
    (sib_cl_photonic, "unitcell/mpbepsimage/*", "mpbcal/DOS/*"),
    (sib_cl_photonic, "unitcell/mpbepsimage/*", "unitcell/epsavg/*"),
    (sib_cl_schrodinger, "unitcell/potential_fil/*", "eigval_fil/*"),
    (christensen, "shapes/*/unitcell/epsilon_comput", "shapes/*/eigfreqs"),
    (christensen, "/shapes/*/unitcell/epsilon_comput", "/shapes/*/bandgap_1"),
]
NUMBERS = {"from 0": range(40), "from 1": range(1, 41), "with holes": [n for n in range(7, 60) if n % 4]}


def published(folder, layout=sib_cl_photonic, numbers=range(1, 41), change=None):
    """A folder with a file of that layout, changed after it was written."""
    with h5py.File(folder / "published.h5", "w") as file:
        layout(file, numbers, np.random.default_rng(0))
        if change:
            change(file)
    return folder


def describe(folder, *arguments, **more):
    (folder / "problem.toml").write_text(toml(*arguments, **more))
    return folder


def all_rows(problem):
    """Inputs and labels by their row's number."""
    rows = {}
    for role in ("target", "test"):
        for _, sample, labels in problem.shards(role, 0, range(-(-problem.available[role] // 7)), 7):
            rows |= dict(zip(sample.parameters["row"].tolist(), zip(sample.inputs, labels, strict=True), strict=True))
    return rows


ORDERS = [
    pytest.param(numbers, block, id=f"{name}-{block}", marks=[pytest.mark.thorough] * (block != 2000 and place > 0))
    for place, (name, numbers) in enumerate(NUMBERS.items())
    for block in (1, 2000, 2**22)
]


@pytest.mark.parametrize(("numbers", "block"), ORDERS)
@pytest.mark.parametrize(("layout", "inputs", "labels"), PUBLISHED, ids=lambda value: getattr(value, "__name__", value))
def test_rows_are_in_the_order_of_their_numbers(layout, inputs, labels, numbers, block, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "BLOCK", block)
    metric = "[label]\nscale = 10\n" if "epsavg" in labels else ""
    problem = load(describe(published(tmp_path, layout, numbers), inputs, labels, rest=metric))
    assert problem.available["target"] == len(numbers) - 10
    rows, scale = all_rows(problem), problem.scale
    with h5py.File(tmp_path / "published.h5") as file:
        for row, number in enumerate(numbers):
            here = (file[name.replace("*", str(number))][()] for name in (inputs, labels))
            for found, stored in zip(rows[row], here, strict=True):
                stored = np.asarray(stored, np.float64) / (scale if found is rows[row][1] else 1)
                np.testing.assert_array_equal(found, stored.astype(found.dtype).reshape(found.shape))


def test_only_numbers_that_have_both_are_rows(tmp_path):
    def change(file):
        for n in (3, 17):
            del file[f"mpbcal/DOS/{n}"]
        del file["unitcell/mpbepsimage/5"]

    problem = load(describe(published(tmp_path, change=change), "unitcell/mpbepsimage/*", "mpbcal/DOS/*"))
    assert len(all_rows(problem)) == 37


def test_stacked_datasets_are_the_same_problem_as_one_array(tmp_path):
    """Named by its content, so that copying a published file into another layout computes nothing again."""
    problem = load(describe(published(tmp_path), "unitcell/mpbepsimage/*", "mpbcal/DOS/*"))
    with h5py.File(tmp_path / "published.h5", "a") as file:
        for name in ("unitcell/mpbepsimage", "mpbcal/DOS"):
            file[name.replace("/", "_")] = np.stack([file[f"{name}/{n}"] for n in range(1, 41)])
    assert load(describe(tmp_path, "unitcell_mpbepsimage", "mpbcal_DOS")) == problem


def test_unlabelled_inputs_may_be_numbered_too(tmp_path):
    rest = '[unlabelled]\nfile = "published.h5"\ninputs = "more/*"\n'

    def more(file):
        for n in range(5, 25):
            file[f"more/{n}"] = np.random.default_rng(n).uniform(1, 20, (SIDE, SIDE))

    folder = describe(published(tmp_path, change=more), "unitcell/mpbepsimage/*", "mpbcal/DOS/*", rest=rest)
    assert load(folder).available["unlabelled"] == 20


def put(name, value):
    def change(file):
        del file[name]
        if value is not None:
            file[name] = value

    return change


def repeat(file):
    put("unitcell/mpbepsimage/9", file["unitcell/mpbepsimage/4"][()])(file)


def twice(file):
    file["mpbcal/DOS/007"] = np.ones(500)


def elsewhere(file):
    put("mpbcal/DOS/9", h5py.ExternalLink("other.h5", "/x"))(file)


def unwritten(file):
    del file["mpbcal/DOS/9"]
    file.create_dataset("mpbcal/DOS/9", (500,), "f4")


CELL, DOS = "unitcell/mpbepsimage/*", "mpbcal/DOS/*"
REFUSED = {
    "NaN": (
        put("unitcell/mpbepsimage/9", np.full((SIDE, SIDE), np.nan)),
        CELL,
        DOS,
        r"1 of 40 datasets \(numbers: 9\)",
    ),
    "NaN in labels": (put("mpbcal/DOS/12", np.full(500, np.nan)), CELL, DOS, r"'mpbcal/DOS/\*', has NaN .*numbers: 12"),
    "shape": (put("mpbcal/DOS/9", np.ones(499)), CELL, DOS, r"has shape \(499,\) in 'mpbcal/DOS/9', and \(500,\) in"),
    "text": (put("mpbcal/DOS/9", "text"), CELL, DOS, r"'mpbcal/DOS/9', holds"),
    "repeated": (repeat, CELL, DOS, r"the same input more than once: 1 of 40 datasets \(numbers: 9\).*numbers 4 and 9"),
    "two of a number": (twice, CELL, DOS, r"'mpbcal/DOS/007'.*of one number"),
    "another file": (elsewhere, CELL, DOS, r"'mpbcal/DOS/9' is a link that leads nowhere"),
    "never written": (unwritten, CELL, DOS, r"'mpbcal/DOS/9', was made .* never written"),
    "none in common": (None, CELL, "other/*", r"no number in common: they have 1 to 40 and 99 to 99"),
    "no group": (None, CELL, "mpbcall/DOS/*", r"'mpbcall/DOS', which is not there; did you mean 'mpbcal'\?"),
    "no numbers": (None, CELL, "mpbcal/*", r"no datasets of a number; in 'mpbcal' there is 'DOS', 'efreq'"),
    "two stars": (None, "unitcell/*/*", DOS, r"should have one star"),
    "part of a name": (None, "unitcell/mpbepsimage/1*", DOS, r"should have one star"),
    "one star": (None, CELL, "together", r"one has a star.*which label is whose"),
    "a group instead": (None, "unitcell/mpbepsimage", "mpbcal/DOS", r"no array 'unitcell/mpbepsimage'.*mpbepsimage/\*"),
}


def besides(file):
    file["other/99"] = np.ones(3)
    file["together"] = np.ones((40, 3))


@pytest.mark.parametrize(("change", "inputs", "labels", "says"), REFUSED.values(), ids=REFUSED)
def test_numbered_datasets_that_cannot_be_used_are_refused(change, inputs, labels, says, tmp_path):
    def changed(file):
        besides(file)
        (change or (lambda file: None))(file)

    said = refusal(describe(published(tmp_path, change=changed), inputs, labels))
    assert re.search(says, said), said


@pytest.mark.thorough
def test_a_file_larger_than_memory_is_read_in_pieces(tmp_path):
    """Loading, and taking rows, of 128 MB of images takes no more than a few blocks of memory."""
    rng, numbers = np.random.default_rng(0), range(1, 257)
    with h5py.File(tmp_path / "published.h5", "w") as file:
        for n in numbers:
            file[f"shapes/{n}/unitcell/epsilon_comput"] = rng.uniform(1, 20, (256, 256))
            file[f"shapes/{n}/bandgap_1"] = rng.uniform(0.01, 0.5)
    size = (tmp_path / "published.h5").stat().st_size
    describe(tmp_path, "shapes/*/unitcell/epsilon_comput", "shapes/*/bandgap_1")
    program = """
import resource, sys
import h5py
from sibcl_ray.problems.tabulated import load
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
problem = load(sys.argv[1])
list(problem.shards("test", 0, [0], 50))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        cwd=root,
    )
    assert size > 2**27 and int(done.stdout) < size / 4
