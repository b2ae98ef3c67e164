"""Tokenizers of real shapes, trained in a moment on a few lines: how each family cuts text and what its chat template writes."""

from __future__ import annotations

import json
from functools import cache

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [
    "What is the capital of the town? It is the old market, and the town hall is on the north side of it.",
    "user assistant system model [INST] please [/INST] helps you with your question.\n\nThank you! 12 + 30 = 42.",
    "Human: hello there\n\nAssistant: Hi! How can I help you today? I'm sorry, I cannot do that; here is another way.",
] * 4

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{% if tools %}{{ '<|im_start|>tools\n' + (tools | tojson) + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
    "{% for call in m.tool_calls or [] %}{{ '<tool_call>' + (call | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}"
    "{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
SHAPES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "mistral": MISTRAL, "base": None}
WITH_TEMPLATE = [name for name, template in SHAPES.items() if template]
SPECIAL = {
    "chatml": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra": ["<|im_start|>"]},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    | {"extra": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"]},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "extra": ["<start_of_turn>", "<end_of_turn>"]},
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "extra": []},
    "base": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "extra": []},
}


@cache
def tokenizer(name: str, template: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer of the named shape with its own template, or with `template`; treat it as read-only."""
    names = dict(SPECIAL[name])
    extra = names.pop("extra")
    special = [*dict.fromkeys(names.values()), *extra]
    made = _sentencepiece(special, prefix=name == "mistral") if name in ("gemma", "mistral") else _byte_level(special)
    if name in ("llama3", "gemma", "mistral"):  # these put their bos before every text
        bos = names["bos_token"]
        made.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, made.token_to_id(bos))])
    found = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=extra, **names)
    found.chat_template = template or SHAPES[name]
    return found


def _byte_level(special: list[str]) -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: words by a pattern, then byte pairs."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        LINES, trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def _sentencepiece(special: list[str], *, prefix: bool) -> Tokenizer:
    """As Gemma, and with `prefix`, a space put before every stretch of text, Llama 2 and Mistral."""
    made = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    steps = [normalizers.Replace(" ", "▁")]
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps] if prefix else steps)
    made.pre_tokenizer = pre_tokenizers.Split(Regex("▁[^▁\n]*|\n+|[^▁\n]+"), "isolated")  # merges never cross a space, as in theirs
    tokens = [*special, *({"<unk>": None} if "<unk>" not in special else {}), *(f"<0x{i:02X}>" for i in range(256))]
    made.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=700, special_tokens=tokens, show_progress=False))
    state = json.loads(made.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]  # bytes are plain tokens
    made = Tokenizer.from_str(json.dumps(state))
    made.pre_tokenizer = None if prefix else pre_tokenizers.Split(Regex("\n+"), "isolated")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return made
