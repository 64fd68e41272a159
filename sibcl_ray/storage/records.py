"""How jobs came to an end, as plain values; without torch, for processes that only pass them on."""

import time
from typing import Any

from sibcl_ray.messages import one_line, redact

DONE, DIVERGED, FAILED = "done", "diverged", "failed"  # states; only FAILED is worth another try
ATTEMPTS = 3  # how often a job is tried before its failure stands

Record = dict[str, Any]


def is_final(record: Record | None) -> bool:
    """Whether its job is not to be tried again."""
    return record is not None and (record["state"] != FAILED or record["attempts"] >= ATTEMPTS)


def failure(reason: str) -> Record:
    """The outcome of a job that failed for good."""
    return {"state": FAILED, "reason": redact(one_line(reason))[:1000], "attempts": ATTEMPTS}


def timed(outcome: Record, seconds: float = 0.0) -> Record:
    """An outcome with its duration, which is measured apart, and with when it came about, in unix time."""
    now = time.time()
    return {**outcome, "seconds": seconds, "started": now - seconds, "finished": now}


def write_record(job: Any, record: Record) -> None:
    """Enter the end of a `jobs.Job` in the ledger."""
    job.store.write_record(job.record_name, {**record, "job": job.about()})
