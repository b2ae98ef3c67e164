"""A new model folder from nothing but text: a byte-level BPE tokenizer trained on it and weights drawn at random."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefopt.errors import OptionError
from prefopt.pipeline.kinds import CreateOptions
from prefopt.types import Example, Text

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
TURNS = ("<|im_start|>", "<|im_end|>")
"""The control tokens of ChatML; a new tokenizer has them, so that it can be taught to chat."""


def create(examples: Iterable[Example], options: CreateOptions, folder: Path) -> int:
    """Train a tokenizer, draw a model and save both as a Hugging Face folder; returns the number of parameters.

    Raises:
        OptionError: a shape that cannot be, or a vocabulary too small for the 256 bytes and the control tokens.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

    _check(options)
    tokenizer = build_tokenizer((text for example in examples for text in texts(example)), options)
    config = AutoConfig.for_model(options.family, **_shape(options), vocab_size=len(tokenizer), **_special_ids(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURNS[1])]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(sum(p.numel() for p in model.parameters()))


def build_tokenizer(corpus: Iterable[str], options: CreateOptions) -> Any:
    """A byte-level BPE with single digits (sums are learned digit by digit), ChatML's control tokens and template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from prefopt.text.template import resolve

    bpe = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[END_OF_TEXT, PAD, *TURNS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer=trainer)
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=list(TURNS),
        model_max_length=options.max_length,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = resolve(tokenizer, options.chat_template)
    return tokenizer


def texts(example: Example) -> Iterator[str]:
    """Every text of a row, roles included: the prompt's and the completions' messages or strings."""
    yield from _strings(example.prompt)
    for completion in example.completions:
        yield from _strings(completion.content)


def _strings(text: Text) -> list[str]:
    return [text] if isinstance(text, str) else [part for message in text for part in (message.role, message.content)]


def _check(options: CreateOptions) -> None:
    if options.hidden_size % options.heads:
        raise OptionError(
            f"hidden_size {options.hidden_size} is no multiple of heads {options.heads}", where="create", fix="change one of them"
        )
    if options.heads % (options.kv_heads or options.heads):
        raise OptionError(f"heads {options.heads} is no multiple of kv_heads {options.kv_heads}", where="create", fix="change one of them")
    least = 256 + 2 + len(TURNS)
    if options.vocab_size < least:
        what = f"vocab_size {options.vocab_size} leaves no room for the 256 bytes and {least - 256} control tokens"
        raise OptionError(what, where="create", fix=f"set vocab_size={least} or more")


def _shape(options: CreateOptions) -> dict[str, Any]:
    return {
        "hidden_size": options.hidden_size,
        "intermediate_size": options.intermediate_size,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "num_key_value_heads": options.kv_heads or options.heads,
        "head_dim": options.hidden_size // options.heads,
        "max_position_embeddings": options.max_length,
        "tie_word_embeddings": options.tie_embeddings,
    }


def _special_ids(tokenizer: Any) -> dict[str, Any]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
