"""Label-budget studies for science with scarce labels.

    import sibcl_ray as sr

    study = sr.recipes.quick("photonic-dos")
    results = sr.run(study, storage="runs")
    print(results.matrix, results.savings())

Names are imported when they are first used: Torch and Ray take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sibcl_ray import recipes
    from sibcl_ray.driver import Results, load_results, run
    from sibcl_ray.problems.problem import BadProblem, Problem, Sample, SolverFailed
    from sibcl_ray.problems.simulation import Simulation
    from sibcl_ray.search.methods import METHODS, Method, Space
    from sibcl_ray.storage.store import StoreError
    from sibcl_ray.study.study import Study
    from sibcl_ray.symmetry import (
        EachChannel,
        Equivariance,
        Group,
        LatticePointGroup,
        PointGroup,
        Scaling,
        Translations,
    )

_MODULES = {
    "driver": ("Results", "load_results", "run"),
    "problems.problem": ("BadProblem", "Problem", "Sample", "SolverFailed"),
    "problems.simulation": ("Simulation",),
    "search.methods": ("METHODS", "Method", "Space"),
    "storage.store": ("StoreError",),
    "study.study": ("Study",),
    "symmetry": ("EachChannel", "Equivariance", "Group", "LatticePointGroup", "PointGroup", "Scaling", "Translations"),
}
# Where names are defined. User code that imports them from here or from there is the same code (see `user_module`).
PLACES = {name: f"sibcl_ray.{module}" for module, names in _MODULES.items() for name in names}

__all__ = ["recipes", *PLACES]


def __getattr__(name: str) -> Any:
    if name == "recipes":
        return import_module("sibcl_ray.recipes")
    if name not in PLACES:
        raise AttributeError(f"module 'sibcl_ray' has no attribute {name!r}")
    return getattr(import_module(PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
