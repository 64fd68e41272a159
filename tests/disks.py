"""Real file systems that are too small, or read-only."""

import subprocess
from contextlib import contextmanager

import pytest


def _mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)


@contextmanager
def small_disk(folder, size="1m"):
    """A disk of a megabyte, or another size, in a folder; skips where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        done = _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    except FileNotFoundError:
        pytest.skip("there is no program 'mount'")
    if done.returncode:
        pytest.skip(f"mounting a small disk is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def read_only(folder):
    """Makes a `small_disk` read-only for a while."""
    assert not _mount("-o", "remount,ro", folder).returncode
    try:
        yield
    finally:
        assert not _mount("-o", "remount,rw", folder).returncode
