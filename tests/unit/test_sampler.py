"""Sampling: greedy as transformers does it, draws as the distribution says, and samples that depend on nothing beside them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from prefopt.errors import DataError, OptionError
from prefopt.rollout import decoding
from prefopt.rollout.local import LocalSampler
from prefopt.rollout.policy import Policy, load
from prefopt.rollout.sampler import Sample, draw, finish, inverse_cdf, nucleus
from prefopt.settings import RolloutSettings
from prefopt.text.chat import Renderer
from prefopt.types import IntArray
from tests.chat_shapes import tokenizer
from tests.tiny import VOCAB, tiny_model
from tests.worlds import language_model

STOP = 2
CACHED = ["llama", "gpt2", "mistral", "gemma3_text", "bloom"]  # bloom takes no positions, mistral and gemma 3 have sliding windows


def prompts(count: int = 5, seed: int = 0) -> list[IntArray]:
    """Random prompts of mixed lengths, not sorted by them."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, rng.integers(1, 14)).astype(np.int32) for _ in range(count)]


def sampler(model: Any, stops: tuple[int, ...] = (STOP,)) -> LocalSampler:
    return LocalSampler(model, stops, lambda ids, prompt: " ".join(map(str, ids)))


def ask(model: Any, texts: list[IntArray], stops: tuple[int, ...] = (STOP,), **options: Any) -> list[list[Sample]]:
    return sampler(model, stops).sample(texts, RolloutSettings(**{"max_new_tokens": 12, **options}))


