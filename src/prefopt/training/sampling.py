"""Where a run's samples come from: the policy in this process, or an engine with a model of its own that is given all new weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import torch

from prefopt.errors import OptionError
from prefopt.model.attention import own_attention
from prefopt.model.forward import base_of
from prefopt.rollout.local import LocalSampler
from prefopt.rollout.policy import LanguageModel, Policy
from prefopt.rollout.sampler import Sample, Sampler
from prefopt.settings import RolloutSettings
from prefopt.training.job import Job
from prefopt.types import IntArray, TokenTree


class Engine(Sampler, Protocol):
    """A sampler with weights of its own."""

    def sync(self, model: LanguageModel) -> None:
        """Take the weights that `model` has now."""
        ...


class Source:
    """Samples of the policy as it is.

    Args:
        job: what is trained; `job.version` says when its weights have changed.
        model: the same as a language model.
        settings: the engine is read.
    """

    def __init__(self, job: Job, model: LanguageModel, settings: RolloutSettings) -> None:
        self.job, self.model, self._settings = job, model, settings
        self._engine: Engine | None = None
        self._held = -1

    def sample(self, prompts: Sequence[TokenTree], settings: RolloutSettings, model: object) -> list[list[Sample]]:
        """Answers to the prompts by `model`: the policy, by whatever engine, or another model, in this process."""
        ids, texts = [tree.prompt for tree in prompts], _are_texts(prompts)
        if settings.engine != "local" and model is self.job.model:
            return self._current(texts).sample(ids, settings)
        decode = self.model.renderer.decode if texts else self.model.renderer.answer
        with own_attention(base_of(model), base_of(self.job.model)):
            return LocalSampler(base_of(model), self.model.stop_ids, decode, self.model.vocabulary).sample(ids, settings)

    def check(self, prompts: Sequence[TokenTree]) -> None:
        """Have an engine show, before the run, that what it says depends on the weights it is given.

        Raises:
            OptionError: it does not, so it would go on with the first weights for ever. ModelError: it is down, or takes no weights.
        """
        if self._settings.engine == "local":
            return
        folder = self._settings.folder
        if folder is not None and Path(folder).resolve() == Path(self.model.path).resolve():
            what = "every round's weights are written there, over the model that this run starts from"
            fix = "copy the model to a folder of its own, and serve and name that one"
            raise OptionError(what, where=f"rollout.folder: {folder}", fix=fix)
        engine, weight = self._current(_are_texts(prompts)), base_of(self.job.model).get_output_embeddings().weight
        before, kept = self._said(engine, prompts[0].prompt), weight.detach().clone()
        with torch.no_grad():
            weight.mul_(0.5)
            engine.sync(self.model)
            after = self._said(engine, prompts[0].prompt)
            weight.copy_(kept)
        engine.sync(self.model)
        if np.array_equal(before.ids, after.ids) and np.allclose(before.logps, after.logps, atol=1e-6):
            what = f"the engine {self._settings.engine} was given other weights and says the same: it does not serve what is written there"
            fix = "start the server on the folder that rollout.folder names"
            raise OptionError(what, where=f"rollout.folder: {self._settings.folder}", fix=fix)

    def _current(self, texts: bool) -> Engine:
        """The engine, with the policy's weights as they are."""
        if self._engine is None:
            self._engine = cast("Engine", cast("Policy", self.model).sampler(self._settings, chat=not texts))
        if self._held != self.job.version:
            self._engine.sync(self.model)
            self._held = self.job.version
        return self._engine

    def _said(self, engine: Engine, prompt: IntArray) -> Sample:
        few = replace(self._settings, samples=1, max_new_tokens=min(4, self._settings.max_new_tokens), temperature=1.0, seed=0)
        return engine.sample([prompt], few)[0][0]


def _are_texts(prompts: Sequence[TokenTree]) -> bool:
    return all(tree.example is not None and isinstance(tree.example.prompt, str) for tree in prompts)
