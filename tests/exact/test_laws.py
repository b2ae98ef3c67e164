"""Facts of preference optimization that hold exactly where everything can be listed."""

from __future__ import annotations

import doctest
import math
from itertools import permutations
from types import ModuleType

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, softmax

from prefopt import exact
from prefopt.exact import laws, preferences, worlds

RNG = np.random.default_rng(0)
K = 6
REF = softmax(RNG.normal(size=K))
REWARDS = RNG.normal(size=K)
LADDER = np.geomspace(0.05, 50, 40)


# --- the optimum under a KL penalty -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
def test_no_law_beats_boltzmann_and_it_is_worth_beta_log_z(beta: float) -> None:
    best = exact.boltzmann(REF, REWARDS, beta)
    worth = beta * exact.log_partition(REF, REWARDS, beta)
    assert exact.objective(best, REF, REWARDS, beta) == pytest.approx(worth, abs=1e-12)
    others = RNG.dirichlet(np.ones(K), size=500)
    assert (exact.objective(others, REF, REWARDS, beta) < worth).all()
    # The regret of a law is β KL to the optimum.
    np.testing.assert_allclose(worth - exact.objective(others, REF, REWARDS, beta), beta * exact.kl(others, best), atol=1e-12)


def test_a_climb_along_the_exact_gradients_ends_at_boltzmann() -> None:
    beta, logits = 0.5, np.log(REF)
    for _ in range(4000):
        p = softmax(logits)
        logits = logits + 0.5 * (p * (REWARDS - p @ REWARDS) - beta * exact.kl_gradient(p, REF))
    assert exact.total_variation(softmax(logits), exact.boltzmann(REF, REWARDS, beta)) < 1e-4


def test_gradient_of_the_kl() -> None:
    logits, eps = RNG.normal(size=K), 1e-6
    numeric = [(exact.kl(softmax(logits + eps * e), REF) - exact.kl(softmax(logits - eps * e), REF)) / (2 * eps) for e in np.eye(K)]
    np.testing.assert_allclose(exact.kl_gradient(softmax(logits), REF), numeric, atol=1e-9)


def test_implicit_rewards_lack_a_constant_per_prompt() -> None:
    refs, rewards = np.stack([REF, REF]), np.stack([REWARDS, REWARDS + 5])
    implicit = exact.implicit_rewards(exact.boltzmann(refs, rewards, 0.3), refs, 0.3)
    shift = rewards - implicit
    np.testing.assert_allclose(shift, 0.3 * exact.log_partition(refs, rewards, 0.3)[:, None] + np.zeros(K), atol=1e-12)
    np.testing.assert_allclose(implicit[0], implicit[1], atol=1e-12)  # five units more of reward cannot be seen across prompts


def test_beta_to_infinity_is_the_reference_and_to_zero_the_reference_among_the_best() -> None:
    tied = np.array([0.0, 2.0, 1.0, 2.0, 0.5, -1.0])
    np.testing.assert_allclose(exact.boltzmann(REF, tied, math.inf), REF)
    among = np.where(tied == 2.0, REF, 0.0)
    np.testing.assert_allclose(exact.boltzmann(REF, tied, 1e-3), among / among.sum(), atol=1e-12)


def test_reward_and_kl_fall_with_beta() -> None:
    laws = [exact.boltzmann(REF, REWARDS, beta) for beta in LADDER]
    assert (np.diff([law @ REWARDS for law in laws]) < 0).all()
    assert (np.diff([exact.kl(law, REF) for law in laws]) < 0).all()


def test_entropy_is_not_monotone_in_beta() -> None:
    """Lecture notes say H(pi*) falls towards 0 with beta; two completions refute it, and ties refute the limit."""
    ref, rewards = np.array([0.6, 0.4]), np.array([0.0, 2.0])
    uniform = 2 / math.log(1.5)
    assert uniform == pytest.approx(4.93, abs=5e-3)
    found = [exact.entropy(exact.boltzmann(ref, rewards, beta)) for beta in (1e9, uniform, 2.0, 0.01)]
    np.testing.assert_allclose(found, [0.6730, 0.6931, 0.6508, 0.0], atol=1e-4)
    tied = exact.boltzmann([0.2, 0.2, 0.6], [1.0, 1.0, 0.0], 1e-3)
    assert exact.entropy(tied) == pytest.approx(math.log(2))


