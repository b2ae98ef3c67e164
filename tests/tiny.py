"""Tiny random models of the families prefopt supports, and random token trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt.types import Branch, TokenTree

VOCAB = 97
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"head_dim": 8, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 7},
    "qwen2": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gemma2": {**LLAMA, **SLIDING},
    "gemma3_text": {**LLAMA, **SLIDING},
    "phi3": LLAMA,
    "olmo2": LLAMA,
    "gpt2": GPT2,
    "gpt_neox": LLAMA,
    "cohere": {**LLAMA, "logit_scale": 0.5},
    "granite": {**LLAMA, "logits_scaling": 3.0},
    "mixtral": {**LLAMA, "num_local_experts": 4},
    "qwen3_moe": {**LLAMA, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
FALL_BACK: dict[str, dict[str, Any]] = {
    "mamba": {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "bloom": {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4},
}


def tiny_model(family: str = "llama", *, seed: int = 0, scorer: bool = False, scale: float = 5.0) -> Any:
    """A random model; weights are scaled up so that its distributions are far from uniform and mistakes show."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**FAMILIES, **FALL_BACK}[family])
    if scorer:
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "A_log" not in name:
                weight.mul_(scale)
    return model.eval()


def random_tree(rng: np.random.Generator, prompt: int, branches: tuple[int, ...], index: int = 0, **extra: Any) -> TokenTree:
    """A tree of random tokens; branch k has rank k and its first token may be unscored."""

    def branch(k: int, n: int) -> Branch:
        scored = rng.random(n) < 0.8
        scored[-1] = True
        return Branch(ids=_ids(rng, n), scored=scored, rank=k, label=k == 0)

    return TokenTree(prompt=_ids(rng, prompt), branches=tuple(branch(k, n) for k, n in enumerate(branches)), index=index, **extra)


def random_trees(seed: int = 0, count: int = 6) -> list[TokenTree]:
    """Pairs, a ranking and a single completion of mixed lengths."""
    rng = np.random.default_rng(seed)
    shapes = [(12, (9, 5)), (20, (14, 3, 8)), (6, (4,)), (3, (11, 12)), (25, (2, 6)), (9, (7, 7))]
    return [random_tree(rng, *shapes[i % len(shapes)], index=i) for i in range(count)]


def pair_trees(seed: int, count: int) -> list[TokenTree]:
    """Preference pairs of random lengths."""
    rng = np.random.default_rng(seed)
    return [random_tree(rng, int(rng.integers(3, 15)), tuple(rng.integers(3, 12, 2)), index=i) for i in range(count)]


def _ids(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(3, VOCAB, n).astype(np.int32)


def assert_alike(plain: Any, twin: Any) -> None:
    """Two models have the same weights by name, the same loss and the same gradient."""
    assert list(twin.state_dict()) == list(plain.state_dict())
    ids = torch.arange(3, 15)[None]
    losses = [model(input_ids=ids, labels=ids).loss for model in (plain, twin)]
    torch.testing.assert_close(*losses)
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
        for loss, model in zip(losses, (plain, twin), strict=True)
    ]
    assert torch.cosine_similarity(*gradients, dim=0) >= 0.999999
