"""A study of your own, in a few lines: which temperature does the contrastive loss want with few labels?

python -m studies.my_study
"""

from dataclasses import replace

import sibcl_ray as sr


def temperatures(problem: str = "photonic-dos") -> sr.Study:
    """The quick recipe, for two methods at two budgets, with more temperatures to choose from."""
    quick = sr.recipes.quick(problem)
    return replace(
        quick,
        name=f"{problem}-temperatures",
        methods=(sr.METHODS["SL"], sr.METHODS["SIB-CL"]),
        budgets=(25, 100),
        searched=(25, 100),
        space=replace(quick.space, temperatures=(0.03, 0.1, 0.3, 1.0)),
        trials=12,
    )


if __name__ == "__main__":
    results = sr.run(temperatures(), storage="runs")
    print(results.matrix[["method", "budget", "seed", "error", "configuration"]])
    print(results.savings())
