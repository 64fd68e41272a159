"""What decides labels is found in the source: each edit of a user's file, and whether it makes other labels."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sibcl_ray.data.definitions import SETTINGS, version_of
from sibcl_ray.user_module import dependencies
from sibcl_ray.user_module.dependencies import Sources
from sibcl_ray.user_module.module import read

MODEL = '''
"""A model."""
import numpy as np
from dataclasses import dataclass
import helpers
from helpers import scaled as rescaled
from base import Lattice

STEPS = 100
UNUSED = 3
TABLE = {}
TABLE["a"] = 2.0
COLOURS = {}
COLOURS["a"] = "red"


def step(x, dt):
    """One step."""
    return x + dt * force(x)


def force(x):
    return -x * TABLE["a"]


def shown(x):
    return COLOURS["a"]


class Integrator:
    order = 2
    name = "leapfrog"

    def __init__(self, dt):
        self.dt = dt

    def run(self, x):
        for _ in range(STEPS):
            x = step(x, self.dt)
        return x


@dataclass(frozen=True)
class Mine(Lattice):
    """Mine."""
    name = "mine"
    timeout = 60
    resources = {"num_cpus": 1}
    dt: float = 0.1
    width: int = 8
    weight: float = 1.0
    label_shape = (1,)

    def sample(self, count, rng):
        return rng.random((count, self.width))

    def solve(self, inputs):
        # the expensive part
        x = Integrator(self.dt).run(inputs)
        return rescaled(self.total(x)) + self.constant()

    def constant(self):
        return np.load(__file__.replace("model.py", "constants.npy"))

    def estimate(self, inputs):
        return helpers.rough(inputs)

    def features(self, inputs):
        return inputs * self.weight

    def error(self, prediction, label):
        return abs(prediction - label)

    def draw(self):
        return shown(self)


if __name__ == "__main__":
    print(Mine())
'''
HELPERS = """
import math
FACTOR = 2.0


def scaled(x):
    return FACTOR * math.sqrt(x)


def rough(x):
    return x.mean()
"""
BASE = """
from sibcl_ray.problems.simulation import Simulation


class Lattice(Simulation):
    def total(self, x):
        return self.cells(x).sum()

    def cells(self, x):
        return x

    def offset(self):
        return 0.0
