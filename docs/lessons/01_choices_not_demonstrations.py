"""Imitation can at best equal the demonstrator; choices between one's own answers lead past him."""

# %% [markdown]
# # 1. Preferences optimize choices, not demonstrations
#
# **Question.** Somebody shows how he answers. Somebody else, no better at answering, only says which of two answers is better. Which of
# the two takes a model further?
#
# **Expectation.** Supervised fine-tuning learns the LAW of the demonstrations, flaws in their proportions included: its mean quality is
# the demonstrator's. A preference moves probability from the worse to the better answer, so it can leave the demonstrator behind, as far
# as β lets it.
#
# The world: two prompts with fifteen possible answers each. The demonstrator writes every answer that he can, the good ones a little more
# often. `learn` trains a table of logits with the package's own loss and loop on a data set whose proportions are exact.

# %%
import numpy as np

from prefopt import exact
from prefopt.verify import claims
from prefopt.verify import population as drawn
from prefopt.verify.learn import learn

world = claims.MANY
quality = world.rewards  # log of the strengths 1 to 4, in nats
habit = np.array(world.strengths) + 1  # how often the demonstrator writes each answer
demonstrator = habit / habit.sum(1, keepdims=True)

sft = learn("sft", drawn.demonstrations(world, habit), {}, "table")
print(f"mean quality of the demonstrator   {(demonstrator * quality).sum(1).mean():.4f}")
print(f"mean quality after SFT             {(sft.probs * quality).sum(1).mean():.4f}")
print(
    f"total variation between the two    {exact.total_variation(sft.probs, demonstrator).max():.6f}"
)

# %% [markdown]
# SFT is the demonstrator, to six digits. More demonstrations would not change that: the fit is already perfect.
#
# Now the preferences. Every answer is compared with six others by a judge who follows Bradley-Terry on quality, so he errs often: the
# best answer (strength 4) loses to the worst (strength 1) once in five. DPO starts from a reference and tilts it.

# %%
pairs = claims.bradley_terry()
betas = [4.0, 2.0, 1.0, 0.5, 0.25]
reached = []
for beta in betas:
    dpo = learn("dpo", pairs, {"beta": beta}, "table")
    optimum = exact.boltzmann(dpo.ref, quality, beta)
    reached.append((dpo.probs * quality).sum(1).mean())
    print(
        f"β = {beta:<5} mean quality {reached[-1]:.4f}   distance to ref e^(r/β)/Z {exact.total_variation(dpo.probs, optimum).max():.5f}"
    )
start = (dpo.ref * quality).sum(1).mean()
print(f"the reference all of these started from: {start:.4f}")

# %% [markdown]
# The reference of these runs is a random table, worse than the demonstrator; from there preferences alone pass him. What if DPO begins
# where SFT ended, as it does in practice? Then the optimum is the demonstrator's law tilted by e^(r/β), and every β improves on him.

# %%
fine = np.geomspace(0.1, 10, 41)
after_sft = [
    (exact.boltzmann(demonstrator, quality, beta) * quality).sum(1).mean() for beta in fine
]
best = quality.max(1).mean()
level = (demonstrator * quality).sum(1).mean()
print(
    f"demonstrator {level:.4f}, DPO from SFT at β = 1: {np.interp(1.0, fine, after_sft):.4f}, the best answer always: {best:.4f}"
)

# %% plot
from plot import Plot

p = Plot("Mean quality after DPO, by β", x="β", y="quality, nats", log=True)
p.line("from SFT (theory)", fine, after_sft).points("from random (run)", betas, reached)
p.rule(y=level, label="the demonstrator, and SFT").rule(
    y=best, label="the best answer always"
).save("01")

# %% [markdown]
# **Found.** SFT ends at {{level:.3f}}, which is the demonstrator's own level; DPO from there reaches {{np.interp(0.25, fine, after_sft):.3f}}
# at β = 0.25, of {{best:.3f}} that are possible, with a judge who cannot write a single answer.
#
# **Where it ends.** A preference only moves probability between answers that somebody wrote. What the reference never writes stays
# unwritten: that is what SFT is for (lesson 16). And the judge's taste is all there is: a judge who likes flattery gets flattery.

# %%
assert exact.total_variation(sft.probs, demonstrator).max() < 1e-3
assert abs((sft.probs * quality).sum(1).mean() - level) < 1e-3
assert start < level < reached[-1] < best
assert (np.diff(reached) > 0).all()
assert min(after_sft) > level
