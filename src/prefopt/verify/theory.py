"""What theory says was learned, computed from counts and laws alone, without any loss of the package.

A closed form is compared as a law (total variation). Where there is none, the condition every minimum on the simplex meets is: the slopes
g_i = dL / d log pi_i are in proportion to pi_i (for losses of margins alone: 0). What is left over, Σ |g_i - pi_i Σ g|, is given as a
share of the pushes that ought to cancel; the slopes are the papers' formulas differentiated by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, log_expit, logit, wrightomega

from prefopt import exact
from prefopt.verify.learn import Array, Outcome
from prefopt.verify.population import Population

Check = Callable[[Outcome], float]
Slopes = Callable[[Outcome, Array, Array], tuple[Array, Array]]


# --- closed forms -------------------------------------------------------------------------------------------------------


def law(expected: Callable[[Outcome], Array]) -> Check:
    """Total variation to a law [P, K], of the prompt where it is largest."""
    return lambda o: float(exact.total_variation(o.probs, expected(o)).max())


def boltzmann(o: Outcome) -> Array:
    """ref e^{r/β} / Z with the rewards of which the comparisons are Bradley-Terry's."""
    return tilted_by(o, o.population.world.rewards)


def parts(o: Outcome) -> Array:
    """Boltzmann within each part of the answers that comparisons connect; the parts' masses, which no comparison tells, as they are."""
    expected = boltzmann(o)
    for p, wins in enumerate(o.population.wins):
        labels = exact.components(np.asarray(wins + wins.T, dtype=np.float64))
        expected[p] = exact.recombine(expected[p], labels, np.bincount(labels, weights=o.probs[p]))
    return expected


def tilted_by(o: Outcome, rewards: Array) -> Array:
    """ref e^{r/β} / Z."""
    return exact.boltzmann(o.ref / o.ref.sum(-1, keepdims=True), rewards, o.options["beta"])


def reward(rewards: Callable[[Outcome], Array]) -> Check:
    """Boltzmann of other rewards [P, K]."""
    return law(lambda o: tilted_by(o, rewards(o)))


def odpo(o: Outcome) -> Array:
    """r + α m."""
    return np.asarray(o.population.world.rewards + o.options["alpha"] * o.population.margin)


def rdpo(o: Outcome) -> Array:
    """r - α n."""
    return np.asarray(o.population.world.rewards - o.options["alpha"] * o.population.world.lengths)


def two_levels(gap: Callable[[Outcome, float], float]) -> Check:
    """Boltzmann where good answers have the reward `gap(o, p)`, p being the share of comparisons in which good beats bad."""

    def expected(o: Outcome) -> Array:
        strengths = np.array(o.population.world.strengths)
        best = strengths.max()
        return tilted_by(o, np.where(strengths == best, gap(o, best / (best + strengths.min())), 0.0))

    return law(expected)


def cdpo(o: Outcome, p: float) -> float:
    """cDPO: the log-odds of the label after a share ε is flipped."""
    eps = o.options["label_smoothing"]
    return float(logit(p * (1 - eps) + (1 - p) * eps))


def exo(o: Outcome, p: float) -> float:
    """EXO: (2p - 1) log((1-ε)/ε), the mean of the labels' log-odds, as the reverse KL asks."""
    return (2 * p - 1) * float(logit(1 - o.options["label_smoothing"]))


def tie(log_ratio: Callable[[Array], Array]) -> Check:
    """ref (f')^{-1}((r - λ)/β), `log_ratio` being log (f')^{-1}."""
    return law(lambda o: exact.tilted(o.ref, o.population.world.rewards, o.options["beta"], log_ratio))


def forward_kl(c: Array) -> Array:
    """f' = 1 - 1/z: z = 1/(1-c)."""
    return np.where(c < 1, -np.log1p(-np.minimum(c, 1 - 1e-15)), np.inf)


def jensen_shannon(c: Array) -> Array:
    """f' = log 2z/(1+z): z = e^c / (2 - e^c)."""
    return np.where(c < np.log(2), c - np.log(np.maximum(2 - np.exp(c), 1e-300)), np.inf)


def half(c: Array) -> Array:
    """f' = (z^(α-1) - 1)/(α-1) at α = ½: z = (1 - c/2)^-2."""
    return np.where(c < 2, -2 * np.log1p(-np.minimum(c, 2 - 1e-15) / 2), np.inf)


def chi_squared(c: Array) -> Array:
    """z + log z = c: z = ω(c), Wright's omega."""
    return np.asarray(c - wrightomega(c))


def per_token(o: Outcome, rewards: Array, *, reference: bool = True) -> Array:
    """The law in which β log(pi/ref)/n is the reward up to a constant: ref e^{n (r - λ)/β}."""
    start = o.ref if reference else np.ones_like(o.ref)
    return exact.tilted(start, rewards, o.options["beta"], lambda c: o.population.world.lengths * c)


