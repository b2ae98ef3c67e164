"""A model one can ask: `load(path)` gives a `Policy` (log-probs, completions) or a `RewardModel` (scores)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from prefopt.errors import ModelError, OptionError
from prefopt.model.attention import packed_attention
from prefopt.model.forward import base_of, border_of, limit_of, policy_logps, reward_scores, step_logits
from prefopt.model.load import add_language_head, is_reward_model, load_causal, load_config, load_scorer, load_tokenizer, quiet
from prefopt.model.reading import KEY, Floats, Reading, of_solution
from prefopt.model.selfcheck import SelfCheck, self_check
from prefopt.pack.plan import micro_batches
from prefopt.pack.tree import Pairs, pack, pad
from prefopt.rollout.sampler import check_engine
from prefopt.settings import ModelSettings, RolloutSettings
from prefopt.text.chat import Renderer
from prefopt.types import Batch, Completion, Example, Message, TokenTree, as_text

if TYPE_CHECKING:
    from prefopt.rollout.constrain import Vocabulary
    from prefopt.rollout.sampler import Sample, Sampler

Prompts = Sequence[str | Sequence[Message | Mapping[str, Any]] | Example]
"""Strings (used as they stand), lists of messages (through the chat template), or rows, whose tools go along."""
MICRO_TOKENS = 8192
ENSEMBLE = "ensemble.json"
"""The file that makes a folder of reward models one reward model."""


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
        return limit_of(self.model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(base_of(self.model).parameters()).device

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every token that ends an answer: those of the renderer, then the control tokens that the model's own generation config names."""
        config = getattr(base_of(self.model), "generation_config", None)
        own: Any = getattr(config, "eos_token_id", None)
        given = own if isinstance(own, list | tuple) else [own]
        # A config made from scratch may name an ordinary word of this tokenizer.
        control = self.tokenizer.added_tokens_decoder
        return tuple(dict.fromkeys([*self.renderer.stop_ids, *(stop for stop in given if stop in control)]))

    def vocabulary(self) -> Vocabulary:
        """The bytes of the model's tokens."""
        from prefopt.rollout.constrain import Vocabulary

        return Vocabulary(self.tokenizer, base_of(self.model).config.get_text_config().vocab_size)

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
            base.generation_config.eos_token_id = list(self.stop_ids)
        with quiet():
            base.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def _padding(self) -> int:
        """A token no sequence ends with: transformers scores the last token that is not padding, which must be the stop token."""
        stops, pad_id = self.stop_ids, self.tokenizer.pad_token_id
        if pad_id is not None and pad_id not in stops:
            return int(pad_id)
        return min(set(range(len(stops) + 1)) - set(stops))

    def _trees(self, prompts: Prompts, completions: Sequence[Any]) -> list[TokenTree]:
        if len(prompts) != len(completions):
            raise ModelError(f"{len(prompts)} prompts but {len(completions)} completions", fix="give one completion for each prompt")
        rows = zip(prompts, completions, strict=True)
        examples = [replace(_row(p), completions=(self._completion(c),)) for p, c in rows]
        return list(self.renderer.trees(examples))

    def _completion(self, content: Any) -> Completion:
        """A completion given as text, messages or a `Completion`."""
        return content if isinstance(content, Completion) else Completion(content=as_text(content))

    def _each(self, trees: Sequence[TokenTree], read: Callable[[Any, Batch], torch.Tensor]) -> list[Any]:
        """One number (or one row of numbers) a tree of one branch, whatever order the passes took them in."""
        found: dict[int, Any] = {}
        for micro, values in self._passes(trees, read):
            found |= {tree.index: value for tree, value in zip(micro, values.tolist(), strict=True)}
        return [found[i] for i in sorted(found)]

    @torch.no_grad()
    def _passes(
        self, trees: Sequence[TokenTree], read: Callable[[Any, Batch], torch.Tensor]
    ) -> Iterator[tuple[list[TokenTree], torch.Tensor]]:
        """The trees of each forward pass and what was read."""
        layout = self.check(trees).layout if trees else "packed"
        with self.laid_out(layout) as lay_out:
            for micro in micro_batches(trees, MICRO_TOKENS, padded=layout == "padded", border=border_of(self.model)):
                yield micro, read(self.model, lay_out(micro))


