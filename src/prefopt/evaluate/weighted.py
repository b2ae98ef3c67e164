"""Shares of sections with weights, and the mean of sections, with intervals that stay where such shares can be."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from prefopt.evaluate.table import kept
from prefopt.stats import Interval
from prefopt.stats.intervals import score_limits


def mean_of_sections(
    values: np.ndarray, sections: Sequence[str], weights: np.ndarray, clusters: Sequence[Hashable], *, most: float = 1.0
) -> tuple[Interval, dict[str, Interval]]:
    """The mean of the sections' weighted means, and these means by name.

    Args:
        values: [n], between 0 and `most`.
        sections: [n] the section of each.
        weights: [n], within the section.
        clusters: observations that go together.
        most: the largest value there can be.
    """
    names, member = sorted(set(sections)), np.array(sections)
    shares = {name: np.where(member == name, weights, 0.0) for name in names}
    found = {name: weighted_mean(values, share, clusters, most=most) for name, share in shares.items()}
    whole = sum(share / share.sum() for share in shares.values()) / len(shares)
    centre = sum(np.where(share > 0, found[name].value, 0.0) for name, share in shares.items())
    return weighted_mean(values, np.asarray(whole), clusters, np.asarray(centre), most=most), found


def weighted_mean(
    values: np.ndarray, weights: np.ndarray, clusters: Sequence[Hashable], centre: np.ndarray | None = None, *, most: float = 1.0
) -> Interval:
    """sum w x / sum w, with an interval that holds when observations of a cluster go together.

    Wilson's interval with the number of trials that would have the same standard error (as in `score_rate`), t quantiles of G - 1 degrees
    of freedom for G clusters; where the values do not vary, 1 / (sum of squared shares of the clusters) trials.

    Args:
        values: [n], between 0 and `most`.
        weights: [n]; observations of weight 0 play no part.
        clusters: observations that go together.
        centre: what each observation varies around, [n]; the mean where not given.
        most: the largest value there can be.

    >>> [round(x, 3) for x in weighted_mean(np.array([1.0, 1.0, 0.0]), np.array([1.0, 1.0, 0.0]), "abc")[:4]]
    [1.0, 0.012, 1.0, 2]
    """
    share = weights / weights.sum()
    used = weights > 0
    value = float(np.clip(share @ values, values[used].min(), values[used].max()))  # rounding must not leave the values' range
    off = share * (values - (value if centre is None else centre))
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, float] = {}
    for cluster, part, size in zip(kept(list(clusters), used), off[used], share[used], strict=True):
        sums[cluster], sizes[cluster] = sums.get(cluster, 0.0) + float(part), sizes.get(cluster, 0.0) + float(size)
    groups, n = len(sums), int(used.sum())
    if groups < 2:
        return Interval(value, 0.0, most, n, "one cluster")
    error = math.sqrt(groups / (groups - 1) * sum(part**2 for part in sums.values()))
    p = min(1.0, max(0.0, value / most))  # RewardBench 2's Ties may be a little below 0
    trials = p * (1 - p) / (error / most) ** 2 if error > 0 and 0 < p < 1 else 1 / sum(size**2 for size in sizes.values())
    low, high = score_limits(p, trials, float(stats.t.ppf(0.975, groups - 1)))
    return Interval(value, min(value, low * most), high * most, n, "weighted clustered Wilson", 0.95, error, groups - 1)