def dpo_norm(o: Outcome) -> Array:
    """ref e^{n (r - λ)/β}."""
    return per_token(o, o.population.world.rewards)


def ipo(o: Outcome) -> Array:
    """Log-ratios (per token where length-normalised) by least squares; comparisons may go in circles."""
    wins = o.population.wins.astype(np.float64)
    total = wins + wins.transpose(0, 2, 1)
    share = np.divide(wins, total, out=np.full_like(wins, 0.5), where=total > 0)
    fitted = np.stack([exact.ipo_log_ratios(p, w, o.options["beta"]) for p, w in zip(share, total, strict=True)])
    lengths = o.population.world.lengths if o.options["length_normalized"] else 1
    return exact.tilted(o.ref, fitted, 1.0, lambda c: lengths * c)


def simpo_gap(o: Outcome, p: float) -> float:
    """The margin z that minimises -p log σ(z-γ) - (1-p) log σ(-z-γ): e^z solves q g x² - (p-q) x - p g = 0, g = e^-γ, q = 1-p."""
    q, g = 1 - p, np.exp(-o.options["gamma"])
    return float(np.log(((p - q) + np.sqrt((p - q) ** 2 + 4 * p * q * g**2)) / (2 * q * g)))


def simpo(o: Outcome) -> Array:
    """e^{n (r - λ)/β} with the gap of `simpo_gap` between good and bad."""
    strengths = np.array(o.population.world.strengths)
    good, bad = strengths.max(), strengths.min()
    return per_token(o, np.where(strengths == good, simpo_gap(o, good / (good + bad)), 0.0), reference=False)


def discopop_slope(z: float, tau: float) -> float:
    """Derivative of (1-s) sp(-z) + s e^-z, s = σ(z/τ)."""
    s = expit(z / tau)
    return float(s * (1 - s) / tau * (np.exp(-z) + log_expit(z)) - (1 - s) * expit(-z) - s * np.exp(-z))


def discopop(o: Outcome, p: float) -> float:
    """DiscoPOP: where p l(z) + (1-p) l(-z) is least."""
    tau = o.options["tau"]
    return float(brentq(lambda z: p * discopop_slope(z, tau) - (1 - p) * discopop_slope(-z, tau), 0.0, 5.0))


def discopop_trap(o: Outcome, p: float) -> float:
    """The minimum of l(z) next to 0, where training from the reference ends when labels are certain."""
    return float(brentq(lambda z: discopop_slope(z, o.options["tau"]), -0.3, 0.0))


def ld_dpo(o: Outcome) -> Array:
    """LD-DPO where every answer is compared with one of a single token.

    Given the first token the rest has the temperature αβ; the first token has β, and is worth the rest's αβ log Z.
    """
    world, beta = o.population.world, o.options["beta"]
    inner = o.options["alpha"] * beta
    first = np.array([completion[0] for completion in world.completions])
    expected = np.zeros_like(o.ref)
    for ref, rewards, found in zip(o.ref, world.rewards, expected, strict=True):
        mass = np.array([ref[first == token].sum() for token in range(world.vocabulary)])
        given = [(ref[first == token] / mass[token], rewards[first == token], inner) for token in range(world.vocabulary)]
        worth = np.array([inner * exact.log_partition(*part) for part in given])
        for token, (share, part) in enumerate(zip(exact.boltzmann(mass / mass.sum(), worth, beta), given, strict=True)):
            found[first == token] = share * exact.boltzmann(*part)
    return expected


def greedy(o: Outcome) -> Array:
    """All mass on the completion made of each prefix's most frequent next token."""
    completions = o.population.world.completions
    expected = np.zeros_like(o.probs)
    for drawn, found in zip(o.population.drawn, expected, strict=True):
        live, n = np.ones(len(completions), dtype=bool), 0
        while live.sum() > 1:
            token = np.array([completion[n] if n < len(completion) else -1 for completion in completions])
            live &= token == np.bincount(token[live], weights=drawn[live]).argmax()
            n += 1
        found[live] = 1
    return expected


def data_law(o: Outcome) -> Array:
    """The share of each completion among the demonstrations."""
    return np.asarray(o.population.drawn / o.population.drawn.sum(-1, keepdims=True))


def slic(o: Outcome) -> Array:
    """While every pair lies within the margin: (wins + (wins - losses)/λ) / comparisons."""
    wins, losses = o.population.wins.sum(2), o.population.wins.sum(1)
    return np.asarray((wins + (wins - losses) / o.options["sft_weight"]) / wins.sum(-1, keepdims=True))


# --- stationary conditions ----------------------------------------------------------------------------------------------


