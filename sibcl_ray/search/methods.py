"""The methods that a study compares, as rows of a table, and the space in which each is tuned.

Loh et al. (2022) span pretraining by two choices, contrastive pairs and surrogate labels; a method is
invariance-boosted ("-I") where the symmetries, and equivariances with their action on labels, also augment
whatever labels are fitted, and predictions are averaged over views. In delta-learning (Ramakrishnan et al.,
J. Chem. Theory Comput. 11, 2087 (2015)) the network adds a correction to a cheap solver's answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from types import UnionType
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution

from sibcl_ray.learning.networks import Architecture
from sibcl_ray.learning.training import Finetuning, Pretraining
from sibcl_ray.storage.fingerprint import fingerprint

Dimension = CategoricalDistribution | FloatDistribution


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method learns from besides the target labels."""

    name: str
    contrastive: bool = False  # pairs of views of unlabelled and surrogate inputs
    surrogate: bool = False  # labels of surrogate inputs
    invariant: bool = False  # symmetries augment the inputs whose labels are fitted; predictions average views
    delta: bool = False  # what is fitted is the difference of target labels from a cheap estimate of them

    @property
    def needs(self) -> dict[str, bool]:
        """What of a problem it uses, as `Problem.missing_requirement` asks."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "name"}

    @property
    def pretrains(self) -> bool:
        """Whether anything is learned before the target labels."""
        return self.contrastive or self.surrogate


METHODS = {
    method.name: method
    for method in (
        Method(name="SL"),
        Method(name="SL-I", invariant=True),
        Method(name="TL", surrogate=True),
        Method(name="TL-I", surrogate=True, invariant=True),
        Method(name="SSL", contrastive=True),
        Method(name="SSL-I", contrastive=True, invariant=True),
        Method(name="SIB-CL", contrastive=True, surrogate=True, invariant=True),
        # The paper's own: invariances enter by contrastive pairs alone, not where labels are fitted.
        Method(name="SIB-CL-plain", contrastive=True, surrogate=True),
        # Where a cheap solver can be asked about a target input, there is no need to learn what it knows.
        Method(name="SL-I-delta", invariant=True, delta=True),
        Method(name="SSL-I-delta", contrastive=True, invariant=True, delta=True),
    )
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """The choices of a search. The first value of each field is tried first; one value is no choice."""

    architectures: tuple[Architecture, ...]
    epochs: tuple[int, ...]  # of pretraining
    pretraining_rates: tuple[float, ...] = (1e-3,)
    temperatures: tuple[float, ...] = (0.1,)
    contrastive_batches: tuple[int, ...] = (768,)
    supervised_batches: tuple[int, ...] = (32,)
    view_probabilities: tuple[float, ...] = (0.5,)  # of each symmetry in a contrastive view
    label_probabilities: tuple[float, ...] = (0.5,)  # of each symmetry where labels are fitted
    learning_rates: tuple[float, float] = (3e-4, 3e-3)  # of fine-tuning: searched log-uniformly between
    weight_decays: tuple[float, ...] = (0.01,)
    steps: tuple[int, ...] = (1000,)  # of fine-tuning
    batch: int = 32  # of fine-tuning
    views: int = 8  # that an invariant method's prediction averages

    def __post_init__(self) -> None:
        for name, values in vars(self).items():
            if isinstance(values, tuple) and not values:
                raise ValueError(f"{name} of the search space is empty; give at least one value")
        low, high = self.learning_rates
        if not 0 < low <= high < math.inf:
            raise ValueError(f"learning_rates are {low} to {high}; give a positive range, the smaller first")
        first = self.architectures[0]
        pretraining = Pretraining(architecture=first, contrastive=True, surrogate_labels=True)
        finetuning = Finetuning(architecture=first, batch=self.batch, views=self.views)
        for configuration in (pretraining, finetuning):  # they check themselves
            for name, p in PARAMETERS.items():
                for value in getattr(self, name) if isinstance(configuration, p.of) else ():
                    sets: dict[str, Any] = {p.field: (("symmetry", value),) if p.each else value}
                    replace(configuration, **sets)


def _label(value: Any) -> Any:
    """Identifies a value independently of its place in the space, which may change."""
    if isinstance(value, int | float):
        return value
    return f"{value.encoder.label} {fingerprint(value, value.encoder.version)[:6]}"


@dataclass(frozen=True)
class Parameter:
    """What a trial chooses from a field of the space."""

    name: str  # in a trial
    of: type | UnionType  # the configurations that it is set in
    field: str  # of these
    only: str = ""  # the attribute of the methods that choose it; empty: all with such a configuration
    each: str = ""  # the attribute of `Tuning` with the symmetries that each have one, called NAME_SYMMETRY
    is_range: bool = False  # whether it may lie anywhere between the two values

    def is_chosen(self, method: Method) -> bool:
        return (not self.only or getattr(method, self.only)) and (method.pretrains or issubclass(Finetuning, self.of))

    def dimension(self, values: tuple[Any, ...]) -> Dimension:
        """These values as Optuna knows them."""
        if self.is_range:
            return FloatDistribution(values[0], values[1], log=True)
        return CategoricalDistribution([_label(value) for value in values])


# By field of the space, in the order in which a trial chooses: what is proposed depends on it.
PARAMETERS = {
    "architectures": Parameter("architecture", Pretraining | Finetuning, "architecture"),
    "label_probabilities": Parameter("augment", Finetuning, "augmentation", only="invariant", each="moving"),
    "view_probabilities": Parameter("view", Pretraining, "views", only="contrastive", each="symmetries"),
    "temperatures": Parameter("temperature", Pretraining, "temperature", only="contrastive"),
    "contrastive_batches": Parameter("contrastive_batch", Pretraining, "contrastive_batch", only="contrastive"),
    "supervised_batches": Parameter("supervised_batch", Pretraining, "supervised_batch"),
    "pretraining_rates": Parameter("pretraining_rate", Pretraining, "learning_rate"),
    "epochs": Parameter("epochs", Pretraining, "epochs"),
    "learning_rates": Parameter("learning_rate", Finetuning, "learning_rate", is_range=True),
    "weight_decays": Parameter("weight_decay", Finetuning, "weight_decay"),
    "steps": Parameter("steps", Finetuning, "steps"),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A complete configuration of a method."""

    pretraining: Pretraining | None
    finetuning: Finetuning

    def repeated(self, factor: float, seed: int) -> Choice:
        """The same choice for ``factor`` times as many labels as it was made with, with all randomness from ``seed``.

        More labels take longer to learn: fine-tuning grows by the root of the factor, for every method alike. The
        labels of the larger budget have no part in it.
        """
        pretraining = replace(self.pretraining, seed=seed) if self.pretraining else None
        steps = round(self.finetuning.steps * math.sqrt(factor))
        return Choice(pretraining=pretraining, finetuning=replace(self.finetuning, steps=steps, seed=seed))


