"""Records: how jobs came to an end, as plain values.

Apart from the jobs themselves, so that processes that only pass records on do without torch.
"""

import time
from typing import Any

from sibcl_ray.messages import one_line, redact

DONE, DIVERGED, FAILED = "done", "diverged", "failed"  # states; only FAILED is worth another try
ATTEMPTS = 3  # how often a job is tried before its failure stands

Record = dict[str, Any]


def is_final(record: Record | None) -> bool:
    """Whether a record is the last word on its job."""
    return record is not None and (record["state"] != FAILED or record["attempts"] >= ATTEMPTS)


def failure(reason: str) -> Record:
    """The outcome of a job that failed for good."""
    return {"state": FAILED, "reason": redact(one_line(reason))[:1000], "attempts": ATTEMPTS}


def timed(outcome: Record, seconds: float = 0.0) -> Record:
    """An outcome with when it came about: unix time, so that clocks that go wrong falsify no duration."""
    now = time.time()
    return {**outcome, "seconds": seconds, "started": now - seconds, "finished": now}


def write_record(job: Any, record: Record) -> None:
    """Enter the end of a `jobs.Job` in the ledger."""
    job.store.write_record(job.record_name, {**record, "job": job.about()})
