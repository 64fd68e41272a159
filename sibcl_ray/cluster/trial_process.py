"""The process of a Tune trial, which hands its job on and waits for the record.

There is one for every trial that waits, so it imports neither torch nor Optuna, nor anything that does, and
never opens the job: that halves its memory.
"""

from typing import Any

from ray import cloudpickle, get, tune


class Payload:
    """Anything, on its way through a process that need not know what it is."""

    def __init__(self, content: Any) -> None:
        self._bytes = cloudpickle.dumps(content)

    def open(self) -> Any:
        """The content, here."""
        return cloudpickle.loads(self._bytes)

    def forwarded(self) -> Any:
        """An argument for another process, where the content itself arrives."""
        return _Forwarded(self._bytes)


class _Forwarded:
    def __init__(self, content: bytes) -> None:
        self._bytes = content

    def __reduce__(self) -> tuple[Any, ...]:
        return cloudpickle.loads, (self._bytes,)


def forward_job(config: dict[str, Any], queue: Any) -> None:
    """Tune's trainable: reports the record of the job in ``config``, which a worker does."""
    tune.report(get(queue.submit.remote(config["job"].forwarded())))