def test_other_divergences_reach_their_stationary_law() -> None:
    """ref (f')^{-1}((r - λ)/β) maximises E[r] - β Σ ref f(pi/ref); here f for the forward KL, z - 1 - log z."""
    found = exact.tilted(REF, REWARDS, 2.0, lambda c: np.where(c < 1, -np.log1p(-np.minimum(c, 1 - 1e-15)), np.inf))
    assert found.sum() == pytest.approx(1, abs=1e-12)

    def loss(logits: np.ndarray) -> float:
        p = softmax(logits)
        return float(-(p @ REWARDS) + 2.0 * exact.kl(REF, p))

    best = minimize(loss, np.log(REF), tol=1e-12).x
    assert exact.total_variation(found, softmax(best)) < 1e-5
    np.testing.assert_allclose(exact.tilted(REF, REWARDS, 0.7, lambda c: c), exact.boltzmann(REF, REWARDS, 0.7), atol=1e-12)


@pytest.mark.parametrize(
    ("ref", "rewards", "beta"),
    [([0.5, 0.6], [0, 1], 1.0), ([0.5, 0.5], [0, 1, 2], 1.0), ([0.5, 0.5], [0, 1], 0.0), ([1.5, -0.5], [0, 1], 1)],
)
def test_what_is_no_law_is_refused(ref: list[float], rewards: list[float], beta: float) -> None:
    with pytest.raises(ValueError, match=r"law|shapes|beta"):
        exact.boltzmann(ref, rewards, beta)


# --- best of n ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_best_of_n_with_ties_is_what_all_draws_say(n: int) -> None:
    ref, rewards = np.array([0.1, 0.3, 0.2, 0.4]), np.array([1.0, 0.0, 1.0, -2.0])
    expected = np.zeros(4)
    for draw in np.ndindex(*[4] * n):
        best = [k for k in draw if rewards[k] == rewards[list(draw)].max()]
        for k in best:
            expected[k] += ref[list(draw)].prod() / len(best)
    np.testing.assert_allclose(exact.best_of_n(ref, rewards, n), expected, atol=1e-12)


def test_best_of_n_reads_only_the_order_and_stays_below_its_kl_bound() -> None:
    for n in (1, 2, 4, 16, 256):
        law = exact.best_of_n(REF, REWARDS, n)
        np.testing.assert_allclose(law, exact.best_of_n(REF, np.exp(3 * REWARDS), n))
        assert exact.kl(law, REF) <= exact.best_of_n_kl_bound(n) + 1e-12
    fine = np.full(500, 1 / 500)
    assert exact.kl(exact.best_of_n(fine, np.arange(500.0), 4), fine) == pytest.approx(exact.best_of_n_kl_bound(4), abs=5e-3)
    assert exact.best_of_n([0.0, 1.0], [9.0, 0.0], 3).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="at least 1"):
        exact.best_of_n(REF, REWARDS, 0)


# --- preferences --------------------------------------------------------------------------------------------------------


def test_bradley_terry_is_a_comparison_under_gumbel_noise() -> None:
    """P(r + G > s + G') integrated over the noise, without sampling."""

    def density(g: float) -> float:
        return math.exp(-g - math.exp(-g))

    for gap in (-1.0, 0.0, 0.7, 3.0):
        wins = quad(lambda g, gap=gap: density(g) * math.exp(-math.exp(-(g + gap))), -5, 40)[0]
        assert wins == pytest.approx(exact.bradley_terry([gap, 0.0])[0, 1], abs=1e-8)
    assert exact.bradley_terry([0.7, 0.0])[0, 1] == pytest.approx(expit(0.7))


def test_the_best_under_gumbel_noise_has_the_law_softmax() -> None:
    winners = exact.gumbel_winners(REWARDS, 200_000, np.random.default_rng(1))
    np.testing.assert_allclose(np.bincount(winners, minlength=K) / 200_000, softmax(REWARDS), atol=4e-3)


def test_plackett_luce_sums_to_one_and_is_bradley_terry_for_two() -> None:
    assert sum(exact.plackett_luce(REWARDS, order) for order in permutations(range(4))) == pytest.approx(1)
    assert exact.plackett_luce(REWARDS, [1, 0]) == pytest.approx(exact.bradley_terry(REWARDS)[1, 0])


def random_weights() -> np.ndarray:
    w = np.triu(RNG.random((K, K)), 1)
    return w + w.T


