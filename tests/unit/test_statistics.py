"""Every statistic by hand, the laws they obey, and whether 95 % means 95 %."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from iskd.evaluation.statistics import (
    Estimate,
    bootstrap,
    changed,
    compare_scores,
    mcnemar_p,
    mean,
    paired_difference,
    perplexity,
    proportion,
    ratio,
)

T1, T2, T3, T7 = 12.70620474, 4.30265273, 3.18244631, 2.36462425
"""Student's t: 97.5 % quantile with 1, 2, 3 and 7 degrees of freedom."""
Z = 1.95996398


def near(*values: float) -> Any:
    return pytest.approx(values[0] if len(values) == 1 else values, rel=1e-6)


def interval(found: Estimate) -> tuple[float, float]:
    return found.low, found.high


# --- by hand --------------------------------------------------------------------------------


def test_mean_by_hand() -> None:
    found = mean([1, 2, 3, 4])
    # Deviations -1.5 -0.5 0.5 1.5, squares sum to 5; variance 5/3, of the mean 5/12.
    assert (found.value, found.stderr) == near(2.5, math.sqrt(5 / 12))
    assert interval(found) == near(2.5 - T3 * 0.6454972244, 2.5 + T3 * 0.6454972244)
    assert (found.n, found.clusters) == (4, 4)


def test_the_cluster_robust_error_equals_one_worked_out_by_hand() -> None:
    found = mean([1, 1, 0, 0, 0, 1], ["a", "a", "a", "b", "b", "c"])
    # Mean 1/2. Deviations add up to 0.5 + 0.5 - 0.5 = 0.5 in a, -1 in b, 0.5 in c; their squares to
    # 1.5, times 3/2 is 2.25; the root 1.5 over 6 items is 0.25.
    assert (found.value, found.stderr) == near(0.5, 0.25)
    assert interval(found) == near(0.5 - T2 / 4, 0.5 + T2 / 4)
    assert (found.n, found.clusters) == (6, 3)


def test_a_weighted_ratio_equals_one_worked_out_by_hand() -> None:
    found = ratio([2, 4], [1, 3])
    # 6/4. Residuals 2 - 1.5 = 0.5 and 4 - 4.5 = -0.5; squares 0.5, times 2/1 is 1; 1 over 4.
    assert (found.value, found.stderr) == near(1.5, 0.25)
    assert interval(found) == near(1.5 - T1 / 4, 1.5 + T1 / 4)


def test_perplexity_equals_one_worked_out_by_hand() -> None:
    found = perplexity([2, 4], [1, 3])
    e = math.exp(1.5)
    assert (found.value, found.stderr) == near(e, e / 4)
    assert interval(found) == near(e / math.exp(T1 / 4), e * math.exp(T1 / 4))


def test_accuracy_equals_one_worked_out_by_hand() -> None:
    found = proportion([True, True, False, True])
    assert (found.value, found.stderr) == near(0.75, math.sqrt(0.75 * 0.25 / 3))
    # Wilson: (p + z2/2n -+ z sqrt(p q / n + z2/4n2)) / (1 + z2/n) with z2 = 3.841459, n = 4:
    # (0.75 + 0.480182 -+ 1.959964 sqrt(0.046875 + 0.060023)) / 1.960365
    assert interval(found) == pytest.approx((0.300642, 0.954413), abs=1e-6)


def test_clustered_accuracy_by_hand() -> None:
    found = proportion([1, 1, 0, 0, 0, 1], ["a", "a", "a", "b", "b", "c"])
    # The error of above: 0.25 / 0.0625 = 4 effective items. Wilson at n = 4 with t2 = 18.512820:
    # 0.5 -+ 4.302653 sqrt(0.0625 + 18.512820 / 64) / (1 + 18.512820 / 4) = 0.5 -+ 0.453410
    assert (found.value, found.stderr) == near(0.5, 0.25)
    assert interval(found) == pytest.approx((0.046590, 0.953410), abs=1e-6)


def test_no_hits_by_hand() -> None:
    # Wilson at p = 0: from 0 to z2 / (n + z2). With clusters, n counts these, and t is for z.
    assert interval(proportion([0] * 10)) == near(0, Z**2 / (10 + Z**2))
    assert interval(proportion([0] * 10, [0, 1, 2] * 3 + [2])) == near(0, T2**2 / (3 + T2**2))
    assert interval(proportion([1] * 10)) == near(1 - Z**2 / (10 + Z**2), 1)


