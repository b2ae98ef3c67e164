"""Decoding of Llama-shaped models without the general machinery: fused projections, weights packed for the processor, a static cache.

The layers are those of transformers' Llama, Mistral, Qwen2 and Qwen3 (rotary positions, RMS norms before attention and a gated MLP,
grouped keys); whether the result is theirs is checked once a model, on the first prompt, and where it is not, or the model is of another
shape, the general path samples (`decoding.py`).

Shapes: P prompts, B sequences, L positions, V vocabulary; H heads, K key heads, G queries of one key head, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from prefopt.model.forward import base_of
from prefopt.model.linear import Linear
from prefopt.types import IntArray

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3", "yarn")
"""Position encodings whose table does not change with the length of what is read."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""Largest difference of log-probs, in nats, between this path and the model's own; the rest is rounding."""
PACK_BATCH = 32
BLOCK = 32
"""Positions by which the keys and values of a sequence grow."""
PREFILL_TOKENS = 512
"""Tokens of prompts read together: what a layer makes of them stays in the processor's cache."""

Projection = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """One layer. `qkv` gives queries, keys and values side by side, `gate_up` the two halves of the MLP."""

    norm: tuple[torch.Tensor, float]
    qkv: Projection
    head_norms: tuple[tuple[torch.Tensor, float], ...]
    out: Projection
    mlp_norm: tuple[torch.Tensor, float]
    gate_up: Projection
    down: Projection


@dataclass(frozen=True)
class LeanModel:
    """The weights of a model, laid out for decoding; made anew for every call, since training changes them."""

    embedding: torch.Tensor
    layers: tuple[Layer, ...]
    norm: tuple[torch.Tensor, float]
    head: Projection
    rotary: Any
    heads: int
    key_heads: int
    head_size: int
    scale: float

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        return self.embedding.dtype


def lean_model(model: Any) -> LeanModel | None:
    """The weights of `model` laid out for decoding; None where it is of another shape."""
    base = base_of(model)
    config = base.config
    rope = getattr(config, "rope_parameters", None) or {}
    fits = (
        getattr(config, "model_type", "") in FAMILIES
        and not any("sliding" in kind for kind in getattr(config, "layer_types", None) or ())
        and getattr(config, "sliding_window", None) is None
        and getattr(config, "hidden_act", "") == "silu"
        and rope.get("rope_type", "default") in ROPES
        and all(_known(module) for layer in base.model.layers for module in _projections(layer))
        and _known(base.lm_head)
        and type(base.model.embed_tokens) is torch.nn.Embedding  # an adapter on it is not added
    )
    if not fits:
        return None
    trunk, attention = base.model, base.model.layers[0].self_attn
    return LeanModel(
        embedding=trunk.embed_tokens.weight,
        layers=tuple(_layer(layer) for layer in trunk.layers),
        norm=_norm(trunk.norm),
        head=_packed([base.lm_head]),
        rotary=trunk.rotary_emb,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        head_size=attention.head_dim,
        scale=attention.scaling,
    )


def _projections(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _layer(layer: Any) -> Layer:
    attention = layer.self_attn
    query, key, value, out, gate, up, down = _projections(layer)
    norms = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return Layer(
        norm=_norm(layer.input_layernorm),
        qkv=_packed([query, key, value]),
        head_norms=tuple(_norm(norm) for norm in norms if norm is not None),
        out=_packed([out]),
        mlp_norm=_norm(layer.post_attention_layernorm),
        gate_up=_packed([gate, up]),
        down=_packed([down]),
    )


def _norm(norm: Any) -> tuple[torch.Tensor, float]:
    return norm.weight, norm.variance_epsilon


def _packed(modules: Sequence[torch.nn.Linear]) -> Projection:
    """Several projections of one input as one; on a CPU with the weights in the order its kernels read (oneDNN)."""
    weights = [_weight(module) for module in modules]
    weight = torch.cat(weights) if len(modules) > 1 else weights[0]
    biases: list[torch.Tensor] = [module.bias if module.bias is not None else weight.new_zeros(module.out_features) for module in modules]
    bias = torch.cat(biases) if any(module.bias is not None for module in modules) else None
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return lambda x: F.linear(x, weight, bias)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACK_BATCH)
        product = torch.ops.mkldnn._linear_pointwise.default
        product(weight.new_zeros(1, weight.shape[1]), packed, bias, "none", [], "")
    except (RuntimeError, AttributeError):  # a build of torch, or a processor, without it
        return lambda x: F.linear(x, weight, bias)
    return lambda x: product(x, packed, bias, "none", [], "")


