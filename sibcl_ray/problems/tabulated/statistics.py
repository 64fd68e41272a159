"""One pass through an array of a user: what it holds, and which of its rows cannot be used."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sibcl_ray.problems.tabulated.tables import BadData, Stored
from sibcl_ray.symmetry.orbits import NUMBERS, Orbits, repeated, twins

EXACT = {np.float32: 2**24, np.float64: 2**53}  # integers up to here have a number of their own


@dataclass(frozen=True)
class Rule:
    """What may not be in a row."""

    bad: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of raw rows and of these as converted a mask (rows,)
    says: str
    advice: str


def _flat(rows: np.ndarray) -> np.ndarray:
    return rows.reshape(len(rows), -1)


def _not_finite(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.asarray(~np.isfinite(_flat(raw)).all(1))


def _too_large(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    fits = np.abs(_flat(values)) <= np.finfo(np.float32).max
    return ~_not_finite(raw, values) & ~fits.all(1)


# Numbers that stand for none: of numpy's masked arrays and climate models, of netCDF, and the largest of float32.
MARKS = (1e20, 9.969209968386869e36, float(np.finfo(np.float32).max))


def _marks(raw: np.ndarray, values: np.ndarray) -> np.ndarray:
    size = np.abs(_flat(raw)) if raw.dtype.kind == "f" else np.zeros((len(raw), 0))
    if float(size.max(initial=0)) < MARKS[0] / 2:  # as in most blocks, which need not be searched
        return np.zeros(len(raw), bool)
    with np.errstate(over="ignore"):
        return np.asarray(np.isin(size, np.array(MARKS, raw.dtype)).any(1))


_AGAIN = "compute these rows again, or remove them"
FINITE = (
    Rule(_not_finite, "NaN or infinity", _AGAIN),
    Rule(_too_large, "numbers too large for float32", "store them in a larger unit"),
    Rule(_marks, "1e+20, 9.96921e+36 or the like, which mark missing values,", _AGAIN),
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


class Statistics:
    """What an array holds as it is converted, from one pass through it; BadData if it is damaged or breaks a rule.

    Args:
        stored: the array.
        convert: from raw rows to the numbers that will be used.
        rules: what no row may have, besides what is not finite.
        orbits: the declared symmetry, if rows are to be compared.

    Attributes:
        digest: of all numbers.
        hashes: 64 bits of each row: among ten million rows two agree by chance with a probability of 3e-6.
        forms: of each row, to find those that are equal under the symmetry; see `Orbits`.
        mean: of each entry over all rows, float64 (*shape).
        resolution: the relative distance of neighbouring numbers as they are stored.
        rounding: what float32 would make of the numbers.
    """

    def __init__(
        self,
        stored: Stored,
        convert: Callable[[np.ndarray], np.ndarray],
        rules: Sequence[Rule],
        orbits: Orbits | None = None,
    ) -> None:
        self.stored, self.likeness = stored, orbits.likeness if orbits else ""
        self.mean, self._squares, self.rounding = np.zeros(()), np.zeros(()), Rounding()
        digest, hashes, forms = hashlib.sha256(), [np.zeros(0, np.uint64)], [np.zeros((0, NUMBERS))]
        broken: dict[Rule, list[np.ndarray]] = {rule: [] for rule in (*FINITE, *rules)}
        for first, raw in stored.blocks():
            with np.errstate(all="ignore"):  # what becomes infinite is found below
                values = convert(raw)
            for rule, rows in broken.items():
                rows.append(first + np.flatnonzero(rule.bad(raw, values)))
            if any(len(rows[-1]) for rows in broken.values()):
                continue  # the pass goes on only to count
            digest.update(values.tobytes())
            self._add(first, values)
            self.rounding.add(values if values.dtype == np.float64 else raw)
            if orbits:
                digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in values)
                hashes.append(np.frombuffer(b"".join(digests), np.uint64))
                forms.append(orbits.forms(values))
        for rule, rows in broken.items():
            if len(found := np.concatenate(rows)):
                says = rule.says
                if rule is FINITE[0] and stored.missing:
                    says = f"missing values (by {', '.join(stored.missing)})"
                raise BadData(f"{stored.title} has {says} in {stored.some(found)}; {rule.advice}")
        self.digest = digest.hexdigest()[:16]
        self.hashes, self.forms = np.concatenate(hashes), np.concatenate(forms)
        self.resolution = float(np.finfo(raw.dtype).eps) if raw.dtype.kind == "f" else 0.0

    def _add(self, count: int, rows: np.ndarray) -> None:
        """Take the rows that follow ``count`` others into the moments (Chan et al., 1979)."""
        mean = rows.mean(0, dtype=np.float64)
        squares = np.square(rows - mean).sum(0)
        share = len(rows) / (count + len(rows))
        apart = mean - self.mean
        self._squares = self._squares + squares + apart**2 * count * share
        self.mean = self.mean + apart * share

    @property
    def deviation(self) -> np.ndarray:
        """Of each entry, (*shape)."""
        return np.sqrt(self._squares / self.stored.rows)

    def square_about(self, point: np.ndarray | float) -> np.ndarray:
        """The mean square distance of each entry from ``point``, (*shape)."""
        return self._squares / self.stored.rows + (self.mean - point) ** 2


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


# Rows that are equal, as they are or under the declared symmetry


def refuse_repeated(found: Statistics, why: str) -> None:
    """BadData where rows of an array are equal."""
    pairs = repeated(found.forms)
    if len(pairs):
        moved = pairs[found.hashes[pairs[:, 0]] != found.hashes[pairs[:, 1]]]
        named = found.stored.named(*(moved if len(moved) else pairs)[0])
        likeness = f" {found.likeness}" if len(moved) else ""
        raise BadData(
            f"{found.stored.title} has the same input more than once: {found.stored.some(pairs[:, 1])} repeat "
            f"another, and {named} are equal{likeness}; {why}"
        )


def refuse_shared(found: Statistics, other: Statistics, why: str) -> None:
    """BadData where rows of one array are among those of another."""
    twin = twins(found.forms, other.forms)
    if len(shared := np.flatnonzero(twin >= 0)):
        moved = shared[found.hashes[shared] != other.hashes[twin[shared]]]
        row = (moved if len(moved) else shared)[0]
        theirs, ours = other.stored.named(twin[row]), found.stored.named(row)
        equal = f"{theirs} is equal to {ours} {found.likeness}" if len(moved) else f"the first of them is {theirs}"
        raise BadData(
            f"{found.stored.title} shares {found.stored.some(shared)} with {other.stored.title.rstrip(',')}, where "
            f"{equal}; {why}"
        )
