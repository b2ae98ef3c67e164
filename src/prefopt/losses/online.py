"""How a method learns from its own samples: what a row of METHODS says besides its loss."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

Place = Literal["reward", "advantage", "loss"]
Estimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True)
class Online:
    """From judged samples to what the loss reads.

    Attributes:
        make: a function of `losses.advantages`. Its arguments are columns of the round (rewards, group, lengths, values, greedy,
            baseline; rewards are those of tokens where it also takes lengths), its keyword-only arguments options of the method.
        gives: what it returns: "advantages" and with them "returns" (the critic's targets) or "baseline" (of the next round); "rank"
            of each answer among those to its prompt; or "keep", which answers to learn from.
        samples: answers to a prompt, when rollout.samples is not given.
        kl: coefficient of the KL penalty, when kl.coefficient is not given. place, estimator: likewise.
        whiten: advantages are whitened over the tokens of the round.
        whitens: `make` whitens by itself.
        dynamic: prompts whose answers all have one reward are replaced by others.
        anew: what is set at the start of every round: the "reference" to the policy, or the "policy" to the first model.
        explores: the last answer to each prompt is the reference's.
        loss: the row of pairs whose loss is read where the option `loss` names no other; "" for a method with a loss of its own.
        about: one line, where the method is more than its loss.
    """

    make: Callable[..., Any]
    gives: tuple[str, ...] = ("advantages",)
    samples: int = 8
    kl: float = 0.0
    place: Place = "reward"
    estimator: Estimator = "k1"
    whiten: bool = False
    whitens: bool = False
    dynamic: bool = False
    anew: Literal["", "reference", "policy"] = ""
    explores: bool = False
    loss: str = ""
    about: str = ""

    @cached_property
    def arguments(self) -> frozenset[str]:
        """Columns of the round that `make` reads."""
        return frozenset(p.name for p in inspect.signature(self.make).parameters.values() if p.kind is not p.KEYWORD_ONLY)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Option -> default."""
        named = {"loss": self.loss} if self.loss else {}
        return named | {p.name: p.default for p in inspect.signature(self.make).parameters.values() if p.kind is p.KEYWORD_ONLY}

    @property
    def settings(self) -> dict[str, Any]:
        """Settings outside the method's own options that it has defaults of its own for."""
        held: dict[str, Any] = {"kl.coefficient": self.kl, **({"kl.place": self.place} if self.kl else {})}
        held |= {"kl.estimator": self.estimator} if self.kl and self.place == "loss" else {}
        whiten = {} if self.whitens else {"online.whiten": self.whiten}
        return {"rollout.samples": self.samples, **held, **whiten, "online.dynamic": self.dynamic}

    @property
    def has_critic(self) -> bool:
        """Whether it reads a critic's values."""
        return "values" in self.arguments

    def __call__(self, columns: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
        """What `make` gives for the columns of a round, by the names of `gives`."""
        given = {name: columns[name] for name in self.arguments}
        found = self.make(**given, **{name: options.get(name, default) for name, default in self.options.items() if name != "loss"})
        return dict(zip(self.gives, found if isinstance(found, tuple) else (found,), strict=True))

    def check(self, options: Mapping[str, Any]) -> None:
        """Try the options on a round of two answers.

        Raises:
            OptionError: one is outside its domain.
        """
        two, group = torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int64)
        columns = {"rewards": two, "group": group, "lengths": group + 1, "values": two, "greedy": two, "baseline": two[0]}
        self(columns, options)
