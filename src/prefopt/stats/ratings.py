"""Ratings from comparisons: Bradley-Terry, the tie models of Davidson and of Rao and Kupper, and Plackett-Luce, by maximum likelihood.

theta_i is the log of an item's strength; only differences count, so the mean of theta is 0. Comparisons are summed in an items x items
matrix; one Newton step solves the models of all bootstrap resamples at once.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from prefopt.stats.intervals import Floats, Interval, Ints, cluster_codes, sum_by
from prefopt.stats.newton import DAVIDSON, HALF, RAO_KUPPER, PairModel, covariance, newton, scores_of
from prefopt.stats.resample import resamples

Pairs = Sequence[tuple[int, int]] | Ints
Clusters = Sequence[Hashable] | None
Rng = np.random.Generator | None
_RESAMPLE_RIDGE = 0.01


@dataclass(frozen=True, kw_only=True)
class Ratings:
    """Log-strengths of n items with their uncertainty. `np.asarray(ratings)` and `ratings[i]` give `theta`."""

    theta: Floats
    """[n], mean 0."""
    covariance: Floats
    """[n, n] of theta: C S C with S the inverse information and C the centring; clustered (sandwich) where clusters were given."""
    model: str
    n: int
    """Comparisons."""
    tie: float = math.nan
    """Davidson's nu (0: no ties) or Rao and Kupper's threshold (1: no ties); nan in models without one."""
    draws: Floats | None = None
    """[R, n] thetas of bootstrap resamples, where asked for."""
    clustered: bool = False
    not_finite: int = 0
    """Resamples without a finite estimate of their own, for which a ridge of 0.01 stood in."""

    @property
    def std_error(self) -> Floats:
        """[n] of theta."""
        return np.sqrt(np.diag(self.covariance))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Floats:
        return np.array(self.theta, dtype=dtype)

    def __len__(self) -> int:
        return len(self.theta)

    def __getitem__(self, item: Any) -> Any:
        return self.theta[item]

    def elo(self, initial: float = 1000.0, scale: float = 400.0, base: float = 10.0) -> Floats:
        """theta on the Elo scale: initial + theta scale / ln(base); 173.7 points are one unit of theta."""
        return initial + self.theta * scale / math.log(base)

    def intervals(self, confidence: float = 0.95) -> list[Interval]:
        """Of each theta: the bootstrap's quantiles where there are draws, theta ± z standard errors otherwise."""
        how = "clustered " if self.clustered else ""
        if self.draws is not None:
            low, high = np.quantile(self.draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
            error, method = self.draws.std(axis=0, ddof=1), f"{how}bootstrap"
        else:
            error, method = self.std_error, f"{how}Wald"
            reach = float(stats.norm.ppf((1 + confidence) / 2)) * error
            low, high = self.theta - reach, self.theta + reach
        rows = zip(self.theta, low, high, error, strict=True)
        return [Interval(float(t), float(lo), float(hi), self.n, method, confidence, float(e)) for t, lo, hi, e in rows]

    def rank_ranges(self, confidence: float = 0.95, *, rng: np.random.Generator | None = None) -> list[tuple[int, int]]:
        """The best and the worst rank each item may have; with the stated confidence all of them hold at once.

        An item is ranked above another only where the difference of their thetas is larger than the `confidence` quantile of the
        greatest studentised difference of all pairs (Mogstad, Romano, Shaikh and Wilhelm 2024, Rev. Econ. Stud. 91, sec. 3).

        Args:
            confidence: that all ranges hold.
            rng: draws thetas from their normal distribution where there are no bootstrap draws.
        """
        draws = self.draws
        if draws is None:
            normal = (rng or np.random.default_rng(0)).standard_normal((2000, len(self)))
            values, vectors = np.linalg.eigh(self.covariance)
            draws = self.theta + normal * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
        beats = _surely_above(self.theta, draws, confidence)
        best, worst = 1 + beats.sum(axis=0), len(self) - beats.sum(axis=1)
        return list(zip(best.tolist(), worst.tolist(), strict=True))


def _surely_above(theta: Floats, draws: Floats, confidence: float) -> Any:
    """[n, n] whether row's item is above column's, at a simultaneous confidence."""
    spread = np.cov(draws.T)
    variance = np.add.outer(np.diag(spread), np.diag(spread)) - 2 * spread
    error = np.sqrt(np.maximum(variance, 1e-300))
    greatest = np.zeros(len(draws))
    for i in range(len(theta) - 1):
        moved = np.abs(draws[:, i, None] - draws[:, i + 1 :] - (theta[i] - theta[i + 1 :])) / error[i, i + 1 :]
        greatest = np.maximum(greatest, moved.max(axis=1))
    return np.subtract.outer(theta, theta) > np.quantile(greatest, confidence) * error


def bradley_terry(
    pairs: Pairs, n_items: int, *, ties: Pairs = (), ridge: float = 0.0, clusters: Clusters = None, draws: int = 0, rng: Rng = None
) -> Ratings:
    """Bradley-Terry ratings: P(i beats j) = 1 / (1 + exp(theta_j - theta_i)), by maximum likelihood.

    Bradley and Terry 1952, Biometrika 39. A finite and unique estimate exists if and only if no group of items is unbeaten by the
    rest (Ford 1957, Am. Math. Mon. 64). A tie counts as half a win for each, which is a quasi-likelihood, not a model of ties; for
    those see `davidson` and `rao_kupper`.

    Args:
        pairs: [N] of (winner, loser), indices from 0.
        n_items: how many items there are.
        ties: [M] of (item, item).
        ridge: adds ridge * sum theta² to the negative log-likelihood; any positive value makes the estimate exist.
        clusters: names for pairs, then ties, that go together (one prompt); errors and draws then allow for it.
        draws: bootstrap resamples, of whole clusters.
        rng: their randomness; needed where draws are asked for.

    Raises:
        ValueError: an index out of range, an item compared with itself, or, without ridge, items that never lost to the rest or
            were never compared with it: the message names them.

    >>> bradley_terry([(0, 1), (0, 1), (0, 1), (1, 0)], 2).theta.round(4).tolist()
    [0.5493, -0.5493]
    """
    return _fit(HALF, pairs, n_items, ties, ridge, clusters, draws, rng)


def davidson(
    pairs: Pairs, n_items: int, *, ties: Pairs = (), ridge: float = 0.0, clusters: Clusters = None, draws: int = 0, rng: Rng = None
) -> Ratings:
    """Bradley-Terry with ties likelier between equals: P(i beats j) : P(tie) : P(j beats i) = p_i : nu sqrt(p_i p_j) : p_j.

    p = exp(theta), nu = `tie`  (Davidson 1970, J. Am. Stat. Assoc. 65, eq. 1.3). Without ties nu is 0 and theta that of `bradley_terry`.

    Args and errors as in `bradley_terry`; ties alone, without a win, have no estimate, nor (without ridge) have results that all fit a
    ladder on which a win is a step or more and a tie a step or less: steps and nu then grow without end.
    """
    return _fit(DAVIDSON, pairs, n_items, ties, ridge, clusters, draws, rng)


def rao_kupper(
    pairs: Pairs, n_items: int, *, ties: Pairs = (), ridge: float = 0.0, clusters: Clusters = None, draws: int = 0, rng: Rng = None
) -> Ratings:
    """Bradley-Terry with a threshold below which a difference is not seen: P(i beats j) = p_i / (p_i + tau p_j), tau = `tie` >= 1.

    P(tie) = (tau² - 1) p_i p_j / ((p_i + tau p_j)(tau p_i + p_j))  (Rao and Kupper 1967, J. Am. Stat. Assoc. 62, eq. 2.3). Without ties
    tau is 1 and theta that of `bradley_terry`.

    Args and errors as in `davidson`.
    """
    return _fit(RAO_KUPPER, pairs, n_items, ties, ridge, clusters, draws, rng)


def _fit(model: PairModel, pairs: Pairs, n_items: int, ties: Pairs, ridge: float, clusters: Clusters, draws: int, rng: Rng) -> Ratings:
    won, tied = _indices(pairs, n_items), _indices(ties, n_items)
    codes = cluster_codes(clusters, len(won) + len(tied))
    tally = _Tally(won, tied, n_items)
    wins, drawn = tally(np.ones((1, len(codes))))
    if ridge <= 0:
        check_connected(wins[0] + drawn[0])
    if model.free and not len(won):
        raise ValueError("every comparison is a tie: the tie models need a win")
    fitted = model if len(tied) else HALF
    if ridge <= 0 and fitted.free and _ladder(wins[0], drawn[0]):
        what = "no finite ratings: no win goes against the others, so the wider apart all are and the likelier ties, the better the fit"
        raise ValueError(f"{what}; add comparisons, count ties as halves, or ridge=0.01")
    x = newton(fitted, wins, drawn, ridge)
    scores = None if clusters is None else sum_by(codes, scores_of(fitted, won, tied, x[0]))
    result = Ratings(
        theta=x[0, :n_items],
        covariance=covariance(fitted, wins, drawn, x, ridge, scores),
        model=model.name,
        n=len(codes),
        tie=model.tie(float(x[0, -1]) if fitted.free else -math.inf),
        clustered=clusters is not None,
    )
    if draws and rng is None:
        raise ValueError("draws need rng, the randomness of the bootstrap")
    return _with_draws(result, fitted, tally, resamples(codes, draws, rng), ridge, x) if draws and rng else result


def _with_draws(result: Ratings, model: PairModel, tally: _Tally, drawn: Iterable[Floats], ridge: float, start: Floats) -> Ratings:
    """Refit every resample, starting from the fit of the data; a small ridge stands in where a resample has no finite fit."""
    found, lost, n = [], 0, len(result)
    for weights in drawn:
        wins, ties = tally(weights)
        lacks = [ridge <= 0 and not _finite(model, *cells) for cells in zip(wins, ties, strict=True)]
        lost += sum(lacks)
        some, theta = wins.any(axis=(1, 2)), np.zeros((len(wins), n))  # ties alone tell nobody apart, and have no tie parameter
        theta[some] = newton(model, wins[some], ties[some], np.where(lacks, _RESAMPLE_RIDGE, ridge)[some], start)[:, :n]
        found.append(theta)
    return replace(result, draws=np.concatenate(found), not_finite=lost)


class _Tally:
    """Sums weighted comparisons into matrices: wins [R, n, n] (row beat column) and ties [R, n, n], symmetric."""

    def __init__(self, won: Ints, tied: Ints, n: int) -> None:
        self.n, self.split = n, len(won)
        self.wins, self.ties = _sparse(won, n), _sparse(tied, n)

    def __call__(self, weights: Floats) -> tuple[Floats, Floats]:
        shape = (len(weights), self.n, self.n)
        wins = (self.wins.T @ weights[:, : self.split].T).T.reshape(shape)
        ties = (self.ties.T @ weights[:, self.split :].T).T.reshape(shape)
        return wins, ties + ties.transpose(0, 2, 1)


def _sparse(pairs: Ints, n: int) -> Any:
    """[N, n * n] with a one in the cell of each pair."""
    cells = pairs[:, 0] * n + pairs[:, 1]
    return csr_matrix((np.ones(len(pairs)), (np.arange(len(pairs)), cells)), shape=(len(pairs), n * n))


def _indices(pairs: Pairs, n_items: int) -> Ints:
    found = np.asarray(pairs, dtype=np.int64).reshape(-1, 2) if len(pairs) else np.zeros((0, 2), np.int64)
    if len(found) and (found.min() < 0 or found.max() >= n_items):
        raise ValueError(f"a pair names item {int(found.max() if found.max() >= n_items else found.min())}; items are 0 to {n_items - 1}")
    if (found[:, 0] == found[:, 1]).any():
        raise ValueError("an item is compared with itself")
    return found


# --- existence --------------------------------------------------------------------------------------------------------


def check_connected(wins: Floats, names: Sequence[str] | None = None) -> None:
    """Raise unless every item is linked to every other by a chain of wins (or ties), which is when ratings are finite.

    Args:
        wins: [n, n] how often row beat column, ties counted both ways.
        names: what items are called in the message; their numbers when not given.

    Raises:
        ValueError: naming the items that the rest never beat.
    """
    parts, part = _parts(wins)
    if parts <= 1:
        return
    beaten = np.zeros(parts, bool)  # a part is beaten when an item of another part won against one of it
    rows, columns = np.nonzero(wins)
    beaten[part[columns[part[rows] != part[columns]]]] = True
    smallest = min(np.flatnonzero(~beaten), key=lambda p: int((part == p).sum()))
    top = np.flatnonzero(part == smallest)
    told = ", ".join(str(names[i] if names else i) for i in top[:5]) + (f" and {len(top) - 5} more" if len(top) > 5 else "")
    raise ValueError(f"no finite ratings: {told} never lost to the other items, or never met them; add comparisons, or ridge=0.01")


def _parts(wins: Floats) -> tuple[int, Ints]:
    parts, part = connected_components(csr_matrix(wins > 0), directed=True, connection="strong")
    return int(parts), part


def _finite(model: PairModel, wins: Floats, ties: Floats) -> bool:
    """Whether these comparisons have a finite estimate."""
    return _parts(wins + ties)[0] <= 1 and not (model.free and _ladder(wins, ties))


def _ladder(wins: Floats, ties: Floats) -> bool:
    """Whether heights h exist with h_i - h_j >= 1 for every win of i over j and |h_i - h_j| <= 1 for every tie; [n, n] each.

    Where everybody is linked and somebody tied, the likelihood of a tie model has no finite maximum if and only if they do: it grows for
    ever along theta = c h with log nu = c / 2 or log tau = c. It is concave, so that a maximum is lacking only where a direction (h, t)
    lowers the log-probability of no result (Rockafellar 1970, "Convex Analysis", thm. 27.1): of a win where h_i - h_j >= max(t, 0), of a
    tie where |h_i - h_j| <= t; t = 0 leaves h = 0 alone, for all are linked. Bellman and Ford find h, or a cycle that forbids it.
    """
    if ((wins > 0) & (wins.T > 0)).any():
        return False
    reach = np.where(wins > 0, -1.0, np.where(ties > 0, 1.0, np.inf))  # of h_j - h_i, at most
    height = np.zeros(len(wins))
    for _ in range(len(wins)):
        lower = np.minimum(height, (height[:, None] + reach).min(axis=0))
        if (lower == height).all():
            return True
        height = lower
    return False
