"""One pass through an array of a user: what it holds, and which of its rows cannot be used."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sibcl_ray.problems.tabulated.tables import BadData, Stored

EXACT = 2**24  # integers up to here have a float32 of their own
NAMED = 5  # rows that a message names


@dataclass(frozen=True)
class Rule:
    """What may not be in a row."""

    bad: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of raw rows and of these as float32 a mask (rows,)
    says: str
    advice: str


@dataclass(frozen=True)
class Survey:
    """What an array holds, as float32.

    ``digest`` names its content, ``rows`` a 64-bit hash of each row where that was asked for: among ten million
    rows two agree by chance with a probability of 3e-6. ``mean`` is that of each entry over all rows,
    float64 (*shape).
    """

    title: str
    count: int
    digest: str
    rows: np.ndarray
    mean: np.ndarray
    _square: np.ndarray = field(repr=False)
    numbers: np.ndarray | None = None  # see Stored

    def square_about(self, point: np.ndarray | float) -> np.ndarray:
        """The mean square distance of each entry from ``point``, (*shape)."""
        return self._square + (self.mean - point) ** 2


def survey(
    stored: Stored, convert: Callable[[np.ndarray], np.ndarray], rules: Sequence[Rule], hash_rows: bool
) -> Survey:
    """Read an array once, from end to end.

    Args:
        stored: the array.
        convert: from raw rows to the float32 that will be used.
        rules: what no row may have, besides what is not finite.
        hash_rows: hash each row, to find equal ones.

    Raises:
        BadData: the file is damaged, or rows break a rule.
    """
    digest, hashes, moments = hashlib.sha256(), [], _Moments()
    broken: dict[Rule, list[np.ndarray]] = {rule: [] for rule in (*FINITE, *rules)}
    for first, raw in stored.blocks():
        with np.errstate(all="ignore"):  # what becomes infinite is found below
            values = convert(raw)
        for rule, rows in broken.items():
            rows.append(first + np.flatnonzero(rule.bad(raw, values)))
        if any(len(rows[-1]) for rows in broken.values()):
            continue  # the pass goes on only to count
        digest.update(values.tobytes())
        moments.add(values)
        if hash_rows:
            hashes.append(_hashes(values))
    for rule, rows in broken.items():
        if len(found := np.concatenate([np.zeros(0, int), *rows])):
            raise BadData(
                f"{stored.title} has {rule.says} in {some(found, stored.rows, stored.numbers)}; {rule.advice}"
            )
    return Survey(
        title=stored.title,
        count=stored.rows,
        digest=digest.hexdigest()[:16],
        rows=np.concatenate([np.zeros(0, np.uint64), *hashes]),
        mean=moments.mean,
        _square=moments.square / stored.rows,
        numbers=stored.numbers,
    )


def some(rows: np.ndarray, count: int, numbers: np.ndarray | None = None) -> str:
    """The first of some row numbers, and how many there are; by the numbers that the file gives them, if it does."""
    named = rows if numbers is None else numbers[rows]
    listed = ", ".join(f"{row:,}" for row in named[:NAMED]) + (", …" if len(rows) > NAMED else "")
    how = "rows (counted from 0" if numbers is None else "datasets (numbers"
    return f"{len(rows):,} of {count:,} {how}: {listed})"


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1)


def _not_finite(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(~np.isfinite(_flat(raw)).all(1))


def _too_large(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(_flat(raw)).all(1) & ~np.isfinite(_flat(values)).all(1))


def _inexact(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    outside = (_flat(values) > EXACT) | (_flat(values) < -EXACT)
    return np.asarray(outside.any(1) & (raw.dtype.kind in "iu"))


FINITE = (
    Rule(_not_finite, "NaN or infinity", "compute these rows again, or remove them"),
    Rule(_too_large, "numbers too large for float32", "store them in a larger unit"),
)
DISTINCT = Rule(
    _inexact,
    f"integers beyond ±{EXACT:,}, which float32 cannot tell apart,",
    "store them less an offset, or in a larger unit",
)


def _hashes(values: np.ndarray) -> np.ndarray:
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values)
    return np.frombuffer(b"".join(digests), np.uint64)


class _Moments:
    """Mean, and sum of squares about it, of each entry of rows that come in blocks (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self.square = 0, np.zeros(()), np.zeros(())

    def add(self, rows: np.ndarray) -> None:
        count, mean = len(rows), rows.mean(0, dtype=np.float64)
        square = np.square(rows - mean).sum(0)
        share = count / (self.count + count)
        apart = mean - self.mean
        self.square = self.square + square + apart**2 * self.count * share
        self.mean = self.mean + apart * share
        self.count += count


def refuse_repeated(survey: Survey, why: str) -> None:
    """BadData where rows of an array are equal."""
    order = np.argsort(survey.rows, kind="stable")
    again = np.flatnonzero(survey.rows[order][1:] == survey.rows[order][:-1])
    if len(again):
        first, second = order[again[0]], order[again[0] + 1]
        which = some(np.sort(order[again + 1]), survey.count, survey.numbers)
        rows = "rows" if survey.numbers is None else "numbers"
        first, second = (survey.numbers[row] if survey.numbers is not None else row for row in (first, second))
        raise BadData(
            f"{survey.title} has the same input more than once: {which} repeat another, and {rows} {first:,} and "
            f"{second:,} are equal; {why}"
        )


def refuse_shared(survey: Survey, other: Survey, why: str) -> None:
    """BadData where rows of one array are among those of another."""
    if len(shared := np.flatnonzero(np.isin(survey.rows, other.rows))):
        twin = np.flatnonzero(other.rows == survey.rows[shared[0]])[0]
        where = f"row {twin:,}" if other.numbers is None else f"number {other.numbers[twin]:,}"
        raise BadData(
            f"{survey.title} shares {some(shared, survey.count, survey.numbers)} with {other.title.rstrip(',')}, where "
            f"the first of them is {where}; {why}"
        )
