"""Sampling by an OpenAI-compatible server (`vllm serve` and others that speak its completions): token ids in, token ids and log-probs out.

Servers ignore what they do not know, so before the first sample this asks the server to show that it honours what the settings ask for: the
seed, top_k, min_p, and log-probs of the distribution the tokens were drawn from. What it does not honour is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.errors import ModelError, OptionError, RewardError
from prefopt.rollout.constrain.machines import listed
from prefopt.rollout.rewards.endpoint import Unanswered, post
from prefopt.rollout.sampler import Decode, Sample, check_prompts, finish, refuse_constraints
from prefopt.settings import RolloutSettings
from prefopt.types import IntArray

if TYPE_CHECKING:
    from prefopt.rollout.policy import LanguageModel

KEY = "PREFOPT_ROLLOUT_KEY"
"""Environment variable with the server's API key."""
RELOAD = 600.0
"""Seconds a server may take to read new weights."""
UNPENALISED = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Said in every request, since a server takes what is left out from the generation_config.json of its model."""
_TOKEN = re.compile(r"token_id:(\d+)")


class ServerSampler:
    """Samples from the server at `rollout.url` (".../v1"), which serves one model, from `folder` where it is to take new weights."""

    def __init__(
        self,
        url: str,
        stop_ids: Sequence[int],
        decode: Decode,
        limit: int | None = None,
        *,
        folder: str | Path | None = None,
    ) -> None:
        self.folder = folder
        self.url, self._stop_ids, self._decode, self._limit = url.rstrip("/"), tuple(stop_ids), decode, limit
        self._shown: set[str] = set()

    def sample(self, prompts: Sequence[IntArray], settings: RolloutSettings) -> list[list[Sample]]:
        """`settings.samples` completions of each prompt, in the order of the prompts; several prompts are asked for at a time.

        Raises:
            DataError: an empty or too long prompt. OptionError: a setting the server does not honour.
            ModelError: the server is down or broken; answers that came before are kept in the file that the message names.
        """
        check_prompts(prompts, settings, self._limit)
        if not prompts:
            return []
        try:
            self._show(prompts[0], settings)
        except (Unanswered, RewardError) as error:
            raise self._broken(str(error)) from None
        found: dict[int, list[Sample]] = {}
        with ThreadPoolExecutor(max(1, min(16, settings.batch_size // settings.samples))) as pool:
            waiting = [pool.submit(self._complete, place, prompt, settings) for place, prompt in enumerate(prompts)]
            told = ""
            for place, answer in enumerate(waiting):
                try:
                    found[place] = answer.result()
                except (Unanswered, RewardError) as error:
                    told = told or str(error)
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
            if told:
                done = {place: job for place, job in enumerate(waiting) if job.done() and not job.cancelled()}
                found |= {place: job.result() for place, job in done.items() if not job.exception()}
        if told:
            raise self._broken(told, kept=(prompts, found))
        return [found[place] for place in range(len(prompts))]

    def sync(self, model: LanguageModel) -> None:
        """Give the server new weights: write them into the folder it serves from, and have it read them again.

        That is vLLM's `reload_weights` and the end of its cache of prompts, which `vllm serve` offers when started with
        VLLM_SERVER_DEV_MODE=1 (its documentation of sleep mode).

        Raises:
            ModelError: the server did not do it.
        """
        assert self.folder is not None
        model.save(self.folder)
        base = self.url.removesuffix("/v1")
        try:
            for path, body in (("collective_rpc", {"method": "reload_weights"}), ("reset_prefix_cache", {})):
                post(f"{base}/{path}", body, timeout=RELOAD, retries=0, headers=_headers(), empty=True)
        except (Unanswered, RewardError) as error:
            refused = isinstance(error, RewardError)
            fix = "start vllm serve with VLLM_SERVER_DEV_MODE=1" if refused else "see that it runs and serves rollout.folder"
            raise ModelError(f"the server did not take the new weights: {error}", where=self.url, fix=fix) from None

    def _complete(self, place: int, prompt: IntArray, settings: RolloutSettings) -> list[Sample]:
        seed = int(np.random.SeedSequence([settings.seed, place]).generate_state(1)[0])
        return [finish(*choice, prompt, settings, self._stop_ids, self._decode) for choice in self._ask(prompt, settings, seed)]

    def _ask(self, prompt: IntArray, settings: RolloutSettings, seed: int, **other: Any) -> list[tuple[list[int], list[float], bool]]:
        """Ids, log-probs and whether it ended by itself, of each choice."""
        asked: dict[str, Any] = {
            "prompt": prompt.tolist(),
            "n": settings.samples,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "top_k": settings.top_k or -1,
            "min_p": settings.min_p,
            **UNPENALISED,
            "seed": seed,
            "stop": listed(settings.stop, "rollout.stop"),
            "stop_token_ids": list(self._stop_ids),
            "logprobs": 0,
            "return_tokens_as_token_ids": True,
            "skip_special_tokens": False,
            **other,
        }
        reply = post(f"{self.url}/completions", asked, timeout=settings.timeout, retries=settings.retries, headers=_headers())
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not isinstance(choices, list) or len(choices) != asked["n"]:
            raise Unanswered(f"expected {asked['n']} choices, found {len(choices) if isinstance(choices, list) else str(reply)[:80]}")
        return [_read(choice) for choice in sorted(choices, key=lambda choice: choice.get("index", 0))]

    def _show(self, prompt: IntArray, settings: RolloutSettings) -> None:
        """Have the server show, once, that it honours what is asked for."""
        refuse_constraints(settings)
        few: dict[str, Any] = {"n": 4, "max_tokens": 1, "stop": []}
        free = {**few, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}

        def tokens(**other: Any) -> list[list[int]]:
            return [ids for ids, _, _ in self._ask(prompt, settings, 11, **other)]

        def drawn_from() -> bool:
            return all(sum(logps) > -1e-3 for _, logps, _ in self._ask(prompt, settings, 11, **{**free, "top_k": 1}))

        cut = settings.top_k > 0 or settings.min_p > 0 or settings.top_p < 1 or settings.temperature not in (0.0, 1.0)
        checks: dict[str, tuple[bool, Callable[[], bool], str]] = {
            "seed": (settings.temperature > 0, lambda: tokens(**{**free, "max_tokens": 4}) == tokens(**{**free, "max_tokens": 4}), ""),
            "top_k": (settings.top_k > 0, lambda: _one(tokens(**{**free, "temperature": 2.0, "top_k": 1})), ""),
            "min_p": (settings.min_p > 0, lambda: _one(tokens(**{**free, "temperature": 2.0, "min_p": 1.0})), ""),
            "logps": (cut and settings.temperature > 0, drawn_from, "start vLLM with --logprobs-mode processed_logprobs"),
        }
        for name, (asked, honours, fix) in checks.items():
            if not asked or name in self._shown:
                continue
            if not honours():
                what = "its log-probs are not of the distribution it draws from" if name == "logps" else f"the server ignores {name}"
                raise OptionError(what, where=f"rollout.url: {self.url}", fix=fix or f"leave rollout.{name} out, or use another engine")
            self._shown.add(name)

    def _broken(self, told: str, kept: tuple[Sequence[IntArray], dict[int, list[Sample]]] | None = None) -> ModelError:
        what, fix = told, "see that it runs and serves the model; rollout.timeout and rollout.retries say how long to wait"
        if kept is not None and kept[1]:
            prompts, found = kept
            path = _keep(prompts, found)
            what, fix = f"{told}, after {len(found)} of {len(prompts)} prompts", f"{fix}; those answers are kept in {path}"
        return ModelError(f"the server gave no answer: {what}", where=self.url, fix=fix)


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {os.environ[KEY]}"} if os.environ.get(KEY) else {}


def _one(tokens: Iterable[list[int]]) -> bool:
    return len({tuple(ids) for ids in tokens}) == 1


def _read(choice: Any) -> tuple[list[int], list[float], bool]:
    """One choice of the server's answer."""
    found = choice.get("logprobs") or {}
    written, logps = found.get("tokens") or [], found.get("token_logprobs") or []
    ids = [_TOKEN.fullmatch(str(token)) for token in written]
    if not ids or None in ids or len(ids) != len(logps):
        raise RewardError("the server tells no token ids (logprobs.tokens as token_id:N); it must honour return_tokens_as_token_ids")
    return [int(match[1]) for match in ids if match], [float(value) for value in logps], choice.get("finish_reason") == "stop"


def _keep(prompts: Sequence[IntArray], found: dict[int, list[Sample]]) -> Path:
    """Write answers that would be lost; where they are."""
    folder = Path(os.environ.get("PREFOPT_CACHE") or Path.home() / ".cache" / "prefopt") / "unfinished"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"answers-{os.getpid()}-{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in _rows(prompts, found)), encoding="utf-8")
    return path


def _rows(prompts: Sequence[IntArray], found: dict[int, list[Sample]]) -> Iterator[dict[str, Any]]:
    for place, samples in sorted(found.items()):
        answers = [{"text": s.text, "ids": s.ids.tolist(), "logps": s.logps.tolist(), "finished": s.finished} for s in samples]
        yield {"place": place, "prompt_ids": prompts[place].tolist(), "answers": answers}
