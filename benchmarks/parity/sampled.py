"""Policy gradients on a model: the same sampled answers through TRL's GRPO and RLOO trainers and through this package."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from benchmarks.parity.ours import VOCAB, Found, Models
from benchmarks.parity.trainers import trl_arguments
from datasets import Dataset

from prefopt.losses.ragged import segment_mean, segment_sum
from prefopt.model.attention import packed_attention
from prefopt.model.forward import policy_logps
from prefopt.pack.tree import pack
from prefopt.types import Batch, Branch, TokenTree

ROOM = 9
"""Tokens an answer may have (Dr. GRPO's constant)."""


class Samples(NamedTuple):
    """Three prompts with two answers each, advantages of answers [S], log-probs [T] when sampled and of the reference."""

    trees: list[TokenTree]
    batch: Batch
    advantages: torch.Tensor
    old: torch.Tensor
    reference: torch.Tensor


def samples(models: Models, *, unequal: bool) -> Samples:
    """Random answers; the policy has moved a little since it sampled them. Unequal prompts are padded on the left by TRL."""
    rng, generator = np.random.default_rng(5), torch.Generator().manual_seed(5)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(3, VOCAB, rng.integers(low, high)).astype(np.int32)

    def answer() -> Branch:
        drawn = np.append(ids(1, 7), 2).astype(np.int32)
        return Branch(ids=drawn, scored=np.ones(len(drawn), dtype=bool))

    trees = [TokenTree(prompt=ids(*((2, 6) if unequal else (4, 5))), branches=(answer(), answer()), index=n) for n in range(3)]
    batch = pack(trees)
    with torch.no_grad():
        now, reference = (_logps(model, batch) for model in (models.policy, models.reference))
    old = now + 0.3 * torch.randn(len(now), generator=generator, dtype=now.dtype)
    return Samples(trees, batch, torch.randn(batch.sequences, generator=generator, dtype=now.dtype), old, reference)


def _logps(model: Any, batch: Batch) -> torch.Tensor:
    with packed_attention(model):
        return policy_logps(model, batch).logps_T


def ours(models: Models, function: Callable[[torch.Tensor, Samples], torch.Tensor], unit: str, **how: bool) -> Found:
    """The mean over tokens or answers ("sum": over answers of the sum) of a loss of the log-probs [T]; `how` as in `trl`."""
    drawn = _drawn(models, **how)
    model = copy.deepcopy(models.policy)
    values = function(_logps(model, drawn.batch), drawn)
    if unit != "token":
        values = (segment_sum if unit == "sum" else segment_mean)(values, drawn.batch.sequence_T, drawn.batch.sequences)
    value = values.mean()
    value.backward()
    return Found(value.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def _drawn(models: Models, *, moved: bool = True, unequal: bool = False) -> Samples:
    drawn = samples(models, unequal=unequal)
    if moved:
        return drawn
    with torch.no_grad():
        return drawn._replace(old=_logps(models.policy, drawn.batch))


def of_tokens(drawn: Samples) -> torch.Tensor:
    """Advantages at each token [T]."""
    return drawn.advantages[drawn.batch.sequence_T]


def trl(models: Models, folder: Path, kind: str, *, moved: bool = True, unequal: bool = False, **options: Any) -> Found:
    """GRPOTrainer ("grpo") or RLOOTrainer ("rloo"): its loss on answers that are handed to it."""
    import trl as package

    config, trainer = (getattr(package, f"{kind.upper()}{part}") for part in ("Config", "Trainer"))
    shared = {"num_generations": 2, "max_completion_length": ROOM, "temperature": 1.0, "disable_dropout": True}
    arguments = config(**trl_arguments(folder, **shared, **options))
    data = Dataset.from_list([{"prompt": "w3"}] * 6)
    model = copy.deepcopy(models.policy)
    if options.get("beta"):  # the trainer loads its reference from where the policy came from
        model.save_pretrained(folder / "policy")
        model.config._name_or_path = str(folder / "policy")
    built = trainer(
        model, reward_funcs=lambda completions, **_: [0.0] * len(completions), args=arguments, train_dataset=data,
        processing_class=models.tokenizer,
    )  # fmt: skip
    built.current_gradient_accumulation_steps = 1
    loss = built._compute_loss(built.model.train(), _inputs(_drawn(models, moved=moved, unequal=unequal), kind))
    loss.backward()
    return Found(loss.item(), {name: p.grad for name, p in built.model.named_parameters() if p.grad is not None})


def _inputs(drawn: Samples, kind: str) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, answers on the right, as the trainers build them."""
    prompts = [tree.prompt for tree in drawn.trees for _ in tree.branches]
    answers = [branch.ids for tree in drawn.trees for branch in tree.branches]
    lengths = torch.tensor([len(ids) for ids in answers])
    inside = torch.arange(int(lengths.max())) < lengths[:, None]

    def table(flat: torch.Tensor) -> torch.Tensor:
        found = flat.new_zeros(inside.shape)
        found[inside] = flat
        return found

    left = max(map(len, prompts))
    shifted = [np.concatenate([np.zeros(left - len(ids), dtype=np.int32), ids]) for ids in prompts]
    found = {
        "prompt_ids": torch.tensor(np.stack(shifted)).long(),
        "prompt_mask": torch.tensor([[0] * (left - len(ids)) + [1] * len(ids) for ids in prompts]),
        "completion_ids": table(torch.tensor(np.concatenate(answers)).long()),
        "completion_mask": inside.long(),
        "advantages": drawn.advantages,
        "ref_per_token_logps": table(drawn.reference),
        "num_items_in_batch": inside.sum(),
    }
    if kind == "grpo":
        return found | {"old_per_token_logps": table(drawn.old)}
    return found | {"old_logps": table(drawn.old).sum(1)}
