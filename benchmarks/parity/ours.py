"""A tiny model, rows that every method can read, and this package's loss and gradient on all of them as one step."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefopt.losses.methods import METHODS
from prefopt.losses.reduce import reduce
from prefopt.model.reference import FrozenReference
from prefopt.pack.prepare import prepare
from prefopt.rollout.policy import Policy, RewardModel
from prefopt.settings import DataSettings, TrainSettings
from prefopt.text.chat import Renderer
from prefopt.training.coupling import couple
from prefopt.training.job import Job
from prefopt.training.memory import Load
from prefopt.training.optim import Optimizer

VOCAB = 64
NO_LOAD = Load(stored=0, parameters=0, trained=0, layers=0, width=0, feed_forward=0, positions=0, longest=0)


class Found(NamedTuple):
    """A loss and its gradient by name of the variable."""

    value: float
    gradient: dict[str, torch.Tensor]


class Models(NamedTuple):
    """Policy, a reference that differs from it, a reward model, and the tokenizer of them all."""

    policy: Any
    reference: Any
    scorer: Any
    tokenizer: Any


def rows(count: int = 6, seed: int = 0) -> list[dict[str, Any]]:
    """Preference pairs of random words of unequal lengths, one word a token, with margins and labels."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(3, VOCAB, rng.integers(low, high)))

    return [
        {
            "prompt": words(3, 9),
            "chosen": " " + words(2, 8),
            "rejected": " " + words(2, 8),
            "margin": round(float(rng.random()), 3),
            "label": n % 3 > 0,
        }
        for n in range(count)
    ]


def tiny_models() -> Models:
    """Two-layer GPT-2s in float64 (Llama's norm rounds to float32) with weights so large that nothing is near uniform."""
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=2, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    policy = GPT2LMHeadModel(config)
    reference = copy.deepcopy(policy)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    scored = copy.deepcopy(config)
    scored.num_labels = 1
    scorer = GPT2ForSequenceClassification(scored)
    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCAB)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return Models(policy.double(), reference.double(), scorer.double(), tokenizer)


def shaped(data: str, given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as a method of this kind of data reads them."""
    if data == "labels":
        return [{"prompt": r["prompt"], "completion": r["chosen"] if r["label"] else r["rejected"], "label": r["label"]} for r in given]
    if data == "demonstrations":
        return [{"prompt": r["prompt"], "completion": r["chosen"]} for r in given]
    return [{name: r[name] for name in ("prompt", "chosen", "rejected", "margin")} for r in given]


def loss(
    method: str,
    models: Models,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    mix: Mapping[str, float] | None = None,
    *,
    backwards: bool = False,
    margins: bool = True,
) -> Found:
    """This package's loss on all rows as one optimizer step, by way of its reader, renderer, packing, columns, coupling and reduction.

    Args:
        method: a row of METHODS.
        models: trained or read; left as they were.
        folder: for the rows' file.
        options: the method's.
        mix: rows added with a weight.
        backwards: the rows in the opposite order, which matters only to what pairs rows with their neighbours.
        margins: keep the rows' margins.
    """
    row = METHODS[method].mixed(mix)
    given = shaped(row.data, rows()[:: -1 if backwards else 1])
    if not margins:
        given = [{name: value for name, value in r.items() if name != "margin"} for r in given]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in given))
    renderer = Renderer(models.tokenizer)
    data = prepare(DataSettings(path=str(path)), renderer, data=row.data, max_length=None, seed=0)
    model = copy.deepcopy(models.scorer if row.reads == "scores" else models.policy)
    own = (RewardModel if row.reads == "scores" else Policy)(model, models.tokenizer, renderer, "tiny")
    reference = FrozenReference(copy.deepcopy(models.reference)) if row.needs_reference else None
    with own.laid_out("packed", "all") as lay_out:
        if reference is not None:
            reference.model.set_attn_implementation(model.config._attn_implementation)
        optimizer = Optimizer(model, TrainSettings(), 1e-6)
        job = Job(row, dict(options or {}), model, optimizer, reference, lay_out, 100, NO_LOAD)
        batches = job.batches(data.train)
        counts = job.counts(batches)
        coupling = couple(job, data.train, batches, counts)
        total = 0.0
        for at, batch in enumerate(batches):
            view = job.look(batch, **coupling.known)
            if coupling.slopes and view.logps_T is not None:
                part = (view.logps_T * coupling.slopes[at]).sum()
            else:
                part = reduce(row.terms(view, job.options), counts)
                total += part.item()
            part.backward()
    value = total if coupling.loss is None else coupling.loss
    return Found(value, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