@dataclass
class Policy(LanguageModel):
    """A causal language model."""

    def logprobs(self, prompts: Prompts, completions: Sequence[Any]) -> list[float]:
        """log pi(completion | prompt) for each row: the sum over its scored tokens, stop token included, in nats.

        Args:
            prompts: strings (used as they stand), lists of messages (through the chat template), or rows, whose tools go along.
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
        """Completions as text.

        Args:
            prompts: strings (used as they stand), lists of messages (through the chat template), or rows, whose tools go along.
            settings: how they are drawn.
            options: fields of RolloutSettings (`samples=4, temperature=0.7`), in the place of `settings`.

        Returns:
            For each prompt `samples` completions, in the order of the prompts.

        Raises:
            OptionError: both settings and options are given, or settings that the engine does not honour.
        """
        if settings is not None and options:
            what = f"settings are given, and beside them {', '.join(options)}, which would not be read"
            raise OptionError(what, where="generate", fix="put all of them into the settings, or none")
        found = self.sample(prompts, RolloutSettings(**options) if settings is None else settings)
        return [[sample.text for sample in row] for row in found]

    def sampler(self, settings: RolloutSettings, *, chat: bool) -> Sampler:
        """What completes this policy's prompts: the engine that the settings name. `chat` says that answers are turns of a conversation.

        Raises:
            OptionError: the engine is not installed, or settings that it does not read.
        """
        check_engine(settings)
        stops, decode = self.stop_ids, self.renderer.answer if chat else self.renderer.decode
        if settings.engine == "server":
            from prefopt.rollout.server import ServerSampler

            assert settings.url is not None
            return ServerSampler(settings.url, stops, decode, self.max_length, folder=settings.folder)
        if settings.engine == "vllm":
            from prefopt.rollout.vllm import VllmSampler

            dtype = str(base_of(self.model).dtype).removeprefix("torch.")
            return VllmSampler(self.path, stops, decode, self.max_length, dtype=dtype, memory=settings.memory)
        from prefopt.rollout.local import LocalSampler

        return LocalSampler(base_of(self.model), stops, decode, self.vocabulary)

    def sample(self, prompts: Prompts, settings: RolloutSettings) -> list[list[Sample]]:
        """Completions with token ids and log-probs."""
        if settings.folder is not None:
            raise OptionError("only training gives a server new weights", where="rollout.folder", fix="leave it out")
        rows = [_row(prompt) for prompt in prompts]
        sampler = self.sampler(settings, chat=not all(isinstance(row.prompt, str) for row in rows))
        return sampler.sample([self.renderer.prompt_ids(row.prompt, row.tools) for row in rows], settings)


@dataclass
class RewardModel(LanguageModel):
    """A sequence-classification model read at the last token of a completion, or at the end of each step of one.

    `reading` says how its outputs become one score: several are members of an ensemble or attributes, and scores are divided by the
    temperature that was fitted on held-out preferences, so that σ(difference) is the probability of being preferred.
    """

    reads: str = "scores"
    reading: Reading = field(default_factory=Reading)

    def score(self, prompts: Prompts, completions: Sequence[Any]) -> list[float]:
        """The reward of each completion; comparable between completions of one prompt only (Bradley-Terry leaves a constant free).

        A process reward model gives each solution one number in [0, 1] made of the probabilities of its steps.

        Args:
            prompts: strings (used as they stand), lists of messages (through the chat template), or rows, whose tools go along.
            completions: one a prompt, of the same form.

        Raises:
            ModelError: prompts and completions differ in number.
        """
        return self.tree_scores(self._trees(prompts, completions))

    def outputs(self, prompts: Prompts, completions: Sequence[Any]) -> Floats:
        """What the head gives for each completion, [S] or [S, E] for E members or attributes, before `reading`."""
        return self.tree_outputs(self._trees(prompts, completions))

    def step_scores(self, prompts: Prompts, completions: Sequence[Any]) -> list[list[float]]:
        """The probability that each step is right; steps are those of a `Completion`, or the lines of a text."""
        return [steps.tolist() for steps in self.tree_steps(self._trees(prompts, completions))]

    def tree_scores(self, trees: Sequence[TokenTree]) -> list[float]:
        """The scores of trees with one branch each and distinct `index`, in the order of their index."""
        if self.reading.solution:
            return [of_solution(steps.tolist(), self.reading.solution) for steps in self.tree_steps(trees)]
        return [float(score) for score in self.reading(self.tree_outputs(trees))]

    def tree_outputs(self, trees: Sequence[TokenTree]) -> Floats:
        """The outputs of such trees [S] or [S, E]."""
        return np.asarray(self._each(trees, reward_scores), dtype=np.float64)

    def tree_steps(self, trees: Sequence[TokenTree]) -> list[Floats]:
        """The probabilities of the steps of such trees; an answer that is not cut into steps is one step."""
        return [np.exp(-np.logaddexp(0.0, -self.reading(logits))) for logits in self.tree_step_outputs(trees)]

    def tree_step_outputs(self, trees: Sequence[TokenTree]) -> list[Floats]:
        """The outputs at the end of each step of such trees, before `reading`."""
        cut = [tree if tree.branches[0].step_ends else _one_step(tree) for tree in trees]
        found: dict[int, Floats] = {}
        for micro, logits in self._passes(cut, step_logits):
            ends = np.cumsum([len(tree.branches[0].step_ends) for tree in micro])[:-1]
            parts = np.split(logits.double().numpy(force=True), ends)
            found |= {tree.index: steps for tree, steps in zip(micro, parts, strict=True)}
        return [found[i] for i in sorted(found)]

    def save(self, folder: str | Path) -> None:
        """Write the model with its reading."""
        setattr(base_of(self.model).config, KEY, self.reading.to_config())
        super().save(folder)

    def _completion(self, content: Any) -> Completion:
        if not self.reading.solution or (isinstance(content, Completion) and content.steps):
            return super()._completion(content)
        return in_steps(super()._completion(content))


def in_steps(completion: Completion) -> Completion:
    """The completion cut into steps: each line of its last message is one."""
    content = completion.content
    text = content if isinstance(content, str) else content[-1].content if content else ""
    steps = tuple(line for line in text.splitlines(keepends=True) if line.strip())
    return replace(completion, steps=steps, step_labels=(0.0,) * len(steps))


def _one_step(tree: TokenTree) -> TokenTree:
    (branch,) = tree.branches
    return replace(tree, branches=(replace(branch, step_ends=(len(branch.ids) - 1,), step_labels=(0.0,)),))


def load(
    path: str | Path,
    *,
    kind: Literal["auto", "policy", "reward"] = "auto",
    seed: int = 0,
    outputs: int | None = None,
    language_head: bool = False,
    **settings: Any,
) -> Policy | RewardModel:
    """Open a model folder or hub name; a folder of several reward models opens as one.

    Args:
        path: a Hugging Face folder or hub name, or the folder of an ensemble.
        kind: auto takes what the config says; reward starts a reward model from a causal LM.
        seed: draws what the folder does not hold (a new score head, or all weights with init="random").
        outputs: of a new score head; 1 when not given.
        language_head: keep the language head of a reward model too.
        settings: further fields of ModelSettings (dtype, init, chat_template, checkpointing).

    Raises:
        ModelError: the folder cannot be used, with the reason.
    """
    chosen = ModelSettings(path=str(path), **settings)
    if kind != "policy" and (Path(chosen.path) / ENSEMBLE).exists():
        from prefopt.rollout.ensemble import open_ensemble

        return open_ensemble(chosen)
    config = load_config(chosen.path)
    if kind == "reward" or (kind == "auto" and is_reward_model(config)):
        return _reward_model(chosen, seed, outputs, language_head)
    tokenizer = load_tokenizer(chosen.path)
    return Policy(load_causal(chosen, seed=seed), tokenizer, Renderer(tokenizer, chosen.chat_template), chosen.path)


def _reward_model(settings: ModelSettings, seed: int, outputs: int | None, language_head: bool) -> RewardModel:
    tokenizer = load_tokenizer(settings.path)
    model = load_scorer(settings, outputs=outputs, seed=seed)
    if language_head:
        add_language_head(model, settings)
    renderer = Renderer(tokenizer, settings.chat_template)
    return RewardModel(model, tokenizer, renderer, settings.path, reading=reading_of(model.config, settings.path))


def reading_of(config: Any, where: str) -> Reading:
    """How a model's outputs are read: what its config says, else their mean.

    Raises:
        ModelError: the config says something else.
    """
    found = getattr(config, KEY, None)
    if found is not None:
        return Reading.from_config(found, where)
    return Reading(outputs=tuple(f"output {i + 1}" for i in range(config.num_labels)) if config.num_labels > 1 else ("score",))


def _row(prompt: Any) -> Example:
    """A prompt with its tools, and nothing else of a row."""
    return Example(prompt=prompt.prompt, tools=prompt.tools) if isinstance(prompt, Example) else Example(prompt=as_text(prompt))


def _sums(model: Any, batch: Batch) -> torch.Tensor:
    sums_S = torch.zeros(batch.sequences, device=batch.source_T.device)
    return sums_S.index_add_(0, batch.sequence_T, policy_logps(model, batch).logps_T)


def _entropies(model: Any, batch: Batch) -> torch.Tensor:
    sums_S = torch.zeros(batch.sequences, device=batch.source_T.device)
    entropy_T = policy_logps(model, batch, stats=True).entropy_T
    assert entropy_T is not None
    return sums_S.index_add_(0, batch.sequence_T, entropy_T)
