"""Jobs without physics, to test the workers that run them."""

import os
import time
from dataclasses import dataclass

import torch.distributed as dist

from sibcl_ray.learning.jobs import Job


@dataclass(frozen=True, kw_only=True)
class Sleep(Job):
    """Takes some time; ``after`` others."""

    kind = "sleep"
    number: int
    seconds: float = 0.0
    after: tuple["Sleep", ...] = ()

    @property
    def requires(self):
        return self.after

    @property
    def title(self):
        return f"sleep {self.number}"

    def about(self):
        return {"number": self.number, "seconds": self.seconds}

    def compute(self, device, report):
        time.sleep(self.seconds)
        report(1.0, 0.0)
        return {"process": os.getpid(), "began": time.time() - self.seconds}


@dataclass(frozen=True, kw_only=True)
class Fail(Sleep):
    """Raises."""

    kind = "fail"

    def compute(self, device, report):
        raise MemoryError("no room for the whole lattice")


@dataclass(frozen=True, kw_only=True)
class Die(Sleep):
    """Takes its worker down, the first ``deaths`` times."""

    kind = "die"
    deaths: int

    def compute(self, device, report):
        names = self.store.names("deaths")
        if len(names) < self.deaths:
            self.store.write(f"deaths/{len(names)}", b"")
            os._exit(1)
        return {"process": os.getpid()}


@dataclass(frozen=True, kw_only=True)
class Together(Sleep):
    """Adds up the ranks of the workers that share it."""

    kind = "together"
    data_parallel = True

    def compute(self, device, report):
        import torch

        ranks = torch.tensor([dist.get_rank()])
        dist.all_reduce(ranks)
        return {"sum": int(ranks), "size": dist.get_world_size(), "began": time.time()}
