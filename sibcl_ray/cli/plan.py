"""The plan of a study as tables: what is studied, and the work that is still to be done."""

import os
from collections import Counter
from collections.abc import Iterator

from rich.filesize import decimal
from rich.table import Column, Table
from rich.text import Text

from sibcl_ray.data.dataset import Dataset
from sibcl_ray.messages import duration
from sibcl_ray.search.methods import METHODS, PARAMETERS
from sibcl_ray.study.plan import Plan
from sibcl_ray.study.study import Study

START = 30  # seconds in which Ray and its workers start


def plan_tables(study: Study, dataset: Dataset, plan: Plan) -> list[Table]:
    """What is studied, and what of it is still to be done."""
    asked = Table("", "", title=f"Plan of {study.name}", title_justify="left", show_header=False)
    for name, text in _asked(study, dataset, plan):
        asked.add_row(name, Text(text))
    return [asked, _work(study, plan)]


def _asked(study: Study, dataset: Dataset, plan: Plan) -> Iterator[tuple[str, str]]:
    problem, space = study.problem, study.space
    moves = ", ".join([*problem.symmetries, *(f"{name} (moves labels)" for name in problem.equivariances)])
    yield "problem", f"{problem.name}: inputs {_by(problem.input_shape)}, labels {_by(problem.label_shape)}"
    yield "symmetries", moves or "none declared"
    lacking, have = Counter(shard.role.name for shard in plan.lacking.shards), problem.available
    for role, count in study.sizes.items():
        made = max(0, count - lacking[role.name] * dataset.size(role))
        what = "labels" if role.labelled else "inputs"
        there = f"of the {have[role.name]:,} in the data" if have else f"of which {made:,} are there"
        yield role.name, f"{count:,} {what}, {there}" if count else "none"
    yield "methods", ", ".join(m.name for m in study.methods)
    for reason, names in _skipped(study).items():
        yield "", f"not {', '.join(names)}: {reason}"
    searched = sorted({study.search_budget(b) for b in study.budgets})
    yield "budgets", f"{_list(study.budgets)} labels; hyperparameters are searched at {_list(searched)}"
    yield (
        "searches",
        f"{len(study.methods)} methods × {len(searched)} budgets × {study.trials} trials × {study.folds} folds",
    )
    yield "encoders", ", ".join(a.encoder.label for a in space.architectures)
    for field, parameter in PARAMETERS.items():
        values = getattr(space, field)
        if field != "architectures" and any(parameter.is_chosen(m) for m in study.methods):
            yield field.replace("_", " "), f"{values[0]:g} to {values[1]:g}" if parameter.is_range else _list(values)


def _skipped(study: Study) -> dict[str, list[str]]:
    """Methods that are left out, by the reason."""
    reasons: dict[str, list[str]] = {}
    for method in METHODS.values():
        if method not in study.methods:
            lacks = study.problem.missing_requirement(**method.needs)
            reason = f"the problem lacks {lacks.partition(';')[0]}" if lacks else "not asked for"
            reasons.setdefault(reason, []).append(method.name)
    return reasons


def _work(study: Study, plan: Plan) -> Table:
    numbers = Column("number", justify="right"), Column("core time", justify="right")
    table = Table("work", *numbers, title="What is still to be done", title_justify="left")
    if not study.problem.available:
        table.add_row("target labels", f"{plan.target_labels:,}", _known(plan.target_seconds))
        table.add_row("surrogate labels", f"{plan.surrogate_labels:,}", _known(plan.surrogate_seconds))
    table.add_row("pretrainings", f"at most {plan.pretrainings:,}", duration(plan.pretraining_seconds))
    table.add_row(f"trials, {study.folds} folds each", f"{plan.lacking.trials:,}", duration(plan.trial_seconds))
    table.add_row("cells", f"{plan.lacking.cells:,}", duration(plan.cell_seconds))
    return table


def estimate(plan: Plan) -> str:
    """What it will take on this machine."""
    cores = os.cpu_count() or 1
    unknown = ", labels of unknown cost not" if None in (plan.target_seconds, plan.surrogate_seconds) else ""
    return (
        f"Estimated on this machine: about {duration(plan.seconds)} of core time{unknown}, which is "
        f"{duration(plan.seconds / cores + START)} on {cores} cores with {START} s to start; at most "
        f"{decimal(plan.disk)} on disk. For this a few training steps were timed on made-up data."
    )


def _known(seconds: float | None) -> str:
    return "not known before the first label" if seconds is None else duration(seconds)


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _list(values: tuple[float, ...] | list[int]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else f"{value:,}" for value in values)
