"""A problem of arrays instead of a solver: inputs and labels that have been computed or measured.

A folder holds npz, HDF5 or Parquet files and ``problem.toml``. `load` checks all of it once. What it returns
names the data by their content and not by where they lie, and can be pickled and used without the folder,
except to give out rows. What HDF5's attributes say of numbers is done: they are unpacked by ``scale_factor`` and
``add_offset``, and refused by row where they are a ``_FillValue`` or ``missing_value`` or outside ``valid_range``. The
first axis are rows: a file of MATLAB's, whose axes come in reverse, is refused where that is not certain. Labels are
kept in float64 where float32 would lose digits of their deviation.

Of ``problem.toml`` only the name and [target] have to be there. All that it can say::

    name = "alloy-gap"                # of the problem; its results are found by it

    [target]                          # inputs with the expensive label; their first axis are rows
    file = "target.h5"                # in this folder: npz, Parquet or HDF5, as .nc (netCDF 4) and .mat (v7.3) are
    inputs = "run/epsilon"            # the array: npz key, HDF5 path or Parquet column
                                      # "shapes/*/epsilon": HDF5 datasets shapes/1/epsilon, shapes/2/epsilon, …
    labels = "run/gap"                # a label for each row, of any shape
    test = 200                        # so many rows are drawn by the study's seed and set apart ...
    # [test]                          # ... or the test has arrays of its own: file, inputs, labels

    [surrogate]                       # inputs with a cheaper label, if there are any
    file = "cheap.npz"
    inputs = "epsilon"
    labels = "gap"

    [unlabelled]                      # inputs without a label, if there are any
    file = "more.parquet"
    inputs = "epsilon"

    [input]
    units = "relative permittivity"
    periodic = true                   # images repeat along both axes; false if not said
    shape = [32, 32]                  # of a row, where rows are stored flat, as in lists of Parquet
    channels = "none"                 # or "first", "last": which axis of a row is no direction in space
    offset = 1.0                      # networks see (input - offset) / scale; one number, or one a channel.
    scale = 19.0                      # If neither is said: mean and deviation of the unlabelled or target inputs

    [label]
    units = "2 pi c / a"              # of labels, and of errors whose metric is not relative
    loss = "absolute"                 # or "squared", "log_absolute": what fitting makes small
    surrogate_loss = "log_absolute"   # the same as loss if not said
    metric = "relative"               # sum |error| / sum |label|, or "mean_relative", "absolute", "root_mean_square"
    offset = "surrogate mean"         # networks learn (label - offset) / scale, which should be of order one;
    scale = 0.1                       # 0 and 1 if not said. The offset is taken off before anything is rounded

    [symmetry]                        # what leaves the label unchanged
    translation = true                # by whole pixels; of square, periodic inputs
    point_group = true                # rotations and reflections of the square
    scaling = [1.0, 20.0]             # times any factor that keeps inputs in this range
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from sibcl_ray.problems.problem import FRACTION, Problem, Sample
from sibcl_ray.problems.tabulated.declaration import FILE, LOSSES, METRICS, NO_UNITS
from sibcl_ray.problems.tabulated.tables import BadData
from sibcl_ray.problems.tabulated.validation import Content, Source, take_in
from sibcl_ray.randomness import named_seed
from sibcl_ray.symmetry import Group

__all__ = ["BadData", "Tabulated", "load"]


@dataclass(frozen=True, kw_only=True)
class Tabulated(Problem):
    """Inputs (*grid) and labels (*outputs) from arrays. Made by `load`.

    Networks learn (label − offset) / scale: stored labels, the offset and predictions are in units of
    ``scale``. Errors are in the label's own unit.
    """

    name: str  # type: ignore[misc]  # a class's elsewhere, a folder's here
    contents: tuple[Content, ...]
    drawn: int  # rows of the target set apart for the test; 0 where the test has its own
    grid: tuple[int, ...]  # (n, m) pixels, or (channels, n, m)
    outputs: tuple[int, ...]
    groups: tuple[tuple[str, Group], ...]
    centre: tuple[float, ...]  # of each channel: features are (input − centre) / width
    width: tuple[float, ...]
    metric: str
    loss: str
    cheap_loss: str  # of surrogate labels
    scale: float  # of labels, in their unit
    known: tuple[float, ...] = field(repr=False)  # the offset over the scale, entry by entry
    precision: str = "float32"  # the type of labels and of the offset; float64 where float32 would lose digits
    input_units: str  # type: ignore[misc]
    label_units: str  # type: ignore[misc]
    source: InitVar[Source | None] = None  # no field, for where the data lie must not name them

    version = 1

    def __post_init__(self, source: Source | None) -> None:
        object.__setattr__(self, "_source", source)

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
        centre, width = (inputs.new_tensor(values).view(-1, 1, 1) for values in (self.centre, self.width))
        return (inputs.view(len(inputs), -1, *self.grid[-2:]) - centre) / width

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return LOSSES[self.loss](prediction, label)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return LOSSES[self.cheap_loss](prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return METRICS[self.metric].error(prediction.flatten(1) * self.scale, label.flatten(1) * self.scale)

    @property
    def error_units(self) -> str:  # type: ignore[override]  # a class's elsewhere
        """The label's own unit; the metric's name where none was given."""
        if METRICS[self.metric].relative:
            return FRACTION
        units = self.label_units.removesuffix(_divided(self.scale))
        return self.metric.replace("_", " ") if units == NO_UNITS else units

    @property
    def available(self) -> dict[str, int]:
        """Samples there are of each role, "target", "test", "surrogate" and "unlabelled"; 0 where none were given."""
        rows = self._rows
        return {**dict.fromkeys(("surrogate", "unlabelled"), 0), "test": self.drawn, **rows} | {
            "target": rows["target"] - self.drawn
        }

    def missing_requirement(self, *, contrastive: bool, surrogate: bool, invariant: bool, delta: bool) -> str:
        have = self.available
        needs = (
            (surrogate and not have["surrogate"], "surrogate labels; give [surrogate]"),
            (
                contrastive and not have["surrogate"] + have["unlabelled"],
                "inputs without labels; give [unlabelled] or [surrogate]",
            ),
            ((contrastive or invariant) and not self.groups, "a symmetry; give [symmetry]"),
            (delta, "a cheap solver that can be asked about every input, which arrays are not"),
        )
        return next((f"{what} in {FILE}" for lacking, what in needs if lacking), "")

    def shards(
        self, role: str, seed: int, indices: Sequence[int], size: int
    ) -> Iterator[tuple[int, Sample, np.ndarray | None]]:
        """Parts of a role's samples, all from one pass through its arrays; they must fit in memory together.

        Args:
            role: a key of `available`.
            seed: of the study. The order of a role's rows depends on the seed and on the data alone.
            indices: the numbers of the wanted parts.
            size: samples of a part; part i has those from ``size * i``, the last may have fewer.

        Returns:
            For each part its number, its inputs, with their row numbers in the user's file as the parameter
            ``row``, and its labels (count, *label_shape), or None for unlabelled inputs.

        Raises:
            BadData: there are not so many rows, or the files are not there or not those that were checked.
        """
        order = self._order(role, seed)
        parts = [order[size * index : size * (index + 1)] for index in indices]
        if empty := [index for index, part in zip(indices, parts, strict=True) if not len(part)]:
            raise self._too_few(role, f"those from {size * empty[0]:,}")
        if not parts:
            return
        sample, labels = self._take(role, np.concatenate(parts))
        first = 0
        for index, rows in zip(indices, parts, strict=True):
            here = slice(first, first := first + len(rows))
            yield index, Sample(sample.inputs[here], {"row": rows}), None if labels is None else labels[here]

    def samples(self, role: str, seed: int, first: int, count: int) -> tuple[Sample, np.ndarray | None]:
        """A role's samples from number ``first`` on; arguments, results and errors are those of `shards`."""
        rows = self._order(role, seed)[first : first + count]
        if len(rows) < count:
            raise self._too_few(role, f"{count:,} from {first:,} on")
        return self._take(role, rows)

    def _take(self, role: str, rows: np.ndarray) -> tuple[Sample, np.ndarray | None]:
        source: Source | None = self._source  # type: ignore[attr-defined]
        if source is None:
            raise BadData(f"it is not known where the arrays of {self.name} lie; load their folder")
        inputs, labels = source.take("target" if role == "test" and self.drawn else role, rows)
        given = None if labels is None else labels.astype(self.precision).reshape(-1, *self.outputs)
        return Sample(inputs, {"row": rows}), given

    def _too_few(self, role: str, asked: str) -> BadData:
        return BadData(
            f"{self.name} has {self.available[role]:,} {role} samples, and {asked} were asked for; ask for fewer"
        )

    @property
    def _rows(self) -> dict[str, int]:
        return {content.role: content.rows for content in self.contents}

    def _order(self, role: str, seed: int) -> np.ndarray:
        """The row numbers of a role, in their order. A drawn test comes first, so that no budget moves it."""
        if not self.available[role]:
            return np.zeros(0, int)
        if role == "test" and self.drawn:
            return _shuffled(seed, "target", self._rows["target"])[: self.drawn]
        return _shuffled(seed, role, self._rows[role])[self.drawn if role == "target" else 0 :]

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        raise BadData(f"{self.name} has the inputs of its arrays and can draw no others")

    sample_surrogate = sample

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        raise BadData(f"{self.name} has the labels of its arrays and no solver")


def _divided(scale: float) -> str:
    return f", divided by {scale:g}" if scale != 1 else ""


@lru_cache(maxsize=8)
def _shuffled(seed: int, role: str, rows: int) -> np.ndarray:
    return np.random.default_rng(named_seed(seed, "rows", role)).permutation(rows)


def _to_stderr(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)


def load(folder: Path, note: Callable[[str], None] = _to_stderr) -> Tabulated:
    """The problem in a folder, once all of it is checked; ``note`` is told what can be used and may yet be wrong.

    Raises:
        BadData: anything in the folder is not as it should be; says in one line what, where and what to do.
    """
    taken = take_in(Path(folder), note)
    declared, label = taken.source.declared, taken.source.declared.label
    return Tabulated(
        name=declared.name,
        contents=taken.contents,
        drawn=declared.drawn,
        grid=taken.grid,
        outputs=taken.outputs,
        groups=taken.groups,
        centre=taken.centre,
        width=taken.width,
        metric=label.metric,
        loss=label.loss,
        cheap_loss=label.surrogate_loss or label.loss,
        scale=label.scale,
        known=taken.known,
        precision=taken.precision,
        input_units=declared.input.units,
        label_units=label.units + _divided(label.scale),
        source=taken.source,
    )
