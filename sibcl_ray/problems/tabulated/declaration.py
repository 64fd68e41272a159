"""What ``problem.toml`` says of a folder of arrays: their names, units, losses, metric and symmetries.

A key is a row of a table here: what it may be, and what it is if it is not given.
"""

from __future__ import annotations

import math
import re
import reprlib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.tabulated.tables import BadData, find, nearest, readable
from sibcl_ray.symmetry import Group, PointGroup, Scaling, Translations

FILE = "problem.toml"
LARGEST_FILE = 2**20  # bytes; what is larger is not a description


# What can be declared


@dataclass(frozen=True)
class Metric:
    """An error of each sample, (batch,), of predictions and labels (batch, numbers), and the labels it cannot judge."""

    error: Callable[[Tensor, Tensor], Tensor]
    undefined: Callable[[Tensor], Tensor]  # of labels (batch, numbers) a mask (batch,)


def _never(label: Tensor) -> Tensor:
    return torch.zeros(len(label), dtype=torch.bool)


METRICS = {
    "relative": Metric(lambda p, t: (p - t).abs().sum(1) / t.abs().sum(1), lambda t: t.abs().sum(1) == 0),
    "mean_relative": Metric(lambda p, t: ((p - t) / t).abs().mean(1), lambda t: (t == 0).any(1)),
    "absolute": Metric(lambda p, t: (p - t).abs().mean(1), _never),
    "root_mean_square": Metric(lambda p, t: (p - t).square().mean(1).sqrt(), _never),
}

LOSSES = {loss.__name__: loss for loss in (losses.absolute, losses.squared, losses.log_absolute)}


class _Unfit(Exception):
    """A value that a key cannot have; says what it can have."""


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Unfit("true or false")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _Unfit("text in quotes")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,59}", value):
        raise _Unfit('a short name of small letters, digits and hyphens, such as "alloy-gap"')
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise _Unfit("a whole number, 1 or more")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e30:
        raise _Unfit("a finite number")
    return float(value)


def _positive(value: Any) -> float:
    if (number := _number(value)) < 1e-30:
        raise _Unfit("a positive number")
    return number


def _several(kind: Callable[[Any], Any], expected: str) -> Callable[[Any], tuple]:
    def check(value: Any) -> tuple:
        values = value if isinstance(value, list) else [value]
        try:
            if values:
                return tuple(map(kind, values))
        except _Unfit:
            pass
        raise _Unfit(expected)

    return check


def _interval(value: Any) -> tuple[float, float] | None:
    if value is False:
        return None
    try:
        low, high = map(_positive, value)
    except (_Unfit, TypeError, ValueError):
        low = high = math.nan
    if not low < high:
        raise _Unfit("[smallest, largest] value of an input, both positive")
    return low, high


