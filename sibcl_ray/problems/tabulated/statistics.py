"""One pass through an array of a user: what it holds, and which of its rows cannot be used."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sibcl_ray.problems.tabulated.tables import BadData, Stored
from sibcl_ray.symmetry.orbits import NUMBERS, Orbits, repeated, twins

EXACT = {np.float32: 2**24, np.float64: 2**53}  # integers up to here have a number of their own
NAMED = 5  # rows that a message names


@dataclass(frozen=True)
class Rule:
    """What may not be in a row."""

    bad: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of raw rows and of these as float32 a mask (rows,)
    says: str
    advice: str


@dataclass(frozen=True)
class Survey:
    """What an array holds, as it was converted.

    ``digest`` names its content, ``rows`` a 64-bit hash of each row where that was asked for: among ten million
    rows two agree by chance with a probability of 3e-6. ``forms``, where they were asked for, say which rows are equal
    under the declared symmetry; see `orbits.forms`. ``mean`` is that of each entry over all rows, float64 (*shape).
    ``resolution`` is the relative distance of neighbouring numbers as they are stored.
    """

    title: str
    count: int
    digest: str
    rows: np.ndarray
    mean: np.ndarray
    _square: np.ndarray = field(repr=False)
    resolution: float
    rounding: "Rounding"
    numbers: np.ndarray | None = None  # see Stored
    forms: np.ndarray = field(default_factory=lambda: np.zeros((0, NUMBERS)), repr=False)
    likeness: str = ""  # see Orbits

    def named(self, row: int) -> str:
        """A row by its number, or by the one that the file gives it."""
        return f"{row if self.numbers is None else self.numbers[row]:,}"

    @property
    def deviation(self) -> np.ndarray:
        """Of each entry, (*shape)."""
        return np.sqrt(self._square)

    def square_about(self, point: np.ndarray | float) -> np.ndarray:
        """The mean square distance of each entry from ``point``, (*shape)."""
        return self._square + (self.mean - point) ** 2


def survey(
    stored: Stored,
    convert: Callable[[np.ndarray], np.ndarray],
    rules: Sequence[Rule],
    hash_rows: bool,
    orbits: Orbits | None = None,
) -> Survey:
    """Read an array once, from end to end.

    Args:
        stored: the array.
        convert: from raw rows to the numbers that will be used.
        rules: what no row may have, besides what is not finite.
        hash_rows: hash each row, to tell equal ones.
        orbits: the declared symmetry, to find rows that it makes equal.

    Raises:
        BadData: the file is damaged, or rows break a rule.
    """
    digest, hashes, moments, rounding = hashlib.sha256(), [], _Moments(), Rounding()
    forms = [np.zeros((0, NUMBERS))]
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
        rounding.add(values if values.dtype == np.float64 else raw)
        if hash_rows:
            hashes.append(_hashes(values))
        if orbits:
            forms.append(orbits.forms(values))
    for rule, rows in broken.items():
        if len(found := np.concatenate([np.zeros(0, int), *rows])):
            says = rule.says if rule is not FINITE[0] or not stored.missing else _absent(stored)
            raise BadData(f"{stored.title} has {says} in {some(found, stored.rows, stored.numbers)}; {rule.advice}")
    return Survey(
        title=stored.title,
        count=stored.rows,
        digest=digest.hexdigest()[:16],
        rows=np.concatenate([np.zeros(0, np.uint64), *hashes]),
        mean=moments.mean,
        _square=moments.square / stored.rows,
        resolution=float(np.finfo(raw.dtype).eps) if raw.dtype.kind == "f" else 0.0,
        rounding=rounding,
        numbers=stored.numbers,
        forms=np.concatenate(forms),
        likeness=orbits.likeness if orbits else "",
    )


def some(rows: np.ndarray, count: int, numbers: np.ndarray | None = None) -> str:
    """The first of some row numbers, and how many there are; by the numbers that the file gives them, if it does."""
    named = rows if numbers is None else numbers[rows]
    listed = ", ".join(f"{row:,}" for row in named[:NAMED]) + (", …" if len(rows) > NAMED else "")
    how = "rows (counted from 0" if numbers is None else "datasets (numbers"
    return f"{len(rows):,} of {count:,} {how}: {listed})"


def _absent(stored: Stored) -> str:
    """That values are missing, and what in the file says so."""
    return f"missing values (by {', '.join(stored.missing)})"


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1)


def _not_finite(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(~np.isfinite(_flat(raw)).all(1))


def _too_large(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    fits = np.abs(_flat(values)) <= np.finfo(np.float32).max
    return np.asarray(np.isfinite(_flat(raw)).all(1) & ~fits.all(1))


def _marks(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    size = np.abs(_flat(raw)) if raw.dtype.kind == "f" else np.zeros((len(raw), 0))
    if float(size.max(initial=0)) < MARKS[0] / 2:  # as in most blocks, which need not be searched
        return np.zeros(len(raw), bool)
    with np.errstate(over="ignore"):
        return np.asarray(np.isin(size, np.array(MARKS, raw.dtype)).any(1))


# Numbers that stand for none: of numpy's masked arrays and climate models, of netCDF, and the largest of float32.
MARKS = (1e20, 9.969209968386869e36, float(np.finfo(np.float32).max))

FINITE = (
    Rule(_not_finite, "NaN or infinity", "compute these rows again, or remove them"),
    Rule(_too_large, "numbers too large for float32", "store them in a larger unit"),
    Rule(
        _marks, "1e+20, 9.96921e+36 or the like, which mark missing values,", "compute these rows again, or remove them"
    ),
)


def distinct(exact: type[np.floating]) -> Rule:
    """What refuses integers that would be rounded."""

    def rounded(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
        if raw.dtype.kind not in "iu":
            return np.zeros(len(raw), bool)
        return np.asarray(((_flat(raw) > EXACT[exact]) | (_flat(raw) < -EXACT[exact])).any(1))

    return Rule(
        rounded,
        f"integers beyond ±{EXACT[exact]:,}, which {np.dtype(exact)} cannot tell apart,",
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


class Rounding:
    """What float32 makes of rows that come in blocks.

    ``largest`` is the most it moves a number by, ``square`` the sum of squares of that for each entry, and ``apart``
    how far each entry is at most from that of the first row.
    """

    def __init__(self) -> None:
        self.largest, self.square, self.apart = 0.0, np.zeros(()), np.zeros(())
        self._first: np.ndarray | None = None

    def add(self, rows: np.ndarray) -> None:
        if rows.dtype.kind != "f" or rows.dtype.itemsize <= 4:
            return  # integers that it would move are refused
        self._first = rows[0].copy() if self._first is None else self._first
        moved = rows - rows.astype(np.float32)
        self.largest = max(self.largest, float(np.abs(moved).max()))
        self.square = self.square + np.square(moved).sum(0)
        self.apart = np.maximum(self.apart, np.abs(rows - self._first).max(0))


def refuse_repeated(survey: Survey, why: str) -> None:
    """BadData where rows of an array are equal, as they are or under the declared symmetry."""
    pairs = repeated(survey.forms)
    if len(pairs):
        apart = np.flatnonzero(survey.rows[pairs[:, 0]] != survey.rows[pairs[:, 1]])
        first, second = pairs[apart[0] if len(apart) else 0]
        rows = "rows" if survey.numbers is None else "numbers"
        which = some(pairs[:, 1], survey.count, survey.numbers)
        likeness = f" {survey.likeness}" if len(apart) else ""
        raise BadData(
            f"{survey.title} has the same input more than once: {which} repeat another, and {rows} "
            f"{survey.named(first)} and {survey.named(second)} are equal{likeness}; {why}"
        )


def refuse_shared(survey: Survey, other: Survey, why: str) -> None:
    """BadData where rows of one array are among those of another, as they are or under the declared symmetry."""
    twin = twins(survey.forms, other.forms)
    if len(shared := np.flatnonzero(twin >= 0)):
        apart = shared[survey.rows[shared] != other.rows[twin[shared]]]
        row = apart[0] if len(apart) else shared[0]
        theirs = f"{'row' if other.numbers is None else 'number'} {other.named(twin[row])}"
        ours = f"{'row' if survey.numbers is None else 'number'} {survey.named(row)}"
        equal = f"{theirs} is equal to {ours} {survey.likeness}" if len(apart) else f"the first of them is {theirs}"
        raise BadData(
            f"{survey.title} shares {some(shared, survey.count, survey.numbers)} with {other.title.rstrip(',')}, where "
            f"{equal}; {why}"
        )
