"""From rewards to advantages: what each sampled answer, or token, did better than expected. Nothing here is ever differentiated.

Rewards of answers are [S] with the group (prompt) of each, ids in any order; rewards of tokens are flat [T], answer after answer, with
their lengths [S]. Sums are made in float64: in fp32 the mean of equal rewards rounds, and the small rest is blown up by their spread.

At the end what is no advantage but a choice: which answers to learn from, and their ranks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from prefopt.losses.numeric import require, wide

Scale = Literal["group", "batch", "none"]


class GAE(NamedTuple):
    """Advantages [T] and returns [T], the critic's targets."""

    advantages: Tensor
    returns: Tensor


class Baseline(NamedTuple):
    """Advantages [S] and the baseline of the next round, a scalar."""

    advantages: Tensor
    baseline: Tensor


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, lengths: Tensor, *, gamma: float = 1.0, lam: float = 0.95) -> GAE:
    """Generalised advantage estimation.

    δ_t = r_t + γ V_{t+1} - V_t,  A_t = δ_t + γλ A_{t+1},  returns = A + V, V after the last token 0
    (Schulman et al. 2015, arXiv 1506.02438, eqs. 11 and 16). The advantages are not whitened here.

    λ = 1: A = reward-to-go - V. λ = 0: A = δ. V = 0, γ = λ = 1: reward-to-go, one number an answer where the reward is on its last token.
    γ = 1 and λ = 0.95 as TRL; verl and OpenRLHF take λ = 1.

    Args:
        rewards: [T] of each token, reward units.
        values: [T] the critic's value of the state each token was chosen in.
        lengths: [S] tokens of each answer; 0 is allowed.

    Options:
        gamma: γ, discount per token.
        lam: λ, 0 trusts the critic, 1 the sampled rewards.

    Returns:
        (advantages [T], returns [T]).

    >>> [x.tolist() for x in gae(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([2]), gamma=1.0, lam=0.0)]
    [[-0.25, 0.75], [0.25, 1.0]]
    """
    require(0 <= gamma <= 1, "gamma", gamma, "in [0, 1]")
    require(0 <= lam <= 1, "lam", lam, "in [0, 1]")
    if rewards.shape != values.shape:
        raise ValueError(f"shapes differ: {tuple(rewards.shape)} and {tuple(values.shape)}")
    rewards, values = wide(rewards), wide(values)
    following = torch.cat([values[1:], values[:0].new_zeros(min(1, len(values)))])
    ends = lengths.cumsum(0)[lengths > 0] - 1
    following = following.index_fill(0, ends, 0.0)
    advantages = discounted(rewards + gamma * following - values, lengths, gamma * lam)
    return GAE(advantages, advantages + values)


@torch.no_grad()
def discounted(values: Tensor, lengths: Tensor, decay: float) -> Tensor:
    """Σ_{s >= t} decay^{s-t} x_s within each answer [T].

    >>> discounted(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 1]), 0.5).tolist()
    [2.0, 2.0, 4.0]
    """
    if int(lengths.sum()) != len(values):
        raise ValueError(f"lengths add up to {int(lengths.sum())}, there are {len(values)} tokens")
    longest = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(longest, device=values.device)
    inside = place < lengths[:, None]
    table = wide(values).new_zeros(inside.shape)
    table[inside] = wide(values)
    for t in range(longest - 2, -1, -1):
        table[:, t] += decay * table[:, t + 1]
    return table[inside]


def leave_one_out(rewards: Tensor, group: Tensor) -> Tensor:
    """RLOO: each answer against the mean of the others to its prompt.

    A_i = r_i - mean_{j != i} r_j = k/(k-1) (r_i - mean)  (Ahmadian et al. 2024, arXiv 2402.14740, section 4). KL in the reward belongs
    into r before the baseline (TRL, verl); OpenRLHF leaves it out of the baseline: that is kl.place=advantage.

    Sums to 0 in each group; unbiased, since the baseline of an answer does not depend on it. An answer alone has no others: 0 (verl's
    loop gives it its raw reward). Equal rewards: exactly 0.

    Args:
        rewards: [S].
        group: [S] the prompt of each answer, any ids.

    Returns:
        [S].

    >>> leave_one_out(torch.tensor([1.0, 3.0, 8.0]), torch.tensor([0, 0, 1])).tolist()
    [-2.0, 2.0, 0.0]
    """
    found = _Groups(rewards, group)
    return found.narrow(found.centred * (found.size / (found.size - 1).clamp(min=1))[found.of])


