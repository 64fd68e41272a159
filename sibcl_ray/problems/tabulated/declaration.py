"""What ``problem.toml`` says of a folder of arrays: their names, units, losses, metric and symmetries."""

import reprlib
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import Tensor

from sibcl_ray.messages import nearest
from sibcl_ray.problems import losses
from sibcl_ray.problems.problem import LINE
from sibcl_ray.problems.tabulated.tables import BadData, find, readable
from sibcl_ray.symmetry import EachChannel, Group, PointGroup, Scaling, Translations

FILE = "problem.toml"
LARGEST_FILE = 2**20  # bytes; what is larger is not a description
SURROGATE_MEAN = "surrogate mean"
NO_UNITS = "not given"


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # of predictions and labels (batch, numbers): (batch,)
    "relative": lambda p, t: (p - t).abs().sum(1) / t.abs().sum(1),
    "mean_relative": lambda p, t: ((p - t) / t).abs().mean(1),
    "absolute": lambda p, t: (p - t).abs().mean(1),
    "root_mean_square": lambda p, t: (p - t).square().mean(1).sqrt(),
}
RELATIVE = ("relative", "mean_relative")  # metrics that are fractions, for any unit of the label

LOSSES = {loss.__name__: loss for loss in (losses.absolute, losses.squared, losses.log_absolute)}


# The tables: of each key its type, what it is if it is not given, and what should have come


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if not interval[0] < interval[1]:
        raise ValueError
    return interval


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError
    return text


def _one_of(known: Iterable[str]) -> Any:
    return Field(pattern=f"^({'|'.join(known)})$", description=f"one of {', '.join(map(repr, known))}")


_LISTED = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else (value,))
Text = Annotated[str, AfterValidator(_printable), Field(description="text in quotes")]
Flag = Annotated[bool, Field(description="true or false")]
Flags = Annotated[
    tuple[bool, ...], _LISTED, Field(min_length=1, description="true or false, or a list with one for each axis")
]
Count = Annotated[int, Field(gt=0, lt=2**31, description="a whole number, 1 or more")]
Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Positive = Annotated[float, Field(ge=1e-30, lt=1e30, description="a positive number, less than 1e30")]
Interval = Annotated[tuple[Positive, Positive], Field(strict=False), AfterValidator(_ascending)]  # of a list


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Part(_Table):
    """Where inputs are stored."""

    file: Text
    inputs: Text


class Labelled(Part):
    """Where inputs and their labels are stored."""

    labels: Text


class Target(Labelled):
    """Where what is learned from is stored."""

    test: Count = 0  # rows that are set apart for the test; 0 where it has arrays of its own


class Input(_Table):
    """What inputs are. Features are (input − offset) / scale; by mean and deviation where neither is given."""

    units: Text = NO_UNITS
    periodic: Flags = (False,)
    # of a row that is stored flat
    shape: Annotated[tuple[Count, ...], _LISTED] = Field(
        default=(), min_length=1, description="a list of whole numbers, such as [32, 32]"
    )
    channels: Annotated[str, _one_of(("none", "first", "last"))] = "none"  # which axis is no direction in space
    # one number, or one a channel, or one for each number of a vector
    offset: Annotated[tuple[Number, ...], _LISTED] = Field(
        default=(), min_length=1, description="a finite number, or a list of one for each channel or number of a vector"
    )
    scale: Annotated[tuple[Positive, ...], _LISTED] = Field(
        default=(),
        min_length=1,
        description="a positive number, or a list of one for each channel or number of a vector",
    )

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The axes of an input (*shape) that are directions in space: all but that of channels, which is the first."""
        return shape if self.channels == "none" else shape[1:]

    def periodic_axes(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Of each axis of the grid whether inputs repeat along it; BadData where as many answers do not fit it."""
        return _by_axis("periodic in [input]", self.periodic, self.grid(shape))


class Label(_Table):
    """What labels are, how they are fitted and judged. Networks learn (label − offset) / scale."""

    units: Text = NO_UNITS
    loss: Annotated[str, _one_of(LOSSES)] = "absolute"
    surrogate_loss: Annotated[str, _one_of(LOSSES)] = ""  # the same loss where not given
    metric: Annotated[str, _one_of(METRICS)] = "relative"
    offset: Number | Literal["surrogate mean"] = Field(
        default=0.0, description=f"a finite number, or {SURROGATE_MEAN!r}"
    )
    scale: Positive = 1.0


class Symmetry(_Table):
    """What leaves labels unchanged, in the order in which it is applied."""

    translation: Flags = (False,)
    point_group: Flag = False
    scaling: Literal[False] | Interval = Field(
        default=False, description="[smallest, largest] value of an input, both positive"
    )


