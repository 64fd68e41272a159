"""Learning curves and label savings against planted power laws."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibcl_ray.results.curves import label_savings, labels_needed, learning_curves

BUDGETS = (25, 50, 100, 200, 400)


def cell(method, budget, seed, error, samples=None, state="done", units="fraction"):
    return {
        "problem": "planted", "method": method, "encoder": "reference", "budget": budget, "seed": seed,
        "error": error if state == "done" else np.nan, "error_units": units,
        "state": state, "reason": "", "seconds": 1.0, "finished": 1.7e9, "configuration": "{}",
        "sample_errors": samples,
    }  # fmt: skip


def exact(curves, seeds=(0, 1, 2), budgets=BUDGETS):
    """A noiseless matrix from {method: function of n}."""
    return pd.DataFrame(
        [cell(name, n, seed, float(f(n))) for name, f in curves.items() for n in budgets for seed in seeds]
    )


def power_law(gain):
    return lambda n: 0.2 * (gain * n) ** -0.3


def noisy(rng, gains, seeds, samples=200):
    """Power laws under test samples of unequal difficulty, seeds of unequal luck, and noise of their own."""
    difficulty = rng.gamma(4, 1 / 4, samples)
    luck = rng.normal(0, 0.03, (seeds, len(BUDGETS)))
    rows = []
    for name, gain in gains.items():
        for i, n in enumerate(BUDGETS):
            for seed in range(seeds):
                scale = power_law(gain)(n) * np.exp(luck[seed, i] + rng.normal(0, 0.06))
                errors = scale * difficulty * np.exp(rng.normal(0, 0.3, samples) - 0.045)
                rows.append(cell(name, n, seed, errors.mean(), errors))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("gain", [1.5, 4, 8, 15.9])
def test_a_planted_saving_is_found(gain):
    (saving,) = label_savings(exact({"SL": power_law(1), "SIB-CL": power_law(gain)}))
    # linear in log n between budgets a factor of 2 apart: the power law bends by a few per cent
    assert saving.saving == pytest.approx(gain, rel=0.03)
    assert saving.labels == pytest.approx(400 / gain, rel=0.03)
    assert saving.target_error == pytest.approx(power_law(1)(400))
    assert saving.baseline_labels == pytest.approx(400)
    assert saving.low == pytest.approx(saving.saving) == saving.high  # equal seeds leave nothing to resample


def test_savings_off_the_measured_budgets_are_censored():
    matrix = exact({"SL": power_law(1), "early": power_law(40), "never": power_law(0.5)})
    early, never = label_savings(matrix)
    assert early.labels == 0
    assert early.saving == np.inf and early.high == np.inf
    assert early.low == pytest.approx(16)  # 400 labels against at most 25
    assert never.labels == np.inf
    assert never.saving == 0 and never.low == 0 and never.high == pytest.approx(1)
    assert (early.smallest, early.largest) == (25, 400)


def test_a_dip_that_rises_again_does_not_count():
    dip = dict(zip(BUDGETS, (0.06, 0.02, 0.06, 0.03, 0.02), strict=True))
    flat = dict(zip(BUDGETS, (0.08, 0.07, 0.06, 0.05, 0.04), strict=True))
    (saving,) = label_savings(exact({"SL": flat.get, "method": dip.get}))
    assert saving.labels == pytest.approx(100 * 2 ** (2 / 3))


def test_a_baseline_that_stopped_learning_is_charged_only_what_it_used():
    plateau = dict(zip(BUDGETS, (0.08, 0.06, 0.04, 0.04, 0.04), strict=True))
    (saving,) = label_savings(exact({"SL": plateau.get, "method": lambda n: power_law(8)(n) * 0.5}))
    assert saving.baseline_labels == pytest.approx(100)
    rising = dict(zip(BUDGETS, (0.03, 0.03, 0.03, 0.03, 0.04), strict=True))
    (saving,) = label_savings(exact({"SL": rising.get, "method": power_law(8)}))
    assert np.isnan(saving.saving)


@pytest.mark.parametrize(("seeds", "at_least"), [(3, 0.62), (10, 0.88)])
def test_the_interval_covers_the_planted_saving(seeds, at_least):
    rng = np.random.default_rng(seeds)
    curve_hits, saving_hits = [], []
    for _ in range(60):
        matrix = noisy(rng, {"SL": 1, "SIB-CL": 8}, seeds)
        (saving,) = label_savings(matrix, resamples=200)
        saving_hits.append(saving.low <= 8 <= saving.high)
        curve = learning_curves(matrix, resamples=200)["SL"]
        truth = power_law(1)(curve.budgets)
        curve_hits.append(((curve.low <= truth) & (truth <= curve.high)).mean())
    assert np.mean(saving_hits) >= at_least, np.mean(saving_hits)
    assert np.mean(curve_hits) >= at_least, np.mean(curve_hits)


def test_resampling_is_paired():
    """Two methods that share all their luck: either curve is uncertain, the saving of one of them is not."""
    rng = np.random.default_rng(0)
    base = noisy(rng, {"SL": 1}, seeds=5)
    twin = base.assign(method="twin")
    (saving,) = label_savings(pd.concat([base, twin], ignore_index=True))
    curve = learning_curves(base)["SL"]
    assert (curve.high - curve.low > 0.05 * curve.error).all()
    assert (saving.low, saving.saving, saving.high) == pytest.approx((1, 1, 1))


def test_the_same_seed_gives_the_same_interval():
    matrix = noisy(np.random.default_rng(0), {"SL": 1, "SIB-CL": 4}, seeds=3)
    assert label_savings(matrix) == label_savings(matrix.sample(frac=1, random_state=1).sort_values("method",
        key=lambda names: names != "SL", kind="stable"))  # fmt: skip
    assert label_savings(matrix) != label_savings(matrix, seed=1)


def test_without_errors_per_sample_only_seeds_are_resampled():
    matrix = noisy(np.random.default_rng(0), {"SL": 1, "SIB-CL": 4}, seeds=4)
    seeds_only = matrix.assign(sample_errors=None)
    both, one = learning_curves(matrix)["SL"], learning_curves(seeds_only)["SL"]
    assert np.allclose(both.error, one.error)
    assert (one.high - one.low < both.high - both.low).all()
    extremes = seeds_only[seeds_only["method"] == "SL"].groupby("budget")["error"].agg(["min", "max"])
    assert (one.low >= extremes["min"]).all() and (one.high <= extremes["max"]).all()
    single = learning_curves(seeds_only[seeds_only["seed"] == 0])["SL"]
    assert np.isnan(single.low).all() and np.isfinite(single.error).all()
    (saving,) = label_savings(seeds_only[seeds_only["seed"] == 0])
    assert np.isnan(saving.low) and saving.saving > 1


def test_incomplete_matrices():
    matrix = noisy(np.random.default_rng(0), {"SL": 1, "SIB-CL": 4, "TL-I": 2}, seeds=3)
    lost = (matrix["method"] == "SL") & (matrix["budget"] == 50)
    lost |= (matrix["method"] == "SIB-CL") & (matrix["budget"] == 400)
    lost |= (matrix["method"] == "TL-I") & (matrix["seed"] == 1)
    matrix.loc[lost, ["state", "error"]] = ["failed", np.nan]
    matrix["sample_errors"] = [None if gone else e for gone, e in zip(lost, matrix["sample_errors"], strict=True)]
    curves = learning_curves(matrix)
    assert list(curves["SL"].budgets) == [25, 100, 200, 400]
    assert list(curves["TL-I"].seeds) == [2] * 5
    savings = {s.method: s for s in label_savings(matrix)}
    assert savings["SIB-CL"].largest == 200 and savings["SIB-CL"].low > 1
    assert label_savings(matrix[matrix["method"] != "SL"]) == []
    assert learning_curves(matrix.assign(state="missing")) == {}
    assert learning_curves(matrix[matrix["budget"] == 25])["SL"].error.shape == (1,)


def test_a_doubtful_matrix_is_refused():
    matrix = exact({"SL": power_law(1)})
    with pytest.raises(ValueError, match="twice"):
        learning_curves(pd.concat([matrix, matrix]))
    with pytest.raises(ValueError, match="one problem"):
        learning_curves(pd.concat([matrix, matrix.assign(problem="other")]))


errors = st.lists(st.floats(0.01, 0.1), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(curve=errors, target=st.floats(0.01, 0.1))
def test_labels_needed_is_conservative(curve, target):
    """From the upper bound on, the curve never is above its target; just below, it is."""
    budgets = 25.0 * 2 ** np.arange(len(curve))
    low, high = (bound[0] for bound in labels_needed(budgets, np.array([curve]), np.array([target])))
    assert low <= high
    fine = np.exp(np.linspace(np.log(budgets[0]), np.log(budgets[-1]), 500))
    values = np.interp(np.log(fine), np.log(budgets), curve)
    assert (values[fine > high * (1 + 1e-9)] <= target * (1 + 1e-6)).all()
    assert (high == np.inf) == (curve[-1] > target * (1 + 1e-9))
    assert (low == 0) == (max(curve) <= target * (1 + 1e-9))
    if low == high:
        here = max(low * (1 - 1e-3), budgets[budgets < low][-1])  # on the same piece of the curve
        before = np.interp(np.log(here), np.log(budgets), curve)
        assert before >= target * (1 - 1e-6)


@settings(max_examples=100, deadline=None)
@given(curve=st.lists(st.floats(0.01, 0.1), min_size=5, max_size=5), step=st.floats(0, 0.05))
def test_a_better_curve_never_needs_more_labels(curve, step):
    budgets, target = np.array(BUDGETS, float), np.array([0.05, 0.05])
    _, high = labels_needed(budgets, np.array([curve, np.array(curve) - step]), target)
    assert high[1] <= high[0] * (1 + 1e-9)


def test_compared_intervals_leave_out_what_moves_all_curves_alike():
    rng = np.random.default_rng(0)
    difficulty = rng.exponential(0.05, 400)  # of the test samples, the same for every method
    rows = [
        dict(
            problem="p",
            method=m,
            budget=n,
            seed=s,
            state="done",
            sample_errors=difficulty * f + rng.normal(0, 1e-4, 400),
        )
        for m, f in (("SL", 1.0), ("SIB-CL", 0.9))
        for n in (25, 50)
        for s in range(3)
    ]
    matrix = pd.DataFrame(rows)
    matrix["error"] = [e.mean() for e in matrix.sample_errors]
    whole, compared = learning_curves(matrix), learning_curves(matrix, compared=True)
    assert whole["SIB-CL"].high[0] > whole["SL"].low[0]  # hides that every sample is easier for SIB-CL
    assert compared["SIB-CL"].high[0] < compared["SL"].low[0]
    alone = matrix[matrix.method == "SL"]
    np.testing.assert_array_equal(learning_curves(alone, compared=True)["SL"].low, learning_curves(alone)["SL"].low)
