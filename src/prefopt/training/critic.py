"""The critic of PPO: what reward is still to come, at every token.

A second model with a score head, started from a reward model or from the policy, or a head on the policy's own trunk. The value of a token
is read where the token is predicted, before it is known.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from prefopt.errors import ModelError
from prefopt.model.attention import NAME
from prefopt.model.forward import base_of, hidden_states
from prefopt.model.load import load_scorer, load_tokenizer, silence_dropout
from prefopt.settings import CriticSettings, ModelSettings, TrainSettings
from prefopt.training.optim import Optimizer
from prefopt.types import Batch


@dataclass
class Critic:
    """A value function with its own optimizer; `trunk` is None where it reads the policy's hidden states."""

    trunk: Any
    head: nn.Module
    optimizer: Optimizer
    weight: float
    clip: float | None

    def values(self, batch: Batch, hidden_TD: Tensor) -> Tensor:
        """Values [T] at the batch's scored tokens, float32.

        Args:
            batch: laid out as policy and critic take it.
            hidden_TD: the policy's hidden states there, read where the trunk is shared.
        """
        if self.trunk is not None:
            hidden_TD = hidden_states(self.trunk, batch, batch.source_T)
        return self.head(hidden_TD)[:, 0].float()


class _Both(nn.Module):
    """A trunk and a head as one module, for the optimizer; names stay apart."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head


def build_critic(
    settings: CriticSettings,
    train: TrainSettings,
    policy: Any,
    *,
    vocabulary: Mapping[str, int],
    learning_rate: float,
    precision: str,
) -> Critic:
    """The critic the settings ask for.

    Args:
        settings: the critic section.
        train: optimizer settings, shared with the policy.
        policy: the policy's transformers model, adapters and all.
        vocabulary: of the policy's tokenizer.
        learning_rate: the policy's.
        precision: what both compute in.

    Raises:
        ModelError: critic.path reads other tokens.
    """
    rate = settings.learning_rate if settings.learning_rate is not None else 10 * learning_rate
    base = base_of(policy)
    width = base.config.get_text_config().hidden_size
    head: nn.Module = nn.Linear(width, 1, bias=False)
    nn.init.zeros_(head.weight)  # type: ignore[arg-type]
    trunk: Any = None
    if settings.path is not None:
        if load_tokenizer(settings.path).get_vocab() != vocabulary:
            fix = "critic.path must be a model with the policy's own tokenizer"
            raise ModelError("the critic's vocabulary is not the policy's", where=settings.path, fix=fix)
        model: Any = load_scorer(ModelSettings(path=settings.path, dtype="fp32"), seed=train.seed)
        if base.config._attn_implementation == NAME:
            model.set_attn_implementation(NAME)
        trunk, head = model.base_model, model.score
    elif not settings.shared:
        trunk = copy.deepcopy(base.base_model)
    trained = head if trunk is None else _Both(trunk, head)
    trained.to(next(base.parameters()).device).requires_grad_(True)
    silence_dropout(trained)
    optimizer = Optimizer(trained, replace(train, optimizer="adamw"), rate, precision)
    return Critic(trunk, head, optimizer, settings.weight, settings.clip)
