"""Recipes: functions that return a complete study, from seconds on a laptop to the sizes of the paper."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sibcl_ray.learning.networks import Architecture, Encoder, InvariantEncoder, PerceptronEncoder, ReferenceEncoder
from sibcl_ray.problems.problem import Problem, feature_shape, periodic_axes
from sibcl_ray.search.methods import METHODS, Space
from sibcl_ray.study.study import Study
from sibcl_ray.user_module.loading import find, from_file

# The methods of a recipe, if the problem has what they need.
COMPARED = tuple(METHODS[m] for m in ("SL", "SL-I", "TL-I", "SSL-I", "SIB-CL", "SL-I-delta", "SSL-I-delta"))

# By the dimensions of the grid, those of Loh et al. for two and three. `_fitting` makes them fit small grids.
REFERENCE = {
    1: ReferenceEncoder(),
    2: ReferenceEncoder(),
    3: ReferenceEncoder(channels=(64, 256, 256, 256), pools=(2, 2, 2, 2), head=256, latent=256),
}
# Small relatives: in 2D an early, larger pooling makes them three times faster.
QUICK = {
    1: ReferenceEncoder(channels=(16, 64, 128), kernel=5, pools=(4, 2, 4), head=256, latent=256),
    2: ReferenceEncoder(channels=(8, 64, 128), kernel=3, pools=(4, 2, 4), head=256, latent=256),
    3: ReferenceEncoder(channels=(8, 32, 64), kernel=3, stride=2, pools=(4, 2, 2), head=256, latent=256),
}

# For lattices of a few sites, where nothing can be pooled: the stacks of Schurov et al. (arXiv 2406.08318).
LATTICE = tuple(
    InvariantEncoder(channels=32, dilations=dilations, latent=64) for dilations in ((1, 2, 3), (1, 1, 1), (3, 2, 1))
)
SMALLEST = 8  # sites along an axis that can still be pooled
MORE = 1.2  # times the largest budget that arrays have the labels for: from there on all of them are a budget too


# What a study counts, by scale; see `Study`.
SIZES: dict[str, dict[str, int]] = {
    "smoke": dict(trials=2, folds=2, seeds=2, unlabelled=50, surrogate=50, test=50, pool=200),
    "quick": dict(trials=6, folds=2, seeds=3, unlabelled=400, surrogate=2000, test=500, pool=1600),
    "standard": dict(trials=12, folds=3, seeds=5, unlabelled=8000, surrogate=4000, test=1000, pool=6400),
    "paper": dict(trials=30, at_once=4, folds=5, seeds=3, unlabelled=20_000, surrogate=10_000, test=2000, pool=10_000),
}
SCALES: dict[str, Callable[..., Study]] = {}


def _dimensions(problem: Problem) -> int:
    return len(feature_shape(problem)) - 1


def _fitting(problem: Problem, architectures: tuple[Architecture, ...]) -> tuple[Architecture, ...]:
    """Those that take the problem's inputs and suit them: the same, or their relatives for small grids."""
    _, *grid = feature_shape(problem)
    shortest, first = min(grid), architectures[0]
    if shortest < SMALLEST:
        architectures = tuple(_small(encoder) for encoder in LATTICE[: len(architectures)])
    fitted = [replace(each, encoder=each.encoder.fitted(shortest)) for each in architectures]
    if any(periodic_axes(problem, len(grid))) or (len(grid) > 1 and shortest >= SMALLEST):
        return tuple(dict.fromkeys(fitted))
    latent = first.encoder.latent  # places matter: tried first is what sees each number by itself
    perceptron = replace(first, encoder=PerceptronEncoder(hidden=(latent, latent), latent=latent))
    return (perceptron,) if math.prod(grid) < SMALLEST else tuple(dict.fromkeys([perceptron, *fitted]))


