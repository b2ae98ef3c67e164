"""From the settings to a reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from prefopt.errors import OptionError, did_you_mean
from prefopt.rollout.rewards.combine import Penalty, Sum, length_penalty, missing_eos, soft_overlong
from prefopt.rollout.rewards.protocol import Reward
from prefopt.settings import RewardSettings


def build(settings: RewardSettings, *, max_new_tokens: int | None = None) -> Sum:
    """The reward that the settings describe; `max_new_tokens` is the limit the answers are sampled under.

    Raises:
        OptionError: as in `sources` and `penalties`.
        RewardError, ModelError: a source cannot be opened.
    """
    found = penalties(settings, max_new_tokens)
    return Sum({name: make() for name, make in sources(settings).items()}, settings.weights, found)


def sources(settings: RewardSettings) -> dict[str, Callable[[], Reward]]:
    """What opens each source that is named.

    Raises:
        OptionError: no source is named, two have one name, a weight is for none of them, or nothing would read a setting.
    """
    makers = _makers(settings)
    if not makers:
        fix = "name one: reward.model, reward.function, reward.url or reward.verifier"
        raise OptionError("nothing rates the answers", where="reward", fix=fix)
    unread = {"overlong_limit": ("overlong_buffer", settings.overlong_buffer), "answer": ("verifier=math", "math" in makers)}
    for name, (reader, there) in unread.items():
        if getattr(settings, name) is not None and not there:
            raise OptionError(f"read by reward.{reader} alone", where=f"reward.{name}", fix="set that too, or leave it out")
    for name in settings.weights:
        if name not in makers:
            raise OptionError("a weight for a source that is not named", where=f"reward.weights.{name}", fix=did_you_mean(name, makers))
    return makers


def _makers(settings: RewardSettings) -> dict[str, Callable[[], Reward]]:
    """What makes each source that is named."""
    from prefopt.rollout.rewards.endpoint import EndpointReward
    from prefopt.rollout.rewards.function import FunctionReward

    named: list[tuple[str, Callable[[], Reward]]] = []
    if settings.model is not None:
        named.append(("model", partial(_model, settings.model)))
    for spec in _listed(settings.function):
        if not spec.partition(":")[2]:
            raise OptionError(f'expected "file.py:name" or "module:name", found {spec!r}', where="reward.function")
        named.append((spec.rpartition(":")[2], partial(FunctionReward, spec, timeout=settings.timeout, retries=settings.retries)))
    if settings.url is not None:
        named.append(("url", partial(EndpointReward, settings.url, timeout=settings.timeout, retries=settings.retries)))
    named += [(name, partial(_verifier, name, settings)) for name in _listed(settings.verifier)]
    makers = dict(named)
    if len(makers) < len(named):
        twice = next(name for name, _ in named if sum(name == other for other, _ in named) > 1)
        raise OptionError(f"two sources are named '{twice}'", where="reward", fix="give one of the functions another name")
    return makers


def _model(path: str) -> Reward:
    from prefopt.rollout.rewards.model import open_model

    return open_model(path)


def _verifier(name: str, settings: RewardSettings) -> Reward:
    from prefopt.rollout.rewards.world import ARITHMETIC, GOLD
    from prefopt.rollout.verify.code import CodeReward
    from prefopt.rollout.verify.ifeval import InstructionReward
    from prefopt.rollout.verify.math import MathReward

    makers: dict[str, Callable[[], Reward]] = {
        "math": partial(MathReward, settings.answer, timeout=settings.timeout, retries=settings.retries),
        "code": partial(CodeReward, timeout=settings.timeout, retries=settings.retries),
        "ifeval": InstructionReward,
        "gold": lambda: GOLD,
        "arithmetic": lambda: ARITHMETIC,
    }
    return makers[name]()


def penalties(settings: RewardSettings, max_new_tokens: int | None) -> dict[str, Penalty]:
    """What is taken off, by name.

    Raises:
        OptionError: the soft overlong penalty has no limit, or one within its buffer.
    """
    found: dict[str, Penalty] = {}
    if settings.length_penalty:
        found["length_penalty"] = length_penalty(settings.length_penalty)
    if settings.overlong_buffer:
        limit = settings.overlong_limit or max_new_tokens
        if limit is None or limit < settings.overlong_buffer:
            what = f"the buffer of {settings.overlong_buffer} tokens is longer than the limit of {limit}" if limit else "there is no limit"
            raise OptionError(what, where="reward.overlong_buffer", fix="set reward.overlong_limit")
        found["soft_overlong"] = soft_overlong(limit, settings.overlong_buffer)
    if settings.missing_eos:
        found["missing_eos"] = missing_eos(settings.missing_eos)
    return found


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)