def test_a_paired_difference_equals_one_worked_out_by_hand() -> None:
    ours, theirs = [1, 1, 0, 1], [1, 0, 0, 0]
    found = paired_difference(ours, theirs, resamples=100, seed=1)
    # Differences 0 1 0 1: squares of deviations add up to 1, over 3 and 4.
    assert (found.value, found.stderr) == near(0.5, math.sqrt(1 / 12))
    found = paired_difference(ours, theirs, ["a", "b", "a", "b"], resamples=100, seed=1)
    # Deviations add up to -1 and 1: sqrt(2/1 * 2) / 4.
    assert (found.value, found.stderr) == near(0.5, 0.5)


def test_bootstrap_by_hand() -> None:
    # 4 of 8: a resample has k hits with probability C(8, k) / 256. The percentile is the normal
    # one at t sqrt(8/7) = 2.364624 * 1.069045 = 2.527889: 0.57 %. That is above 1/256 = 0.39 %,
    # the probability of 0, and below 9/256, that of 0 or 1. So the ends are 1/8 and 7/8.
    hits = [0, 0, 0, 0, 1, 1, 1, 1]
    found = paired_difference(hits, [0] * 8, resamples=20_000, seed=3)
    assert interval(found) == (1 / 8, 7 / 8)
    columns = np.column_stack([hits, np.ones(8)])
    found = bootstrap(columns, lambda s: s[..., 0] / s[..., 1], resamples=20_000, seed=3)
    # The binomial's deviation, sqrt(8 / 4) / 8.
    assert found.stderr == pytest.approx(math.sqrt(2) / 8, rel=0.02)


def test_bootstrap_of_clusters_by_hand() -> None:
    # Of clusters (1 of 1) and (0 of 3) a resample has: the first twice, 2/2; both, 1/4; the second
    # twice, 0/6. With probabilities 1/4, 1/2, 1/4 the mean is 3/8 and the mean square 9/32, so the
    # deviation is sqrt(9/32 - 9/64) = 3/8, where single items would give another.
    columns = np.column_stack([[1, 0, 0, 0], np.ones(4)])
    found = bootstrap(
        columns, lambda s: s[..., 0] / s[..., 1], ["x", "y", "y", "y"], resamples=20_000, seed=5
    )
    assert (found.value, found.clusters) == (0.25, 2)
    assert found.stderr == pytest.approx(3 / 8, rel=0.02)
    assert interval(found) == (0, 1)


def test_retention_and_margin_by_hand() -> None:
    theirs = [1] * 8 + [0] * 2
    ours = [1] * 6 + [0] * 4
    found = compare_scores(ours, theirs, chance=0.25, resamples=50, seed=1)
    assert found.difference.value == near(-0.2)
    assert found.retention is not None
    assert found.margin is not None
    # 0.6 / 0.8, and (0.6 - 0.25) / (0.8 - 0.25) = 0.35 / 0.55.
    assert (found.retention.value, found.margin.value) == near(0.75, 7 / 11)


def test_retention_resampled_by_hand() -> None:
    # Two sources: teacher 2 of 2 and 1 of 1, model 1 of 2 and 1 of 1. The first twice gives 1/2,
    # both give 2/3, the second twice 1. Mean 17/24, mean square 1/16 + 2/9 + 1/4 = 77/144.
    found = compare_scores(
        [1, 0, 1], [1, 1, 1], ["x", "x", "y"], chance=0.0, resamples=20_000, seed=2
    )
    for kept in (found.retention, found.margin):
        assert kept is not None
        assert kept.value == near(2 / 3)
        assert kept.stderr == pytest.approx(math.sqrt(77 / 144 - (17 / 24) ** 2), rel=0.02)
        assert interval(kept) == (0.5, 1)