def unbalanced(probs: Array, slope: Array, push: Array) -> float:
    """Σ |g - pi Σ g| / Σ |pushes|, of the prompt where it is largest."""
    return float((np.abs(slope - probs * slope.sum(-1, keepdims=True)).sum(-1) / push.sum(-1)).max())


def stationary(o: Outcome, start: Array, forces: Callable[[Array], tuple[Array, Array]]) -> float:
    """What is left over at the end, if the way there led down: ∫ g dx < 0 from `start`; a maximum is balanced too.

    `forces(x)` gives slopes and the sum of the pushes they are made of [P, K] at log-ratios (or log-probs) x.
    """
    fallen = sum(float((forces(start + t * o.ratio)[0] * o.ratio).sum()) for t in np.linspace(0.025, 0.975, 20))
    return unbalanced(o.probs, *forces(start + o.ratio)) if fallen < 0 else np.inf


def balanced(slopes: Slopes, *, reference: bool = True) -> Check:
    """A loss of pairs; `slopes(o, u, v)` gives dl/du and dl/dv [P, K, K] of i preferred to j.

    Without a reference u and v are log-probs.
    """

    def check(o: Outcome) -> float:
        wins = o.population.wins

        def forces(x: Array) -> tuple[Array, Array]:
            a, b = (wins * side for side in slopes(o, x[:, :, None], x[:, None, :]))
            return a.sum(2) + b.sum(1), np.abs(a).sum(2) + np.abs(b).sum(1)

        return stationary(o, np.zeros_like(o.ref) if reference else np.log(o.ref), forces)

    return check