def group_advantages(rewards: Tensor, group: Tensor, *, scale: Scale = "group") -> Tensor:
    """GRPO: each answer against the mean of its group, in units of the group's spread.

    A_i = (r_i - mean)/(std + 1e-6), std with n - 1  (Shao et al. 2024, arXiv 2402.03300, section 4.1.2). scale=none leaves the
    spread out (Dr. GRPO, 2503.20783: division favours prompts that are nearly solved or hopeless); scale=batch divides by the spread of
    all rewards of the round (2508.08221). Peers take the sample's (TRL, verl, OpenRLHF) or the population's (HALOs) standard deviation
    and add 1e-4, 1e-6, 1e-9 or 1e-2.

    Sums to 0 in each group; unchanged by a constant added to a group's rewards, and (but for 1e-6) by a factor on all. Two answers:
    ±1/√2. Equal rewards, or an answer alone: exactly 0.

    Args:
        rewards: [S].
        group: [S] the prompt of each answer, any ids.

    Options:
        scale: group, batch or none.

    Returns:
        [S].

    >>> group_advantages(torch.tensor([1.0, 3.0, 8.0, 8.0]), torch.tensor([0, 0, 1, 1]), scale="none").tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """
    require(scale in ("group", "batch", "none"), "scale", scale, "group, batch or none")
    found = _Groups(rewards, group)
    if scale == "none":
        return found.narrow(found.centred)
    if scale == "group":
        spread = found.sums(found.centred.square()).div((found.size - 1).clamp(min=1)).sqrt()[found.of]
    else:
        spread = found.rewards.std() if len(rewards) > 1 else found.rewards.new_ones(())
    return found.narrow(found.centred / (spread + 1e-6))


def group_whitened(rewards: Tensor, group: Tensor) -> Tensor:
    """REINFORCE++ with group baseline: minus the group's mean, whitened over the whole round.

    A = whiten(r - mean of the group)  (Hu et al. 2025, arXiv 2501.03262 v9, eqs. 6 and 7). One spread for all prompts: an easy prompt's
    rare failure is not blown up as in GRPO. Equal rewards in every group: exactly 0.

    Args:
        rewards: [S].
        group: [S] the prompt of each answer, any ids.

    Returns:
        [S].
    """
    return whiten(group_advantages(rewards, group, scale="none"))


def reward_to_go(rewards: Tensor, lengths: Tensor, *, gamma: float = 1.0) -> Tensor:
    """REINFORCE++: what is still to come at each token, whitened over all tokens of the round.

    A = whiten(Σ_{s >= t} γ^{s-t} r_s), r the score on the last token minus β k1 on each  (Hu et al. 2025, arXiv 2501.03262 v9,
    eqs. 4 and 5). verl starts the sum anew after every unscored token; here an answer is one sum.

    Args:
        rewards: [T] of each token, reward units.
        lengths: [S] tokens of each answer.

    Options:
        gamma: γ, discount per token.

    Returns:
        [T].
    """
    require(0 <= gamma <= 1, "gamma", gamma, "in [0, 1]")
    return whiten(discounted(rewards, lengths, gamma))


def against_greedy(rewards: Tensor, greedy: Tensor) -> Tensor:
    """ReMax: each answer against the greedy one to its prompt.

    A_i = r_i - r(greedy answer)  (Li et al. 2023, arXiv 2310.10505, algorithm 1). Unbiased: the greedy answer does not depend on the
    sampled one. One more answer a prompt is decoded and judged.

    Args:
        rewards: [S].
        greedy: [S] the reward of the greedy answer to the same prompt.

    Returns:
        [S].
    """
    if rewards.shape != greedy.shape:
        raise ValueError(f"shapes differ: {tuple(rewards.shape)} and {tuple(greedy.shape)}")
    return (rewards.double() - greedy.double()).to(wide(rewards).dtype)


def running_baseline(rewards: Tensor, baseline: Tensor | None, *, decay: float = 0.8) -> Baseline:
    """REINFORCE with a running baseline.

    A_i = r_i - b, then b <- decay b + (1 - decay) mean(r)  (Williams 1992, doi.org/10.1007/BF00992696, section 5). In the first round b
    is the mean of the other answers, so that it never depends on the answer it is taken from.

    Args:
        rewards: [S].
        baseline: b, a scalar of the rounds before; None in the first.

    Options:
        decay: what b keeps of itself each round.

    Returns:
        (advantages [S], the next b).
    """
    require(0 <= decay < 1, "decay", decay, "in [0, 1)")
    mean = rewards.double().mean()
    if baseline is None:
        return Baseline(leave_one_out(rewards, torch.zeros_like(rewards, dtype=torch.int64)), mean)
    b = baseline.double()
    return Baseline((rewards.double() - b).to(wide(rewards).dtype), decay * b + (1 - decay) * mean)