def test_a_teacher_near_chance_has_no_margin_to_keep() -> None:
    theirs = [1] * 30 + [0] * 70
    ours = [1] * 28 + [0] * 72
    found = compare_scores(ours, theirs, chance=0.25, resamples=500, seed=1)
    assert found.margin is not None
    assert found.margin.value == near(0.03 / 0.05)
    assert all(math.isnan(end) for end in interval(found.margin))
    assert found.retention is not None
    assert found.retention.low < 28 / 30 < found.retention.high
    assert compare_scores(ours, theirs, chance=0.3, resamples=9, seed=1).margin is None
    assert compare_scores(ours, [0] * 100, chance=0.3, resamples=9, seed=1).retention is None


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [
        # Both tails of a fair coin: 2 (C(6,0) + C(6,1)) / 2^6.
        (1, 5, 14 / 64),
        # 2 (C(8,0) + C(8,1)) / 2^8.
        (7, 1, 18 / 256),
        (0, 4, 2 / 16),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemars_p_value_equals_one_worked_out_by_hand(gained: int, lost: int, p: float) -> None:
    ours = [True] * gained + [False] * lost + [True, False] * 4
    theirs = [False] * gained + [True] * lost + [True, False] * 4
    assert mcnemar_p(ours, theirs) == near(p)


def test_changed_choices_and_flips_by_hand() -> None:
    target = np.array([0, 1, 2, 3, 0])
    ours, theirs = np.array([0, 2, 2, 1, 3]), np.array([0, 3, 2, 3, 0])
    # Choices differ at 1, 3 and 4; at 1 both are wrong, so correctness differs at 3 and 4.
    assert changed(ours, theirs).value == near(0.6)
    assert changed(ours == target, theirs == target).value == near(0.4)
    assert interval(changed(ours, theirs)) == interval(proportion([0, 1, 0, 1, 1]))


def test_runs_by_hand() -> None:
    found = mean([1, 2, 3])
    assert (found.value, found.stderr) == near(2, 1 / math.sqrt(3))
    assert (found.low, found.high) == near(2 - T2 / math.sqrt(3), 2 + T2 / math.sqrt(3))


def test_one_item_or_one_source_has_no_error() -> None:
    assert mean([3.0]).value == 3
    for found in (mean([3.0]), mean([1, 2], ["a", "a"]), proportion([0, 1], ["a", "a"])):
        assert all(math.isnan(x) for x in (found.stderr, found.low, found.high))
        assert found.clusters == 1
    # Wilson says something about a single item.
    assert interval(proportion([1])) == near(1 - Z**2 / (1 + Z**2), 1)


def test_what_cannot_be_estimated_is_refused() -> None:
    with pytest.raises(ValueError, match="no item"):
        mean([])
    with pytest.raises(ValueError, match="2 items"):
        mean([1, 2], ["a"])
    with pytest.raises(ValueError, match="positive"):
        ratio([1, 2], [0, 0])
    with pytest.raises(ValueError, match="broadcast"):
        paired_difference([1, 2, 3], [1, 2], resamples=9, seed=1)


# --- laws -----------------------------------------------------------------------------------

values_strategy = arrays(float, st.integers(2, 40), elements=st.floats(-100, 100, width=32))
hits_strategy = arrays(bool, st.integers(2, 40))


def same(one: Estimate, other: Estimate) -> None:
    for name in ("value", "stderr", "low", "high"):
        a, b = getattr(one, name), getattr(other, name)
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9, nan_ok=True), name


def labels_for(data: st.DataObject, n: int) -> np.ndarray:
    return np.array(data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))


@given(values=values_strategy)
def test_the_error_of_single_items_is_scipys(values: np.ndarray) -> None:
    assert mean(values).stderr == pytest.approx(stats.sem(values), rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(values=values_strategy, data=st.data())
def test_the_cluster_robust_error_is_statsmodels(values: np.ndarray, data: st.DataObject) -> None:
    groups = labels_for(data, len(values))
    count = len(set(groups))
    if count < 2:
        return
    fit = sm.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "use_correction": True}
    )
    assert mean(values, groups).stderr == pytest.approx(fit.bse[0], rel=1e-6, abs=1e-6)


@given(values=values_strategy)
def test_sources_of_one_item_are_no_clusters(values: np.ndarray) -> None:
    own = np.arange(len(values))
    same(mean(values, own), mean(values))
    hits = values > 0
    same(proportion(hits, own), proportion(hits))
    same(ratio(values, values**2 + 1, own), ratio(values, values**2 + 1))
    drawn = {"resamples": 50, "seed": 1}
    same(
        paired_difference(values, -values, own, **drawn),
        paired_difference(values, -values, **drawn),
    )


@given(values=values_strategy, data=st.data())
def test_the_order_of_items_does_not_matter(values: np.ndarray, data: st.DataObject) -> None:
    groups = labels_for(data, len(values))
    order = np.array(data.draw(st.permutations(range(len(values)))))
    moved, hits = values[order], values > 0
    same(mean(values, groups), mean(moved, groups[order]))
    same(proportion(hits, groups), proportion(hits[order], groups[order]))
    drawn = {"resamples": 50, "seed": 1}
    same(
        paired_difference(values, np.abs(values), groups, **drawn),
        paired_difference(moved, np.abs(moved), groups[order], **drawn),
    )


@given(values=values_strategy, data=st.data())
def test_saying_everything_twice_adds_no_knowledge(values: np.ndarray, data: st.DataObject) -> None:
    groups = labels_for(data, len(values))
    twice = np.concatenate([groups, groups])
    same(mean(np.concatenate([values, values]), twice), mean(values, groups))