def model_logps(model: Any, prompt: IntArray, sample: Sample, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs [n, V] of a plain forward over prompt and sample."""
    ids = torch.tensor([[*prompt.tolist(), *sample.ids.tolist()]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


def same(left: list[list[Sample]], right: list[list[Sample]]) -> bool:
    pairs = [(a, b) for xs, ys in zip(left, right, strict=True) for a, b in zip(xs, ys, strict=True)]
    return all(a.ids.tolist() == b.ids.tolist() and np.allclose(a.logps, b.logps, atol=1e-4) for a, b in pairs)


# --- what ends an answer


def test_the_models_own_stops_end_an_answer_and_are_kept(tmp_path: Path) -> None:
    """Llama 3.1 ends a call with <|eom_id|>, which no template says; token 17 is a word, which an untold config may name."""
    words = tokenizer("llama3")
    model = tiny_model()
    model.resize_token_embeddings(len(words))
    end_of_text, eot, eom = words.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"])
    model.generation_config.eos_token_id = [end_of_text, eom, 17]
    policy = Policy(model, words, Renderer(words), "model")
    assert policy.stop_ids == (eot, end_of_text, eom)
    assert policy.sampler(RolloutSettings(), chat=True).stop_ids == policy.stop_ids
    policy.save(tmp_path)
    assert load(str(tmp_path)).stop_ids == policy.stop_ids
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [eot, end_of_text, eom]


# --- against transformers and plain forwards


@pytest.mark.parametrize("family", [*CACHED, "mamba"])
def test_greedy_is_what_generate_does(family: str) -> None:
    model, texts = tiny_model(family), prompts()
    for prompt, (sample,) in zip(texts, ask(model, texts, temperature=0), strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        own = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=STOP, pad_token_id=0
        )
        assert sample.ids.tolist() == own[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", [*CACHED, "mamba"])
def test_logps_are_those_of_a_plain_forward(family: str) -> None:
    model, texts = tiny_model(family, scale=2.0), prompts()
    for temperature in (0.7, 0):
        found = ask(model, texts, samples=3, temperature=temperature)
        for prompt, samples in zip(texts, found, strict=True):
            for sample in samples:
                expected = model_logps(model, prompt, sample, temperature or 1.0).gather(
                    1, torch.from_numpy(sample.ids.astype(np.int64))[:, None]
                )
                assert sample.logps.dtype == np.float32
                np.testing.assert_allclose(sample.logps, expected[:, 0].numpy(), atol=2e-5)


def test_logps_under_top_p_are_renormalised_over_the_nucleus() -> None:
    model, texts = tiny_model(scale=2.0), prompts(3)
    for prompt, samples in zip(texts, ask(model, texts, samples=4, top_p=0.5), strict=True):
        for sample in samples:
            for token, logp, row in zip(sample.ids, sample.logps, model_logps(model, prompt, sample), strict=True):
                ordered = row.exp().sort(descending=True)
                kept = ordered.indices[: int((ordered.values.cumsum(0) < 0.5).sum()) + 1]
                assert token in kept
                assert logp == pytest.approx(float(row[token] - row[kept].logsumexp(0)), abs=2e-5)


def test_the_first_token_follows_the_softmax() -> None:
    model, (prompt,) = tiny_model(scale=8.0), prompts(1)
    (found,) = ask(model, [prompt], samples=6000, max_new_tokens=1, batch_size=512, temperature=0.8)
    counts = np.bincount([sample.ids[0] for sample in found], minlength=VOCAB)
    with torch.no_grad():
        expected = (model(torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1] / 0.8).softmax(-1).double().numpy() * len(found)
    common = expected >= 5
    assert 0 < common.sum() < VOCAB
    observed, wanted = (np.append(n[common], n[~common].sum()) for n in (counts, expected))
    assert stats.chisquare(observed, wanted * (observed.sum() / wanted.sum())).pvalue > 1e-3


# --- what must not matter


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_samples_do_not_depend_on_the_batch(family: str) -> None:
    model, texts = tiny_model(family, scale=2.0), prompts(7)
    together = ask(model, texts, samples=3)
    for batch_size in (1, 2, 4, 9):
        assert same(together, ask(model, texts, samples=3, batch_size=batch_size))


def test_the_seed_names_the_samples() -> None:
    model, texts = tiny_model(scale=2.0), prompts(3)
    first = ask(model, texts, samples=2, seed=1)
    torch.manual_seed(99)
    assert same(first, ask(model, texts, samples=2, seed=1))
    assert not same(first, ask(model, texts, samples=2, seed=2))
    assert same(first, [row[:2] for row in ask(model, texts, samples=5, seed=1)])
    ids = {tuple(sample.ids) for row in ask(model, [texts[0]] * 2, samples=4, seed=1) for sample in row}
    assert len(ids) > 6


def test_results_come_in_the_order_asked() -> None:
    model, texts = tiny_model(), prompts(6)
    rows = ask(model, texts, temperature=0, batch_size=2)
    alone = [ask(model, [text], temperature=0)[0] for text in texts]
    assert same(rows, alone)
    assert ask(model, []) == []


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    model, texts = tiny_model("gpt2"), prompts(2)
    model.train()
    assert same(ask(model, texts), ask(model, texts))
    assert model.training
    model.eval()
    ask(model, texts)
    assert not model.training


# --- where samples end


@pytest.mark.parametrize("family", ["llama", "mistral", "mamba"])
def test_the_first_stop_token_ends_a_sample(family: str) -> None:
    model, texts = tiny_model(family, scale=1.0), prompts(6)
    stops = tuple(range(VOCAB - 8, VOCAB))  # near uniform over 97 tokens: about one in twelve ends
    found = [sample for row in ask(model, texts, stops, samples=8, max_new_tokens=16) for sample in row]
    free = [sample for row in ask(model, texts, (), samples=8, max_new_tokens=16) for sample in row]
    assert {sample.finished for sample in found} == {True, False}
    for sample, longer in zip(found, free, strict=True):
        assert sample.ids.tolist() == longer.ids[: len(sample.ids)].tolist()
        assert sample.finished == (sample.ids[-1] in stops)
        assert not set(sample.ids[:-1].tolist()) & set(stops)
        assert len(sample.ids) == len(sample.logps) == (16 if not sample.finished else len(sample.ids))
        assert sample.text == " ".join(map(str, sample.ids[:-1] if sample.finished else sample.ids))


def test_room_is_checked_before_anything_is_sampled() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(DataError, match="prompt 2 is empty"):
        ask(model, [prompts(1)[0], np.zeros(0, np.int32)])
    with pytest.raises(DataError, match=r"prompt 1 has 120 tokens.*128"):
        ask(model, [np.full(120, 5, np.int32)])
    assert len(ask(model, [np.full(116, 5, np.int32)])[0][0].ids) == 12


def test_the_text_of_an_answer_keeps_its_first_space() -> None:
    """SentencePiece models take one away from a text that stands alone; a stop string that begins with it is cut."""
    renderer = Renderer(tokenizer("mistral"))
    prompt = renderer.prompt_ids("The capital is")
    ids = renderer.prompt_ids("The capital is the old market")[len(prompt) :].tolist()
    logps = [0.0] * len(ids)
    texts = [finish(ids, logps, True, prompt, RolloutSettings(stop=stop), (), renderer.decode).text for stop in ("q", " old", " the")]
    assert texts == [" the old market", " the", ""]


# --- one draw


@pytest.mark.parametrize("vocabulary", [1, 5, 128, 129, 1000])
def test_inverse_cdf_is_the_inverse(vocabulary: int) -> None:
    weights = torch.from_numpy(np.random.default_rng(vocabulary).exponential(size=vocabulary)).float()
    weights[vocabulary // 3 : vocabulary // 2] = 0
    sums = weights.double().cumsum(0) / weights.double().sum()
    uniform = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = inverse_cdf(weights.expand(400, -1), uniform)
    expected = torch.searchsorted(sums, uniform, right=True)
    near = (sums[None] - uniform[:, None]).abs().amin(1) < 1e-6  # sums of blocks are rounded otherwise
    assert bool((found == expected)[~near].all())


def test_tokens_without_mass_are_never_drawn() -> None:
    weights = torch.zeros(2, 300)
    weights[:, [130, 131, 290]] = torch.tensor([1e-30, 0.3, 1e-30])
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(weights, edges).tolist() == [130, 131] or bool((weights[0, inverse_cdf(weights, edges)] > 0).all())
    for scale in (1e-30, 1.0, 3e30):
        rows = torch.zeros(64, 257)
        rows[torch.arange(64), torch.arange(64) * 4] = scale
        for edge in edges:
            assert inverse_cdf(rows, edge.expand(64)).tolist() == [4 * i for i in range(64)]


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    weights = torch.tensor([[4.0, 1.0, 3.0, 2.0]])
    kept = {p: nucleus(weights, p).nonzero()[:, 1].tolist() for p in (1e-9, 0.4, 0.41, 0.7, 0.71, 0.95)}
    assert kept == {1e-9: [0], 0.4: [0], 0.41: [0, 2], 0.7: [0, 2], 0.71: [0, 2, 3], 0.95: [0, 1, 2, 3]}


def test_the_nucleus_is_the_same_however_many_tokens_it_takes() -> None:
    rng = np.random.default_rng(0)
    for scale in (0.1, 8.0):  # flat: most of the vocabulary; peaked: a few tokens
        weights = torch.from_numpy(np.exp(scale * rng.standard_normal((4, 3000)))).float()
        for row, kept in zip(weights, nucleus(weights, 0.9), strict=True):
            ordered = row.double().sort(descending=True)
            size = int((ordered.values.cumsum(0) < 0.9 * row.double().sum()).sum()) + 1
            assert abs(int((kept > 0).sum()) - size) <= 1  # float32 sums may part at the border
            assert kept.sum() == pytest.approx(float(ordered.values[:size].sum()), rel=1e-3)


def test_extreme_logits_draw_what_they_say() -> None:
    logits = torch.tensor([[1e4, 0.0, -torch.inf], [-1e4, -torch.inf, -1e4 - 1]])
    uniform = torch.tensor([0.999, 0.9], dtype=torch.float64)
    ids, logps = draw(logits, uniform, RolloutSettings(temperature=0.5))
    assert ids.tolist() == [0, 2]
    np.testing.assert_allclose(logps, [0.0, -np.log1p(np.exp(2.0))], atol=2e-3)
    assert draw(logits.bfloat16(), uniform, RolloutSettings()).logps_B.dtype == torch.float32


# --- the lean path of Llama-shaped models


def paths(model: Any) -> str:
    """Which way of decoding a model gets."""
    return decoding.decoder(model, prompts()).way.__name__


@pytest.mark.parametrize(
    ("family", "path"),
    [("llama", "Lean"), ("qwen2", "Lean"), ("qwen3", "Lean"), ("mistral", "Cached"), ("olmo2", "Cached"), ("mamba", "Uncached")],
)
def test_which_models_decode_which_way(family: str, path: str) -> None:
    assert paths(tiny_model(family)) == path


SHARED, ALONE = [0, 0, 3, 1, 2, 2, 2, 5], list(range(8))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", [SHARED, ALONE], ids=["shared prompts", "prompts of their own"])
def test_the_lean_path_is_the_general_one(family: str, dtype: torch.dtype, source: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.rollout.lean.BLOCK", 2)  # what a sequence keeps grows on the way
    model, texts = tiny_model(family, scale=2.0).to(dtype), prompts(8)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    new = torch.arange(8) + 10
    with torch.no_grad():
        lean = decoding.decoder(model, texts).start(texts, torch.tensor(source), 6)
        plain = decoding.Cached(model, texts, torch.tensor(source), 6)
        assert isinstance(lean, decoding.Lean)
        for rows in (range(8), [1, 2, 4, 5, 7], [0, 2], [0, 1], [1]):  # groups of equal and of unequal sizes
            for growing in (lean, plain):
                growing.keep(torch.tensor(rows))
                growing.append(new[: len(rows)])
            apart = (lean.logits_BV.float().log_softmax(-1) - plain.logits_BV.float().log_softmax(-1)).abs().max()
            assert apart < (1e-4 if dtype == torch.float32 else 0.15)


def test_adapters_are_part_of_the_lean_path() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model(scale=2.0)
    bare = ask(model, prompts(), temperature=0)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    base = adapted.get_base_model()
    assert paths(base) == "Lean"
    with_adapter = ask(base, prompts(), temperature=0)
    assert not same(bare, with_adapter)
    for prompt, (sample,) in zip(prompts(), with_adapter, strict=True):
        assert model_logps(base, prompt, sample).argmax(-1).tolist() == sample.ids.tolist()
    with adapted.disable_adapter():
        assert same(bare, ask(base, prompts(), temperature=0))


def test_an_adapter_on_the_embeddings_is_not_left_out() -> None:
    """It is zero when a model is checked, at the start of a run, so the check cannot see it."""
    from peft import LoraConfig, get_peft_model

    base = get_peft_model(tiny_model(scale=2.0), LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"])).get_base_model()
    before = ask(base, prompts(), temperature=0)
    with torch.no_grad():
        base.model.embed_tokens.lora_embedding_A["default"].normal_()
    after = ask(base, prompts(), temperature=0)
    assert not same(before, after)
    for prompt, (sample,) in zip(prompts(), after, strict=True):
        assert model_logps(base, prompt, sample).argmax(-1).tolist() == sample.ids.tolist()


def test_new_weights_are_seen() -> None:
    model = tiny_model()
    before = ask(model, prompts(), temperature=0)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    after = ask(model, prompts(), temperature=0)
    assert not same(before, after)
    for prompt, (sample,) in zip(prompts(), after, strict=True):
        assert model_logps(model, prompt, sample).argmax(-1).tolist() == sample.ids.tolist()


@pytest.mark.parametrize(("family", "way"), [("llama", "Lean"), ("mistral", "Cached"), ("gemma3_text", "Cached"), ("gpt2", "Cached")])
@pytest.mark.parametrize("source", [[0] * 4 + [1] * 4, [0, 1]], ids=["shared prompts", "prompts of their own"])
def test_the_memory_a_batch_is_said_to_need_is_what_it_keeps(family: str, way: str, source: list[int]) -> None:
    model, texts, room = tiny_model(family), [np.full(20, 5, np.int32)] * 2, 6
    decode = decoding.decoder(model, texts)
    assert decode.way.__name__ == way
    with torch.no_grad():
        growing: Any = decode.start(texts, torch.tensor(source), room)
        for _ in range(room):
            growing.append(torch.tensor(source) + 7)
    if way == "Lean":
        kept = [(*store.shape[1:4:2],) for store in (*growing._own, *(growing._prompts or []))]
    else:
        kept = [(*layer.keys.shape[0:3:2],) for layer in growing._layers]
    needed = decode.kept(model.config, 20, room, prompts=2, rows=len(source))
    windows = sum(hasattr(layer, "sliding_window") for layer in getattr(growing, "_layers", []))  # they keep one less than they see
    assert needed == sum(rows * length for rows, length in kept) + windows * len(source)


def test_a_model_that_keeps_nothing_needs_no_memory_for_it() -> None:
    model = tiny_model("mamba")
    assert decoding.decoder(model, prompts()).kept(model.config, 20, 6, prompts=2, rows=8) == 0


def test_a_lean_path_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(seed=5)
    expected = [decoding.Cached(model, [prompt], torch.tensor([0]), 1).logits_BV.argmax() for prompt in prompts()]
    made = decoding.lean_model
    monkeypatch.setattr(decoding, "lean_model", lambda model: replace(made(model), scale=3.0))
    assert paths(model) == "Cached"
    assert [int(sample.ids[0]) for (sample,) in ask(model, prompts(), temperature=0)] == [int(token) for token in expected]


def test_options_beside_settings_are_refused_not_ignored() -> None:
    policy: Any = language_model("dpo")
    settings = RolloutSettings(max_new_tokens=3, temperature=0.0)
    assert policy.generate(["w5 w6"], settings=settings) == policy.generate(["w5 w6"], max_new_tokens=3, temperature=0.0)
    with pytest.raises(OptionError, match="samples"):
        policy.generate(["w5 w6"], settings=settings, samples=2)
