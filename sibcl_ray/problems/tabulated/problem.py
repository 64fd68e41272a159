"""The problem that a folder of arrays is, and where its rows are read from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from sibcl_ray.problems.problem import FRACTION, Problem, Sample
from sibcl_ray.problems.tabulated.arrangement import arranged, as_float32
from sibcl_ray.problems.tabulated.declaration import FILE, LOSSES, METRICS, NO_UNITS, RELATIVE, Declaration
from sibcl_ray.problems.tabulated.files import open_part
from sibcl_ray.problems.tabulated.labels import over_scale
from sibcl_ray.problems.tabulated.tables import BadData, find, readable
from sibcl_ray.randomness import named_seed
from sibcl_ray.symmetry import Group


@dataclass(frozen=True)
class Content:
    """The arrays of a role, named by what they hold."""

    role: str
    rows: int
    inputs: str  # digest of all inputs as float32
    labels: str | None  # of all labels over their scale, as float64


@dataclass(frozen=True)
class Source:
    """Where the arrays lie, and the size and time of change of their files when they were checked."""

    folder: Path
    declared: Declaration
    files: Mapping[str, tuple[int, int]]

    def take(self, role: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Inputs (count, *grid), float32, and labels (count, numbers) over their scale, float64, of these rows.

        BadData where the files are not there, or are not those that were checked.
        """
        for file, stamp in self.files.items():
            if stamp_of(self.folder, file) != stamp:
                raise BadData(f"{file!r} has changed since it was checked; start again with what is there now")
        inputs, labels = open_part(self.folder, self.declared.parts[role])
        given = None if labels is None else over_scale(labels.take(rows), self.declared.label.scale)
        return as_float32(arranged(self.declared.input, inputs).take(rows)), given


