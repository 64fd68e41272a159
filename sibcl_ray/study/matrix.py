"""The learning-curve matrix: one row for each cell."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sibcl_ray.learning.jobs import CellJob
from sibcl_ray.search.methods import Method
from sibcl_ray.storage.fingerprint import describe
from sibcl_ray.storage.records import DONE, Record
from sibcl_ray.study.study import Study

MISSING = "missing"  # the state of a cell that has not been run


@dataclass(frozen=True)
class Cell:
    """One entry of the learning-curve matrix; ``job`` is None while, or if, no configuration is chosen."""

    method: Method
    budget: int
    seed: int
    trials: int  # of the search that has chosen it
    job: CellJob | None
    state: str = MISSING  # without a record
    reason: str = ""


MATRIX_SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "method": pa.string(),
        "encoder": pa.string(),
        "budget": pa.int64(),
        "seed": pa.int64(),
        "error": pa.float64(),
        "error_units": pa.string(),
        "state": pa.string(),
        "reason": pa.string(),
        "seconds": pa.float64(),
        "finished": pa.float64(),
        "trials": pa.int64(),
        "labels": pa.string(),
        "configuration": pa.string(),
        "sample_errors": pa.list_(pa.float64()),
    }
)


def plain_row(study: Study, cell: Cell) -> dict[str, Any]:
    """A row of the matrix, as far as it is known before the cell is done, and the name of the cell's record."""
    chosen = None
    if cell.job:
        pretraining = cell.job.pretraining and cell.job.pretraining.configuration
        chosen = describe({"pretraining": pretraining, "finetuning": cell.job.configuration})
    return {
        "problem": study.problem.name,
        "method": cell.method.name,
        "encoder": cell.job.configuration.architecture.encoder.label if cell.job else "",
        "budget": cell.budget,
        "seed": cell.seed,
        "error_units": " ".join(study.problem.error_units.split()),
        "state": cell.state,
        "reason": cell.reason,
        "trials": cell.trials,
        "configuration": json.dumps(chosen),
        "record": cell.job and cell.job.record_name,
    }


def outcome(record: Record) -> dict[str, Any]:
    """What a cell's record, which may be empty, adds to its row."""
    known: dict[str, Any] = {name: record[name] for name in ("state", "reason") if name in record}
    known |= {name: record.get(name, float("nan")) for name in ("error", "seconds", "finished")}
    sample_errors = record.get("sample_errors")
    return known | {"sample_errors": None if sample_errors is None else np.asarray(sample_errors)}


def worth(row: dict[str, Any]) -> tuple[bool, bool, int]:
    """Orders rows of one cell: finished ones come last, and those of longer searches."""
    return row["state"] == DONE, row["state"] != MISSING, row["trials"]