@given(hits=hits_strategy, data=st.data())
def test_a_model_beside_itself_differs_in_nothing(hits: np.ndarray, data: st.DataObject) -> None:
    groups = labels_for(data, len(hits))
    found = compare_scores(hits, hits, groups, chance=0.0, resamples=50, seed=1)
    assert found.difference.value == 0
    assert found.difference.stderr == 0 or len(set(groups)) == 1
    # Nothing changed in these items: that is no proof that nothing can.
    assert math.isnan(found.difference.low)
    assert (found.retention is None) == (not hits.any())
    assert found.retention is None or found.retention.value == 1
    assert mcnemar_p(hits, hits) == 1
    assert changed(hits, hits, groups).value == 0


@given(ours=hits_strategy, data=st.data())
def test_exchanging_the_models_turns_the_sign(ours: np.ndarray, data: st.DataObject) -> None:
    theirs = np.array(data.draw(st.lists(st.booleans(), min_size=len(ours), max_size=len(ours))))
    one = paired_difference(ours, theirs, resamples=50, seed=1)
    other = paired_difference(theirs, ours, resamples=50, seed=1)
    same(one, Estimate(-other.value, other.stderr, -other.high, -other.low, one.n, one.clusters))
    assert mcnemar_p(ours, theirs) == mcnemar_p(theirs, ours)


@given(hits=hits_strategy, data=st.data())
def test_an_accuracys_interval_holds_it_and_is_one_of_fractions(
    hits: np.ndarray, data: st.DataObject
) -> None:
    for groups in (None, labels_for(data, len(hits))):
        found = proportion(hits, groups)
        if found.clusters > 1:
            assert 0 <= found.low <= found.value <= found.high <= 1
            assert found.low < found.high


@given(seed=st.integers(0, 2**32 - 1))
def test_a_seed_gives_the_same_interval_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(size=(2, 20))
    first = paired_difference(ours, theirs, resamples=150, seed=seed)
    assert paired_difference(ours, theirs, resamples=150, seed=seed) == first
    assert paired_difference(ours, theirs, resamples=150, seed=seed + 1) != first


def test_for_many_items_the_interval_is_scipys() -> None:
    rng = np.random.default_rng(11)
    values = rng.gamma(2, size=3000)
    ours = paired_difference(values, np.zeros(3000), resamples=4000, seed=1)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", batch=100, rng=2
    ).confidence_interval
    # A percentile of 4000 draws is itself uncertain, by about 0.05 standard errors.
    assert interval(ours) == pytest.approx((theirs.low, theirs.high), abs=0.2 * ours.stderr)


# --- coverage -------------------------------------------------------------------------------

STUDIES = 2000
Draw = Callable[[np.random.Generator], tuple[Any, ...]]


def coverage(
    draw: Draw, truth: float, estimate: Callable[..., Estimate | None], studies: int = STUDIES
) -> float:
    """Give the share of simulated studies whose interval holds the truth.

    The simulation's own standard error is 0.5 points. A study without an interval does not count;
    there must be few.
    """
    rng = np.random.default_rng(2024)
    held = counted = 0
    for seed in range(studies):
        found = estimate(*draw(rng), seed=seed)
        if found is None or math.isnan(found.low):
            continue
        counted += 1
        held += found.low <= truth <= found.high
    assert counted > 0.95 * studies
    return held / counted


def covers(share: float) -> bool:
    return 0.93 <= share <= 0.97


