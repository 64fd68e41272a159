"""The methods that a study compares, as rows of a table, and the space in which each is tuned.

Loh et al. (2022) span pretraining by two choices, contrastive pairs and surrogate labels; a method is
invariance-boosted ("-I") where the symmetries, and equivariances with their action on labels, also augment
whatever labels are fitted, and predictions are averaged over views. In delta-learning (Ramakrishnan et al.,
J. Chem. Theory Comput. 11, 2087 (2015)) the network adds a correction to a cheap solver's answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from sibcl_ray.learning.networks import Architecture
from sibcl_ray.learning.training import Finetuning, Pretraining, Probabilities
from sibcl_ray.storage.fingerprint import fingerprint

T = TypeVar("T")


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
        return {
            "contrastive": self.contrastive,
            "surrogate": self.surrogate,
            "invariant": self.invariant,
            "delta": self.delta,
        }

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
        for choice in self._corners():  # the configurations check themselves
            Pretraining(contrastive=True, surrogate_labels=True, **choice)

    def _corners(self) -> Iterable[dict[str, Any]]:
        """Every value of every field once."""
        start = {"architecture": self.architectures[0], "epochs": self.epochs[0]}
        for field, values in (
            ("epochs", self.epochs),
            ("learning_rate", self.pretraining_rates),
            ("temperature", self.temperatures),
            ("contrastive_batch", self.contrastive_batches),
            ("supervised_batch", self.supervised_batches),
            ("views", tuple((("symmetry", p),) for p in self.view_probabilities)),
            ("augmentation", tuple((("symmetry", p),) for p in self.label_probabilities)),
        ):
            yield from ({**start, field: value} for value in values)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A complete configuration of a method."""

    pretraining: Pretraining | None
    finetuning: Finetuning

    def scaled(self, factor: float) -> Choice:
        """The same choice for ``factor`` times as many labels as it was made with: they take longer to learn.

        Fine-tuning grows by the root of the factor, for every method alike. The labels of the larger budget
        have no part in it.
        """
        steps = round(self.finetuning.steps * math.sqrt(factor))
        return replace(self, finetuning=replace(self.finetuning, steps=steps))

    def seeded(self, seed: int) -> Choice:
        """The same choice with all randomness from ``seed``."""
        pretraining = replace(self.pretraining, seed=seed) if self.pretraining else None
        return Choice(pretraining=pretraining, finetuning=replace(self.finetuning, seed=seed))


def _choose(trial: optuna.trial.BaseTrial, name: str, values: tuple[T, ...]) -> T:
    # Also where there is no choice: a trial says all that it was, should there be a choice later.
    if isinstance(values[0], (int, float)):
        return trial.suggest_categorical(name, values)  # type: ignore[arg-type, return-value]
    by_label = {_label(value): value for value in values}
    return by_label[trial.suggest_categorical(name, tuple(by_label))]


def _label(value: Any) -> str:
    """Identifies a value independently of its place in the space, which may change."""
    return f"{value.encoder.label} {fingerprint(value, value.encoder.version)[:6]}"


def propose(
    trial: optuna.trial.BaseTrial,
    method: Method,
    space: Space,
    symmetries: Iterable[str],
    equivariances: Iterable[str] = (),
) -> Choice:
    """A configuration from the space, as an Optuna trial suggests it."""

    def probabilities(prefix: str, values: tuple[float, ...], names: Iterable[str]) -> Probabilities:
        return tuple((name, _choose(trial, f"{prefix}_{name}", values)) for name in names)

    moving = (*symmetries, *equivariances)

    architecture = _choose(trial, "architecture", space.architectures)
    augmentation = probabilities("augment", space.label_probabilities, moving) if method.invariant else ()
    pretraining = None
    if method.pretrains:
        contrast: dict[str, Any] = {}
        if method.contrastive:
            contrast = {
                "views": probabilities("view", space.view_probabilities, symmetries),
                "temperature": _choose(trial, "temperature", space.temperatures),
                "contrastive_batch": _choose(trial, "contrastive_batch", space.contrastive_batches),
            }
        pretraining = Pretraining(
            architecture=architecture,
            contrastive=method.contrastive,
            surrogate_labels=method.surrogate,
            # Not the probabilities of fine-tuning: every change of these would be another pretraining.
            augmentation=tuple((s, space.label_probabilities[0]) for s, _ in augmentation) * method.surrogate,
            supervised_batch=_choose(trial, "supervised_batch", space.supervised_batches),
            learning_rate=_choose(trial, "pretraining_rate", space.pretraining_rates),
            epochs=_choose(trial, "epochs", space.epochs),
            **contrast,
        )
    finetuning = Finetuning(
        architecture=architecture,
        augmentation=augmentation,
        learning_rate=trial.suggest_float("learning_rate", *space.learning_rates, log=True),
        weight_decay=_choose(trial, "weight_decay", space.weight_decays),
        batch=space.batch,
        views=space.views * method.invariant,
        delta=method.delta,
        steps=_choose(trial, "steps", space.steps),
    )
    return Choice(pretraining=pretraining, finetuning=finetuning)


class _First(optuna.trial.FixedTrial):
    """A trial that takes the first of each choice and the middle of each range, and remembers what it was offered."""

    def __init__(self) -> None:
        super().__init__({})
        self.taken: dict[str, Any] = {}
        self.offered: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.offered[name] = CategoricalDistribution(choices)
        return self.taken.setdefault(name, choices[0])

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        self.offered[name] = FloatDistribution(low, high, log=True)
        return self.taken.setdefault(name, math.sqrt(low * high))


def dimensions(
    method: Method, space: Space, symmetries: Iterable[str], equivariances: Iterable[str] = ()
) -> tuple[dict[str, BaseDistribution], dict[str, Any]]:
    """What a search of the method may choose, by parameter, and what it tries first when nothing is known."""
    trial = _First()
    propose(trial, method, space, symmetries, equivariances)
    return trial.offered, trial.taken


def constants(method: Method, space: Space) -> tuple[Any, ...]:
    """What of the space decides a trial's value besides its parameters."""
    augments = method.invariant and method.surrogate
    return (space.batch, space.views * method.invariant, space.label_probabilities[0] * augments)
