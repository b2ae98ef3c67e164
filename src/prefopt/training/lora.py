"""Low-rank adapters through peft, and the merged model they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prefopt.errors import OptionError
from prefopt.model.adapted import quicken_adapters
from prefopt.model.forward import base_of
from prefopt.settings import LoraSettings


def add_adapter(model: Any, settings: LoraSettings, *, scorer: bool, seed: int) -> Any:
    """Wrap `model` so that only an adapter (and a reward model's head) learns; B starts at zero, A is drawn from `seed`.

    Raises:
        OptionError: lora.targets names no layer of this model, or an embedding whose weights are the output head's.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank if settings.alpha is None else settings.alpha,  # type: ignore[arg-type] # any number will do
        lora_dropout=settings.dropout,
        target_modules=_targets(settings.targets),
        task_type="SEQ_CLS" if scorer else "CAUSAL_LM",
        modules_to_save=["score"] if scorer else None,
        exclude_modules=["lm_head"] if scorer else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted = get_peft_model(model, config)
        except ValueError as error:
            fix = "name layers of this model (q_proj, v_proj, ...) or use all-linear"
            raise OptionError(str(error).split("\n")[0][:200], where="lora.targets", fix=fix) from error
    _refuse_tied(base_of(adapted))
    quicken_adapters(adapted)
    return adapted


def _targets(named: str | list[str]) -> str | list[str]:
    """As peft reads them: it takes a single word for a pattern of whole names, among which no layer is called just `q_proj`."""
    return [named] if isinstance(named, str) and named != "all-linear" and named.isidentifier() else named


def _refuse_tied(base: Any) -> None:
    """Merging would add what the embedding learned to the output head too, which trained without it."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    if hasattr(embedding, "lora_embedding_A") and head is not None and head.weight is embedding.weight:
        what = "the embedding of this model is its output head, so an adapter of it cannot be merged"
        raise OptionError(what, where="lora.targets", fix="leave the embedding (embed_tokens, wte) out of lora.targets")


def merged(model: Any, out: Path) -> Any:
    """The model with the adapter added into its weights; the adapter itself is kept in `out/adapter`."""
    if not hasattr(model, "merge_and_unload"):
        return model
    model.save_pretrained(out / "adapter", save_embedding_layers=False)  # the vocabulary never changes here: no looking for the base's
    return model.merge_and_unload()
