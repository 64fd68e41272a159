"""The map of the library, read from its source: imports run downhill, and some things are known to few."""

import ast
from functools import cache
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[1] / "sibcl_ray"

# From the ground up: what is in a package imports only from those named before it, and from its own package.
# A name without a folder is a module at the top.
ORDER = (
    "randomness",
    "messages",
    "deadlines",
    "isolation",
    "symmetry",
    "storage",
    "solvers",
    "problems",
    "data",
    "user_module",
    "learning",
    "search",
    "study",
    "results",
    "cluster",
    "recipes",
    "settings",
    "driver",
    "cli",
)
TOP = 8  # modules at the package's top, at most
VIEWED = {"randomness", "messages", "deadlines", "isolation", "symmetry", "storage", "problems"}  # by results


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


def package(name):
    return name.split(".")[0]


def test_every_package_has_its_place_in_the_order():
    assert {package(name) for name in sources()} - {""} == set(ORDER), "give a new package its place in ORDER"
    assert len([path for path in LIBRARY.glob("*.py")]) <= TOP


@pytest.mark.parametrize("name", ORDER)
def test_packages_import_only_from_those_before(name):
    its = [module for module in sources() if package(module) == name]
    below = {package(m) for module in its for m in own(module)} - set(ORDER[: ORDER.index(name) + 1])
    assert not below, f"{name} imports from {', '.join(sorted(below))}, which come after it"


def test_modules_of_a_package_import_in_no_circle():
    left = {name: own(name) & set(sources()) for name in sources()}
    while free := {name for name, needed in left.items() if not needed & left.keys() - {name}}:
        left = {name: needed for name, needed in left.items() if name not in free}
    assert not left, f"these import each other: {', '.join(sorted(left))}"


def test_no_package_uses_what_another_keeps_to_itself():
    """A name with an underscore is known in its package alone."""
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sibcl_ray."):
                hidden = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
                assert not hidden or package(node.module.removeprefix("sibcl_ray.")) == package(name), (name, hidden)


def test_only_the_cluster_knows_ray():
    assert {package(name) for name in importers("ray")} == {"cluster"}


def test_only_tracking_imports_mlflow():
    assert importers("mlflow") == {"results.mlflow.connection", "results.mlflow.tracking"}


def test_only_searches_know_optuna():
    assert importers("optuna") == {"search.methods", "search.history", "search.search", "cluster.tune"}


def test_results_are_shown_from_the_ledger_alone():
    its = set().union(*(own(name) for name in sources() if package(name) == "results"))
    assert {package(name) for name in its} <= VIEWED | {"results"}


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
    readers = {name for name, tree in sources().items() if any(reads_of_the_test_split(tree))}
    assert readers == {"learning.evaluate", "cluster.generate"}
    assert not {m for m in own("cluster.generate") | own("data.shards") if package(m) == "learning"}
    named = {
        name
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Name) and node.id == "TEST")
        or (isinstance(node, ast.Attribute) and node.attr == "TEST")
        or (isinstance(node, ast.alias) and node.name == "TEST")
    }
    assert named == {"data.dataset", "learning.evaluate", "cluster.generate", "data.shards", "study.study"}


def test_no_name_hides_the_test_split():
    """Roles are used by name: nobody goes through all of them, or makes one."""
    for name, tree in sources().items():
        if name == "data.dataset":
            continue
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert "ROLES" not in names, name
        calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "id")}
        assert "Role" not in calls, name
