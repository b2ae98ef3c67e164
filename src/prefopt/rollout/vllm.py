"""Sampling by vLLM in this process (extra `vllm`): an engine of its own beside the policy, which is given new weights when they change."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.errors import OptionError
from prefopt.rollout.constrain.machines import listed
from prefopt.rollout.sampler import Decode, Sample, check_prompts, finish, refuse_constraints
from prefopt.settings import RolloutSettings
from prefopt.types import IntArray

if TYPE_CHECKING:
    from prefopt.rollout.policy import LanguageModel


class VllmSampler:
    """Samples from the model folder `path` with vLLM's offline engine, in a numeric type of torch's ("float32", "bfloat16")."""

    def __init__(
        self,
        path: str,
        stop_ids: Sequence[int],
        decode: Decode,
        limit: int | None = None,
        *,
        dtype: str = "auto",
        memory: float = 0.4,
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            fix = "pip install 'prefopt[vllm]' in an environment for it, or rollout.engine=server with rollout.url of one that runs"
            raise OptionError(f"vLLM cannot be imported: {error}", where="rollout.engine", fix=fix) from None
        self._vllm, self._stop_ids, self._decode, self._limit = vllm, tuple(stop_ids), decode, limit
        # log-probs of the distribution a token was drawn from, as Sample.logps promises
        logprobs = {"logprobs_mode": "processed_logprobs", "generation_config": "vllm"}
        self._engine = vllm.LLM(model=path, dtype=dtype, gpu_memory_utilization=memory, **logprobs)

    def sample(self, prompts: Sequence[IntArray], settings: RolloutSettings) -> list[list[Sample]]:
        """`settings.samples` completions of each prompt, in the order of the prompts.

        Raises:
            DataError: an empty or too long prompt. OptionError: a constraint, which this engine does not honour.
        """
        check_prompts(prompts, settings, self._limit)
        refuse_constraints(settings)
        given = [{"prompt_token_ids": prompt.tolist()} for prompt in prompts]
        found = self._engine.generate(given, [self._parameters(place, settings) for place in range(len(prompts))], use_tqdm=False)
        asked = zip(found, prompts, strict=True)
        return [[self._sample(answer, prompt, settings) for answer in request.outputs] for request, prompt in asked]

    def sync(self, model: LanguageModel) -> None:
        """Take new weights: they go through files, because the engine's workers are processes of their own."""
        with TemporaryDirectory(prefix="prefopt-weights-") as folder:
            model.save(folder)
            self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
        self._engine.reset_prefix_cache()

    def _parameters(self, place: int, settings: RolloutSettings) -> Any:
        return self._vllm.SamplingParams(
            n=settings.samples,
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k or -1,
            min_p=settings.min_p,
            seed=int(np.random.SeedSequence([settings.seed, place]).generate_state(1)[0]),
            stop=listed(settings.stop, "rollout.stop"),
            stop_token_ids=list(self._stop_ids),
            logprobs=0,
            skip_special_tokens=False,
        )

    def _sample(self, answer: Any, prompt: IntArray, settings: RolloutSettings) -> Sample:
        ids = list(answer.token_ids)
        logps = [position[token].logprob for position, token in zip(answer.logprobs, ids, strict=True)]
        return finish(ids, logps, answer.finish_reason == "stop", prompt, settings, self._stop_ids, self._decode)