def _small(encoder: Encoder) -> Architecture:
    width = encoder.latent
    return Architecture(encoder=encoder, predictor=(width, width), projector=(width,), projection=width // 2)


def _quick_steps(problem: Problem) -> int:
    """Fewer where a step takes longer: for labels of thousands of numbers, and in three dimensions."""
    numbers = math.prod(problem.input_shape) + math.prod(problem.label_shape)
    return 450 if numbers < 2_000 else 250 if numbers < 10_000 else 120


def _recipe(choices: Callable[[Problem], dict[str, Any]]) -> Callable[..., Study]:
    """A scale, by its name; the problem may be given by a name as well, as for ``--problem``."""
    scale = choices.__name__

    def recipe(problem: Problem | str, seed: int = 0) -> Study:
        problem = find(problem) if isinstance(problem, str) else from_file(problem)
        fields: dict[str, Any] = SIZES[scale] | choices(problem)
        if have := problem.available:  # as many samples as there are
            fields["pool"] = have["target"]
            fields |= {role: min(fields[role], have[role]) for role in ("test", "surrogate", "unlabelled")}
            every, largest = have["target"], max(fields["budgets"])
            within = tuple(budget for budget in fields["budgets"] if budget <= every)
            all_too = not within or every > largest or every >= MORE * within[-1]
            fields["budgets"] = (*within, every) if all_too else within
        if problem.missing_requirement(**METHODS["TL"].needs):
            fields["surrogate"] = 0  # their labels would cost as much as the target's
        if min(feature_shape(problem)[1:]) < SMALLEST:
            # Larger rates forget what was known beforehand of so few sites.
            fields["space"] = replace(fields["space"], learning_rates=(1e-4, 3e-3))
        fields["space"] = replace(fields["space"], architectures=_fitting(problem, fields["space"].architectures))
        methods = tuple(m for m in COMPARED if not problem.missing_requirement(**m.needs))
        return Study(name=f"{problem.name}-{scale}-{seed}", problem=problem, methods=methods, seed=seed, **fields)

    recipe.__name__ = recipe.__qualname__ = scale
    recipe.__doc__ = choices.__doc__
    SCALES[scale] = recipe
    return recipe


@_recipe
def smoke(problem: Problem) -> dict[str, Any]:
    """Seconds of training: proves that everything works together, and nothing else."""
    return dict(
        budgets=(10, 20),
        searched=(10,),
        space=Space(
            architectures=(
                _small(ReferenceEncoder(channels=(4, 8, 8), kernel=3, pools=(4, 2, 4), head=16, latent=16)),
                _small(InvariantEncoder(channels=4, dilations=(1, 4), latent=16)),
            ),
            epochs=(1,),
            contrastive_batches=(64,),
            temperatures=(0.1, 0.5),
            steps=(5, 10),
        ),
    )


@_recipe
def quick(problem: Problem) -> dict[str, Any]:
    """A result worth looking at in a quarter of an hour on two cores without a GPU."""
    return dict(
        budgets=(25, 50, 100, 200, 400),
        searched=(25, 100),
        space=Space(
            architectures=(_small(QUICK[_dimensions(problem)]),),
            epochs=(5 if _dimensions(problem) == 3 else 10,),
            pretraining_rates=(3e-3,),
            temperatures=(0.1, 0.5),
            contrastive_batches=(128, 256),
            label_probabilities=(0.5, 1.0),
            learning_rates=(1e-3, 8e-3),
            steps=(_quick_steps(problem),),
        ),
    )


@_recipe
def standard(problem: Problem) -> dict[str, Any]:
    """About an hour on one GPU."""
    reference = REFERENCE[_dimensions(problem)].scaled(0.5)
    return dict(
        budgets=(25, 50, 100, 200, 400, 800, 1600),
        searched=(25, 100, 400),
        space=Space(
            architectures=tuple(
                Architecture(encoder=e, predictor=(512, 512, 256), projector=(512, 512), projection=256)
                for e in (reference, InvariantEncoder(), InvariantEncoder(dilations=(1, 2, 4, 8, 16)))
            ),
            epochs=(60,),
            pretraining_rates=(1e-3,),
            temperatures=(0.1, 0.3),
            contrastive_batches=(768, 384),
            view_probabilities=(0.5, 1.0),
            label_probabilities=(0.5, 1.0, 0.0),
            learning_rates=(1e-4, 3e-3),
            steps=(1000, 3000),
        ),
    )


@_recipe
def paper(problem: Problem) -> dict[str, Any]:
    """The sizes of Loh et al. (2022), with a search in place of its choice on the test set."""
    architectures = tuple(
        Architecture(encoder=encoder)
        for encoder in (
            REFERENCE[_dimensions(problem)],
            InvariantEncoder(latent=1024),
            InvariantEncoder(dilations=(1, 2, 4, 8, 16), latent=1024),
        )
    )
    return dict(
        budgets=(50, 100, 200, 400, 800, 1600, 3200),
        searched=(50, 200, 800, 3200),
        space=Space(
            architectures=architectures,
            epochs=(100, 200, 400),
            pretraining_rates=(1e-3, 1e-4),
            temperatures=(0.1, 0.05, 0.3),
            contrastive_batches=(768, 384),
            supervised_batches=(32, 16, 64),
            view_probabilities=(0.5, 1.0),
            label_probabilities=(0.5, 1.0, 0.0),
            learning_rates=(1e-4, 3e-3),
            weight_decays=(0.01, 0.0),
            steps=(3000, 10_000),
        ),
    )
