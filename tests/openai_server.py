"""A small OpenAI-compatible completions server on 127.0.0.1, with a real model behind it, that can misbehave in the ways servers do."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_model

from prefopt.rollout.local import LocalSampler
from prefopt.rollout.sampler import Sample
from prefopt.settings import RolloutSettings

PENALTIES = {"repetition_penalty", "presence_penalty", "frequency_penalty"}


class Completions(http.server.BaseHTTPRequestHandler):
    """POST /v1/completions, as vLLM answers it; POST /collective_rpc reads the weights of `folder` again, where there is one.

    `faults` may hold: "seed", "top_k", "min_p" (ignored), "raw" (log-probs before temperature and truncation), "names" (tokens as text),
    "penalty" (what the prompt holds is not said again where a request does not name all penalties: what is left out comes from the
    model's generation_config), "slow", "few" (a choice too few), "down after N", "off" (log-probs that much too high); of new weights
    "no reload" (as without VLLM_SERVER_DEV_MODE), "stale after N" (says that it read them, and did not).
    """

    sampler: LocalSampler
    faults: dict[str, Any]
    served: list[dict[str, Any]]
    reloads: list[Any]
    folder: Path | None

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/collective_rpc":
            return self._reload(asked)
        if self.path == "/reset_prefix_cache":
            return self._send(200, None)
        self.served.append(asked)
        if len(self.served) > self.faults.get("down after", 10**9):
            return self._send(500, {"error": "CUDA out of memory"})
        if "slow" in self.faults:
            time.sleep(self.faults["slow"])
        choices = [self._choice(i, sample) for i, sample in enumerate(self._sample(asked))]
        return self._send(200, {"choices": choices[: -1 if "few" in self.faults else None]})

    def _reload(self, asked: dict[str, Any]) -> None:
        if "no reload" in self.faults:
            return self._send(404, {"detail": "Not Found"})
        self.reloads.append(asked)
        if self.folder is not None and len(self.reloads) <= self.faults.get("stale after", 10**9):
            load_model(self.sampler.model, str(self.folder / "model.safetensors"), strict=False)
        return self._send(200, {"results": [None]})

    def _sample(self, asked: dict[str, Any]) -> list[Sample]:
        """What the model says."""
        how: dict[str, Any] = {name: asked[name] for name in ("temperature", "top_p", "min_p", "seed", "stop")}
        how |= {"samples": asked["n"], "max_new_tokens": asked["max_tokens"], "top_k": max(0, asked["top_k"])}
        plain = {"top_k": 0, "min_p": 0.0}
        how |= {name: plain[name] for name in ("top_k", "min_p") if name in self.faults}
        if "penalty" in self.faults and not asked.keys() >= PENALTIES:
            how["banned"] = [self.sampler.decode([token]) for token in asked["prompt"]]
        if "seed" in self.faults:
            how["seed"] = len(self.served)
        assert asked["stop_token_ids"] == list(self.sampler.stop_ids)
        (found,) = self.sampler.sample([np.asarray(asked["prompt"], np.int32)], RolloutSettings(**how))
        return found

    def _choice(self, index: int, sample: Sample) -> dict[str, Any]:
        names = [f"token_id:{i}" if "names" not in self.faults else f"tok{i}" for i in sample.ids]
        logps = [-1.5 if "raw" in self.faults else float(value) + self.faults.get("off", 0.0) for value in sample.logps]
        reason = "stop" if sample.finished else "length"
        return {"index": index, "text": sample.text, "finish_reason": reason, "logprobs": {"tokens": names, "token_logprobs": logps}}

    def _send(self, status: int, body: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(b"" if body is None else json.dumps(body).encode())

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def serving(sampler: LocalSampler, folder: Path | None = None, **faults: Any) -> Iterator[tuple[str, type[Completions]]]:
    """The address of a running server, and its handler, which remembers what it was asked."""
    handler = type("Handler", (Completions,), {"sampler": sampler, "faults": faults, "served": [], "reloads": [], "folder": folder})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", handler
    finally:
        server.shutdown()
        server.server_close()
