"""Advantages, policy losses, value losses and KL estimates of verl and OpenRLHF, on made-up sampled tokens.

Neither package can be imported without a cluster and a GPU stack (ray, tensordict, flash-attn, deepspeed, ...). None of that is used by
the functions compared here, so modules that are not installed are replaced by empty stand-ins; the functions themselves are theirs.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from benchmarks.parity.ours import Found

from prefopt.losses import advantages as A
from prefopt.losses import kl as K
from prefopt.losses import policy as P
from prefopt.losses import value as V
from prefopt.losses.ragged import segment_mean

# --- their modules ------------------------------------------------------------------------------------------------------


class _Anything:
    """Stands for whatever a missing module would have had; a decorator leaves its function alone."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *given: Any, **_: Any) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) else _Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything()


class _StandIn(ModuleType):
    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        found = type(name, (_Anything,), {})
        setattr(self, name, found)
        return found


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves stand-ins for the packages in `absent`."""

    def __init__(self) -> None:
        self.absent: set[str] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".", maxsplit=1)[0] in self.absent else None

    def create_module(self, spec: Any) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


_FINDER = _Finder()


def theirs(name: str) -> Any:
    """A module of a peer, with stand-ins for what it wants and is not installed; None where the peer itself is not."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    own = name.split(".", maxsplit=1)[0]
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = str(error.name).split(".")[0]
            if missing == own:
                return None
            if missing in _FINDER.absent:
                raise
            _FINDER.absent.add(missing)
            for loaded in [module for module in sys.modules if module.split(".")[0] == own]:
                del sys.modules[loaded]


# --- sampled tokens -----------------------------------------------------------------------------------------------------

LENGTHS = torch.tensor([5, 3, 6, 2, 4, 6, 1, 4])
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
REWARDS = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 0.0, 1.0, 3.0], dtype=torch.float64)
WIDTH = int(LENGTHS.max())
MASK = torch.arange(WIDTH) < LENGTHS[:, None]
SEQUENCE = torch.repeat_interleave(torch.arange(len(LENGTHS)), LENGTHS)


def tokens(seed: int, scale: float = 1.0) -> torch.Tensor:
    """Flat values [T], the same for both sides."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(int(LENGTHS.sum()), generator=generator, dtype=torch.float64)


OLD = -tokens(1).abs() - 0.1
NOW = OLD + tokens(2, 0.4)
NOW[int(tokens(4).argmin())] += 2.0  # one token of negative advantage beyond the dual clip
REFERENCE = OLD + tokens(3, 0.5)
BY_TOKEN = tokens(4)
BY_ANSWER = REWARDS - REWARDS.mean()


def padded(flat: torch.Tensor) -> torch.Tensor:
    """[T] as [S, width], 0 beyond an answer's end."""
    table = flat.new_zeros(MASK.shape)
    table[MASK] = flat
    return table


def mean(values: torch.Tensor, unit: str) -> torch.Tensor:
    """The mean over tokens, or over answers of the mean over their tokens."""
    return values.mean() if unit == "token" else segment_mean(values, SEQUENCE, len(LENGTHS)).mean()


def loss(function: Callable[[torch.Tensor], torch.Tensor], at: torch.Tensor = NOW) -> Found:
    """Value and gradient of a scalar function of the tokens' values."""
    leaf = at.clone().requires_grad_()
    value = function(leaf)
    (slope,) = torch.autograd.grad(value, leaf)
    return Found(value.item(), {"tokens": slope})


def values(found: torch.Tensor) -> Found:
    """Numbers without a gradient: as a mean, and each of them in the gradient's place."""
    flat = found if found.ndim == 1 else found[MASK]
    return Found(flat.mean().item(), {"values": flat.double()})


# --- verl ---------------------------------------------------------------------------------------------------------------


def verl() -> Any:
    """verl's core_algos, or None."""
    return theirs("verl.trainer.ppo.core_algos")


def _actor(low: float, high: float, dual: float) -> Any:
    """An ActorConfig with the fields that the losses read."""
    kind = theirs("verl.workers.config").ActorConfig
    known = {"clip_ratio": low, "clip_ratio_low": low, "clip_ratio_high": high, "clip_ratio_c": dual, "global_batch_info": {}}
    config = type(
        "Actor", (kind,), {**known, "__init__": lambda self: None, "get": lambda self, name, default=None: known.get(name, default)}
    )
    return config()


def verl_policy(
    name: str, *, advantages: torch.Tensor = BY_TOKEN, low: float = 0.2, high: float = 0.2, dual: float = 3.0, unit: str
) -> Found:
    """A registered policy loss."""
    mode = {"token": "token-mean", "sequence": "seq-mean-token-mean"}[unit]
    function = verl().get_policy_loss_fn(name)
    given = padded(advantages)
    return loss(lambda now: function(padded(OLD), padded(now), given, MASK.double(), mode, _actor(low, high, dual))[0])


def verl_value(clip: float) -> Found:
    """compute_value_loss."""
    mask = MASK.double()
    return loss(lambda now: verl().compute_value_loss(padded(now), padded(BY_TOKEN), padded(OLD), mask, clip)[0])


def verl_kl(kind: str) -> Found:
    """kl_penalty_forward, the mean over tokens."""
    return loss(lambda now: verl().kl_penalty_forward(now, REFERENCE, kind).mean())


def at_the_end() -> torch.Tensor:
    """Each answer's reward on its last token [S, width]."""
    table = torch.zeros(MASK.shape, dtype=torch.float64)
    table[torch.arange(len(LENGTHS)), LENGTHS - 1] = REWARDS
    return table


