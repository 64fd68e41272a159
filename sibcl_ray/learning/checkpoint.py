"""The state of a training that is under way, so that another process can go on with it, bit for bit the same."""

import hashlib
import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sibcl_ray.learning import distributed
from sibcl_ray.storage.store import Store

EVERY = 60.0  # seconds of work that may be lost
SHARE = 0.05  # of the time that storing checkpoints may take, where they are slow to store


@dataclass(frozen=True)
class Checkpoint:
    """Where a training that is under way keeps its state, with its checksum."""

    store: Store
    name: str

    def load(self) -> bytes | None:
        """What was saved last, if it is there and whole."""
        try:
            data = self.store.read(self.name)
        except FileNotFoundError:
            return None
        digest, state = data[:32], data[32:]
        return state if digest == hashlib.sha256(state).digest() else None

    def save(self, state: bytes) -> None:
        """Keep this in place of what was saved before."""
        self.store.write(self.name, hashlib.sha256(state).digest() + state)


class Progress:
    """The state of a training between its epochs, in a checkpoint; the same on every worker, so one writes it.

    ``parts`` are generators, and what has a ``state_dict``.
    """

    def __init__(self, checkpoint: Checkpoint | None, parts: Mapping[str, Any], device: torch.device) -> None:
        self._checkpoint, self._parts, self._device = checkpoint, parts, device
        self._wait, self._last = EVERY, time.monotonic()
        self.epochs = 0  # that are done
        stored = distributed.same(checkpoint.load() if checkpoint and distributed.rank() == 0 else None, device)
        if stored is None:
            return
        state = torch.load(io.BytesIO(stored), device, weights_only=True)
        if state["device"] != device.type:
            return  # whose generators are others
        for name, part in parts.items():
            if isinstance(part, torch.Generator):
                part.set_state(state[name].cpu())
            else:
                part.load_state_dict(state[name])
        self.epochs = state["epochs"]

    def maybe_save(self, epochs: int) -> None:
        """Write the state if the last was written long ago."""
        if self._checkpoint is None or distributed.rank() or time.monotonic() - self._last < self._wait:
            return
        began, file = time.monotonic(), io.BytesIO()
        state = {
            name: part.get_state() if isinstance(part, torch.Generator) else part.state_dict()
            for name, part in self._parts.items()
        }
        torch.save({**state, "epochs": epochs, "device": self._device.type}, file)
        self._checkpoint.save(file.getvalue())
        self._last = time.monotonic()
        self._wait = max(EVERY, (self._last - began) / SHARE)
