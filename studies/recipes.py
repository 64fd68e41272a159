"""Recipes: functions that return a complete study, from seconds on a laptop to the sizes of the paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sibcl_ray.methods import METHODS, Space
from sibcl_ray.networks import Architecture, InvariantEncoder, ReferenceEncoder
from sibcl_ray.problems.problem import Problem
from sibcl_ray.study import Study

# Those that a problem has what it needs for.
COMPARED = tuple(METHODS[m] for m in ("SL", "SL-I", "TL-I", "SSL-I", "SIB-CL", "SL-I-delta", "SSL-I-delta"))


def _small(encoder: ReferenceEncoder | InvariantEncoder) -> Architecture:
    width = encoder.latent
    return Architecture(encoder=encoder, predictor=(width, width), projector=(width,), projection=width // 2)


def _study(problem: Problem, scale: str, seed: int, **fields: Any) -> Study:
    """The study of a recipe; where samples are given, with as many of them as there are."""
    methods = tuple(m for m in COMPARED if not problem.lacks(**m.needs))
    if have := problem.available:
        fields["pool"] = min(fields["pool"], have["target"])
        fields |= {role: min(fields[role], have[role]) for role in ("test", "surrogate", "unlabelled")}
        fields["budgets"] = tuple(b for b in fields["budgets"] if b <= fields["pool"]) or (fields["pool"],)
    return Study(name=f"{problem.name}-{scale}-{seed}", problem=problem, methods=methods, seed=seed, **fields)


def smoke(problem: Problem, seed: int = 0) -> Study:
    """Seconds of training: proves that everything works together, and nothing else."""
    return _study(
        problem,
        "smoke",
        seed,
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
        trials=2,
        folds=2,
        seeds=2,
        unlabelled=50,
        surrogate=50,
        test=50,
        pool=200,
    )


def quick(problem: Problem, seed: int = 0) -> Study:
    """A result worth looking at within ten minutes on two cores without a GPU."""
    # A small relative of the reference network: an early, larger pooling makes it three times faster.
    encoder = ReferenceEncoder(channels=(8, 64, 128), kernel=3, pools=(4, 2, 4), head=256, latent=256)
    return _study(
        problem,
        "quick",
        seed,
        budgets=(25, 50, 100, 200, 400),
        searched=(25, 100),
        space=Space(
            architectures=(_small(encoder),),
            epochs=(10,),
            pretraining_rates=(3e-3,),
            temperatures=(0.1, 0.5),
            contrastive_batches=(128, 256),
            label_probabilities=(0.5, 1.0),
            learning_rates=(1e-3, 8e-3),
            steps=(450,),
        ),
        trials=6,
        folds=2,
        seeds=3,
        unlabelled=400,
        surrogate=2000,
        test=500,
        pool=1600,
    )


def standard(problem: Problem, seed: int = 0) -> Study:
    """About an hour on one GPU."""
    reference = ReferenceEncoder().scaled(0.5)
    return _study(
        problem,
        "standard",
        seed,
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
        trials=12,
        folds=3,
        seeds=5,
        unlabelled=8000,
        surrogate=4000,
        test=1000,
        pool=6400,
    )


def paper(problem: Problem, seed: int = 0) -> Study:
    """The sizes of Loh et al. (2022), with a search in place of its choice on the test set."""
    architectures = tuple(
        Architecture(encoder=encoder)
        for encoder in (
            ReferenceEncoder(),
            InvariantEncoder(latent=1024),
            InvariantEncoder(dilations=(1, 2, 4, 8, 16), latent=1024),
        )
    )
    return _study(
        problem,
        "paper",
        seed,
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
        trials=30,
        at_once=4,
        folds=5,
        seeds=3,
        unlabelled=20_000,
        surrogate=10_000,
        test=2000,
        pool=10_000,
    )


SCALES: dict[str, Callable[..., Study]] = {f.__name__: f for f in (smoke, quick, standard, paper)}
