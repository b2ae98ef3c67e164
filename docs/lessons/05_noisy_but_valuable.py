"""Single comparisons are little better than coins, and yet a few hundred of them beat ratings by people with different scales."""

# %% [markdown]
# # 5. Why preference data is noisy but valuable
#
# **Question.** Two people shown the same pair often disagree. Why is such data worth collecting, when one could ask for marks out of ten?
#
# **Expectation.** Noise averages out, like 1/√n; a bias does not. Marks carry each person's own level and stretch (harsh, lenient,
# all-sevens). When every person marks other answers, these end up in the answers' means. A comparison is made by ONE person, whose level
# cancels in the difference.
#
# Twelve answers with known quality; sixty people, each with an own level and stretch; a judgement is either a mark of one answer or a
# comparison of two, and both have the same logistic noise.

# %%
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

rng = np.random.default_rng(5)
answers, people = 12, 60
quality = np.linspace(-1, 1, answers) * 0.8
level, stretch = rng.normal(0, 2.5, people), rng.uniform(0.3, 1.5, people)
share_right = np.mean([expit(abs(a - b)) for i, a in enumerate(quality) for b in quality[:i]])
print(f"a single comparison agrees with the truth {share_right:.0%} of the time")


def from_marks(n: int) -> np.ndarray:
    """Mean mark of each answer, from n marks of 5 by each person on answers of his own."""
    total, seen = np.zeros(answers), np.zeros(answers)
    for who in rng.integers(people, size=n // 5):
        for k in rng.choice(answers, 5, replace=False):
            total[k] += level[who] + stretch[who] * (quality[k] + rng.logistic())
            seen[k] += 1
    return total / np.maximum(seen, 1)


def from_comparisons(n: int, flipped: float = 0.0) -> np.ndarray:
    """Bradley-Terry strengths from n comparisons, a share of them written down the wrong way round."""
    first = rng.integers(answers, size=n)
    second = (first + rng.integers(1, answers, size=n)) % answers
    wins = rng.random(n) < expit(quality[first] - quality[second])
    wins ^= rng.random(n) < flipped
    w, rejected = np.where(wins, first, second), np.where(wins, second, first)

    def loss(r: np.ndarray) -> tuple[float, np.ndarray]:
        gap = r[w] - r[rejected]
        push = -expit(-gap)
        return -log_expit(gap).sum() + 0.01 * (r @ r), np.bincount(
            w, push, answers
        ) - np.bincount(rejected, push, answers) + 0.02 * r

    return minimize(loss, np.zeros(answers), jac=True).x


def right(score: np.ndarray) -> float:
    """Share of pairs of answers put in the right order."""
    d = score[:, None] - score[None, :]
    return float((d > 0)[quality[:, None] > quality[None, :]].mean())


sizes = (60, 120, 240, 480, 960, 1920)
repeats = 25
marks = [np.mean([right(from_marks(n)) for _ in range(repeats)]) for n in sizes]
pairs = [np.mean([right(from_comparisons(n)) for _ in range(repeats)]) for n in sizes]
noisy = [np.mean([right(from_comparisons(n, 0.2)) for _ in range(repeats)]) for n in sizes]
print("judgements            ", sizes)
for name, row in (("marks", marks), ("comparisons", pairs), ("comparisons, 20% wrong", noisy)):
    print(f"{name:<22}", [f"{x:.0%}" for x in row])

# %% [markdown]
# With marks the order gets better slowly, because each person's level adds to the noise of whatever answers he happened to see. Comparisons
# get there with fewer judgements; even with a fifth of them written down the wrong way round they are no worse than clean marks here.
#
# **What flipped labels do.** They do not turn the order round; they shrink the gaps: p becomes p(1−ε) + (1−p)ε. A reward model fitted to
# them is less sure than it should be, and DPO tilts less.

# %%
big, big_noisy = from_comparisons(40_000), from_comparisons(40_000, 0.2)
slope, slope_noisy = (np.polyfit(quality, fit, 1)[0] for fit in (big, big_noisy))
gap = 0.8
p = expit(gap)
expected = logit(0.8 * p + 0.2 * (1 - p)) / gap
print(
    f"gaps in units of the truth: {slope:.3f} from clean labels, {slope_noisy:.3f} with 20% flipped (theory {expected:.3f} at a gap of 0.8)"
)

# %% [markdown]
# **How fast.** The error of a fitted gap falls like 1/√n: four times the labels halve it.

# %%
errors = [
    np.std([np.diff(from_comparisons(n)[[2, 9]])[0] for _ in range(60)])
    for n in (250, 1000, 4000)
]
print("spread of one fitted gap with 250, 1000, 4000 comparisons:", np.round(errors, 3))

# %% plot
from plot import Plot

plot = Plot("Pairs of answers put in the right order", x="judgements", y="share", log=True)
plot.line("comparisons", sizes, pairs).line("marks", sizes, marks).line(
    "20% flipped", sizes, noisy, dash=True
)
plot.rule(y=share_right, label="one comparison").save("05")

# %% [markdown]
# **Found.** One comparison is right {{share_right:.0%}} of the time; {{sizes[3]}} of them order {{pairs[3]:.0%}} of all pairs rightly, as many marks
# {{marks[3]:.0%}}.
#
# **Where it ends.** Noise that is the same for all answers averages out. A shared taste (longer looks better) does not, however many labels
# there are: it is in the p that is learned (lesson 2). And a fixed set of people marking EVERY answer would have spared the marks their
# handicap; that is rarely affordable.

# %%
assert 0.55 < share_right < 0.75
assert all(a > b for a, b in zip(pairs[2:], marks[2:], strict=True))
assert noisy[-1] > 0.85
assert np.mean(noisy) > np.mean(marks) - 0.01
assert abs(slope - 1) < 0.1
assert abs(slope_noisy - expected) < 0.1
assert 1.6 < errors[0] / errors[1] < 2.5
assert 1.6 < errors[1] / errors[2] < 2.5
