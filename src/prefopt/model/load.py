"""Models and tokenizers from Hugging Face folders or hub names, and the precise word on why one cannot be used."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from prefopt.errors import ModelError
from prefopt.model.last import quicken_last
from prefopt.model.linear import quicken
from prefopt.model.mlp import quicken_mlps
from prefopt.model.norm import quicken_norms
from prefopt.model.room import require_room
from prefopt.settings import ModelSettings

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_config.json")

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def require_name(path: str) -> None:
    """A folder that is there, or what may be a name on the hub.

    Raises:
        ModelError: it is neither.
    """
    if not Path(path).exists() and not HUB_NAME.fullmatch(path):
        raise ModelError("no such folder", where=path, fix="give a Hugging Face model folder or hub name (owner/name)")


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model folder or hub name.

    Raises:
        ModelError: there is none.
    """
    require_name(path)
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer: {_first_line(error)}", where=path, fix="put tokenizer.json beside config.json") from error


def load_config(path: str) -> Any:
    """The model's config.

    Raises:
        ModelError: no such folder, no config, or an unknown architecture.
    """
    require_name(path)
    folder = Path(path)
    if folder.exists() and not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
        raise ModelError("this folder holds no config.json", where=path, fix="model.path must be a Hugging Face model folder or hub name")
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        fix = "mend the folder" if folder.exists() else "no folder of this name, so the hub was asked: check the name and the connection"
        raise ModelError(f"cannot read the model's config: {_first_line(error)}", where=path, fix=fix) from error


def is_reward_model(config: Any) -> bool:
    """Whether the folder holds a sequence-classification model."""
    return any("SequenceClassification" in name for name in (config.architectures or ()))


def load_causal(settings: ModelSettings, *, seed: int = 0) -> PreTrainedModel:
    """A causal LM with its weights, or freshly initialised from `seed` when `settings.init` says so."""
    return _load(AutoModelForCausalLM, settings, seed)


def load_scorer(settings: ModelSettings, *, outputs: int | None = None, seed: int = 0) -> PreTrainedModel:
    """A sequence-classification model; started from a causal LM its score head is drawn from `seed`.

    Args:
        settings: which.
        outputs: of the score head; None for as many as a reward model has, and one for a causal LM.
        seed: of what is new.

    Raises:
        ModelError: a reward model with another number of outputs, or none that reads a decoder's last token.
    """
    config = load_config(settings.path)
    found = int(config.num_labels) if is_reward_model(config) else None
    if None not in (found, outputs) and found != outputs:
        fix = "start from the language model, or leave heads out"
        raise ModelError(f"this reward model has {found} outputs, {outputs} are asked for", where=settings.path, fix=fix)
    model = _load(AutoModelForSequenceClassification, settings, seed, num_labels=outputs or found or 1)
    if not hasattr(model, "score"):
        what = f"{type(model).__name__} has no score head at the last token, which reward models are read by"
        raise ModelError(what, where=settings.path, fix="take a reward model made of a language model, not of an encoder (BERT, DeBERTa)")
    return model


def add_language_head(model: PreTrainedModel, settings: ModelSettings) -> None:
    """Keep the language head beside the score head, so that a likelihood can be learned on the same trunk.

    A model whose output head is its embedding has it already; otherwise it becomes `model.lm_head` and is saved with the weights. Such a
    folder opens as a reward model and as a language model.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        model.lm_head = load_causal(settings).get_output_embeddings()


def _load(auto: Any, settings: ModelSettings, seed: int, **extra: Any) -> PreTrainedModel:
    config = load_config(settings.path)
    dtype = _dtype(settings)
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        if settings.init == "random":
            for key, value in extra.items():
                setattr(config, key, value)
            model = auto.from_config(config, dtype=dtype)
        else:
            _require_weights(settings.path)
            require_room(Path(settings.path), dtype)
            try:
                model = auto.from_pretrained(settings.path, dtype=dtype, **extra)
            except (OSError, ValueError, RuntimeError, SafetensorError) as error:
                fix = "check the folder, or start from scratch with model.init=random"
                raise ModelError(f"cannot load the weights: {_first_line(error)}", where=settings.path, fix=fix) from error
    model.requires_grad_(True)
    quicken(model)
    quicken_norms(model)
    quicken_mlps(model)
    quicken_last(model)
    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.to(device())


def silence_dropout(model: torch.nn.Module) -> None:
    """Turn every dropout of a pretrained model off, in training mode too: log-ratios must not carry its noise."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _require_weights(path: str) -> None:
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).exists() for name in WEIGHTS):
        what = "this folder holds a config but no weights (model.safetensors)"
        raise ModelError(what, where=path, fix="copy the weights there, or start from scratch with model.init=random")


def _dtype(settings: ModelSettings) -> torch.dtype:
    if settings.dtype == "bf16":
        return torch.bfloat16
    if settings.dtype == "auto" and device().type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of transformers, and no warnings about heads that are new on purpose."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
