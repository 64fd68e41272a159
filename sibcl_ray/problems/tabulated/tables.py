"""Arrays in files, a block of rows at a time, so that a file need not fit in memory.

Only numbers are read. All faults of a file raise one kind of error, with one line that says what is wrong.
"""

import errno
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np

from sibcl_ray.messages import nearest, one_line
from sibcl_ray.problems.problem import BadProblem

BLOCK = 4 * 2**20  # bytes of a block, about
LARGEST_ROW = 2**24  # values; what is larger is no image but a mistake, and would not fit in a block
NAMED = 5  # rows that a message names


class BadData(BadProblem):
    """Arrays that cannot be used, or what is said of them."""


@dataclass(frozen=True, eq=False)
class Stored:
    """An array in a file. Its first axis are rows; ``shape`` is that of one row."""

    title: str  # the file and the array's name, for messages
    rows: int
    shape: tuple[int, ...]
    read: Callable[[], Iterator[np.ndarray]]  # blocks of consecutive rows, (some, *shape)
    numbers: np.ndarray | None = None  # of the rows, where the file has given them some
    # Whose order of axes it has: "" where it is not known, else "numpy" or a name that stands for the reversed one.
    writer: str = "numpy"
    # Filled while it is read: what the file says of values that are missing, which are NaN in the blocks.
    missing: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows or 0 in self.shape:
            raise BadData(f"{self.title} is empty, of shape {self.whole_shape}; there is nothing to learn from it")
        if math.prod(self.shape) > LARGEST_ROW:
            raise BadData(f"{self.title} has rows of shape {self.shape}; no network here takes so many values")

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """With the rows."""
        return (self.rows, *self.shape)

    def named(self, *rows: int) -> str:
        """Rows by their numbers, or by those that the file gives them."""
        kind, numbers = ("row", rows) if self.numbers is None else ("number", self.numbers[list(rows)])
        return f"{kind}{'s' * (len(rows) > 1)} {' and '.join(f'{number:,}' for number in numbers)}"

    def some(self, rows: np.ndarray) -> str:
        """The first of some rows, and how many there are."""
        how, numbers = "rows (counted from 0", rows
        if self.numbers is not None:
            how, numbers = "datasets (numbers", self.numbers[rows]
        listed = ", ".join(f"{number:,}" for number in numbers[:NAMED]) + (", …" if len(rows) > NAMED else "")
        return f"{len(rows):,} of {self.rows:,} {how}: {listed})"

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Blocks of rows, each with the number of its first row; BadData where the file ends too soon."""
        first = 0
        with readable(self.title):
            for block in self.read():
                yield first, block
                first += len(block)
        if first != self.rows:
            raise BadData(f"{self.title} has {first:,} rows where {self.rows:,} were expected; write the file again")

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows of these numbers, in their order, from one pass through the file."""
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        taken = None
        for first, block in self.blocks():
            low, high = np.searchsorted(ascending, (first, first + len(block)))
            taken = np.empty((len(rows), *self.shape), block.dtype) if taken is None else taken
            taken[order[low:high]] = block[ascending[low:high] - first]
            if high == len(rows):
                return taken
        raise BadData(f"{self.title} has {self.rows:,} rows, and row {ascending[-1]:,} was asked for")


_LOCKED = "is open for writing elsewhere; wait until that program has closed it, or copy it and name the copy"
_UNLOCKABLE = "lies where files cannot be locked; set HDF5_USE_FILE_LOCKING=FALSE, or copy it to a local disk"
_NO_MEMORY = "needs more memory than there is; is it whole? if so, store it in smaller chunks or row groups"
_CODEC = "is compressed in a way that is not read here; write it with zstd, gzip or snappy"
# What a system's error means, by its number and by a word of its text; all others may be damage.
_CAUSES: tuple[tuple[tuple[int, ...], str, str], ...] = (
    ((errno.EACCES, errno.EPERM), "", "may not be read by you; change its permissions, or those of its folder"),
    ((errno.EAGAIN, errno.EDEADLK), "lock", f"{_LOCKED} (HDF5_USE_FILE_LOCKING=FALSE reads it all the same)"),
    ((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP), "lock", _UNLOCKABLE),
    ((), "already open for write", f"{_LOCKED}; if that program has died, h5clear -s mends the file"),
    ((errno.EISDIR,), "", "is a folder; give the name of a file"),
    ((errno.ENOENT,), "", "is no longer there; start again once it is"),
    (
        (errno.EIO, errno.ESTALE, errno.ETIMEDOUT),
        "",
        "lies on a disk or server that fails; copy it elsewhere, or try again",
    ),
    ((errno.EMFILE, errno.ENFILE), "", "is one open file too many; raise the limit, ulimit -n"),
    ((errno.ENOMEM,), "", _NO_MEMORY),
    ((), "encrypted", "is encrypted; store it without"),
    ((), "codec", _CODEC),
    ((), "compression method is not supported", "is compressed in a way that is not read here; write it by np.savez"),
)