def _known(module: Any) -> bool:
    """Whether a projection is a plain one, or one with LoRA adapters that can be added to it."""
    if type(module) in (torch.nn.Linear, Linear):
        return True
    return hasattr(module, "get_delta_weight") and hasattr(module, "lora_A") and not any(getattr(module, "use_dora", {}).values())


def _weight(module: Any) -> torch.Tensor:
    """The weight of a projection, adapters in force included."""
    weight: torch.Tensor = module.weight if isinstance(module, torch.nn.Linear) else module.get_base_layer().weight
    if isinstance(module, torch.nn.Linear):
        return weight
    if not module.disable_adapters and not module.merged:
        for name in module.active_adapters:
            weight = weight + module.get_delta_weight(name) if name in module.lora_A else weight
    return weight


class Lean:
    """Sequences being decoded (`decoding.Decoding`). Prompts are padded on the left and read once each.

    The keys and values of a prompt that several sequences go on from are kept once and serve all of them; each sequence keeps those of its
    own tokens, after those of its prompt where it has one for itself. What a sequence keeps grows by blocks of positions and is always read
    whole, those to come with a weight of 0: products of the same few shapes, on stores without gaps.
    """

    logits_BV: torch.Tensor

    @torch.inference_mode()  # calls cost less than under no_grad; of the model it reads weights only
    def __init__(self, model: LeanModel, ids_PL: torch.Tensor, mask_PL: torch.Tensor, source_B: torch.Tensor, room: int) -> None:
        self._model = model
        prompts, length = ids_PL.shape
        self._bias = None if bool(mask_PL.all()) else torch.where(mask_PL, 0.0, float("-inf"))[:, None, None].to(model.dtype)
        every = torch.arange(length + room, device=ids_PL.device)[None]
        self._turns = _turns([table[0] for table in model.rotary(model.embedding.new_zeros(1), every)])
        positions_PL = (mask_PL.long().cumsum(-1) - 1).clamp_min(0)
        alone = torch.equal(source_B, torch.arange(prompts, device=source_B.device))
        self._end = length if alone else 0
        self._limit = self._end + room
        self._own = self._empty(len(source_B), min(self._end + BLOCK, self._limit))
        self._prompts = None if alone else self._empty(prompts, length)
        rows = max(1, PREFILL_TOKENS // length)
        logits = [
            self._prefill(first, *parts)
            for first, *parts in zip(
                range(0, prompts, rows), ids_PL.split(rows), mask_PL.split(rows), positions_PL.split(rows), strict=True
            )
        ]
        self.logits_BV = torch.cat(logits)[source_B]
        self._position_B = positions_PL[source_B, -1] + 1
        self._groups = Groups(source_B, prompts)

    @torch.inference_mode()
    def append(self, ids_B: torch.Tensor) -> None:
        """Read one more token of every sequence."""
        at = self._end
        self._end = at + 1
        if self._end > self._own[0].shape[3]:
            more = min(BLOCK, self._limit - at)
            self._own = [F.pad(store, (0, 0, 0, more)) for store in self._own]

        def attend(number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            own = self._own[number]
            own[0, :, :, at], own[1, :, :, at] = key[:, 0], value[:, 0]
            grouped = query[:, 0].unflatten(1, (self._model.key_heads, -1))  # the queries of a key head side by side: nothing is repeated
            return self._mix(grouped, number).flatten(1)

        self.logits_BV = _forward(self._model, ids_B[:, None], self._turns[:, self._position_B][:, :, None], attend)
        self._position_B = self._position_B + 1

    @torch.inference_mode()
    def keep(self, rows: torch.Tensor) -> None:
        """Go on with these sequences only."""
        self._own = [store.index_select(1, rows) for store in self._own]
        if self._prompts is None:
            self._bias = None if self._bias is None else self._bias[rows]
        else:
            self._groups = self._groups.keep(rows)
        self.logits_BV, self._position_B = self.logits_BV[rows], self._position_B[rows]

    def _empty(self, rows: int, length: int) -> list[torch.Tensor]:
        """Room for the keys and values of each layer [2, rows, K, length, D]."""
        model = self._model
        shape = (2, rows, model.key_heads, length, model.head_size)
        return [model.embedding.new_zeros(shape) for _ in model.layers]

    def _prefill(self, first: int, ids_PL: torch.Tensor, mask_PL: torch.Tensor, positions_PL: torch.Tensor) -> torch.Tensor:
        """Read some prompts, of which `first` is the first, and keep their keys and values; logits [P, V] after their last tokens."""
        (rows, length), mask = ids_PL.shape, None
        stores = self._own if self._prompts is None else self._prompts
        if self._bias is not None:
            causal = torch.ones(length, length, dtype=torch.bool, device=ids_PL.device).tril()
            # padding sees itself, so that no row of weights is empty
            mask = ((causal & mask_PL[:, None]) | torch.eye(length, dtype=torch.bool, device=ids_PL.device))[:, None]

        def attend(number: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            query, key, value = (states.transpose(1, 2) for states in (query, key, value))
            place = stores[number][:, first : first + rows, :, :length]
            place[0], place[1] = key, value
            how: dict[str, Any] = {"scale": self._model.scale, "is_causal": mask is None, "enable_gqa": query.shape[1] != key.shape[1]}
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **how).transpose(1, 2).flatten(0, 1).flatten(1)

        return _forward(self._model, ids_PL, self._turns[:, positions_PL], attend)

    def _mix(self, query: torch.Tensor, number: int) -> torch.Tensor:
        """Attention of queries [B, K, G, D] over their prompts' and their own tokens in a layer; [B, K, G, D]."""
        keys, values = self._own[number]
        query = query * self._model.scale
        scores = query @ keys.transpose(2, 3)
        scores[..., self._end :] = float("-inf")
        if self._prompts is None:
            if self._bias is not None:
                scores[..., : self._bias.shape[-1]] += self._bias
            return scores.softmax(-1) @ values
        groups, (prompt_keys, prompt_values) = self._groups, self._prompts[number]
        prompt_scores = groups.gather(query) @ prompt_keys.transpose(2, 3)
        if self._bias is not None:
            prompt_scores = prompt_scores + self._bias
        weights = torch.cat([groups.spread(prompt_scores), scores], dim=-1).softmax(-1)
        length = prompt_keys.shape[2]
        seen = groups.spread(groups.gather(weights[..., :length]) @ prompt_values)
        return seen + weights[..., length:] @ values


class Groups:
    """Which sequences go on from which prompt: values of sequences [B, K, G, X] side by side under their prompt [P, K, n G, X], and back.

    n is the size of the largest group; smaller ones leave room unused.
    """

    def __init__(self, source_B: torch.Tensor, prompts: int) -> None:
        self._source_B, self._prompts = source_B, prompts
        counts = torch.bincount(source_B, minlength=prompts)
        self._most = int(counts.max())
        order_B = torch.argsort(source_B, stable=True)
        rank_B = torch.empty_like(source_B)
        rank_B[order_B] = torch.arange(len(source_B), device=source_B.device) - (counts.cumsum(0) - counts)[source_B[order_B]]
        self._slot_B = source_B * self._most + rank_B
        full = len(source_B) == prompts * self._most
        self._in_order = full and bool((self._slot_B == torch.arange(len(source_B), device=source_B.device)).all())
        self._row_S = torch.zeros(prompts * self._most, dtype=torch.long, device=source_B.device)
        self._row_S[self._slot_B] = torch.arange(len(source_B), device=source_B.device)

    def keep(self, rows: torch.Tensor) -> Groups:
        """The same for some of the sequences."""
        return Groups(self._source_B[rows], self._prompts)

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """[B, K, G, X] -> [P, K, n G, X]."""
        values = values if self._in_order else values[self._row_S]
        return values if self._most == 1 else values.unflatten(0, (-1, self._most)).transpose(1, 2).flatten(2, 3)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """[P, K, n G, X] -> [B, K, G, X]."""
        values = values if self._most == 1 else values.unflatten(2, (self._most, -1)).transpose(1, 2).flatten(0, 1)
        return values if self._in_order else values[self._slot_B]


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Layer, queries [B, L, H, D], keys and values [B, L, K, D] of new tokens -> what they attend to, [B * L, H * D]."""


def _forward(model: LeanModel, ids_BL: torch.Tensor, turns: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Logits [B, V] after the last of some new tokens; `turns` [2, B, L, D] are the cosines and signed sines of their positions."""
    rows, length = ids_BL.shape
    x = model.embedding[ids_BL.flatten()]
    for number, layer in enumerate(model.layers):
        states = layer.qkv(_normed(x, layer.norm)).view(rows, length, -1, model.head_size)
        turned, value = states.tensor_split([model.heads + model.key_heads], dim=2)
        if layer.head_norms:
            parts = turned.split([model.heads, model.key_heads], dim=2)
            turned = torch.cat([_normed(part, norm) for part, norm in zip(parts, layer.head_norms, strict=True)], dim=2)
        first, second = turned.chunk(2, dim=-1)
        turned = torch.addcmul(turned * turns[0][:, :, None], torch.cat((second, first), dim=-1), turns[1][:, :, None])
        query, key = turned.tensor_split([model.heads], dim=2)
        x = x + layer.out(attend(number, query, key, value))
        gate, up = layer.gate_up(_normed(x, layer.mlp_norm)).chunk(2, dim=-1)
        x = x + layer.down(F.silu(gate) * up)
    return model.head(_normed(x.view(rows, length, -1)[:, -1], model.norm))


def _turns(tables: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cosines, and sines with the sign that turning a head's first half has, [2, positions, D]."""
    cos, sin = tables
    half = sin.shape[-1] // 2
    return torch.stack([cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)])


def _normed(x: torch.Tensor, norm: tuple[torch.Tensor, float]) -> torch.Tensor:
    weight, epsilon = norm
    return F.rms_norm(x, (x.shape[-1],), weight, epsilon)


def agrees(model: Any, lean: LeanModel, prompt: IntArray) -> bool:
    """Whether this path and the model's own forward pass give the same log-probs, on a prompt read in one piece and one more token."""
    device = lean.embedding.device
    ids_1L = torch.as_tensor(prompt.astype("int64"), device=device)[None]
    growing = Lean(lean, ids_1L, torch.ones_like(ids_1L, dtype=torch.bool), torch.zeros(1, dtype=torch.long, device=device), 1)
    found = [growing.logits_BV]
    growing.append(ids_1L[:, -1])
    found.append(growing.logits_BV)
    expected_LV = model(input_ids=torch.cat([ids_1L, ids_1L[:, -1:]], dim=1), use_cache=False).logits[0, -2:]
    apart = (torch.cat(found).float().log_softmax(-1) - expected_LV.float().log_softmax(-1)).abs().max()
    return bool(apart <= TOLERANCE[lean.dtype])
