"""A cluster that the program starts is for this machine and this user; storage and secrets stay where they belong."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sibcl_ray.run import NOBODY

ROOT = Path(__file__).parents[1]

LISTENERS = """
import os, sys, time
sys.path.insert(0, "studies")
import label_sweep
from sibcl_ray.run import connect
connect()
import ray
where = ray.remote(lambda: sys.executable).options(runtime_env={"env_vars": {"LIKE": "an actor of Ray Train"}})
print("INTERPRETER", ray.get(where.remote(), timeout=60))
print("DASHBOARD", os.environ["RAY_API_SERVER_ADDRESS"])
print("ADDRESS", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def descendants(pid: int) -> set[int]:
    """A process and all below it, by /proc."""
    found = {pid}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found |= {p for child in task.read_text().split() for p in descendants(int(child))}
    return found


def listening(pids: set[int]) -> set[str]:
    """The addresses, in hexadecimal, at which processes accept TCP connections."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(link))
            except OSError:
                continue  # closed meanwhile
    addresses = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                addresses.add(local.split(":")[0])
    return addresses


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_cluster_of_our_own_listens_on_loopback_and_asks_for_a_token(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    spaced = tmp_path / "my environment"
    spaced.symlink_to(sys.prefix)
    environment["RAY_API_SERVER_ADDRESS"] = "http://192.0.2.1:8265"  # of a cluster that jobs are submitted to
    driver = subprocess.Popen(
        [spaced / "bin" / "python", "-c", LISTENERS],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    try:
        assert next(driver.stdout) == f"INTERPRETER {spaced}/bin/python\n"
        assert next(driver.stdout) == f"DASHBOARD {NOBODY}\n", "another's dashboard, asked for actors, would know none"
        address = next(line.split()[1] for line in driver.stdout if line.startswith("ADDRESS"))
        found = listening(descendants(driver.pid))
        loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
        assert found and found <= loopback
        visit = f"from ray._raylet import GcsClient; GcsClient({address!r}).internal_kv_keys(b'', None, 10)"
        visitors = [
            subprocess.Popen([sys.executable, "-c", visit], env={**environment, "RAY_AUTH_MODE": mode})
            for mode in ("token", "disabled")
        ]
        assert [visitor.wait(60) for visitor in visitors] == [0, 1]
    finally:
        driver.communicate("", timeout=60)


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
