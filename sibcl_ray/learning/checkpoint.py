"""The state of a training that is under way, so that another process can go on with it, bit for bit the same."""

import io
import time
from abc import ABC, abstractmethod
from typing import Any

import torch

from sibcl_ray.learning import distributed

EVERY = 60.0  # seconds of work that may be lost
SHARE = 0.05  # of the time that storing checkpoints may take, where they are slow to store


class Checkpoint(ABC):
    """Where a training that is under way keeps its state."""

    @abstractmethod
    def load(self) -> bytes | None:
        """What was saved last, if it is there and whole."""

    @abstractmethod
    def save(self, state: bytes) -> None:
        """Keep this in place of what was saved before."""


class Progress:
    """The state of a training between its epochs, in a checkpoint; the same on every worker, so one writes it."""

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        stateful: dict[str, Any],
        generators: dict[str, torch.Generator],
        device: torch.device,
    ) -> None:
        self._checkpoint, self._stateful, self._generators, self._device = checkpoint, stateful, generators, device
        self._wait, self._last = EVERY, time.monotonic()
        self.epochs = 0  # that are done
        state = distributed.same(checkpoint.load() if checkpoint and distributed.rank() == 0 else None, device)
        if state is not None:
            self._restore(torch.load(io.BytesIO(state), device, weights_only=True))

    def _restore(self, state: dict[str, Any]) -> None:
        if state["device"] != self._device.type:
            return  # whose generators are others
        for name, part in self._stateful.items():
            part.load_state_dict(state[name])
        for name, generator in self._generators.items():
            generator.set_state(state[name].cpu())
        self.epochs = state["epochs"]

    def maybe_save(self, epochs: int) -> None:
        """Write the state if the last was written long ago."""
        if self._checkpoint is None or distributed.rank() or time.monotonic() - self._last < self._wait:
            return
        began, file = time.monotonic(), io.BytesIO()
        parts = {name: part.state_dict() for name, part in self._stateful.items()}
        parts |= {name: generator.get_state() for name, generator in self._generators.items()}
        torch.save({**parts, "epochs": epochs, "device": self._device.type}, file)
        self._checkpoint.save(file.getvalue())
        self._last = time.monotonic()
        self._wait = max(EVERY, (self._last - began) / SHARE)