@torch.no_grad()
def whiten(values: Tensor, *, shift: bool = True) -> Tensor:
    """Mean 0 and variance 1 over everything given: hand it the whole round, never a micro-batch.

    (x - mean)/√(var + 1e-8), var with n - 1, as TRL and verl (OpenRLHF: biased, clamped at 1e-8). Equal values: exactly 0.

    Args:
        values: any shape.
        shift: False keeps the mean.

    >>> whiten(torch.tensor([1.0, 3.0])).tolist()
    [-0.70710..., 0.70710...]
    """
    x = values.double()
    if x.numel() == 0:
        return wide(values)
    mean = x.mean()
    flat = bool(x.max() == x.min())
    scaled = torch.zeros_like(x) if flat else (x - mean) / (x.var() + 1e-8).sqrt()
    return (scaled if shift else scaled + mean).to(wide(values).dtype)


# --- choices --------------------------------------------------------------------------------------------------------


def ranks(rewards: Tensor, group: Tensor) -> Tensor:
    """Pairs: the rank of each answer in its group by reward, 0 best; equal rewards share a rank, and such pairs teach nothing.

    Online DPO (Guo et al. 2024, arXiv 2402.04792), online IPO (Calandriello et al. 2024, 2403.08635) and iterative DPO (Xiong et al.
    2023, 2312.11456: rounds of many prompts, the reference moved to the policy at the start of each) learn from such pairs. All
    but XPO can read the loss of any row of pairs on them (loss=simpo), with that row's own options; where it reads a margin, that is the
    difference of rewards.

    Options:
        loss: the row of pairs whose loss is read, and whose options stand beside it.

    >>> ranks(torch.tensor([0.5, 2.0, 0.5, 1.0]), torch.tensor([0, 0, 0, 1])).tolist()
    [1, 0, 1, 0]
    """
    better = (group[None, :] == group[:, None]) & (rewards[None, :] > rewards[:, None])
    return better.sum(-1)


def best_of_group(rewards: Tensor, group: Tensor) -> Tensor:
    """Best-of-n: which answers [S] bool are the best of their group; of several the first.

    The policy imitates its own best of n answers, whose law is known exactly (`prefopt.exact.best_of_n`); RAFT (Dong et al. 2023, arXiv
    2304.06767) is this, round by round.

    >>> best_of_group(torch.tensor([0.5, 2.0, 2.0, 1.0]), torch.tensor([0, 0, 0, 1])).tolist()
    [False, True, False, True]
    """
    place = torch.arange(len(rewards), device=rewards.device)
    earlier = (rewards[None, :] == rewards[:, None]) & (place[None, :] < place[:, None])
    return ~((group[None, :] == group[:, None]) & ((rewards[None, :] > rewards[:, None]) | earlier)).any(-1)


def accepted(rewards: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Rejection sampling: which answers [S] bool reach the threshold; all of them are imitated.

    r >= threshold  (rejection-sampling fine-tuning: Yuan et al. 2023, arXiv 2308.01825; with a verifier of reasoning and a fresh start
    from the first model each round it is STaR: Zelikman et al. 2022, 2203.14465, algorithm 1 without rationalisation).

    Args:
        rewards: [S].

    Options:
        threshold: reward units.
    """
    return rewards >= threshold


class _Groups:
    """Rewards in float64, and each minus the mean of its group: exactly 0 where all of the group are equal."""

    def __init__(self, rewards: Tensor, group: Tensor) -> None:
        if rewards.shape != group.shape:
            raise ValueError(f"shapes differ: {tuple(rewards.shape)} and {tuple(group.shape)}")
        self.dtype = wide(rewards).dtype
        self.rewards = rewards.detach().double()
        _, self.of = group.unique(return_inverse=True)
        self.count = int(self.of.max()) + 1 if len(group) else 0
        self.size = torch.bincount(self.of, minlength=self.count)
        low, high = (self._extreme(kind) for kind in ("amin", "amax"))
        mean = self.sums(self.rewards) / self.size
        self.centred = torch.where((low == high)[self.of], 0.0, self.rewards - mean[self.of])

    def _extreme(self, kind: str) -> Tensor:
        start = torch.zeros(self.count, dtype=torch.float64, device=self.rewards.device)
        return start.scatter_reduce(0, self.of, self.rewards, kind, include_self=False)

    def sums(self, values: Tensor) -> Tensor:
        """Sum of each group."""
        return torch.zeros(self.count, dtype=torch.float64, device=values.device).index_add(0, self.of, values)

    def narrow(self, values: Tensor) -> Tensor:
        """Back to the dtype of losses."""
        return values.to(self.dtype)