def verl_advantage(name: str, **options: Any) -> Found:
    """An advantage estimator of rewards on the last token."""
    mask, index = MASK.double(), GROUP.numpy()
    core = verl()
    if name == "remax":
        greedy = torch.full((len(REWARDS),), 0.5, dtype=torch.float64)
        return values(core.compute_remax_outcome_advantage(at_the_end(), greedy, mask)[0])
    if name == "reinforce_plus_plus":
        found = core.compute_reinforce_plus_plus_outcome_advantage(at_the_end(), mask, config=SimpleNamespace(gamma=options["gamma"]))
        return values(found[0])
    function = getattr(core, f"compute_{name}_outcome_advantage")
    return values(function(at_the_end(), mask, np.asarray(index), **options)[0])


def verl_gae(gamma: float, lam: float, *, whitened: bool) -> Found:
    """compute_gae_advantage_return: its advantages, or the targets, which it does not whiten."""
    found = verl().compute_gae_advantage_return(at_the_end(), padded(OLD), MASK.double(), gamma, lam)
    return values(found[0 if whitened else 1])


def verl_adaptive() -> Found:
    """Three updates of AdaptiveKLController."""
    controller = verl().AdaptiveKLController(0.2, 6.0, 1000)
    seen = []
    for kl in (9.0, 2.0, 6.3):
        controller.update(kl, 64)
        seen.append(float(controller.value))
    return values(torch.tensor(seen, dtype=torch.float64))


# --- OpenRLHF -----------------------------------------------------------------------------------------------------------


def openrlhf() -> Any:
    """OpenRLHF's losses, or None."""
    return theirs("openrlhf.models.loss")


def openrlhf_policy(kind: str = "ppo", *, low: float = 0.2, high: float = 0.2, dual: float | None = None, unit: str) -> Found:
    """PolicyLoss."""
    advantages = padded(BY_ANSWER[SEQUENCE] if kind == "gspo" else BY_TOKEN)
    function = openrlhf().PolicyLoss(low, high, dual, token_level_loss=unit == "token", policy_loss_type=kind)
    return loss(lambda now: function(padded(now), padded(OLD), advantages, MASK.double())[0])


def openrlhf_value(clip: float) -> Found:
    """ValueLoss."""
    function = openrlhf().ValueLoss(clip)
    return loss(lambda now: function(padded(now), padded(OLD), padded(BY_TOKEN), MASK.double()))


def openrlhf_kl(kind: str) -> Found:
    """compute_approx_kl, which computes in float32."""
    function = theirs("openrlhf.models.utils").compute_approx_kl
    return loss(lambda now: function(now, REFERENCE, kl_estimator=kind).mean())


def openrlhf_gae(gamma: float, lam: float) -> Found:
    """get_advantages_and_returns of the experience maker."""
    maker = theirs("openrlhf.trainer.ppo_utils.experience_maker").RemoteExperienceMaker
    found = maker.get_advantages_and_returns(None, padded(OLD), at_the_end(), MASK, gamma, lam)
    return values(found[0].double())


PAIRS = tuple(-torch.rand(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 9 for seed in (11, 12, 13, 14))


def pair_loss(function: Callable[..., torch.Tensor]) -> Found:
    """The mean over pairs of a loss of (chosen, rejected, ref_chosen, ref_rejected), differentiated by the first two."""
    leaves = [side.clone().requires_grad_() for side in PAIRS[:2]]
    value = function(*leaves, *PAIRS[2:]).mean()
    return Found(value.item(), dict(zip(("chosen", "rejected"), torch.autograd.grad(value, leaves), strict=True)))


def openrlhf_dpo(**options: Any) -> Found:
    """DPOLoss."""
    return pair_loss(lambda *sides: openrlhf().DPOLoss(**options)(*sides)[0])


def openrlhf_reward() -> Found:
    """PairWiseLoss with a margin."""
    return pair_loss(lambda chosen, rejected, margin, _: openrlhf().PairWiseLoss()(chosen, rejected, -margin))


# --- ours ---------------------------------------------------------------------------------------------------------------


def our_policy(function: Callable[..., torch.Tensor], *, advantages: torch.Tensor = BY_TOKEN, unit: str, **options: Any) -> Found:
    """A policy loss of this package."""
    return loss(lambda now: mean(function(now, OLD, advantages, **options), unit))


def our_gspo(*, low: float, high: float) -> Found:
    """GSPO of this package, with advantages of answers."""
    return loss(lambda now: mean(P.gspo(now, OLD, BY_ANSWER[SEQUENCE], SEQUENCE, clip_low=low, clip_high=high), "sequence"))


def our_value(clip: float) -> Found:
    """value_clip of this package."""
    return loss(lambda now: V.value_clip(now, OLD, BY_TOKEN, clip=clip).mean())


def our_kl(kind: str) -> Found:
    """kl_estimate of this package."""
    return loss(lambda now: K.kl_estimate(now, REFERENCE, kind).mean())


def our_answers(advantages: torch.Tensor) -> Found:
    """Advantages of answers, at each of their tokens."""
    return values(advantages[SEQUENCE])


def our_gae(gamma: float, lam: float, *, whitened: bool = False, returns: bool = False) -> Found:
    """gae of this package on the same rewards and values."""
    found = A.gae(at_the_end()[MASK], OLD, LENGTHS, gamma=gamma, lam=lam)
    return values(found.returns if returns else A.whiten(found.advantages) if whitened else found.advantages)


def our_adaptive() -> Found:
    """Three updates of AdaptiveKL."""
    controller = K.AdaptiveKL(0.2, 6.0, 1000)
    return values(torch.tensor([controller.update(kl, 64) for kl in (9.0, 2.0, 6.3)], dtype=torch.float64))
