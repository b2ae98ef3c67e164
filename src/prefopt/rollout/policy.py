"""A model one can ask: `load(path)` gives a `Policy` (log-probs, completions) or a `RewardModel` (scores)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from prefopt.errors import ModelError
from prefopt.model.attention import packed_attention
from prefopt.model.forward import base_of, policy_logps, reward_scores
from prefopt.model.load import is_reward_model, load_causal, load_config, load_scorer, load_tokenizer, quiet
from prefopt.model.selfcheck import SelfCheck, self_check
from prefopt.pack.plan import micro_batches
from prefopt.pack.tree import Pairs, pack, pad
from prefopt.settings import ModelSettings, RolloutSettings
from prefopt.text.chat import Renderer
from prefopt.types import Batch, Completion, Example, Message, TokenTree, as_text

if TYPE_CHECKING:
    from prefopt.rollout.sampler import Sample

Prompts = Sequence[str | Sequence[Message | Mapping[str, Any]]]
MICRO_TOKENS = 8192


@dataclass
class LanguageModel:
    """What policies and reward models share: a transformers model, its tokenizer and the renderer that turns text into trees."""

    model: Any
    tokenizer: Any
    renderer: Renderer
    path: str
    reads: str = "logps"

    @property
    def max_length(self) -> int | None:
        """Longest sequence the model was built for, in tokens; None where it has no limit."""
        limit = getattr(base_of(self.model).config, "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(base_of(self.model).parameters()).device

    def check(self, trees: Sequence[TokenTree]) -> SelfCheck:
        """Which layout this model takes, found out on real rows."""
        return self_check(self.model, trees, reads=self.reads)

    @contextmanager
    def laid_out(self, layout: str, pairs: Pairs = "all") -> Iterator[Callable[[Sequence[TokenTree]], Batch]]:
        """Inside, the model takes batches of this layout, and the function given makes them."""
        make = pack if layout == "packed" else pad
        with packed_attention(base_of(self.model)) if layout == "packed" else nullcontext():
            yield lambda trees: make(trees, pairs=pairs).to(self.device)

    def save(self, folder: str | Path) -> None:
        """Write weights, config, tokenizer and chat template so that transformers and vLLM open the folder and stop where we stop."""
        base = base_of(self.model)
        self.tokenizer.chat_template = self.renderer.template or self.tokenizer.chat_template
        if self.reads == "scores":
            base.config.pad_token_id = self._padding()
        elif base.generation_config is not None:
            base.generation_config.eos_token_id = list(self.renderer.stop_ids)
        with quiet():
            base.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _padding(self) -> int:
        """A token no sequence ends with: transformers scores the last token that is not padding, which must be the stop token."""
        stops, pad_id = self.renderer.stop_ids, self.tokenizer.pad_token_id
        if pad_id is not None and pad_id not in stops:
            return int(pad_id)
        return min(set(range(len(stops) + 1)) - set(stops))

    def _trees(self, prompts: Prompts, completions: Sequence[Any]) -> list[TokenTree]:
        if len(prompts) != len(completions):
            raise ModelError(f"{len(prompts)} prompts but {len(completions)} completions", fix="give one completion for each prompt")
        rows = zip(prompts, completions, strict=True)
        examples = [Example(prompt=as_text(p), completions=(Completion(content=as_text(c)),)) for p, c in rows]
        return [self.renderer.tree(example, index) for index, example in enumerate(examples)]

    @torch.no_grad()
    def _each(self, trees: Sequence[TokenTree], read: Callable[[Any, Batch], torch.Tensor]) -> list[float]:
        """One number a tree (of one branch), whatever order the passes took them in."""
        found: dict[int, float] = {}
        layout = self.check(trees).layout if trees else "packed"
        with self.laid_out(layout) as lay_out:
            for micro in micro_batches(trees, MICRO_TOKENS, padded=layout == "padded"):
                values = read(self.model, lay_out(micro)).tolist()
                found |= {tree.index: value for tree, value in zip(micro, values, strict=True)}
        return [found[i] for i in sorted(found)]


@dataclass
class Policy(LanguageModel):
    """A causal language model."""

    def logprobs(self, prompts: Prompts, completions: Sequence[Any]) -> list[float]:
        """log pi(completion | prompt) for each row: the sum over its scored tokens, stop token included, in nats.

        Args:
            prompts: strings (used as they stand) or lists of messages (through the chat template).
            completions: one a prompt, of the same form.

        Raises:
            ModelError: prompts and completions differ in number.
        """
        return self.tree_logprobs(self._trees(prompts, completions))

    def tree_logprobs(self, trees: Sequence[TokenTree]) -> list[float]:
        """The same of trees with one branch each and distinct `index`, in the order of their index."""
        return self._each(trees, _sums)

    def tree_entropies(self, trees: Sequence[TokenTree]) -> list[float]:
        """The entropy of the distribution each scored token was drawn from, at temperature 1, summed over the completion, in nats."""
        return self._each(trees, _entropies)

    def generate(self, prompts: Prompts, *, settings: RolloutSettings | None = None, **options: Any) -> list[list[str]]:
        """Completions as text, `samples` a prompt (see RolloutSettings for the options)."""
        found = self.sample(prompts, settings or RolloutSettings(**options))
        return [[sample.text for sample in row] for row in found]

    def sample(self, prompts: Prompts, settings: RolloutSettings) -> list[list[Sample]]:
        """Completions with token ids and log-probs."""
        from prefopt.rollout.local import LocalSampler

        texts = [as_text(prompt) for prompt in prompts]
        decode = self.renderer.decode if all(isinstance(text, str) for text in texts) else self.renderer.answer
        sampler = LocalSampler(base_of(self.model), self.renderer.stop_ids, decode)
        return sampler.sample([self.renderer.prompt_ids(text) for text in texts], settings)


@dataclass
class RewardModel(LanguageModel):
    """A sequence-classification model with one output, read at the last token of a completion."""

    reads: str = "scores"

    def score(self, prompts: Prompts, completions: Sequence[Any]) -> list[float]:
        """The reward of each completion; comparable between completions of one prompt only (Bradley-Terry leaves a constant free)."""
        return self.tree_scores(self._trees(prompts, completions))

    def tree_scores(self, trees: Sequence[TokenTree]) -> list[float]:
        """The same of trees with one branch each and distinct `index`, in the order of their index."""
        return self._each(trees, reward_scores)


def load(path: str, *, kind: Literal["auto", "policy", "reward"] = "auto", seed: int = 0, **settings: Any) -> Policy | RewardModel:
    """Open a model folder or hub name.

    Args:
        path: a Hugging Face folder or hub name.
        kind: auto takes what the config says; reward starts a reward model from a causal LM.
        seed: draws what the folder does not hold (a new score head, or all weights with init="random").
        settings: further fields of ModelSettings (dtype, init, chat_template, checkpointing).

    Raises:
        ModelError: the folder cannot be used, with the reason.
    """
    chosen = ModelSettings(path=str(path), **settings)
    reward = kind == "reward" or (kind == "auto" and is_reward_model(load_config(chosen.path)))
    tokenizer = load_tokenizer(chosen.path)
    model = (load_scorer if reward else load_causal)(chosen, seed=seed)
    renderer = Renderer(tokenizer, chosen.chat_template)
    return (RewardModel if reward else Policy)(model, tokenizer, renderer, chosen.path)


def _sums(model: Any, batch: Batch) -> torch.Tensor:
    sums_S = torch.zeros(batch.sequences, device=batch.source_T.device)
    return sums_S.index_add_(0, batch.sequence_T, policy_logps(model, batch).logps_T)


def _entropies(model: Any, batch: Batch) -> torch.Tensor:
    sums_S = torch.zeros(batch.sequences, device=batch.source_T.device)
    entropy_T = policy_logps(model, batch, stats=True).entropy_T
    assert entropy_T is not None
    return sums_S.index_add_(0, batch.sequence_T, entropy_T)