@dataclass(frozen=True)
class Tuning:
    """What a search of a method may choose from a space, for a problem with symmetries of these names."""

    method: Method
    space: Space
    symmetries: tuple[str, ...]
    equivariances: tuple[str, ...] = ()

    @property
    def moving(self) -> tuple[str, ...]:
        """What moves the inputs whose labels are fitted."""
        return self.symmetries + self.equivariances

    def _parameters(self) -> Iterator[tuple[Parameter, tuple[Any, ...], dict[str, str]]]:
        """What a trial chooses: the parameter, the field's values, and the names in the trial with their symmetries."""
        for field, p in PARAMETERS.items():
            if p.is_chosen(self.method):
                names = {f"{p.name}_{s}": s for s in getattr(self, p.each)} if p.each else {p.name: ""}
                yield p, getattr(self.space, field), names

    @cached_property
    def dimensions(self) -> dict[str, Dimension]:
        """What may be chosen, by parameter: also where there is no choice, as there may be one later."""
        return {name: p.dimension(values) for p, values, names in self._parameters() for name in names}

    @property
    def start(self) -> dict[str, Any]:
        """What is tried first when nothing is known: the first of each choice, and the middle of each range."""
        return {
            name: math.sqrt(d.low * d.high) if isinstance(d, FloatDistribution) else d.choices[0]
            for name, d in self.dimensions.items()
        }

    def offers(self, chosen: Mapping[str, Any]) -> bool:
        """Whether these parameters could be chosen."""
        return chosen.keys() == self.dimensions.keys() and all(
            chosen[name] in d.choices if isinstance(d, CategoricalDistribution) else d.low <= chosen[name] <= d.high
            for name, d in self.dimensions.items()
        )

    def choice(self, chosen: Mapping[str, Any]) -> Choice:
        """The configuration that a trial's parameters stand for."""
        method, sets = self.method, {Pretraining: dict[str, Any](), Finetuning: dict[str, Any]()}
        for p, values, names in self._parameters():
            by_label = {_label(value): value for value in values}
            picked = {s: chosen[name] if p.is_range else by_label[chosen[name]] for name, s in names.items()}
            for kind in sets:
                if issubclass(kind, p.of):
                    sets[kind][p.field] = tuple(picked.items()) if p.each else picked[""]
        pretraining = None
        if method.pretrains:
            # Not the probabilities of fine-tuning: every change of these would be another pretraining.
            first = tuple((s, self.space.label_probabilities[0]) for s in self.moving)
            pretraining = Pretraining(
                contrastive=method.contrastive,
                surrogate_labels=method.surrogate,
                augmentation=first * (method.invariant and method.surrogate),
                **sets[Pretraining],
            )
        views = self.space.views * method.invariant
        finetuning = Finetuning(batch=self.space.batch, views=views, delta=method.delta, **sets[Finetuning])
        return Choice(pretraining=pretraining, finetuning=finetuning)

    @property
    def constants(self) -> tuple[Any, ...]:
        """What of the space decides a trial's value besides its parameters."""
        method, space = self.method, self.space
        augments = method.invariant and method.surrogate
        return space.batch, space.views * method.invariant, space.label_probabilities[0] * augments

    @property
    def pretrainings(self) -> int:
        """How many pretrainings, but for their seeds, trials can choose from."""
        kinds = (len(values) ** len(names) for p, values, names in self._parameters() if issubclass(Pretraining, p.of))
        return math.prod(kinds) if self.method.pretrains else 0
