"""The map of the library, read from its source: imports run downhill, and some things are known to few."""

import ast
from functools import cache
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "sibcl_ray"

# From the top down: a module imports only from those above it.
ORDER = (
    "randomness",
    "redaction",
    "limits",
    "syntax",
    "reach",
    "guest",
    "symmetry",
    "orbits",
    "parallel",
    "losses",
    "checkpoint",
    "solvers",
    "solvers.planewave",
    "solvers.density_of_states",
    "solvers.fine_bands",
    "solvers.schrodinger",
    "solvers.magnet",
    "problems.problem",
    "problems.simulation",
    "problems.photonic",
    "problems.schrodinger",
    "problems.magnet",
    "problems.tabulated.tables",
    "problems.tabulated.declaration",
    "problems.tabulated.arrangement",
    "problems.tabulated.packing",
    "problems.tabulated.npz",
    "problems.tabulated.hdf5",
    "problems.tabulated.parquet",
    "problems.tabulated.files",
    "problems.tabulated.numbered",
    "problems.tabulated.survey",
    "problems.tabulated.labels",
    "problems.tabulated.intake",
    "problems.tabulated",
    "problems",
    "folders",
    "buckets",
    "store",
    "deciding",
    "lineage",
    "copies",
    "records",
    "forks",
    "sandbox",
    "user_files",
    "user_module",
    "check",
    "own",
    "claims",
    "dataset",
    "shards",
    "generate",
    "networks",
    "prior",
    "training",
    "evaluate",
    "jobs",
    "cleaning",
    "methods",
    "queue",
    "workers",
    "room",
    "history",
    "search",
    "thin",
    "tuner",
    "study",
    "ledger",
    "screen",
    "progress",
    "run",
    "plan",
    "curves",
    "report",
    "tracked_runs",
    "tracking",
    "tracker",
)
VIEWS = ("curves", "report", "tracked_runs", "tracking", "tracker", "screen", "progress")
LEARNING = set(ORDER[ORDER.index("folders") :]) - set(VIEWS)


def name_of(path):
    parts = path.relative_to(LIBRARY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources():
    """Syntax trees by name of module."""
    files = sorted(LIBRARY.rglob("*.py"))
    return {name: ast.parse(path.read_text()) for path in files if (name := name_of(path))}


def imports(tree):
    """Every module that is imported anywhere in the source, in functions too, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno} imports relatively; write the whole name"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                yield below if below.removeprefix("sibcl_ray.") in sources() else node.module


def own(name):
    """The modules of the library that a module imports."""
    return {m.removeprefix("sibcl_ray.") for m in imports(sources()[name]) if m.startswith("sibcl_ray.")}


def importers(package):
    return {name for name, tree in sources().items() if any(m.split(".")[0] == package for m in imports(tree))}


def test_every_module_has_its_place_in_the_order():
    assert set(sources()) == set(ORDER), "give a new module its place in ORDER"


@pytest.mark.parametrize("name", ORDER)
def test_modules_import_only_from_above(name):
    below = own(name) - set(ORDER[: ORDER.index(name)])
    assert not below, f"{name} imports {', '.join(sorted(below))}, which come after it"


def test_only_what_distributes_imports_ray():
    assert importers("ray") == {"generate", "workers", "room", "thin", "tuner", "run"}


def test_only_tracking_imports_mlflow():
    assert importers("mlflow") == {"tracking"}


def test_only_searches_know_optuna():
    assert importers("optuna") == {"methods", "history", "search", "tuner"}


@pytest.mark.parametrize("name", VIEWS)
def test_results_are_shown_from_the_ledger_alone(name):
    assert not own(name) & LEARNING


def test_physics_knows_nothing_of_learning():
    physics = [name for name in sources() if name.split(".")[0] in ("solvers", "problems", "symmetry")]
    assert not set().union(*map(own, physics)) & (LEARNING | set(VIEWS))


def reads_of_the_test_split(tree):
    """Calls with the role TEST among their arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            arguments = [*node.args, *(k.value for k in node.keywords)]
            yield from (
                part
                for argument in arguments
                for part in ast.walk(argument)
                if (isinstance(part, ast.Name) and part.id == "TEST")
                or (isinstance(part, ast.Attribute) and part.attr == "TEST")
            )


def test_only_evaluate_reads_the_test_split():
    """Study says how many samples of it there are to be, and generate makes them, and keeps them apart from the others;
    nothing else even knows its name."""
    assert {name for name, tree in sources().items() if any(reads_of_the_test_split(tree))} == {"evaluate", "generate"}
    assert not (own("generate") | own("shards")) & {"training", "networks", "evaluate", "jobs"}
    named = {
        name
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "TEST")
        or (isinstance(node, ast.Attribute) and node.attr == "TEST")
        or (isinstance(node, ast.alias) and node.name == "TEST")
    }
    assert named == {"dataset", "evaluate", "generate", "shards", "study"}


def test_no_name_hides_the_test_split():
    """Roles are used by name: nobody goes through all of them, or makes one."""
    for name, tree in sources().items():
        if name == "dataset":
            continue
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "ROLES" not in names, name
        calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
        assert "Role" not in calls, name
