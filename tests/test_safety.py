"""Nothing that others may have written is run."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_nothing_unpickles():
    """No module of the library or the studies loads a pickle, by any of the usual ways; but for `sandbox`, which has it
    from a process of its own by a pair of sockets without a name. `orbits` only writes some, to compare them."""
    for path in [*(ROOT / "sibcl_ray").rglob("*.py"), *(ROOT / "studies").glob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {alias.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        names |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
        if path.name == "orbits.py":
            assert "pickle.load" not in path.read_text()
        elif path.name != "sandbox.py":
            assert not names & {"pickle", "cloudpickle", "joblib", "dill", "shelve"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("allow_pickle") == "False" or options.get("weights_only") == "True", path