def _one_of(known: Mapping[str, Any] | tuple[str, ...]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in known:
            raise _Unfit(f"one of {', '.join(map(repr, known))}")
        return value

    return check


SURROGATE_MEAN = "surrogate mean"


def _offset(value: Any) -> float | str:
    try:
        return value if value == SURROGATE_MEAN else _number(value)
    except _Unfit:
        raise _Unfit(f"a finite number, or {SURROGATE_MEAN!r}") from None


@dataclass(frozen=True)
class EachChannel(Group):
    """A group of grids that acts alike on every channel of ``x``, (batch, channels, n, n)."""

    group: Group

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

    accept: Callable[[Any], Any]  # what is said of it; falsy where it is not a symmetry
    group: Callable[[int, Any], Group]  # of the side in pixels and of what was said
    square: bool = False  # acts on as many pixels along both axes
    periodic: bool = False  # acts on inputs without a boundary


SYMMETRIES = {  # in the order in which they are applied
    "translation": Symmetry(_flag, lambda side, _: Translations(side), square=True, periodic=True),
    "point_group": Symmetry(_flag, lambda side, _: PointGroup(2), square=True),
    "scaling": Symmetry(_interval, lambda side, interval: Scaling(*interval)),
}


# What was declared


@dataclass(frozen=True)
class Part:
    """Where inputs, and their labels if they have any, are stored."""

    file: str
    inputs: str
    labels: str | None = None


@dataclass(frozen=True, kw_only=True)
class Input:
    """What inputs are. Features are (input − offset) / scale; by mean and deviation where neither is given."""

    units: str
    periodic: bool
    shape: tuple[int, ...] | None  # of a row that is stored flat
    channels: str  # "none", "first" or "last": the axis of a row that is no direction in space
    offset: tuple[float, ...] | None  # one number, or one a channel
    scale: tuple[float, ...] | None


@dataclass(frozen=True, kw_only=True)
class Label:
    """What labels are, how they are fitted and judged. Networks learn (label − offset) / scale."""

    units: str
    loss: str
    surrogate_loss: str | None  # the same loss where not given
    metric: str
    offset: float | str
    scale: float


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A whole ``problem.toml``."""

    name: str
    parts: Mapping[str, Part]  # by role
    drawn: int  # rows of the target set apart for the test; 0 where the test has arrays of its own
    input: Input
    label: Label
    symmetry: Mapping[str, Any]  # what was said of each


@dataclass(frozen=True)
class _Key:
    """What a key may be, and its value if it is not given."""

    accept: Callable[[Any], Any]
    default: Any = None
    required: bool = False


_FILE = {"file": _Key(_text, required=True), "inputs": _Key(_text, required=True)}
_LABELLED = {**_FILE, "labels": _Key(_text, required=True)}

_TABLES: dict[str, dict[str, _Key]] = {
    "target": {**_LABELLED, "test": _Key(_count)},
    "test": _LABELLED,
    "surrogate": _LABELLED,
    "unlabelled": _FILE,
    "input": {
        "units": _Key(_text, "not given"),
        "periodic": _Key(_flag, False),
        "shape": _Key(_several(_count, "a list of whole numbers, such as [32, 32]")),
        "channels": _Key(_one_of(("none", "first", "last")), "none"),
        "offset": _Key(_several(_number, "a finite number, or a list of one for each channel")),
        "scale": _Key(_several(_positive, "a positive number, or a list of one for each channel")),
    },
    "label": {
        "units": _Key(_text, "not given"),
        "loss": _Key(_one_of(LOSSES), "absolute"),
        "surrogate_loss": _Key(_one_of(LOSSES)),
        "metric": _Key(_one_of(METRICS), "relative"),
        "offset": _Key(_offset, 0.0),
        "scale": _Key(_positive, 1.0),
    },
    "symmetry": {name: _Key(symmetry.accept) for name, symmetry in SYMMETRIES.items()},
}


def read(folder: Path) -> Declaration:
    """The description in a folder.

    Raises:
        BadData: there is none, or it is not TOML, has unknown keys or unfit values, or says too little.
    """
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
    name = _value("", "name", raw, _Key(_name, required=True))
    if unknown := [key for key in raw if key not in ("name", *_TABLES)]:
        raise BadData(f"{FILE}: {_shown(unknown[0])} is not known; {nearest(unknown[0], ('name', *_TABLES))}")
    said = {table: _table(table, raw[table]) for table in _TABLES if table in raw}
    if "target" not in said:
        raise BadData(f"{FILE} has no [target]; say in it which file, inputs and labels are learned from")
    drawn = said["target"].pop("test")
    if (drawn is None) == ("test" not in said):
        came = "neither test in [target] nor" if drawn is None else "both test in [target] and"
        raise BadData(
            f"{FILE} has {came} a table [test]; give either test = 200 in [target], for as many of its rows, "
            "or arrays of their own in [test]"
        )
    roles = ("target", "test", "surrogate", "unlabelled")
    label = Label(**said.get("label", _table("label", {})))
    if label.offset == SURROGATE_MEAN and "surrogate" not in said:
        raise BadData(f"{FILE}: the label's offset is {SURROGATE_MEAN!r}, but there is no [surrogate]; give a number")
    return Declaration(
        name=name,
        parts={role: Part(**said[role]) for role in roles if role in said},
        drawn=drawn or 0,
        input=Input(**said.get("input", _table("input", {}))),
        label=label,
        symmetry={name: value for name, value in said.get("symmetry", {}).items() if value},
    )


def _toml(content: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadData(f"{FILE}, line {line}, is not UTF-8 text; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        hint = "; write / for \\ in paths" if b"\\" in content else "; text needs quotes, tables [brackets]"
        raise BadData(f"{FILE} is not TOML: {str(error)[:300]}{hint}") from None
    except (ValueError, RecursionError):  # Python's own limits
        raise BadData(f"{FILE} has a number of thousands of digits, or endless brackets; mend it") from None


def _table(table: str, raw: Any) -> dict[str, Any]:
    """The values of a table, those that were not given too."""
    if not isinstance(raw, dict):
        raise BadData(f"{FILE}: {table} is {_shown(raw)}; make it a table, [{table}], with the keys below")
    keys = _TABLES[table]
    if unknown := [key for key in raw if key not in keys]:
        raise BadData(f"{FILE}: [{table}] has {_shown(unknown[0])}, which is not known; {nearest(unknown[0], keys)}")
    return {key: _value(f" in [{table}]", key, raw, row) for key, row in keys.items()}


def _value(where: str, key: str, raw: Mapping[str, Any], row: _Key) -> Any:
    if key not in raw and not row.required:
        return row.default
    try:
        return row.accept(raw.get(key))
    except _Unfit as unfit:
        came = f"{key}{where} is {_shown(raw[key])}" if key in raw else f"{key}{where} is missing"
        raise BadData(f"{FILE}: {came}; give {unfit}") from None


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not write out numbers of thousands of digits
        return "a huge number"
