"""A study: every method at every label budget, each searched, then evaluated over seeds.

``Study`` says what is wanted; ``ledger.Ledger`` finds what of it is there; ``run`` makes the rest on Ray.
"""

from dataclasses import dataclass

from sibcl_ray.data.dataset import SURROGATE, TARGET, TEST, UNLABELLED, Role
from sibcl_ray.problems.problem import Problem
from sibcl_ray.search.methods import Method, Space, Tuning


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is to be found out, and how thoroughly. Counts are samples."""

    name: str
    problem: Problem
    methods: tuple[Method, ...]
    budgets: tuple[int, ...]  # target labels in all, validation included; ascending
    searched: tuple[int, ...]  # budgets at which hyperparameters are searched
    space: Space
    trials: int  # of a search
    at_once: int = 2  # trials of a search that run side by side
    folds: int = 3  # of the cross-validation inside a budget
    seeds: int = 3  # repetitions of a cell: weights, order, augmentation and pretraining
    unlabelled: int  # inputs without labels
    surrogate: int  # surrogate samples
    test: int  # target labels set apart, read once per cell
    pool: int  # target labels that may be computed at most, besides the test's
    seed: int = 0  # of the data, the folds and the searches

    def __post_init__(self) -> None:
        counts = {"trials": 1, "at_once": 1, "seeds": 1, "test": 1, "pool": 1, "unlabelled": 0, "surrogate": 0}
        for name, least in counts.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.methods or not self.budgets:
            raise ValueError("there is nothing to study; give at least one method and one budget")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; cross-validation needs at least 2")
        if self.searched and min(self.searched) < 2 * self.folds:
            raise ValueError(
                f"searched is {list(self.searched)}; give budgets of {2 * self.folds} or more (two labels for each of "
                f"{self.folds} folds)"
            )
        if list(self.budgets) != sorted(set(self.budgets)) or min(self.budgets) < 2 * self.folds:
            raise ValueError(
                f"budgets are {list(self.budgets)}; they must ascend from {2 * self.folds} or more "
                f"(two labels for each of {self.folds} folds)"
            )
        if max(self.budgets) > self.pool:
            raise ValueError(
                f"budget {max(self.budgets)} is larger than the pool of {self.pool} target labels; "
                f"ask for at most {self.pool}, or for a larger scale"
            )
        asked = {"test": self.test, "surrogate": self.surrogate, "unlabelled": self.unlabelled}
        for name, have in (self.problem.available or {}).items():
            if asked.get(name, 0) > have:
                raise ValueError(f"{name} is {asked[name]}, and there are {have}; ask for fewer")
        for m in self.methods:
            if what := self.problem.missing_requirement(**m.needs):
                raise ValueError(f"{m.name} needs {what}; or leave {m.name} out")
            if m.surrogate and not self.surrogate:
                raise ValueError(f"surrogate is 0, and {m.name} learns from such samples; give some, or leave it out")
            if m.contrastive and not self.surrogate + self.unlabelled:
                raise ValueError(f"unlabelled is 0, and {m.name} learns from such inputs; give some, or leave it out")

    @property
    def sizes(self) -> dict[Role, int]:
        """Samples needed of each role."""
        return {TARGET: max(self.budgets), TEST: self.test, SURROGATE: self.surrogate, UNLABELLED: self.unlabelled}

    @property
    def estimated(self) -> dict[Role, int]:
        """The samples of whose labels some method needs estimates."""
        return {TARGET: max(self.budgets), TEST: self.test} if any(m.delta for m in self.methods) else {}

    def tuning(self, method: Method) -> Tuning:
        """What a search of the method may choose."""
        return Tuning(method, self.space, tuple(self.problem.symmetries), tuple(self.problem.equivariances))

    def search_budget(self, budget: int) -> int:
        """The budget whose search chooses for ``budget``: the largest whose labels are all among its own."""
        return max((s for s in self.searched if s <= budget), default=budget)
