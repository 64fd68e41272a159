"""Groups of processes that are quick to start: a server that has imported torch forks them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

multiprocessing.set_forkserver_preload(["torch.distributed", "sibcl_ray.learning.training"])


def group(function: Callable[..., None], arguments: tuple[Any, ...], size: int) -> None:
    """Call function(rank, *arguments) in `size` processes, and wait for them."""
    torch.multiprocessing.start_processes(function, arguments, size, start_method="forkserver")
