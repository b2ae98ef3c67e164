"""What each kind of stage reads and writes. Importable without torch; `stages.py` does the work.

A kind is a row of METHODS (it trains) or one of KINDS below. Its sections are those of `prefopt.settings`; its own options stand
directly in the stage, as `beta: 0.1` does for `dpo`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

from prefopt.pipeline.check import hints
from prefopt.settings import (
    AtLeast0,
    Count,
    CriticSettings,
    DataSettings,
    HeadSettings,
    JudgeSettings,
    KLSettings,
    LoraSettings,
    ModelSettings,
    MonitorSettings,
    OnlineSettings,
    Positive,
    Read,
    Reads,
    ReferenceSettings,
    RewardSettings,
    RolloutSettings,
    Size,
    TrackSettings,
    TrainSettings,
)


@dataclass(frozen=True, kw_only=True)
class RowsSettings:
    """Rows that are read, not trained on."""

    path: Read[str | list[str]]
    """Required. Files, folders or hub names in any layout of `prefopt data check`."""
    limit: Size | None = None
    """Use only the first rows."""
    chat: bool = False
    """Read string prompts as a user's turn and string answers as the assistant's."""


@dataclass(frozen=True, kw_only=True)
class WorldOptions:
    """How much of the synthetic world is written down."""

    seed: Count = 0
    """Of the town and of all that is written of it."""
    pretrain: Size = 8000
    """Rows of plain text about the town."""
    sft: Size = 16000
    """Requests with an imperfect answer."""
    prompts: Size = 1500
    """Requests to sample answers for."""
    heldout: Size = 300
    """Requests for the evaluation, phrased as no other file does."""
    slice: Literal["all", "fact", "arithmetic", "advice", "rewrite", "borderline", "harmful"] = "all"
    """Prompts and held-out requests of this kind alone."""
    answers: Count = 0
    """Imperfect answers written beside each prompt and held-out request, as people might, for a label stage to compare."""


@dataclass(frozen=True, kw_only=True)
class CreateOptions:
    """The tokenizer and the shape of a new model with random weights."""

    family: Literal["llama", "qwen2", "qwen3", "mistral", "olmo2"] = "llama"
    """The transformers model type."""
    vocab_size: Size = 8192
    """Tokens of the byte-level BPE, special tokens included; fewer where the text holds fewer."""
    hidden_size: Size = 256
    """Numbers a position is described by."""
    intermediate_size: Size = 768
    """The same inside a layer's feed-forward part."""
    layers: Size = 4
    """Transformer layers."""
    heads: Size = 4
    """Attention heads of a layer; hidden_size is a multiple of them."""
    kv_heads: Size | None = None
    """Key and value heads (grouped-query attention); as many as heads when not given."""
    max_length: Size = 512
    """Longest sequence in tokens."""
    tie_embeddings: bool = True
    """One matrix for the embedding of tokens and for the output head."""
    chat_template: Literal["chatml", "plain"] = "chatml"
    """How conversations are written out."""
    seed: Count = 0
    """Of the weights."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """The simulated annotators who choose between sampled answers."""

    annotators: str | list[str] = "gold"
    """Who is asked, by name: gold, brisk, polite, easy, wordy (prefopt.world.ANNOTATORS)."""
    votes: Size = 1
    """Annotators asked for each pair, drawn at random; the label is what most of them said."""
    strength: bool = False
    """Write how far the votes agree as `margin`, log((w + 1/2) / (l + 1/2)) of w for the winner and l against it, ties aside: the log-odds
    that `reward_graded` learns with form=soft."""
    pairs: Size = 1
    """Pairs of different answers taken from each prompt, at random."""
    ties: Literal["drop", "keep"] = "drop"
    """What happens to pairs without a winner; dropped ones are counted in the record."""
    seed: Count = 0
    """Of the pairs, of who is asked and of what they say."""


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions:
    """Reward models that become one."""

    members: Read[list[str]] = field(default_factory=list)
    """Folders of reward models, or of the adapters of LoRA runs on one base (the `adapter` beside `model`)."""
    rule: Literal["mean", "min", "lower_bound", "average_weights"] = "mean"
    """How the members' normalised scores become one: the mean, the smallest, or the mean less k standard deviations; average_weights makes
    one model of the mean of their weights."""
    k: AtLeast0 = 1.0
    """Standard deviations that lower_bound takes off."""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """How a policy scores; a reward model needs none of it."""

    reference: Read[str | None] = None
    """A policy to measure against: scores are beta * (log pi - log pi_ref) of the completion, in nats."""
    beta: Positive = 1.0
    """Scores are multiplied by it."""
    solution: Literal["product", "min", "last", "mean"] | None = None
    """How a process reward model makes one score of the steps; what its training set when not given."""


@dataclass(frozen=True, kw_only=True)
class TokensSettings:
    """The model that answers are of, where a reward counts their tokens."""

    path: Read[str | None] = None
    """A Hugging Face folder or hub name; only length penalties and functions with `completion_ids` need it."""


FormatName = Literal["alpaca_eval", "inspect", "lm_eval"]
SuiteName = Literal[
    "default",
    "world",
    "truth",
    "preference",
    "shift",
    "safety",
    "robustness",
    "capability",
    "pairs",
    "guardrail",
    "rewardbench",
    "frontier",
    "lm_eval",
]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What the model is measured on and against."""

    suite: SuiteName | list[SuiteName] = "default"
    """One or several, see docs/evaluation.md; default is all that the models and the data allow. With the data section
    of a training stage, pairs takes just the rows which that stage holds out."""
    baseline: Read[str | None] = None
    """Another model to compare with; for pairs the reference of the policy's implicit reward."""
    seen: Literal["error", "drop", "keep"] = "error"
    """What happens to rows that the models were trained on: an error that names them, left out, or kept."""
    harm: Literal["auto", "harmful", "harmless"] = "auto"
    """What requests are that do not say whether they ask for harm, for safety; auto leaves them out."""
    tasks: Read[list[str]] = field(default_factory=list)
    """Tasks of lm-eval, by name or YAML file, for the suite lm_eval (extra lm-eval); data.chat=true asks through the chat template, and
    data.limit takes the first items of each."""
    shots: Count | None = None
    """Examples shown before each item of these tasks; their own number when not given."""
    formats: list[FormatName] = field(default_factory=list)
    """Other tools' files to write beside evaluation.json."""
    false_positive_rate: Annotated[float, Gt(0), Lt(1)] = 0.05
    """The bound at which guardrail chooses its threshold."""
    beta: Positive = 1.0
    """Of a policy's implicit reward, where pairs asks how sure it is: the beta it was trained with."""
    seed: Count = 0
    """Of every bootstrap, and of the split of pairs into training and held-out rows, as train.seed is."""


