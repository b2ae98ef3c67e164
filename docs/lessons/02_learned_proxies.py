"""A reward model is a proxy: good where it was fitted, and the harder it is optimized the less it says about the truth."""

# %% [markdown]
# # 2. Reward models as learned proxies
#
# **Question.** A reward model predicts held-out preferences well. What happens to the TRUE quality of answers when its score is optimized?
#
# **Expectation.** Wherever the proxy and the truth part, optimization looks for exactly that place (Goodhart). With a blind spot that is
# merely blind, true quality rises and then flattens; with a taste the annotators have and the truth has not, it falls.
#
# The synthetic world knows the gold reward of any answer. The reward model here is as small as one can be: a linear function of six
# things about an answer that can be SEEN: its length, and whether it is courteous, hedged, flattering, padded or terse. It cannot know
# what is true. It is fitted by Bradley-Terry to the choices of two annotators: a reliable one, and one who is easily impressed by length
# and flattery.

# %%
import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from prefopt import exact
from prefopt.world import Annotator, World

world, rng = World(0), np.random.default_rng(2)
PEOPLE = {
    "reliable": Annotator(scale=6.0),
    "impressed": Annotator(scale=2.0, length=1.0, flattery=2.0),
}
SEEN = ("words", "courteous", "hedged", "flattering", "padded", "terse")


def features(meta: dict, text: str) -> np.ndarray:
    """What the reward model sees of an answer."""
    seen = vars(world.judge(meta, text))
    return np.array([float(seen[name]) for name in SEEN]) / np.array([10, 1, 1, 1, 1, 1])


def choices(annotator: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of chosen minus rejected answers [n, 6], and how the gold reward would have chosen (+1, -1, 0)."""
    gaps, gold = [], []
    for request in world.requests(n, seed=seed):
        a, b = world.draft(request, rng), world.draft(request, rng)
        sign = 1 if PEOPLE[annotator].prefer(request.meta, a, b, rng) == "a" else -1
        gaps.append(sign * (features(request.meta, a) - features(request.meta, b)))
        gold.append(sign * np.sign(world.gold(request.meta, a) - world.gold(request.meta, b)))
    return np.array(gaps), np.array(gold)


def fit(gaps: np.ndarray) -> np.ndarray:
    """Bradley-Terry weights of the features."""

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = gaps @ w
        return -log_expit(z).sum() + 0.5 * (w @ w), -(gaps.T @ expit(-z)) + w

    return minimize(loss, np.zeros(len(SEEN)), jac=True).x


models = {}
for name in PEOPLE:
    weights = fit(choices(name, 1500, seed=1)[0])
    held, gold = choices(name, 500, seed=2)
    models[name] = weights
    accuracy = (held @ weights > 0).mean()
    told = ", ".join(f"{feature} {w:+.2f}" for feature, w in zip(SEEN, weights, strict=True))
    print(
        f"{name} people: the model agrees with held-out choices {accuracy:.0%}; the choices agree with the truth {(gold > 0).mean():.0%}"
    )
    print(f"    weights: {told}")

# %% [markdown]
# Now optimize: of n drafts take the one with the highest score, for n up to 64. `exact.best_of_n` gives the law of the winner among 64
# drafts for every n at once.

# %%
pool, counts = 64, (1, 2, 4, 8, 16, 32, 64)
requests = world.requests(60, seed=3)
drafts = [[world.draft(request, rng) for _ in range(pool)] for request in requests]
seen = np.array(
    [[features(q.meta, text) for text in row] for q, row in zip(requests, drafts, strict=True)]
)
truth = np.array(
    [
        [world.gold(q.meta, text) for text in row]
        for q, row in zip(requests, drafts, strict=True)
    ]
)
uniform = np.full((len(requests), pool), 1 / pool)
curves = {}
for name, weights in models.items():
    proxy = seen @ weights
    laws = [exact.best_of_n(uniform, proxy, n) for n in counts]
    curves[name] = (
        [(law * truth).sum(1).mean() for law in laws],
        [(law * (proxy - proxy.mean(1, keepdims=True))).sum(1).mean() for law in laws],
    )
    print(
        f"{name:<9} gold reward by n",
        {n: round(float(g), 3) for n, g in zip(counts, curves[name][0], strict=True)},
    )
    print(
        f"{'':<9} proxy reward by n",
        {n: round(float(p), 2) for n, p in zip(counts, curves[name][1], strict=True)},
    )
best = [(exact.best_of_n(uniform, truth, n) * truth).sum(1).mean() for n in counts]
print(
    "with the true reward     ",
    {n: round(float(b), 3) for n, b in zip(counts, best, strict=True)},
)

# %% plot
from plot import Plot

p = Plot("Gold reward of the best of n by a proxy", x="n", y="gold reward", log=True).line(
    "true reward", counts, best, dash=True
)
p.line("reliable people", counts, curves["reliable"][0]).line(
    "impressed people", counts, curves["impressed"][0]
).save("02")

# %% [markdown]
# **Found.** Both proxies' own scores rise with every n. Under the one fitted to reliable people the gold reward goes from
# {{curves["reliable"][0][0]:.2f}} to {{curves["reliable"][0][-1]:.2f}} and flattens: manners are all it can see. Under the one fitted to easily impressed
# people it goes from {{curves["impressed"][0][0]:.2f}} to {{curves["impressed"][0][-1]:.2f}}: what they like is not what is good.
#
# **Where it ends.** The proxy's own score can never show this, nor can accuracy on choices of the same people. Lesson 20 has what helps.

# %%
for _, proxy in curves.values():
    assert (np.diff(proxy) > 0).all()
assert curves["reliable"][0][-1] > curves["reliable"][0][0] + 0.1
assert curves["reliable"][0][-1] < best[-1] - 0.2
assert curves["impressed"][0][-1] < curves["impressed"][0][0] - 0.05
assert models["impressed"][3] > 0 > models["reliable"][3]
