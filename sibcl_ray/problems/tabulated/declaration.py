"""What ``problem.toml`` says of a folder of arrays: their names, units, losses, metric and symmetries."""

import reprlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from torch import Tensor

from sibcl_ray.messages import nearest
from sibcl_ray.problems import losses
from sibcl_ray.problems.tabulated.tables import BadData, find, readable
from sibcl_ray.symmetry import Group, PointGroup, Scaling, Translations

FILE = "problem.toml"
LARGEST_FILE = 2**20  # bytes; what is larger is not a description


# What can be declared


@dataclass(frozen=True)
class Metric:
    """An error of each sample, (batch,), of predictions and labels (batch, numbers), and the labels it cannot judge."""

    error: Callable[[Tensor, Tensor], Tensor]
    undefined: Callable[[Tensor], Tensor]  # of labels (batch, numbers) a mask (batch,)
    relative: bool  # a fraction, for any unit of the label


def _never(label: Tensor) -> Tensor:
    return torch.zeros(len(label), dtype=torch.bool)


METRICS = {
    "relative": Metric(lambda p, t: (p - t).abs().sum(1) / t.abs().sum(1), lambda t: t.abs().sum(1) == 0, True),
    "mean_relative": Metric(lambda p, t: ((p - t) / t).abs().mean(1), lambda t: (t == 0).any(1), True),
    "absolute": Metric(lambda p, t: (p - t).abs().mean(1), _never, False),
    "root_mean_square": Metric(lambda p, t: (p - t).square().mean(1).sqrt(), _never, False),
}

LOSSES = {loss.__name__: loss for loss in (losses.absolute, losses.squared, losses.log_absolute)}


SURROGATE_MEAN = "surrogate mean"
NO_UNITS = "not given"


@dataclass(frozen=True)
class EachChannel(Group):
    """A group of grids that acts alike on every channel of ``x``, (batch, channels, n, n)."""

    group: Group

    @property
    def shifted_axes(self) -> int:
        return self.group.shifted_axes

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.group.draw(x[:, 0], generator)

    def identity(self, x: Tensor) -> Tensor:
        return self.group.identity(x[:, 0])

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return self.group.compose(g, h)

    def inverse(self, g: Tensor) -> Tensor:
        return self.group.inverse(g)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return self.group.act(g.repeat_interleave(x.shape[1], 0), x.flatten(0, 1)).view(x.shape)


@dataclass(frozen=True)
class Symmetry:
    """A transformation that can be declared to leave labels unchanged, and what it asks of inputs."""

    said: Any  # the type of what is said of it; falsy where it is not a symmetry
    expected: str
    group: Callable[[int, Any], Group]  # of the side in pixels and of what was said
    square: bool = False  # acts on as many pixels along both axes
    periodic: bool = False  # acts on inputs without a boundary


def _ascending(interval: tuple[float, float] | Literal[False]) -> tuple[float, float] | Literal[False]:
    if interval and not interval[0] < interval[1]:
        raise ValueError
    return interval


def _printable(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError
    return text


def _one_of(known: Mapping[str, Any] | tuple[str, ...], **default: Any) -> Any:
    return Field(pattern=f"^({'|'.join(known)})$", description=f"one of {', '.join(map(repr, known))}", **default)


Text = Annotated[str, AfterValidator(_printable)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Number = Annotated[float, Field(gt=-1e30, lt=1e30)]
Positive = Annotated[float, Field(ge=1e-30, lt=1e30)]
_LISTED = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else (value,))
_FLAG = "true or false"
_INTERVAL = Annotated[
    Literal[False] | tuple[Positive, Positive],
    AfterValidator(_ascending),
    BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value),
]

SYMMETRIES = {  # in the order in which they are applied
    "translation": Symmetry(bool, _FLAG, lambda side, _: Translations(side), square=True, periodic=True),
    "point_group": Symmetry(bool, _FLAG, lambda side, _: PointGroup(2), square=True),
    "scaling": Symmetry(
        _INTERVAL, "[smallest, largest] value of an input, both positive", lambda side, interval: Scaling(*interval)
    ),
}


# What was declared