@dataclass(frozen=True, kw_only=True)
class GateOptions:
    """Whether the model of the evaluations before may ship."""

    policy: Read[str | None] = None
    """A YAML file of rules; the built-in ones when not given (`prefopt gate --show-default`)."""
    stages: list[str] = field(default_factory=list)
    """The evaluate stages it reads; all before it when none is given."""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """A kind without options of its own."""


@dataclass(frozen=True)
class Kind:
    """One kind of stage: the sections it reads, its own options and the outputs later stages may refer to."""

    name: str
    sections: Mapping[str, type]
    options: Mapping[str, Any]
    """Option -> type."""
    outputs: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Option -> value."""
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Section -> key -> default, where it is not the section's own."""
    reads_run: bool = False
    """It reads all stages before it, whatever it refers to."""


def _kind(name: str, outputs: tuple[str, ...], options: type, *, reads_run: bool = False, **sections: type) -> Kind:
    return Kind(name, sections, hints(options), outputs, vars(options()), reads_run=reads_run)


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind("world", ("pretrain", "sft", "prompts", "heldout"), WorldOptions),
        _kind("create", ("model",), CreateOptions, data=RowsSettings),
        _kind("sample", ("data",), NoOptions, model=ModelSettings, data=RowsSettings, rollout=RolloutSettings),
        _kind("score", ("data",), ScoreOptions, model=ModelSettings, data=RowsSettings, reward=RewardSettings),
        _kind("ensemble", ("model",), EnsembleOptions),
        _kind("label", ("data",), LabelOptions, data=RowsSettings),
        _kind(
            "evaluate",
            ("evaluation",),
            EvaluateOptions,
            model=ModelSettings,
            data=DataSettings,
            rollout=RolloutSettings,
            judge=JudgeSettings,
        ),
        _kind("gate", ("verdict",), GateOptions, reads_run=True),
        _kind("report", ("report",), NoOptions, reads_run=True),
    )
}
BY_REWARD = _kind("score", ("data",), NoOptions, model=TokensSettings, data=RowsSettings, reward=RewardSettings)
"""A score stage that names a reward."""
SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "reference": ReferenceSettings,
    "lora": LoraSettings,
    "heads": HeadSettings,
    "data": DataSettings,
    "train": TrainSettings,
    "rollout": RolloutSettings,
    "judge": JudgeSettings,
    "reward": RewardSettings,
    "online": OnlineSettings,
    "kl": KLSettings,
    "critic": CriticSettings,
    "monitor": MonitorSettings,
    "track": TrackSettings,
}
SAMPLING = {"rollout", "reward", "online", "kl", "monitor"}
"""Sections of methods that sample their own answers."""
MIX = "mix"
"""The section of a weighted sum: `mix: {sft: 0.2}` adds 0.2 times the sft row's loss on the same data."""


def names() -> list[str]:
    """Every kind there is, methods first."""
    from prefopt.losses.methods import METHODS

    return [*METHODS, *KINDS]


def _says(section: type, given: Any) -> bool:
    """Whether a section says anything; the recipe in a stage's folder gives every default too."""
    return bool(given) and (not isinstance(given, Mapping) or {**vars(section()), **given} != vars(section()))


def read_by(types: Mapping[str, Any]) -> list[str]:
    """Those of these settings (name -> type) that name files, folders or hub names which a stage reads."""
    return [name for name, hint in types.items() if Reads() in getattr(hint, "__metadata__", ())]


def get(name: str, given: Mapping[str, Any] | None = None) -> Kind:
    """A kind by name; a method reads `reference` where it or a row mixed in measures against one.

    Args:
        name: the kind.
        given: what its stage says; `loss`, `mix` and, for score, `reward` decide what else it may say.

    Raises:
        KeyError: there is no such kind. OptionError: no such loss.
    """
    given = given or {}
    if name in KINDS:
        return BY_REWARD if name == "score" and _says(RewardSettings, given.get("reward")) else KINDS[name]
    from prefopt.losses.methods import METHODS

    mix = given.get(MIX) if isinstance(given.get(MIX), dict) else {}
    method = METHODS[name].using(given)
    needs_reference = method.mixed({row: 0.0 for row in mix or {} if row in METHODS}).needs_reference or method.online is not None
    unread = {"judge"} | (set() if needs_reference else {"reference"}) | (set() if method.online else SAMPLING)
    unread |= set() if method.online and method.online.has_critic else {"critic"}
    unread |= set() if method.reads == "scores" else {"heads"}
    sections = {section: cls for section, cls in SECTIONS.items() if section not in unread}
    presets = {"rollout": {"samples": method.online.samples}} if method.online else {}
    return Kind(name, {**sections, MIX: dict}, method.hints, ("model",), method.options, presets)