"""
FILES = {"model.py": MODEL, "helpers.py": HELPERS, "base.py": BASE}
DATA = {"constants.npy": "12", "pictures.npy": "34"}
LINEAGE = [("model", "Mine"), ("base", "Lattice")]
EXCLUDED = {"timeout", "retries", "resources", "labels_per_task"}


def reached(files=FILES, data=DATA, members=("sample", "solve")):
    encoded = {path: source.encode() for path, source in files.items()}
    return Sources(encoded, data).reached(LINEAGE, members, EXCLUDED)


def edited(path, old, new):
    assert FILES[path].count(old) == 1, (path, old, FILES[path].count(old))
    return FILES | {path: FILES[path].replace(old, new)}


KEPT = {
    "timeout": ("model.py", "timeout = 60", "timeout = 3600"),
    "resources": ("model.py", '{"num_cpus": 1}', '{"num_cpus": 8}'),
    "features": ("model.py", "inputs * self.weight", "inputs / self.weight"),
    "error": ("model.py", "abs(prediction - label)", "(prediction - label) ** 2"),
    "an estimate": ("model.py", "helpers.rough(inputs)", "2 * helpers.rough(inputs)"),
    "what only the estimate uses": ("helpers.py", "x.mean()", "x.median()"),
    "a comment": ("model.py", "# the expensive part", "# the dear part"),
    "a docstring": ("model.py", "One step.", "A step."),
    "layout": ("model.py", "x + dt * force(x)", "(x\n        + dt * force(x))"),
    "a type": ("model.py", "def force(x):", "def force(x: float) -> float:"),
    "a constant that nobody uses": ("model.py", "UNUSED = 3", "UNUSED = 4"),
    "a table that nobody uses": ("model.py", '"red"', '"blue"'),
    "a method that nobody calls": ("model.py", "return shown(self)", "return None"),
    "what runs as a script": ("model.py", "print(Mine())", "print(Mine(), 2)"),
    "an offset in the base": ("base.py", "return 0.0", "return 1.0"),
    "a new function": ("helpers.py", "def rough(x):", "def more(x):\n    return x\n\n\ndef rough(x):"),
}
DECIDES = {
    "the body of solve": ("model.py", "+ self.constant()", "- self.constant()"),
    "sample": ("model.py", "rng.random((count, self.width))", "rng.normal((count, self.width))"),
    "a constant": ("model.py", "STEPS = 100", "STEPS = 200"),
    "a function": ("model.py", "x + dt * force(x)", "x - dt * force(x)"),
    "a function of a function": ("model.py", "-x * TABLE", "x * TABLE"),
    "a table that is filled": ("model.py", 'TABLE["a"] = 2.0', 'TABLE["a"] = 3.0'),
    "a method of another class": ("model.py", "for _ in range(STEPS)", "for _ in range(2 * STEPS)"),
    "a class that is used, for whoever looks at all of it": ("model.py", '"leapfrog"', '"verlet"'),
    "how another class is made": ("model.py", "self.dt = dt\n", "self.dt = dt / 2\n"),
    "a helper in a sibling": ("helpers.py", "FACTOR * math.sqrt(x)", "FACTOR * math.cbrt(x)"),
    "a constant in a sibling": ("helpers.py", "FACTOR = 2.0", "FACTOR = 2.5"),
    "what is imported by the name": (
        "model.py",
        "from helpers import scaled as rescaled",
        "from math import sqrt as rescaled",
    ),
    "a base": ("base.py", "self.cells(x).sum()", "self.cells(x).mean()"),
    "what the base calls": (
        "base.py",
        "    def cells(self, x):\n        return x\n",
        "    def cells(self, x):\n        return 2 * x\n",
    ),
    "the bases": ("model.py", "class Mine(Lattice):", "class Mine(Lattice, dict):"),
    "an override": (
        "model.py",
        "    def constant(self):",
        "    def cells(self, x):\n        return -x\n\n    def constant(self):",
    ),
    "a statement of the module": ("model.py", "UNUSED = 3", "UNUSED = 3\nnp.random.seed(1)"),
}


@pytest.mark.parametrize("edit", KEPT.values(), ids=KEPT)
def test_what_does_not_decide_labels_changes_nothing(edit):
    assert reached(edited(*edit)) == reached()


@pytest.mark.parametrize("edit", DECIDES.values(), ids=DECIDES)
def test_what_decides_labels_is_seen(edit):
    assert reached(edited(*edit)).checksums != reached().checksums


EDITS = json.loads(Path(__file__).with_suffix(".json").read_text())


@pytest.mark.parametrize("edit", EDITS["edits"], ids=lambda edit: edit["name"])
def test_programs_of_physicists(edit, tmp_path):
    """Whether each edit makes other labels was measured by running both programs: it is asked about then, if not only
    then."""
    versions = []
    for folder in (tmp_path / "before", tmp_path / "after"):
        for path, text in edit["files"].items():
            for name, part in EDITS["parts"].items():
                text = text.replace(name, part)
            if path == edit["path"] and folder.name == "after":
                text = edit["new"] if edit["old"] is None else text.replace(edit["old"], edit["new"])
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        sources = read(folder / "mine.py").sources
        found = sources.reached([(*each,) for each in edit["lineage"]], ["sample", "solve"], SETTINGS)
        versions.append((version_of(found.checksums), found.fields))
    assert (versions[0] != versions[1]) == edit["asked"], "other labels" if edit["decides"] else "the same labels"


def test_data_count_where_they_are_named():
    assert reached(data=DATA | {"pictures.npy": "35"}) == reached()
    assert reached(data=DATA | {"constants.npy": "13"}).checksums != reached().checksums


def test_values_of_fields_count_where_they_are_asked_for():
    assert reached().fields == {"dt", "width"}
    assert reached(members=["estimate"]).fields == set()
    assert reached(members=["features"]).fields == {"weight"}


def test_a_constant_with_the_name_of_an_argument_elsewhere_counts():
    model = MODEL.replace("+ self.constant()", "+ sorted(inputs, key=lambda UNUSED: UNUSED)[0] + UNUSED")
    files = FILES | {"model.py": model}
    assert (
        reached(files | {"model.py": model.replace("UNUSED = 3", "UNUSED = 4")}).checksums != reached(files).checksums
    )


def test_an_annotated_constant_of_a_plain_class_is_one_like_others():
    files = FILES | {"model.py": MODEL.replace("@dataclass(frozen=True)\n", "")}
    other = files | {"model.py": files["model.py"].replace("dt: float = 0.1", "dt: float = 0.2")}
    assert not reached(files).fields and reached(other).checksums != reached(files).checksums


def test_kinds_of_labels_have_their_own():
    names = {m: {name.split()[0] for name in reached(members=[m]).checksums} for m in ("sample", "solve", "estimate")}
    assert "force" in names["solve"] and "force" not in names["sample"] | names["estimate"]
    assert "rough" in names["estimate"] and "rough" not in names["solve"]


DYNAMIC = {
    "a computed name": 'getattr(self, "to" + "tal")(inputs)',
    "an evaluated text": 'eval("STEPS")',
    "a module by its name": '__import__("helpers").rough(inputs)',
    "all of an object": 'self.__dict__["dt"]',
    "the names of the module": 'globals()["UNUSED"]',
}


@pytest.mark.parametrize("call", DYNAMIC.values(), ids=DYNAMIC)
def test_what_source_cannot_tell_counts_as_reached(call):
    files = FILES | {"model.py": MODEL.replace("+ self.constant()", f"+ {call}")}
    for path, old, new in (KEPT["a constant that nobody uses"], KEPT["features"], KEPT["what only the estimate uses"]):
        other = files | {path: files[path].replace(old, new)}
        assert reached(other).checksums != reached(files).checksums
    other = files | {"model.py": files["model.py"].replace("timeout = 60", "timeout = 61")}
    assert reached(other) == reached(files)


def test_a_constant_name_is_one_that_is_written():
    files = FILES | {"model.py": MODEL.replace("self.total(x)", 'getattr(self, "total")(x)')}
    other = files | {"base.py": BASE.replace("self.cells(x).sum()", "0")}
    assert reached(other).checksums != reached(files).checksums
    other = files | {"model.py": files["model.py"].replace("UNUSED = 3", "UNUSED = 4")}
    assert reached(other) == reached(files)


def test_a_problem_that_is_handed_on_has_all_its_fields_read():
    files = FILES | {"model.py": MODEL.replace("+ self.constant()", "+ hash(self)")}
    assert reached(files).fields == {"dt", "width", "weight"}
    files = files | {"helpers.py": HELPERS.replace("math.sqrt(x)", "math.sqrt(x.total(0))")}
    other = files | {"base.py": BASE.replace("self.cells(x).sum()", "0")}
    assert reached(other).checksums != reached(files).checksums


@pytest.mark.parametrize("asked", ["self.__class__.SCALE", "type(self).SCALE", "Mine.SCALE", "self.SCALE"])
def test_a_constant_of_the_class_counts_however_it_is_asked_for(asked):
    model = MODEL.replace("    label_shape = (1,)", "    label_shape = (1,)\n    SCALE = 3").replace(
        "+ self.constant()", f"+ {asked}"
    )
    files = FILES | {"model.py": model}
    assert reached(files | {"model.py": model.replace("SCALE = 3", "SCALE = 4")}).checksums != reached(files).checksums


def test_of_two_imports_by_one_name_both_count():
    model = MODEL.replace(
        "import helpers\n",
        "import helpers\ntry:\n    import fast as engine\nexcept ImportError:\n    import slow as engine\n",
    )
    model = model.replace("self.total(x)", "engine.total(x)")
    files = FILES | {"model.py": model} | {f"{name}.py": "def total(x):\n    return x\n" for name in ("fast", "slow")}
    for name in ("fast", "slow"):
        other = files | {f"{name}.py": "def total(x):\n    return 2 * x\n"}
        assert reached(other).checksums != reached(files).checksums


CIRCLES = {
    "stars": {"model.py": "from a import *\n", "a.py": "from b import *\n", "b.py": "from a import *\nGAIN = 2\n"},
    "names": {
        "model.py": "from a import GAIN\n",
        "a.py": "from b import GAIN\n",
        "b.py": "from a import GAIN\nGAIN = 2\n",
    },
    "a base of the same name": {"model.py": "from a import Mine\n", "a.py": "GAIN = 2\n\n\nclass Mine:\n    pass\n"},
    "itself": {"model.py": "import model\nGAIN = 2\n"},
}
ROUND = "\n\nclass Mine(Mine):\n    def solve(self):\n        return unknown(GAIN, model.GAIN, a.b.c)\n"


@pytest.mark.parametrize("files", CIRCLES.values(), ids=CIRCLES)
def test_names_that_lead_round_in_a_circle_come_to_an_end(files):
    def found(value):
        sources = {path: text.replace("GAIN = 2", f"GAIN = {value}") for path, text in files.items()}
        sources["model.py"] += ROUND
        return (
            Sources({p: t.encode() for p, t in sources.items()}, {}).reached([("model", "Mine")], ["solve"]).checksums
        )

    assert found(2) == found(2)
    if files is not CIRCLES["a base of the same name"]:  # which does not import the number
        assert found(2) != found(3)


def test_a_module_that_is_no_python_of_today_counts_as_a_whole():
    files = FILES | {"old.py": "print 'Python 2'\n"}
    assert reached(files | {"old.py": "print 'other'\n"}).checksums != reached(files).checksums


REBOUND = {
    "a number": "from helpers import FACTOR as SCALE\n\nSCALE = SCALE * 2\n",
    "a function that stands in": "try:\n    from numba import SCALE\nexcept ImportError:\n    SCALE = 2\n",
    "a class": "from helpers import SCALE\n\n\nclass SCALE:\n    def __init__(self):\n        self.two = 2\n",
}


@pytest.mark.parametrize("top", REBOUND.values(), ids=REBOUND)
def test_a_name_that_is_imported_and_given_another_meaning_counts_with_both(top):
    model = MODEL.replace("STEPS = 100", f"STEPS = 100\n{top}").replace("+ self.constant()", "+ SCALE")
    other = model.replace(top, top.replace("2", "3"))
    assert reached(FILES | {"model.py": other}).checksums != reached(FILES | {"model.py": model}).checksums


def test_other_names_for_self_are_seen():
    other = MODEL.replace("def solve(self, inputs):", "def solve(me, inputs):").replace("self.total(x)", "me.total(x)")
    other = other.replace("Integrator(self.dt).run(inputs)", "Integrator(me.dt).run(inputs)")
    found = reached(FILES | {"model.py": other.replace("+ self.constant()", "+ me.constant()")})
    assert found.fields == {"dt", "width"} and any(name.startswith("Lattice.total") for name in found.checksums)


REGISTERED = """
KNOWN = []


