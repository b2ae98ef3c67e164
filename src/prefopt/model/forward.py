"""One forward pass: hidden states of a batch in either layout, then log-probs of scored tokens or scores of sequences.

packed:  hidden = backbone(ids, positions, tree)               padded:  hidden = backbone(ids, mask)
logps_T = log-prob of target_T at hidden[source_T]             scores_S = score head at hidden[last_S]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel

from prefopt.errors import ModelError
from prefopt.model.attention import TreeLayout
from prefopt.model.logprobs import Head, TokenStats, token_logps
from prefopt.types import Batch

P = ParamSpec("P")
R = TypeVar("R")


METHOD = "prefopt_"
FORWARDS: dict[str, Callable[..., Any]] = {}
"""The passes below by name. A model that is split over ranks has them as methods METHOD + name, in which its weights are whole."""


def _pass(forward: Callable[P, R]) -> Callable[P, R]:
    """A pass that goes through the model's own method of its name, where it has one."""
    FORWARDS[forward.__name__] = forward

    @functools.wraps(forward)
    def go(*args: P.args, **options: P.kwargs) -> R:
        method = getattr(base_of(args[0]), METHOD + forward.__name__, None)
        return forward(*args, **options) if method is None else method(*args[1:], **options)

    return go


def base_of(model: Any) -> PreTrainedModel:
    """The transformers model inside wrappers (peft, DDP, torch.compile)."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Without dropout inside, as before outside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def limit_of(model: Any) -> int | None:
    """Longest sequence the model was built for, in tokens; None where it has no limit."""
    return getattr(_text_config(model), "max_position_embeddings", None) or None


def border_of(model: Any) -> int | None:
    """Longest sequence read with one table of positions, where longer ones, and all read beside them, get another (LongRoPE)."""
    rope = getattr(_text_config(model), "rope_parameters", None) or {}
    return rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None


def _text_config(model: Any) -> Any:
    """What the config says of the language model: in one that sees or hears too it is a part of its own."""
    return base_of(model).config.get_text_config()


def layers_of(model: Any) -> list[Any]:
    """The decoder layers, in order; empty where the model keeps them where we do not know."""
    backbone = base_of(model).base_model
    return list(next((getattr(backbone, name) for name in ("layers", "h") if hasattr(backbone, name)), ()))


def hidden_states(model: Any, batch: Batch, places_X: torch.Tensor) -> torch.Tensor:
    """Last hidden states [X, D] at places of the batch, each one of its M positions; its last layer computes no more than they need.

    A packed batch needs `packed_attention(model)` around it.

    Raises:
        RuntimeError: the model takes no tree (raised by the attention, or here when no layer used it).
    """
    backbone = base_of(model).base_model
    if batch.spans is None:
        mask = None if batch.mask_BC is None or bool(batch.mask_BC.all()) else batch.mask_BC
        return backbone(input_ids=batch.ids_BC, attention_mask=mask, use_cache=False).last_hidden_state.flatten(0, 1)[places_X]
    layout = TreeLayout(batch.spans, batch.ids_BC.device, places_X)
    out = backbone(input_ids=batch.ids_BC, position_ids=batch.positions_BC, use_cache=False, tree=layout)
    if layout.calls == 0:
        raise RuntimeError("this model ignores the tree")
    return layout.read(out.last_hidden_state.flatten(0, 1))


def head_of(model: Any, temperature: float = 1.0) -> Head:
    """The output head of a causal LM and what its model does to the logits, which are divided by `temperature` at the end.

    Raises:
        ModelError: the model has no linear output head.
    """
    base = base_of(model)
    linear = base.get_output_embeddings() or getattr(base, "lm_head", None)
    if linear is None and getattr(base.config, "tie_word_embeddings", False):
        linear = base.get_input_embeddings()  # a reward model whose language head is its embedding
    if linear is None or not hasattr(linear, "weight") or hasattr(linear, "lora_A"):
        raise ModelError(f"{type(base).__name__} has no plain linear output head", fix="leave lm_head out of lora.targets")
    config = _text_config(model)
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Head(linear.weight, getattr(linear, "bias", None), scale, getattr(config, "final_logit_softcapping", None), temperature)


@_pass
def logps_and_hidden(model: Any, batch: Batch, *, stats: bool = False, temperature: float = 1.0) -> tuple[TokenStats, torch.Tensor]:
    """Log-probs [T] of the batch's scored tokens, float32, when logits are divided by `temperature`; the states [T, D] they come from."""
    hidden_TD = hidden_states(model, batch, batch.source_T)
    return token_logps(hidden_TD, batch.target_T, head_of(model, temperature), stats=stats), hidden_TD


def scored_states(model: Any, batch: Batch, *, temperature: float = 1.0) -> tuple[torch.Tensor, Head]:
    """The states [T, D] that the batch's scored tokens are read from, and the head that reads them."""
    return hidden_states(model, batch, batch.source_T), head_of(model, temperature)


def policy_logps(model: Any, batch: Batch, *, stats: bool = False, temperature: float = 1.0) -> TokenStats:
    """The log-probs alone."""
    return logps_and_hidden(model, batch, stats=stats, temperature=temperature)[0]


@_pass
def reward_scores(model: Any, batch: Batch) -> torch.Tensor:
    """Scores [S] read at the last token of every sequence, float32; [S, E] of a model with E outputs."""
    hidden = hidden_states(model, batch, batch.last_S)
    return _scores(model, hidden)


@_pass
def reward_outputs(model: Any, batch: Batch, *, steps: bool, logps: bool) -> dict[str, torch.Tensor]:
    """What a reward model's method reads, from one forward pass, under the names of `View`.

    Args:
        model: a reward model.
        batch: laid out as it takes it.
        steps: read the logits of labelled steps, not the scores of answers.
        logps: read its language head too.
    """
    name, places = ("step_logits_J", batch.step_index_J) if steps else ("scores_S", batch.last_S)
    if not logps:
        return {name: _scores(model, hidden_states(model, batch, places))}
    hidden = hidden_states(model, batch, torch.cat([places, batch.source_T]))
    scored, read = hidden.split([len(places), len(batch.source_T)])
    return {name: _scores(model, scored), "logps_T": token_logps(read, batch.target_T, head_of(model)).logps_T}


@_pass
def step_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits [J] (or [J, E]) of a process reward model at the labelled step ends, float32."""
    hidden = hidden_states(model, batch, batch.step_index_J)
    return _scores(model, hidden)


def _scores(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    head: Any = base_of(model).score
    outputs: torch.Tensor = head(hidden).float()
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs
