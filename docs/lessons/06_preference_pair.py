"""One prompt, two answers, an order: what a pair says, what it costs, and how the package reads it."""

# %% [markdown]
# # 6. The preference pair
#
# **Question.** What is in a preference pair, and what in it can go wrong before any training starts?
#
# **Expectation.** A pair is a prompt with two completions of ranks 0 and 1. It carries at most one bit, less if the annotator wavers,
# nothing if both answers are the same. Its prompt need be read once only. And everything that tells the two sides apart can be learned,
# length as well as merit.
#
# Three hundred requests of the synthetic world, two drafts each, one annotator; written as an ordinary JSONL file.

# %%
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.special import entr

from prefopt.data.check import check
from prefopt.data.read import read
from prefopt.losses import dpo
from prefopt.pack.tree import pack
from prefopt.pipeline.create import build_tokenizer, texts
from prefopt.pipeline.kinds import CreateOptions
from prefopt.text.chat import Renderer
from prefopt.world import ANNOTATORS, World

world, rng, judge = World(0), np.random.default_rng(6), ANNOTATORS["gold"]
rows, certainty, longer, merit = [], [], [], []
for request in world.requests(300, seed=6):
    a, b = world.draft(request, rng), world.draft(request, rng)
    p = judge.probabilities(request.meta, a, b).a
    chosen, rejected = (a, b) if judge.prefer(request.meta, a, b, rng) == "a" else (b, a)
    prompt = [m.to_dict() for m in request.prompt]
    sides = {
        name: [{"role": "assistant", "content": text}]
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    rows.append({"prompt": prompt, **sides})
    certainty.append(p)
    longer.append(np.sign(len(chosen.split()) - len(rejected.split())))
    merit.append(np.sign(world.gold(request.meta, chosen) - world.gold(request.meta, rejected)))
os.chdir(tempfile.mkdtemp())
path = Path("prefs.jsonl")
path.write_text("".join(json.dumps(row) + "\n" for row in rows))
example = next(iter(read(str(path))))
print("prompt:  ", " / ".join(f"{m.role}: {m.content}" for m in example.prompt))
for answer in example.completions:
    print(f"rank {answer.rank}:  ", answer.content[0].content)

# %% [markdown]
# **What it says.** An annotator who prefers a with probability p gives 1 − H(p) bits about which is better: a whole bit when he is sure,
# nothing at ½.

# %%
p = np.array(certainty)
bits = 1 - (entr(p) + entr(1 - p)) / np.log(2)
order = np.array(merit)
print(
    f"mean information of a label {bits.mean():.2f} bits; a quarter of the pairs carries less than {np.quantile(bits, 0.25):.2f}"
)
print(
    f"the label agrees with the gold reward in {(order > 0).mean():.0%} of pairs, contradicts it in {(order < 0).mean():.0%}, ties in the rest"
)
print(
    f"the chosen answer is the longer one in {(np.array(longer) > 0).mean():.0%}, the shorter one in {(np.array(longer) < 0).mean():.0%}"
)

# %% [markdown]
# **How it is read.** The file is checked as `prefopt data check` does, with a tokenizer made for this lesson. Each row becomes a tree: the
# prompt's tokens once, then two branches.

# %%
examples = list(read(str(path)))
tokenizer = build_tokenizer(
    (text for e in examples for text in texts(e)), CreateOptions(vocab_size=600)
)
renderer = Renderer(tokenizer)
outcome = check(str(path), renderer=renderer)
print(outcome.preflight.table())

# %%
trees = list(renderer.trees(examples))
packed, padded = sum(t.packed_tokens for t in trees), sum(t.padded_tokens for t in trees)
width = max(len(t.prompt) + len(b.ids) for t in trees for b in t.branches)
print(
    f"positions: {packed} as trees, {padded} if each answer has its own prompt, {2 * len(trees) * width} padded to the longest"
)
tree = trees[0]
scored = [tokenizer.decode(b.ids[b.scored]) for b in tree.branches]
print("what is scored of the first pair:", scored)
batch = pack(trees[:3])
print(
    "chosen sequences",
    batch.chosen_N.tolist(),
    "rejected sequences",
    batch.rejected_N.tolist(),
    "tokens of each",
    batch.length_S.tolist(),
)

# %% [markdown]
# The stop token is scored: an answer's end is part of the answer.
#
# **What can go wrong.** Swapped labels: the loss of a swapped pair is larger by exactly the margin. Identical answers: no gradient, but a
# loss of ln 2 that dilutes the mean; the preflight drops and counts them.

# %%
logps = torch.tensor([-20.0, -24.0], requires_grad=True)
ref = torch.tensor([-22.0, -22.0])
right, swapped = (
    dpo(logps[[i]], logps[[1 - i]], ref[[i]], ref[[1 - i]], beta=0.1) for i in (0, 1)
)
same = dpo(logps[[0]], logps[[0]], ref[[0]], ref[[0]], beta=0.1)
(slope,) = torch.autograd.grad(same.sum(), logps)
print(
    f"loss {right.item():.4f}, swapped {swapped.item():.4f}, difference {swapped.item() - right.item():.4f} = β times 4 nats"
)
print(f"identical answers: loss {same.item():.4f}, gradient {slope.tolist()}")

# %% plot
from plot import Plot

edges = np.linspace(0, 1, 11)
names = [f"{a:.1f}" for a in edges[:-1]]
chart = Plot("How much a label says", x="bits (from)", y="pairs", names=names)
chart.bars("", np.histogram(bits, edges)[0]).save("06")

# %% [markdown]
# **Found.** A label of this reliable annotator carries {{bits.mean():.2f}} bits; reading prompts once saves
# {{1 - packed / padded:.0%}} of the positions, and {{1 - packed / (2 * len(trees) * width):.0%}} against padding.
#
# **Where it ends.** A pair says WHICH is better, seldom by how much: for that there are margins (lesson 12), rankings (`pl_dpo`) or
# scores. And the pair is only about answers somebody sampled: lesson 16.

# %%
assert 0.3 < bits.mean() < 0.9
assert (order > 0).mean() > 4 * (order < 0).mean()
assert packed < padded < 2 * len(trees) * width
assert all(text.endswith("<|im_end|>") or tokenizer.eos_token in text for text in scored)
assert abs(swapped.item() - right.item() - 0.4) < 1e-6
assert slope.abs().max() == 0
assert outcome.failed == 0