def sources(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draw sources of 1 to 8 items each."""
    return np.repeat(np.arange(count), rng.integers(1, 9, count))


BOTH, LOST, GAINED, NEITHER = range(4)


def cells(
    rng: np.random.Generator, shares: tuple[float, ...], items: int, count: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Draw which of model and teacher are right on each item, alike within a source."""
    if count is None:
        cell, groups = rng.choice(4, size=items, p=shares), None
    else:
        groups = sources(rng, count)
        own = rng.dirichlet(np.array(shares) * 4, count)[groups]
        cell = (rng.random(len(groups))[:, None] > np.cumsum(own, axis=1)[:, :3]).sum(axis=1)
    return np.isin(cell, (BOTH, GAINED)), np.isin(cell, (BOTH, LOST)), groups


@pytest.mark.parametrize(("n", "p"), [(200, 0.3), (1000, 0.1)])
def test_the_interval_of_an_accuracy_covers_it(n: int, p: float) -> None:
    assert covers(coverage(lambda r: (r.random(n) < p,), p, lambda hits, seed: proportion(hits)))


def _clustered_hits(count: int, p: float) -> Draw:
    def draw(rng: np.random.Generator) -> tuple[Any, ...]:
        groups = sources(rng, count)
        return rng.random(len(groups)) < rng.beta(p * 4, (1 - p) * 4, count)[groups], groups

    return draw


@pytest.mark.parametrize(("count", "p"), [(60, 0.3), (60, 0.1), (200, 0.3)])
def test_the_interval_of_a_clustered_accuracy_covers_it(count: int, p: float) -> None:
    draw = _clustered_hits(count, p)
    assert covers(coverage(draw, p, lambda hits, groups, seed: proportion(hits, groups)))
    # And it is the clustering that does it: the same without it covers far less.
    assert coverage(draw, p, lambda hits, groups, seed: proportion(hits)) < 0.9


def test_the_interval_over_few_sources_nearly_covers_the_accuracy() -> None:
    share = coverage(
        _clustered_hits(10, 0.3), 0.3, lambda hits, groups, seed: proportion(hits, groups)
    )
    assert 0.9 <= share <= 0.97


def test_the_interval_of_a_loss_covers_it() -> None:
    # Skewed, as losses are: a gamma's shape of 2 has skewness 1.4.
    share = coverage(lambda r: (r.gamma(2, 1, 200),), 2, lambda losses, seed: mean(losses))
    assert covers(share)


def _stories(rng: np.random.Generator) -> tuple[Any, ...]:
    groups = sources(rng, 60)
    tokens = rng.integers(20, 128, len(groups))
    loss = 3 * rng.gamma(8, 1 / 8, 60)[groups] + 0.3 * rng.normal(size=len(groups))
    return loss * tokens, tokens, groups


def test_the_intervals_of_a_loss_by_story_and_its_perplexity_cover_them() -> None:
    assert covers(coverage(_stories, 3, lambda y, x, groups, seed: ratio(y, x, groups)))
    assert covers(
        coverage(_stories, math.exp(3), lambda y, x, groups, seed: perplexity(y, x, groups))
    )


SHARES = (0.33, 0.12, 0.07, 0.48)
"""Teacher 45 %, model 40 %; both have 33 % right."""
PLAIN, CLUSTERED = (400, None), (0, 80)


@pytest.mark.parametrize("size", [PLAIN, CLUSTERED])
def test_the_interval_of_a_paired_difference_covers_it(size: tuple[int, int | None]) -> None:
    share = coverage(
        lambda r: cells(r, SHARES, *size),
        -0.05,
        lambda ours, theirs, groups, seed: paired_difference(
            ours, theirs, groups, resamples=600, seed=seed
        ),
    )
    assert covers(share)


@pytest.mark.parametrize("size", [PLAIN, CLUSTERED])
def test_the_intervals_of_retention_and_margin_cover_them(size: tuple[int, int | None]) -> None:
    found: list[Estimate | None] = []

    def retained(ours: Any, theirs: Any, groups: Any, seed: int) -> Estimate | None:
        both = compare_scores(ours, theirs, groups, chance=0.25, resamples=600, seed=seed)
        found.append(both.margin)
        return both.retention

    assert covers(coverage(lambda r: cells(r, SHARES, *size), 0.40 / 0.45, retained))
    margins = iter(found)
    # The same studies: the margin is 0.15 of 0.20.
    assert covers(coverage(lambda r: (), 0.75, lambda seed: next(margins)))


def test_where_a_weak_teacher_has_an_interval_it_covers() -> None:
    # The teacher is 10 points above chance, 3 standard errors: many studies give no interval.
    held, given_ = 0, 0
    rng = np.random.default_rng(7)
    for seed in range(STUDIES):
        ours, theirs, _ = cells(rng, (0.27, 0.08, 0.05, 0.60), 250, None)
        margin = compare_scores(ours, theirs, chance=0.25, resamples=600, seed=seed).margin
        if margin is not None and not math.isnan(margin.low):
            given_ += 1
            held += margin.low <= 0.07 / 0.10 <= margin.high
    assert 0.2 * STUDIES < given_ < 0.9 * STUDIES
    assert covers(held / given_)


@pytest.mark.parametrize("runs", [3, 5])
def test_the_mean_over_seeds_covers(runs: int) -> None:
    def draw(rng: np.random.Generator) -> tuple[Any, ...]:
        return (rng.normal(0.3, 0.01, runs),)

    def estimate(values: Any, seed: int) -> Estimate:
        return mean(values)

    assert covers(coverage(draw, 0.3, estimate))