def known(f):
    KNOWN.append(f)
    return f


class Part:
    kinds = []

    def __init_subclass__(cls):
        Part.kinds.append(cls)


class Spring(Part):
    def energy(self, x):
        return x**2


@known
def bias(x):
    return 1.0


def total(x):
    return sum(k().energy(x) for k in Part.kinds) + sum(f(x) for f in KNOWN)
"""


@pytest.mark.parametrize("edit", [("x**2", "x**4"), ("return 1.0", "return 2.0")])
def test_what_registers_itself_counts(edit):
    model = MODEL.replace("import helpers\n", "import helpers\nimport parts\n").replace(
        "self.total(x)", "parts.total(x)"
    )
    files = FILES | {"model.py": model, "parts.py": REGISTERED}
    assert reached(files | {"parts.py": REGISTERED.replace(*edit)}).checksums != reached(files).checksums


PACKAGE = {
    "lab/__init__.py": "",
    "lab/model.py": """
from .tools import *
from . import tools as t


class Mine:
    def sample(self):
        return draw()

    def solve(self):
        return t.inner.deep()
""",
    "lab/tools.py": "from . import inner\n\n\ndef draw():\n    return 1\n\n\ndef other():\n    return 2\n",
    "lab/inner.py": "def deep():\n    return 3\n\n\ndef shallow():\n    return 4\n",
}


def test_packages_relative_imports_and_stars():
    def names(files):
        encoded = {path: source.encode() for path, source in files.items()}
        return Sources(encoded, {}).reached([("lab.model", "Mine")], ["sample", "solve"]).checksums

    for path, value, decides in (
        ("lab/tools.py", "1", True),
        ("lab/tools.py", "2", False),
        ("lab/inner.py", "3", True),
        ("lab/inner.py", "4", False),
    ):
        changed = PACKAGE | {path: PACKAGE[path].replace(f"return {value}", f"return {value}0")}
        assert (names(changed) != names(PACKAGE)) == decides, (path, value)


SYNTAX = r'''
import asyncio
from functools import partial as bound
COUNTER = 0
TEXT = "naïve — \N{SNOWMAN} \x00"
RAW, BYTES, NUMBERS = r"\d+", b"\xff", (1_000, 0x1F, 1e-30, 2.5j, -0.0, 10**30)
NOTHING = ...


def count(*values, key=lambda v: v, start: int = 0, **more) -> int:
    """Docstring."""
    global COUNTER
    COUNTER += len(values)
    if (n := len(more)) > 1:
        return n
    return sum(key(v) for v in values if v) + start


def shape(value):
    match value:
        case {"kind": "disc", "radius": float(r)} if r > 0:
            return r
        case [first, *rest] | (first, *rest):
            return len(rest)
        case str() as text:
            return f"{text!r:>{COUNTER + 10}} {{literal}} {len(text):.3e}" f"{COUNTER=}" "plain"
        case _:
            return None


async def wait(items):
    async with items as there:
        async for each in there:
            yield each
    await asyncio.sleep(0)


def careful(x, /, y, *, z=3):
    try:
        return x[1:2, ..., ::-1] @ y
    except* (ValueError, TypeError) as group:
        raise RuntimeError from group
    except* OSError:
        pass
    else:
        del x
    finally:
        assert z, "no"
    while True:
        with open(y) as a, open(z) as (b, c):
            break
    for i, (j, *k) in enumerate({**x, "a": [*y]}):
        continue
    else:
        nonlocal_ = {i for i in y} | {a: b for a, b in z}
    return not -x if x is not None and y not in z or ~x << 2 else (yield)


class Mine:
    scale: float = 1.0
    table = {"a": 1, **{}}

    @property
    def wide(self):
        return self.scale

    @staticmethod
    def draw(rng):
        return rng

    def sample(self, count_, rng):
        return self.draw(rng), count(1, 2), TEXT, RAW, NUMBERS

    def solve(self, inputs):
        return bound(shape, inputs), wait, careful, self.wide, BYTES, NOTHING, self.table
'''
GOLDEN = "1a4d7f9f741bb6f4"
PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
from sibcl_ray.user_module import dependencies
sources = dependencies.Sources({"model.py": sys.stdin.buffer.read()}, {})
print(json.dumps(dict(sorted(sources.reached([("model", "Mine")], ["sample", "solve"]).checksums.items()))))
"""


def named_by(python):
    command = [python, "-c", PROGRAM, str(Path(dependencies.__file__).parents[2])]
    done = subprocess.run(
        command, input=SYNTAX.encode(), capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    return json.loads(done.stdout)


def test_names_are_the_same_as_ever():
    """Of all kinds of syntax: another name here would be another name for everybody's labels."""
    found = Sources({"model.py": SYNTAX.encode()}, {}).reached([("model", "Mine")], ["sample", "solve"]).checksums
    assert len(found) == 17 and hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()[:16] == GOLDEN


OTHERS = [f"3.{minor}" for minor in range(11, 16) if minor != sys.version_info.minor]


@pytest.mark.parametrize("version", OTHERS)
def test_names_are_the_same_on_every_python(version):
    """Where others are installed, by the system or by pyenv."""
    found = shutil.which(f"python{version}", path=os.defpath)
    found = found or next(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), None)
    if found is None:
        pytest.skip(f"needs Python {version}")
    assert named_by(found) == named_by(sys.executable)