class Declaration(_Table):
    """A whole ``problem.toml``."""

    name: str = Field(
        pattern="^[a-z0-9][a-z0-9_-]{0,59}$",
        description='a short name of small letters, digits and hyphens, such as "alloy-gap"',
    )
    target: Target
    test: Labelled | None = None
    surrogate: Labelled | None = None
    unlabelled: Part | None = None
    input: Input = Input()
    label: Label = Label()
    symmetry: Symmetry = Symmetry()

    @property
    def parts(self) -> dict[str, Part]:
        """Where arrays are, by role."""
        roles = ("target", "test", "surrogate", "unlabelled")
        return {role: part for role in roles if (part := getattr(self, role))}

    def standardised_parts(self, shape: tuple[int, ...]) -> int:
        """How many parts of an input (*shape) are standardised by themselves: channels, or all numbers of a vector."""
        if self.input.channels != "none":
            return shape[0]
        is_vector = len(shape) == 1 and shape[0] < LINE and not self.groups(shape) and not any(self.input.periodic)
        return shape[0] if is_vector else 1

    def groups(self, shape: tuple[int, ...]) -> dict[str, Group]:
        """The symmetries of inputs (*shape), in the order in which they are applied; BadData where it cannot be."""
        grid, periodic = self.input.grid(shape), self.input.periodic_axes(shape)
        moved = _by_axis("translation in [symmetry]", self.symmetry.translation, grid)
        if any(moves and not repeats for moves, repeats in zip(moved, periodic, strict=True)):
            without = f"give translation = [{_listed(periodic)}]" if any(periodic) else "leave it out"
            raise BadData(
                f"{FILE}: translation in [symmetry] needs inputs without a boundary along each axis that it moves; "
                f"give periodic = true in [input] if they repeat along all axes, and {without} if not"
            )
        groups: dict[str, Group] = {}
        if all(moved) and len(set(grid)) == 1:
            groups["translation"] = Translations(grid[0], len(grid))
        elif any(moved):
            lengths = tuple(n if moves else None for n, moves in zip(grid, moved, strict=True))
            groups["translation"] = Translations(lengths)
        if self.symmetry.point_group:
            kinds = list(zip(grid, periodic, moved, strict=True))  # axes of different kinds are not exchanged
            alike = tuple(kinds.index(kind) for kind in kinds)
            groups["point_group"] = PointGroup(alike if any(alike) else len(grid))
        if len(grid) < len(shape):
            groups = {name: EachChannel(group) for name, group in groups.items()}
        if self.symmetry.scaling:
            groups["scaling"] = Scaling(*self.symmetry.scaling)
        return groups


_TABLES: dict[str, type[_Table]] = {
    name: (get_args(field.annotation) or (field.annotation,))[0]  # of an optional one its type
    for name, field in Declaration.model_fields.items()
    if name != "name"
}


def _by_axis(key: str, said: tuple[bool, ...], grid: Sequence[int]) -> tuple[bool, ...]:
    """What is said once for all axes of a grid, or for each."""
    if len(said) not in (1, len(grid)):
        raise BadData(
            f"{FILE}: {key} has {len(said)} answers for inputs of {len(grid)} axes, besides channels; give one for "
            "each, or one for all"
        )
    return said if len(said) == len(grid) else said * len(grid)


def _listed(flags: Iterable[bool]) -> str:
    return ", ".join(str(flag).lower() for flag in flags)


def read(folder: Path) -> Declaration:
    """The description in a folder; BadData where it is not TOML, has unknown keys or unfit values, or too few."""
    with readable(repr(str(folder))):
        if not folder.is_dir():
            raise BadData(f"{str(folder)!r} is no folder; give one that holds {FILE} and the arrays it names")
    path = find(folder, FILE)
    with readable(FILE):
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise BadData(f"{FILE} has {size:,} bytes; it should be a few lines that describe the arrays")
        content = path.read_bytes()
    return parse(content)


def parse(content: bytes) -> Declaration:
    """The description in the bytes of a file."""
    raw = _toml(content)
    try:
        declared = Declaration.model_validate(raw)
    except ValidationError as error:
        raise BadData(f"{FILE}{_fault(raw, error)}") from None
    if bool(declared.target.test) == bool(declared.test):
        came = "neither test in [target] nor" if declared.test is None else "both test in [target] and"
        raise BadData(
            f"{FILE} has {came} a table [test]; give either test = 200 in [target], for as many of its rows, "
            "or arrays of their own in [test]"
        )
    if declared.label.offset == SURROGATE_MEAN and declared.surrogate is None:
        raise BadData(f"{FILE}: the label's offset is {SURROGATE_MEAN!r}, but there is no [surrogate]; give a number")
    return declared


def _toml(content: bytes) -> dict[str, Any]:
    if b"\0" in content[:4]:  # of each letter one byte of two is zero
        raise BadData(f"{FILE} is UTF-16, as PowerShell's > writes text; save it as UTF-8 (Out-File -Encoding utf8)")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # with the mark of Notepad's before it, or without
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadData(f"{FILE}, line {line}, is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        hint = "; write / for \\ in paths" if b"\\" in content else "; text needs quotes, tables [brackets]"
        raise BadData(f"{FILE} is not TOML: {str(error)[:300]}{hint}") from None
    except (ValueError, RecursionError):  # Python's own limits
        raise BadData(f"{FILE} has a number of thousands of digits, or endless brackets; mend it") from None


def _fault(raw: dict[str, Any], error: ValidationError) -> str:
    """The first fault: of the name, an unknown table, in a table; at last that there is no target."""
    found = [fault["loc"] for fault in error.errors(include_url=False, include_context=False, include_input=False)]
    first = min(found, key=lambda loc: 0 if loc[0] not in _TABLES else 1 if loc[0] in raw else 2)
    table, *keys = map(str, first)
    if table in _TABLES and table not in raw:
        return f" has no [{table}]; say in it which file, inputs and labels are learned from"
    if table in _TABLES and not keys:
        return f": {table} is {_shown(raw[table])}; make it a table, [{table}], with the keys below"
    model, said = (_TABLES[table], raw[table]) if keys else (Declaration, raw)
    key, where = (keys[0], f" in [{table}]") if keys else (table, "")
    known = model.model_fields
    if key not in known:
        what = f"[{table}] has {_shown(key)}, which" if keys else _shown(key)
        return f": {what} is not known; {nearest(key, known)}"
    came = f"is {_shown(said[key])}" if key in said else "is missing"
    return f": {key}{where} {came}; give {known[key].description}"


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write out numbers of thousands of digits
        return "a huge number"