def _cause(error: Exception, reason: str) -> str:
    """What is the matter with a file whose reading raised an error; empty where it may be damage."""
    told = re.search(r"\berrno = (\d+)", reason)  # HDF5's own words, where h5py gives no number
    memory = errno.ENOMEM if isinstance(error, MemoryError) else None
    number = getattr(error, "errno", None) or (int(told[1]) if told else memory)
    told_of = (what for numbers, word, what in _CAUSES if (number in numbers or not numbers) and word in reason.lower())
    return next(told_of, "")


@contextmanager
def readable(title: str) -> Iterator[None]:
    """Turns the errors of an unreadable file, which can be of any kind, into BadData."""
    try:
        yield
    except BadData:
        raise
    except Exception as error:
        reason = one_line(error, 200) or type(error).__name__
        if cause := _cause(error, reason):
            raise BadData(f"{title.rstrip(',')} {cause} ({reason[:120]})") from error
        raise BadData(f"{title} cannot be read ({reason}); is the file whole? copy or write it again") from error


def find(folder: Path, file: str) -> Path:
    """The path of a file named in the description, which has to lie in ``folder`` itself or below it."""
    named = PureWindowsPath(file)  # which knows the separators of all systems
    if named.anchor or ".." in named.parts:
        raise BadData(f"the file {file!r} lies outside the folder; put it, or a link to it, inside, and give its name")
    with readable(repr(file)):
        path = folder / file
        if path.is_file():
            return path
        if path.exists():
            what = "no file but a folder" if path.is_dir() else "no file"
            raise BadData(f"{file!r} in {str(folder)!r} is {what}; give the name of one")
        if path.is_symlink():
            raise BadData(f"{file!r} is a link to {str(path.readlink())!r}, where nothing is; mend the link")
        known = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    raise BadData(f"{file!r} is not in {str(folder)!r}; {nearest(path.name, known)}")


COMPLEX = "complex numbers; store real and imaginary parts as two channels, or what is measured"
_NOT_NUMBERS = {
    "c": COMPLEX,
    "O": "Python objects, which are never unpickled; store numbers, as np.asarray(values, dtype=float)",
    "V": "records; store each of their fields as an array of its own",
    "M": "dates; store numbers",
    "m": "time spans; store numbers",
}
_UNTYPED = {1: "float8 or int4", 2: "bfloat16"}  # by bytes, what loses its name where a file's format has none for it


def require_numbers(title: str, dtype: np.dtype) -> None:
    """BadData where values are no real numbers."""
    if dtype.kind == "V" and dtype.names is None:
        lost = _UNTYPED.get(dtype.itemsize)
        like = f", which is what {lost} becomes there; store it as float32" if lost else "; store numbers"
        raise BadData(f"{title} holds {dtype.itemsize}-byte values without a type{like}")
    if dtype.kind not in "biuf":
        what = _NOT_NUMBERS.get(dtype.kind, "text; store numbers")
        raise BadData(f"{title} holds {what}")


def rows_at_once(row_bytes: float) -> int:
    """Rows of a block."""
    return int(min(max(1, BLOCK // max(1, row_bytes)), 2**20))


def axes(title: str, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """The number of rows and the shape of a row."""
    if not shape:
        raise BadData(f"{title} is a single number; its first axis must be rows")
    return shape[0], shape[1:]