def nca(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of -log σ(βu) - ½ log σ(-βu) - ½ log σ(-βv)."""
    beta = o.options["beta"]
    return beta * (0.5 * expit(beta * u) - expit(-beta * u)), beta * 0.5 * expit(beta * v)


def bco_pair(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of -log σ(βu) - log σ(-βv)."""
    beta = o.options["beta"]
    return -beta * expit(-beta * u), beta * expit(beta * v)


def sppo(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of (u - 1/2β)² + (v + 1/2β)²."""
    return 2 * u - 1 / o.options["beta"], 2 * v + 1 / o.options["beta"]


def _bell(x: Array) -> Array:
    return np.asarray(expit(x) * expit(-x))


def apo_zero(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of 1 - σ(βu) + σ(βv)."""
    beta = o.options["beta"]
    return -beta * _bell(beta * u), beta * _bell(beta * v)


def apo_down(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of σ(βu) + 1 - σ(β(u-v)), a mean over pairs, plus the mean over tokens of -λ log p."""
    beta, wins = o.options["beta"], o.population.wins
    pull = beta * _bell(beta * (u - v)) / wins.sum()
    likelihood = o.options["mix"]["sft"] / (wins * o.population.world.lengths[:, None]).sum()
    return beta * _bell(beta * u) / wins.sum() - pull - likelihood, pull


def dpop(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of -log σ(β(u - v - λ max(0, -u)))."""
    beta, penalty = o.options["beta"], o.options["penalty"]
    pull = beta * expit(-beta * (u - v - penalty * np.maximum(0, -u)))
    return -pull * (1 + penalty * (u < 0)), pull


def rpo(o: Outcome, u: Array, v: Array) -> tuple[Array, Array]:
    """Slopes of -log σ(β(u-v)) - α L_w/n_w."""
    pull = o.options["beta"] * expit(-o.options["beta"] * (u - v))
    return -pull - o.options["alpha"] / o.population.world.lengths[:, None], pull


def cpo(o: Outcome, chosen: Array, rejected: Array) -> tuple[Array, Array]:
    """Slopes of -log σ(β(L_w - L_l)) - λ L_w."""
    pull = o.options["beta"] * expit(-o.options["beta"] * (chosen - rejected))
    return -pull - o.options["nll_weight"], pull


def orpo(o: Outcome, chosen: Array, rejected: Array) -> tuple[Array, Array]:
    """Slopes of the mean over pairs of -λ log σ(o_w - o_l) plus the mean over tokens of -log p: do/dL = 1 / (n (1 - e^{L/n}))."""
    wins, lengths = o.population.wins, o.population.world.lengths
    odds = [(mean := logp / n, mean - np.log1p(-np.exp(mean)))[1] for logp, n in ((chosen, lengths[:, None]), (rejected, lengths))]
    pull = o.options["weight"] * expit(odds[1] - odds[0]) / wins.sum()
    a, b = (pull / (n * -np.expm1(logp / n)) for logp, n in ((chosen, lengths[:, None]), (rejected, lengths)))
    return -a - 1 / (wins * lengths[:, None]).sum(), b


def thumbs(slopes: Callable[[Outcome, Array], tuple[Array, Array]]) -> Check:
    """A loss of single completions; `slopes(o, h)` gives its derivative [P, K] under thumbs up and under thumbs down."""

    def check(o: Outcome) -> float:
        def forces(x: Array) -> tuple[Array, Array]:
            up, down = slopes(o, x)
            pushes = o.population.drawn * up, o.population.against * down
            return pushes[0] + pushes[1], np.abs(pushes[0]) + np.abs(pushes[1])

        return stationary(o, np.zeros_like(o.ref), forces)

    return check


def kto(o: Outcome, h: Array) -> tuple[Array, Array]:
    """Slopes of σ(-β(h - z0)) and σ(β(h - z0)), z0 the mean log-ratio of each draw's completion under the draw before's prompt."""
    beta, drawn = o.options["beta"], _draws(o.population)
    ahead = np.roll(drawn, -1, axis=0)
    bell = beta * _bell(beta * (h - max(0.0, h[drawn[:, 0], ahead[:, 1]].mean())))
    return -bell * o.options["desirable_weight"], bell * o.options["undesirable_weight"]


def apo_zero_unpaired(o: Outcome, h: Array) -> tuple[Array, Array]:
    """KTO's with z0 = 0."""
    bell = o.options["beta"] * _bell(o.options["beta"] * h)
    return -bell, bell


def bco(o: Outcome, h: Array) -> tuple[Array, Array]:
    """Slopes of -log σ(βh - δ) and -log σ(δ - βh)."""
    beta, logit_ = o.options["beta"], o.options["beta"] * h - o.shift
    return -beta * expit(-logit_), beta * expit(logit_)


def _draws(population: Population) -> np.ndarray:
    """(prompt, completion) of the first branch of every draw [n, 2]."""
    prompts, completions = population.world.prompts, population.world.completions
    return np.array(
        [(prompts.index(tuple(t.prompt.tolist())), completions.index(tuple(t.branches[0].ids.tolist()))) for t in population.trees]
    )


def aot(o: Outcome) -> float:
    """AOT: sorted margins of the policy against sorted margins of the reference, over all prompts."""
    p, i, j = _comparisons(o.population)
    gap, start = (x[p, i] - x[p, j] for x in (np.log(o.probs), np.log(o.ref)))
    return _sorted_balance(o, (gap.argsort(), gap.argsort()), np.sort(gap) - np.sort(start))


def aot_unpaired(o: Outcome) -> float:
    """AOT unpaired: sorted log-ratios of the chosen against those of the rejected, over all prompts."""
    p, i, j = _comparisons(o.population)
    u, v = o.ratio[p, i], o.ratio[p, j]
    return _sorted_balance(o, (u.argsort(), v.argsort()), np.sort(u) - np.sort(v))


def _comparisons(population: Population) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompt, winner and loser of every draw [N]."""
    at = np.argwhere(population.wins)
    p, i, j = np.repeat(at, population.wins[tuple(at.T)], axis=0).T
    return p, i, j


def _sorted_balance(o: Outcome, order: tuple[np.ndarray, np.ndarray], delta: Array) -> float:
    """The k-th of the sorted differences pushes the winner and the loser that came k-th."""
    p, i, j = _comparisons(o.population)
    eps, z = o.options["label_smoothing"], o.options["beta"] * delta
    push = (1 - eps) * expit(-z) - eps * expit(z)
    slope, forces = np.zeros_like(o.probs), np.zeros_like(o.probs)
    for side, at, sign in ((i, order[0], -1.0), (j, order[1], 1.0)):
        np.add.at(slope, (p[at], side[at]), sign * push)
        np.add.at(forces, (p[at], side[at]), np.abs(push))
    return unbalanced(o.probs, slope, forces)


# --- reward models ------------------------------------------------------------------------------------------------------


def scores(o: Outcome) -> float:
    """Largest difference to log s + margin, each prompt's mean set to 0: scores are free by a constant per prompt."""
    margin = o.population.margin
    error = o.scores - o.population.world.rewards - (margin if margin.size else 0)
    return float(np.abs(error - error.mean(-1, keepdims=True)).max())


def margins(o: Outcome) -> float:
    """Largest difference to the margins alone, each prompt's mean set to 0."""
    error = o.scores - o.population.margin
    return float(np.abs(error - error.mean(-1, keepdims=True)).max())


def log_odds(o: Outcome) -> float:
    """Largest difference to log(up / down), constant and all."""
    return float(np.abs(o.scores - np.log(o.population.drawn / o.population.against)).max())


def step_shares(o: Outcome) -> float:
    """Largest difference between the expected share of right steps and the share in the data, over prefixes."""
    found, place, label = o.steps
    place = place.astype(np.int64)
    drawn = np.bincount(place)
    seen = drawn > 0
    return float(np.abs((np.bincount(place, found) - np.bincount(place, label))[seen] / drawn[seen]).max())