class _Table(BaseModel):
    """A table: of each key its type and what it is if it is not given; ``description`` is what should have come."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _Head(_Table):
    name: str = Field(
        pattern="^[a-z0-9][a-z0-9_-]{0,59}$",
        description='a short name of small letters, digits and hyphens, such as "alloy-gap"',
    )


class Part(_Table):
    """Where inputs are stored."""

    file: Text = Field(description="text in quotes")
    inputs: Text = Field(description="text in quotes")


class Labelled(Part):
    """Where inputs and their labels are stored."""

    labels: Text = Field(description="text in quotes")


class _Target(Labelled):
    test: Count | None = Field(default=None, description="a whole number, 1 or more")


class Input(_Table):
    """What inputs are. Features are (input − offset) / scale; by mean and deviation where neither is given."""

    units: Text = Field(default=NO_UNITS, description="text in quotes")
    periodic: bool = Field(default=False, description=_FLAG)
    # of a row that is stored flat
    shape: Annotated[tuple[Count, ...], Field(min_length=1), _LISTED] | None = Field(
        default=None, description="a list of whole numbers, such as [32, 32]"
    )
    channels: str = _one_of(("none", "first", "last"), default="none")  # which axis is no direction in space
    # one number, or one a channel
    offset: Annotated[tuple[Number, ...], Field(min_length=1), _LISTED] | None = Field(
        default=None, description="a finite number, or a list of one for each channel"
    )
    scale: Annotated[tuple[Positive, ...], Field(min_length=1), _LISTED] | None = Field(
        default=None, description="a positive number, or a list of one for each channel"
    )


class Label(_Table):
    """What labels are, how they are fitted and judged. Networks learn (label − offset) / scale."""

    units: Text = Field(default=NO_UNITS, description="text in quotes")
    loss: str = _one_of(LOSSES, default="absolute")
    surrogate_loss: str | None = _one_of(LOSSES, default=None)  # the same loss where not given
    metric: str = _one_of(METRICS, default="relative")
    offset: Number | Literal["surrogate mean"] = Field(
        default=0.0, description=f"a finite number, or {SURROGATE_MEAN!r}"
    )
    scale: Positive = Field(default=1.0, description="a positive number, less than 1e30")


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A whole ``problem.toml``."""

    name: str
    parts: Mapping[str, Part]  # by role
    drawn: int  # rows of the target set apart for the test; 0 where the test has arrays of its own
    input: Input
    label: Label
    symmetry: Mapping[str, Any]  # what was said of each


_SYMMETRY_KEYS: Any = {name: (s.said, Field(default=None, description=s.expected)) for name, s in SYMMETRIES.items()}
_TABLES: dict[str, type[_Table]] = {
    "target": _Target,
    "test": Labelled,
    "surrogate": Labelled,
    "unlabelled": Part,
    "input": Input,
    "label": Label,
    "symmetry": create_model("Symmetries", __base__=_Table, **_SYMMETRY_KEYS),
}


def read(folder: Path) -> Declaration:
    """The description in a folder.

    Raises:
        BadData: there is none, or it is not TOML, has unknown keys or unfit values, or says too little.
    """
    with readable(repr(str(folder))):
        if not folder.is_dir():
            raise BadData(f"{str(folder)!r} is no folder; give one that holds {FILE} and the arrays it names")
    path = find(folder, FILE)
    with readable(FILE):
        if path.stat().st_size > LARGEST_FILE:
            raise BadData(
                f"{FILE} has {path.stat().st_size:,} bytes; it should be a few lines that describe the arrays"
            )
        content = path.read_bytes()
    return parse(content)


def parse(content: bytes) -> Declaration:
    """The description in the bytes of a file."""
    raw = _toml(content)
    name = _table(_Head, "", {key: raw[key] for key in ("name",) if key in raw}).name
    if unknown := [key for key in raw if key not in ("name", *_TABLES)]:
        raise BadData(f"{FILE}: {_shown(unknown[0])} is not known; {nearest(unknown[0], ('name', *_TABLES))}")
    said: dict[str, Any] = {table: _table(_TABLES[table], table, raw[table]) for table in _TABLES if table in raw}
    if "target" not in said:
        raise BadData(f"{FILE} has no [target]; say in it which file, inputs and labels are learned from")
    drawn, label = said["target"].test, said.get("label", Label())
    if (drawn is None) == ("test" not in said):
        came = "neither test in [target] nor" if drawn is None else "both test in [target] and"
        raise BadData(
            f"{FILE} has {came} a table [test]; give either test = 200 in [target], for as many of its rows, "
            "or arrays of their own in [test]"
        )
    if label.offset == SURROGATE_MEAN and "surrogate" not in said:
        raise BadData(f"{FILE}: the label's offset is {SURROGATE_MEAN!r}, but there is no [surrogate]; give a number")
    return Declaration(
        name=name,
        parts={role: said[role] for role in ("target", "test", "surrogate", "unlabelled") if role in said},
        drawn=drawn or 0,
        input=said.get("input", Input()),
        label=label,
        symmetry={name: value for name, value in said.get("symmetry", ()) if value},
    )


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


def _table(model: type[_Table], table: str, raw: Any) -> Any:
    """What a table says."""
    if not isinstance(raw, dict):
        raise BadData(f"{FILE}: {table} is {_shown(raw)}; make it a table, [{table}], with the keys below")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    key, keys = str(first["loc"][0]), model.model_fields
    if key not in keys:
        raise BadData(f"{FILE}: [{table}] has {_shown(key)}, which is not known; {nearest(key, keys)}")
    came = f"is {_shown(raw[key])}" if key in raw else "is missing"
    raise BadData(f"{FILE}: {key}{f' in [{table}]' if table else ''} {came}; give {keys[key].description}")


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write out numbers of thousands of digits
        return "a huge number"
