"""Standard errors, 95 % intervals and paired comparisons of what models were measured to do.

Items that come from one source (the questions of one passage, the blocks of one story) are not
independent: where their sources are given as `clusters`, these are what is drawn at random, and
the items are not. Labels may be of any kind that numpy can sort; without them each item is a source
of its own. All functions are pure, and what is resampled takes a seed.

An interval of few clusters is wide, but not wide enough. With 60 and more all of them cover what
they say in simulations (tests/unit/test_statistics.py); with 20 a bootstrap interval of 95 % covers
91 to 94 %, with 10 it can fall below 90 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from iskd.evaluation.retention import corrected_retention

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2
_CHUNK = 100  # resamples that are added up together: bounds the memory

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number and how far it can be trusted; all but the counts in the number's own unit.

    Attributes:
        value: the number.
        stderr: its standard error; NaN where one source leaves it undefined.
        low, high: ends of its 95 % interval; NaN where there is none.
        n: items it was taken from.
        clusters: sources these items come from.
    """

    value: float
    stderr: float
    low: float
    high: float
    n: int
    clusters: int


# --- one model ------------------------------------------------------------------------------


def mean(values: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """Estimate a mean over items: (n,) -> one number.

    The standard error is the usual one without clusters, and cluster-robust with them (Miller 2024,
    arXiv 2411.00640, eq. 4, times the small-sample factor of `ratio`). The interval is Student's,
    with one degree of freedom less than there are sources.

    Raises:
        ValueError: there is no item, or not as many labels as items.
    """
    values = np.asarray(values, dtype=np.float64)
    return ratio(values, np.ones_like(values), clusters)


def ratio(
    numerators: ArrayLike, denominators: ArrayLike, clusters: ArrayLike | None = None
) -> Estimate:
    """Estimate sum(numerators) / sum(denominators), as a loss per token: (n,), (n,) -> one number.

    With r the ratio and e = y - r x the residual of an item, the standard error is
    sqrt(G / (G - 1) sum_g (sum_{i in g} e_i)^2) / sum(x), g running over the G clusters: the
    linearised ratio (Cochran, Sampling Techniques, 1977, 6.4), with the sandwich estimator's factor
    CR1 (Cameron and Miller, J. Human Resources 50, 2015, eq. 12) for a single parameter.

    Raises:
        ValueError: there is no item, the lengths differ, or the denominators' sum is not positive.
    """
    y, x = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    codes, count = _codes(clusters, len(y))
    total = float(x.sum())
    if not total > 0:
        raise ValueError("the denominators' sum must be positive")
    value = float(y.sum()) / total
    if count < 2:
        return Estimate(value, math.nan, math.nan, math.nan, len(y), count)
    residuals = np.bincount(codes, weights=y - value * x, minlength=count)
    stderr = math.sqrt(count / (count - 1) * float(residuals @ residuals)) / total
    half = stderr * float(stats.t.ppf(1 - _TAIL, count - 1))
    return Estimate(value, stderr, value - half, value + half, len(y), count)


def perplexity(
    losses: ArrayLike, weights: ArrayLike, clusters: ArrayLike | None = None
) -> Estimate:
    """Estimate exp(sum(losses) / sum(weights)): (n,), (n,) -> one number.

    The interval is that of the exponent, taken to the power; the standard error is the delta
    method's, perplexity times the exponent's.

    Raises:
        ValueError: as in `ratio`.
    """
    loss = ratio(losses, weights, clusters)
    value = math.exp(loss.value)
    return Estimate(
        value, value * loss.stderr, math.exp(loss.low), math.exp(loss.high), loss.n, loss.clusters
    )


def proportion(hits: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """Estimate the share of items that are hits (an accuracy): bool (n,) -> a fraction.

    The standard error is that of `mean`, which for items of their own is lm-eval's. The interval is
    Wilson's. With clusters that interval is taken at the effective number of items,
    p (1 - p) / stderr^2, and with Student's quantile in place of the normal one (Dean and Pagano,
    J. Survey Statistics and Methodology 3, 2015, who find it the best of seven). Where all or no
    items are hits, the effective number of items is the number of clusters.

    Raises:
        ValueError: there is no item, or not as many labels as items.
    """
    found = mean(hits, clusters)
    trials, tail = float(found.n), 2 * _TAIL
    if found.clusters < 2 and found.n > 1:
        return found
    if found.clusters < found.n:
        trials = float(found.clusters)
        if found.stderr > 0:
            trials = found.value * (1 - found.value) / found.stderr**2
        # The normal quantile at this tail is Student's at the usual one.
        tail = 2 * float(stats.norm.sf(stats.t.ppf(1 - _TAIL, found.clusters - 1)))
    low, high = proportion_confint(found.value * trials, trials, alpha=tail, method="wilson")
    # Wilson's formula misses its own bounds by a last bit.
    low, high = max(0.0, min(low, found.value)), min(1.0, max(high, found.value))
    return Estimate(found.value, found.stderr, float(low), float(high), found.n, found.clusters)


# --- a model beside its teacher, item by item -----------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A model beside its teacher on the same items.

    Attributes:
        difference: model - teacher.
        retention: model / teacher; None where the teacher scores nothing.
        margin: what is kept of the teacher's margin over chance; None without such a margin.
    """

    difference: Estimate
    retention: Estimate | None
    margin: Estimate | None


def compare_scores(
    model: ArrayLike,
    teacher: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    chance: float,
    resamples: int,
    seed: int,
) -> Comparison:
    """Compare two models' scores of the same items: (n,), (n,), in the same order.

    Both are resampled together, by source, so what makes an item easy for both cancels out. All
    intervals come from the same resamples (see `bootstrap`). Of the two ratios there is an interval
    only where the teacher's score (or margin) is positive in every resample: else the set of ratios
    that the data allow has no end (Fieller, J. Royal Statistical Society B 16, 1954).

    Args:
        model: score of each item, 0 or 1 for an accuracy.
        teacher: the teacher's.
        clusters: source of each item.
        chance: expected score of guessing, in the scores' unit.
        resamples: number of bootstrap resamples.
        seed: seed of their draw.

    Raises:
        ValueError: there is no item, or the lengths differ.
    """
    ours, theirs = np.asarray(model, np.float64), np.asarray(teacher, np.float64)
    columns = np.column_stack([ours, theirs, np.ones_like(ours)])

    def over_chance(level: float) -> Estimate | None:
        def kept(sums: Floats) -> Floats:
            per_item = sums[..., :2] / sums[..., 2:]
            return corrected_retention(per_item[..., 0], per_item[..., 1], level)

        found = bootstrap(columns, kept, clusters, resamples=resamples, seed=seed)
        return found if math.isfinite(found.value) else None

    return Comparison(
        difference=paired_difference(ours, theirs, clusters, resamples=resamples, seed=seed),
        retention=over_chance(0.0),
        margin=over_chance(chance),
    )


def paired_difference(
    model: ArrayLike,
    teacher: ArrayLike,
    clusters: ArrayLike | None = None,
    *,
    resamples: int,
    seed: int,
) -> Estimate:
    """Estimate the mean of model - teacher over the same items: (n,), (n,) -> one number.

    The standard error is the paired one, cluster-robust as in `mean`; the interval is that of
    `bootstrap`.

    Raises:
        ValueError: there is no item, or the lengths differ.
    """
    differences = np.asarray(model, np.float64) - np.asarray(teacher, np.float64)
    columns = np.column_stack([differences, np.ones_like(differences)])
    found = bootstrap(
        columns, lambda s: s[..., 0] / s[..., 1], clusters, resamples=resamples, seed=seed
    )
    exact = mean(differences, clusters)
    return Estimate(exact.value, exact.stderr, found.low, found.high, found.n, found.clusters)


def bootstrap(
    columns: ArrayLike,
    statistic: Callable[[Floats], Floats],
    clusters: ArrayLike | None = None,
    *,
    resamples: int,
    seed: int,
) -> Estimate:
    """Estimate a function of sums over items by resampling whole sources.

    The interval lies between percentiles of the resampled statistic. They are a little further out
    than 2.5 and 97.5 %: for a mean the bootstrap's own spread is sqrt((G - 1) / G) of what it
    should be, and normal (Hesterberg, The American Statistician 69, 2015, 5.3: "expanded percentile
    interval"). For many sources this is the plain percentile interval of scipy.stats.bootstrap,
    which does not draw clusters.

    Args:
        columns: what is summed, (n, k).
        statistic: from sums (..., k) to numbers (...); NaN where it is not defined.
        clusters: source of each item.
        resamples: number of resamples.
        seed: seed of their draw; the same for all statistics of equally many sources.

    Returns:
        The statistic of all items. Standard error and interval are NaN where there is one source,
        the statistic is undefined in some resample, or it is the same in all: a spread of zero says
        that the data are too few to show one.

    Raises:
        ValueError: there is no item, or not as many labels as items.
    """
    columns = np.asarray(columns, dtype=np.float64)
    codes, count = _codes(clusters, len(columns))
    sums = np.column_stack([np.bincount(codes, column, count) for column in columns.T])
    value = float(statistic(columns.sum(axis=0)))
    bare = Estimate(value, math.nan, math.nan, math.nan, len(columns), count)
    if count < 2:
        return bare
    weights = _weights(count, resamples, seed)
    drawn = statistic(
        np.concatenate([w.astype(float) @ sums for w in np.split(weights, _cuts(resamples))])
    )
    if not np.isfinite(drawn).all() or np.ptp(drawn) == 0:
        return bare
    stretch = math.sqrt(count / (count - 1)) * stats.t.ppf(1 - _TAIL, count - 1)
    tail = float(stats.norm.sf(stretch))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(
        value, float(np.std(drawn, ddof=1)), float(low), float(high), len(columns), count
    )


@lru_cache(maxsize=2)
def _weights(count: int, resamples: int, seed: int) -> NDArray[np.uint16]:
    """Draw how often each of `count` sources is in each resample: (resamples, count).

    Drawing takes longer than all that is done with it, and a study compares hundreds of models on
    the same items.
    """
    rng = np.random.default_rng(seed)
    parts = [np.empty((0, count), np.uint16)]
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        parts.append(
            np.bincount(drawn.ravel(), minlength=size * count)
            .reshape(size, count)
            .astype(np.uint16)
        )
    weights = np.concatenate(parts)
    weights.flags.writeable = False
    return weights


def _cuts(resamples: int) -> list[int]:
    return list(range(_CHUNK, resamples, _CHUNK))


def mcnemar_p(model: ArrayLike, teacher: ArrayLike) -> float:
    """Test that two models are right equally often: bool (n,), bool (n,) -> the exact p value.

    McNemar's test on the items that only one of them has right, as likely one as the other if the
    models are alike: binomial, two-sided. It takes items for independent.
    """
    ours, theirs = np.asarray(model, bool), np.asarray(teacher, bool)
    gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    return float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)


def changed(model: ArrayLike, teacher: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """Estimate the share of items on which two models differ: (n,), (n,) of any kind.

    Of choices these are the changed answers, of correctness the flips (Dutta et al. 2024,
    arXiv 2407.09141). The interval is that of `proportion`.
    """
    return proportion(np.asarray(model) != np.asarray(teacher), clusters)


def _codes(clusters: ArrayLike | None, n: int) -> tuple[NDArray[np.intp], int]:
    """Number the sources: (n,) codes from 0, and how many there are."""
    if n == 0:
        raise ValueError("there is no item")
    if clusters is None:
        return np.arange(n), n
    labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
    if codes.shape != (n,):
        raise ValueError(f"{codes.shape} labels of sources for {n} items")
    return codes, len(labels)
