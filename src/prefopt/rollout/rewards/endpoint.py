"""A reward behind an HTTP endpoint.

    POST {"prompts": [...], "completions": [...], "rows": [...]}  ->  {"rewards": [0.5, null, ...]}

prompts are strings or lists of {role, content}, completions are strings, rows are objects with the rows' extra columns; null is for an
answer that cannot be judged.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.errors import RewardError
from prefopt.rollout.rewards.protocol import Rolled, Verdict
from prefopt.types import Example, plain

BATCH = 64
"""Answers of one request."""
PAUSE = 0.5
"""Seconds before the first retry; twice as long before each further one."""


class Unanswered(Exception):
    """A server that is down, slow, busy or broken: trying again may help."""


def post(
    url: str, body: Mapping[str, Any], *, timeout: float, retries: int, headers: Mapping[str, str] | None = None, empty: bool = False
) -> Any:
    """The JSON a server answers to a JSON request; None for no answer but "done", where it may be `empty`.

    Raises:
        Unanswered: no usable answer after all retries, with the last reason.
        RewardError: the server refuses the request itself (status 4xx), so trying again cannot help.
    """
    told = ""
    for attempt in range(1 + retries):
        time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
        try:
            return _post(url, body, timeout, headers or {}, empty)
        except Unanswered as error:
            told = str(error)
    raise Unanswered(f"{told} (tried {1 + retries} times)" if retries else told)


def _post(url: str, body: Mapping[str, Any], timeout: float, headers: Mapping[str, str], empty: bool) -> Any:
    request = urllib.request.Request(url, json.dumps(body, default=str).encode(), {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            said = reply.read()
            return None if empty and not said.strip() else json.loads(said)
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace").strip()
        told = f"status {error.code} {error.reason}{': ' + said if said else ''}"
        if error.code < 500 and error.code not in (408, 425, 429):
            raise RewardError(told, where=url, fix="the server understands the address but not the request; see its log") from None
        raise Unanswered(told) from None
    except TimeoutError:
        raise Unanswered(f"no answer within {timeout:g} s") from None
    except urllib.error.URLError as error:
        slow = isinstance(error.reason, TimeoutError)
        raise Unanswered(f"no answer within {timeout:g} s" if slow else f"cannot be reached: {error.reason}") from None
    except (http.client.HTTPException, ConnectionError) as error:
        raise Unanswered(f"broke off: {error or type(error).__name__}") from None
    except ValueError:
        raise Unanswered("the answer is not JSON") from None


class EndpointReward:
    """The rewards a server gives. Answers it does not rate, after retries, have no value."""

    def __init__(self, url: str, *, timeout: float, retries: int) -> None:
        if not url.startswith(("http://", "https://")):
            raise RewardError(f"expected an address that starts with http:// or https://, found {url!r}", where="reward.url")
        self.url, self._timeout, self._retries = url, timeout, retries

    def check(self, examples: Sequence[Example]) -> None:
        """A server says itself what it cannot judge."""

    def judge(self, rolled: Sequence[Rolled]) -> list[Verdict]:
        """Batch by batch; a batch that the server does not answer is left unjudged, and once it is down those after it too.

        Raises:
            RewardError: the server refuses the request, or answers in another form.
        """
        found: list[Verdict] = []
        down = ""
        for begin in range(0, len(rolled), BATCH):
            batch = rolled[begin : begin + BATCH]
            if not down:
                try:
                    found += self._ask(batch)
                    continue
                except Unanswered as error:
                    down = f"{self.url}: {error}"
            found += [Verdict(None, note=down)] * len(batch)
        return found

    def _ask(self, batch: Sequence[Rolled]) -> list[Verdict]:
        body = {
            "prompts": [plain(answer.example.prompt) for answer in batch],
            "completions": [answer.sample.text for answer in batch],
            "rows": [dict(answer.example.meta) for answer in batch],
        }
        reply = post(self.url, body, timeout=self._timeout, retries=self._retries)
        values = reply.get("rewards") if isinstance(reply, dict) else None
        fix = 'answer {"rewards": [...]} with one number or null for each completion'
        if not isinstance(values, list) or not all(value is None or isinstance(value, int | float) for value in values):
            raise RewardError(f"the answer has no list of numbers 'rewards': {str(reply)[:80]}", where=self.url, fix=fix)
        if len(values) != len(batch):
            raise RewardError(f"{len(values)} values for {len(batch)} answers", where=self.url, fix=fix)
        return [Verdict(value, note="" if value is not None else "the server returned null") for value in values]