def minimise(loss: object, gradient: object) -> np.ndarray:
    """The law a loss of laws ends at, from the reference, by logits."""

    def both(logits: np.ndarray) -> tuple[float, np.ndarray]:
        p = softmax(logits)
        g = gradient(p)  # type: ignore[operator]
        return loss(p), g - p * g.sum()  # type: ignore[operator]

    return softmax(minimize(both, np.log(REF), jac=True, tol=1e-14, options={"maxiter": 5000}).x)


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_dpo_is_rlhf_on_full_support_for_any_distribution_of_pairs(beta: float) -> None:
    preferences = exact.bradley_terry(REWARDS)
    best = exact.boltzmann(REF, REWARDS, beta)
    for _ in range(3):
        w = random_weights()
        found = minimise(
            lambda p, w=w: exact.dpo_loss(p, REF, preferences, w, beta), lambda p, w=w: exact.dpo_gradient(p, REF, preferences, w, beta)
        )
        assert exact.total_variation(found, best) < 1e-5
        assert exact.dpo_loss(best, REF, preferences, w, beta) == pytest.approx(exact.dpo_minimum(preferences, w))
        np.testing.assert_allclose(exact.dpo_gradient(best, REF, preferences, w, beta), 0, atol=1e-12)


def test_off_the_support_dpo_constrains_nothing() -> None:
    """Completions 0, 1, 2 are compared with each other, 3 and 4 too, 5 with none: the three masses are free."""
    w = np.zeros((K, K))
    for i, j in ((0, 1), (1, 2), (3, 4)):
        w[i, j] = w[j, i] = 1
    labels = exact.components(w)
    assert labels.tolist() == [0, 0, 0, 1, 1, 2]
    preferences, best = exact.bradley_terry(REWARDS), exact.boltzmann(REF, REWARDS, 0.5)
    low = exact.dpo_loss(best, REF, preferences, w, 0.5)
    for masses in ([0.1, 0.2, 0.7], [0.01, 0.01, 0.98]):
        other = exact.recombine(best, labels, masses)
        assert other.sum() == pytest.approx(1)
        assert exact.dpo_loss(other, REF, preferences, w, 0.5) == pytest.approx(low, abs=1e-12)
        np.testing.assert_allclose(exact.dpo_gradient(other, REF, preferences, w, 0.5), 0, atol=1e-12)
    # and so the reward of what DPO accepts may lie far below the optimum, 98% on a completion nobody compared
    assert exact.objective(other, REF, REWARDS, 0.5) < exact.objective(best, REF, REWARDS, 0.5) - 0.5


def test_a_disagreement_no_reward_explains_keeps_dpo_above_the_entropy_of_its_labels() -> None:
    cycle = np.array([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]])
    w = 1 - np.eye(3)
    ref = np.full(3, 1 / 3)
    assert exact.dpo_loss(ref, ref, cycle, w, 1.0) == pytest.approx(math.log(2))
    assert exact.dpo_minimum(cycle, w) < 0.35
    np.testing.assert_allclose(exact.dpo_gradient(ref, ref, cycle, w, 1.0), 0, atol=1e-12)


def test_ipo_has_the_mean_preference_as_reward_when_all_pairs_are_alike() -> None:
    upper = np.triu(RNG.random((K, K)), 1)
    preferences = upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(K)
    h = exact.ipo_log_ratios(preferences, 1 - np.eye(K), 0.4)
    mean = preferences.mean(1) / 0.4
    np.testing.assert_allclose(h - h.mean(), mean - mean.mean(), atol=1e-12)
    two = exact.ipo_log_ratios(np.array([[0.5, 0.8], [0.2, 0.5]]), 1 - np.eye(2), 0.1)
    assert two[0] - two[1] == pytest.approx((0.8 - 0.5) / 0.1)


# --- worlds -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "length"), [(2, 3), (3, 3), (4, 2)])
def test_completions_exhaust_every_language_model(vocabulary: int, length: int) -> None:
    listed = exact.completions(vocabulary, length)
    assert len(set(listed)) == len(listed)
    rows: dict[tuple[int, ...], np.ndarray] = {}
    total = 0.0
    for completion in listed:
        probability = 1.0
        for n, token in enumerate(completion):
            row = rows.setdefault(completion[:n], RNG.dirichlet(np.ones(vocabulary)))
            probability *= row[token]
        total += probability
    assert total == pytest.approx(1)


@pytest.mark.parametrize("module", [laws, preferences, worlds], ids=lambda m: m.__name__)
def test_the_examples_of_the_docstrings(module: ModuleType) -> None:
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert (found.failed, found.attempted > 0) == (0, True)