def stamp_of(folder: Path, file: str) -> tuple[int, int]:
    """Size and time of change of a file in the folder."""
    path = find(folder, file)
    with readable(repr(file)):
        about = path.stat()
    return about.st_size, about.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class Tabulated(Problem):
    """Inputs (*grid) and labels (*outputs) from arrays. Made by `load`.

    Networks learn (label − offset) / scale: stored labels, the offset and predictions are in units of
    ``scale``. Errors are in the label's own unit.
    """

    name: str  # type: ignore[misc]  # a class's elsewhere, a folder's here
    contents: tuple[Content, ...]
    drawn: int  # rows of the target set apart for the test; 0 where the test has its own
    grid: tuple[int, ...]  # the length of each axis, or (channels, *lengths)
    outputs: tuple[int, ...]
    groups: tuple[tuple[str, Group], ...]
    centre: tuple[float, ...]  # of each channel, or number of a vector: features are (input − centre) / width
    width: tuple[float, ...]
    metric: str
    loss: str
    cheap_loss: str  # of surrogate labels
    scale: float  # of labels, in their unit
    known: tuple[float, ...] = field(repr=False)  # the offset over the scale, entry by entry
    precision: str = "float32"  # the type of labels and of the offset; float64 where float32 would lose digits
    input_units: str  # type: ignore[misc]
    label_units: str  # type: ignore[misc]
    # Of each axis but that of channels. It decides no label: what trains with it names it.
    periodic: tuple[bool, ...] = field(default=(True, True), repr=False, metadata={"names": False})  # type: ignore[misc]
    source: InitVar[Source | None] = None  # no field, for where the data lie must not name them

    version = 1

    def __post_init__(self, source: Source | None) -> None:
        object.__setattr__(self, "_source", source)

    @property
    def folder(self) -> Path | None:
        """Where the data lie; None where that has been forgotten, as on workers."""
        source: Source | None = self._source  # type: ignore[attr-defined]
        return source.folder if source else None

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.grid

    @property
    def label_shape(self) -> tuple[int, ...]:
        return self.outputs

    @property
    def symmetries(self) -> Mapping[str, Group]:
        return dict(self.groups)

    @property
    def offset(self) -> np.ndarray:
        return np.array(self.known, self.precision).reshape(self.outputs)

    def features(self, inputs: Tensor) -> Tensor:
        lengths = self.grid[-len(self.periodic) :]
        each = (1, -1) if self.grid == (len(self.centre),) else (-1, *[1] * len(lengths))
        centre, width = (inputs.new_tensor(values).view(each) for values in (self.centre, self.width))
        return (inputs.view(len(inputs), -1, *lengths) - centre) / width

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return LOSSES[self.loss](prediction, label)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return LOSSES[self.cheap_loss](prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return METRICS[self.metric](prediction.flatten(1) * self.scale, label.flatten(1) * self.scale)

    @property
    def error_units(self) -> str:  # type: ignore[override]  # a class's elsewhere
        """The label's own unit; the metric's name where none was given."""
        if self.metric in RELATIVE:
            return FRACTION
        units = self.label_units.removesuffix(divided(self.scale))
        return self.metric.replace("_", " ") if units == NO_UNITS else units

    @property
    def available(self) -> dict[str, int]:
        """Samples there are of each role, "target", "test", "surrogate" and "unlabelled"; 0 where none were given."""
        rows = {"surrogate": 0, "unlabelled": 0, "test": self.drawn} | self._rows
        return rows | {"target": rows["target"] - self.drawn}

    def missing_requirement(self, *, contrastive: bool, surrogate: bool, invariant: bool, delta: bool) -> str:
        labelled, unlabelled = self.available["surrogate"], self.available["unlabelled"]
        needs = (
            (surrogate and not labelled, f"surrogate labels; give [surrogate] in {FILE}"),
            (
                contrastive and not labelled + unlabelled,
                f"inputs without labels; give [unlabelled] or [surrogate] in {FILE}",
            ),
            ((contrastive or invariant) and not self.groups, f"a symmetry; give [symmetry] in {FILE}"),
            (delta, "a cheap solver for any input; arrays have none"),
        )
        return next((what for lacking, what in needs if lacking), "")

    def shards(
        self, role: str, seed: int, indices: Sequence[int], size: int
    ) -> Iterator[tuple[int, Sample, np.ndarray | None]]:
        """Parts of a role's samples, all from one pass through its arrays; they must fit in memory together.

        Part i has those from ``size * i``; the last may have fewer. Their order depends on the seed and the data alone.

        Returns:
            For each part its number, its inputs, with their row numbers in the user's file as the parameter
            ``row``, and its labels (count, *label_shape), or None for unlabelled inputs.

        Raises:
            BadData: there are not so many rows, or the files are not there or not those that were checked.
        """
        order = self._order(role, seed)
        parts = [order[size * index : size * (index + 1)] for index in indices]
        if empty := [index for index, part in zip(indices, parts, strict=True) if not len(part)]:
            raise BadData(
                f"{self.name} has {self.available[role]:,} {role} samples, and those from {size * empty[0]:,} were "
                "asked for; ask for fewer"
            )
        if not parts:
            return
        source: Source | None = self._source  # type: ignore[attr-defined]
        if source is None:
            raise BadData(f"it is not known where the arrays of {self.name} lie; load their folder")
        stored = "target" if role == "test" and self.drawn else role
        inputs, labels = source.take(stored, np.concatenate(parts))
        if labels is not None:
            labels = labels.astype(self.precision).reshape(-1, *self.outputs)
        first = 0
        for index, rows in zip(indices, parts, strict=True):
            here = slice(first, first := first + len(rows))
            yield index, Sample(inputs[here], {"row": rows}), None if labels is None else labels[here]

    @property
    def _rows(self) -> dict[str, int]:
        return {content.role: content.rows for content in self.contents}

    def _order(self, role: str, seed: int) -> np.ndarray:
        """The row numbers of a role, in their order. A drawn test comes first, so that no budget moves it."""
        if role == "test" and self.drawn:
            return _shuffled(seed, "target", self._rows["target"])[: self.drawn]
        return _shuffled(seed, role, self._rows.get(role, 0))[self.drawn if role == "target" else 0 :]

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        raise BadData(f"{self.name} has the inputs of its arrays and can draw no others")

    sample_surrogate = sample

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        raise BadData(f"{self.name} has the labels of its arrays and no solver")


def divided(scale: float) -> str:
    return f", divided by {scale:g}" if scale != 1 else ""


@lru_cache(maxsize=8)
def _shuffled(seed: int, role: str, rows: int) -> np.ndarray:
    return np.random.default_rng(named_seed(seed, "rows", role)).permutation(rows)
