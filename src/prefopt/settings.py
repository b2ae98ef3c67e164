"""The options of a stage, section by section: the keys of a recipe and of the command line (`train.learning_rate=1e-5`).

A method's own options (`beta=0.1`) are the keyword arguments of its loss and are not listed here. Defaults live here and nowhere
below; a field whose docstring starts with a requirement has none. Everything is checked where a recipe is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt

Count = Annotated[int, Ge(0)]
Size = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]
AtLeast0 = Annotated[float, Ge(0)]
Positive = Annotated[float, Gt(0)]
Decay = Annotated[float, Ge(0), Lt(1)]


def changed(settings: Any, *names: str) -> list[str]:
    """Those of the fields that are not what they are when not given."""
    return [one.name for one in fields(settings) if one.name in names and getattr(settings, one.name) != one.default]


@dataclass(frozen=True)
class Reads:
    """The mark of a setting that names what a stage reads: files, folders or hub names. When these change, the stage runs again."""


_Kind = TypeVar("_Kind")
Read = Annotated[_Kind, Reads()]


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The policy (or reward model) that is trained or asked."""

    path: Read[str]
    """Required. A Hugging Face folder or hub name."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """What the weights are loaded in; auto is bf16 on a GPU, but fp32 for training of all weights or with train.precision=fp32."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random starts from the folder's config.json alone, for pretraining from scratch."""
    chat_template: Read[str | None] = None
    """A Jinja file or a built-in name (chatml, llama3, gemma, mistral, plain) for a tokenizer without its own template."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass: less memory, about a third more time."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSettings:
    """The frozen policy a method measures against; read only by methods that have one."""

    path: Read[str | None] = None
    """Another model than the one the training starts from."""
    cache: bool = False
    """Compute its log-probs once, keep them on disk, and free its memory."""
    sync_every: Count = 0
    """Move the reference towards the policy every so many steps (TR-DPO, arXiv 2404.09656); 0 is never."""
    sync_rate: Share = 1.0
    """reference <- rate * policy + (1 - rate) * reference; 1 copies."""


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank adapters instead of all weights; off while rank is 0."""

    rank: Count = 0
    """Rank of the adapters."""
    alpha: Positive | None = None
    """Scale of the update; 2 * rank when not given."""
    dropout: Share = 0.0
    """Share of what goes into an adapter that is zeroed in training; nothing is measured under it."""
    targets: str | list[str] = "all-linear"
    """Layers that get an adapter: their names (q_proj, v_proj), a pattern, or all-linear for every linear layer but the head."""


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is trained on."""

    path: Read[str | list[str]]
    """Required. Files, folders or hub names in any layout of `prefopt data check`."""
    eval_path: Read[str | list[str] | None] = None
    """Held-out rows; otherwise eval_fraction of the groups of `path`."""
    eval_fraction: Share = 0.0
    """Share of the groups of `path` that is held out, each with all its rows."""
    limit: Size | None = None
    """Use only the first rows."""
    chat: bool = False
    """Read string prompts as a user's turn and string answers as the assistant's, so that they go through the chat template."""
    max_length: Size | None = None
    """Longest prompt + completion in tokens, that of rollout.max_new_tokens where it is sampled; the model's own limit when not given."""
    truncation: Literal["error", "drop", "prompt_left", "completion_right", "chunk"] = "error"
    """What happens to longer rows: refuse, drop the row, cut the prompt's start, cut the completions' ends, or (pretrain only) train on
    all of it in consecutive chunks."""
    max_truncated: Share = 0.01
    """Share of rows that may be cut or dropped for their length before the run refuses."""
    max_lost_eos: Share = 0.0
    """Share of completions that may lose their stop token before the run refuses."""
    max_dropped: Share = 0.01
    """Share of rows that may be dropped for other reasons (empty, identical) before the run refuses."""
    pairs: Literal["all", "best_worst"] = "all"
    """Which pairs a pairwise method takes from a ranking of K > 2."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The optimization."""

    steps: Size | None = None
    """Optimizer steps; when not given, what `epochs` takes."""
    epochs: Positive = 1.0
    """Passes over the rows; of methods that sample, over the prompts."""
    batch_size: Size = 32
    """Prompts per optimizer step, over all ranks."""
    micro_tokens: Size = 8192
    """Packed positions per forward pass, the memory knob; never changes the result."""
    learning_rate: Positive | None = None
    """When not given, the method's own (prefopt methods NAME)."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """The learning rate after the warm-up: constant, falling to 0 in a line, or to a tenth along a cosine."""
    warmup: AtLeast0 = 0.05
    """Steps of linear warm-up, or their share of all steps when below 1."""
    weight_decay: AtLeast0 = 0.0
    """Decoupled weight decay of the matrices; biases and norms have none."""
    grad_clip: AtLeast0 = 1.0
    """Largest gradient norm; 0 is no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 computes in bf16 with fp32 master weights and optimizer state; auto is bf16 on a GPU, fp32 on a CPU."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon is for the matrices between the embedding and the head; all else is AdamW's then too."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay rates of the mean gradient and of its square."""
    seed: Count = 0
    """Of the order of the rows, of what is held out, of weights that are drawn, of dropout and, with rollout.seed, of samples."""
    eval_every: Count = 0
    """Steps between evaluations on the held-out split; 0 is only at the end."""
    save_every: Count = 0
    """Steps between checkpoints; 0 is only where a signal (Ctrl-C, SIGTERM), a reward or a server interrupts the run. One that is killed
    outright, or loses power, goes on from the last checkpoint, if there is one."""
    keep_best: str | None = None
    """A held-out metric ("eval/loss", "eval/rewards/accuracies"): the model of its best evaluation is the one kept."""
    patience: Count = 0
    """Stop after so many evaluations without a better keep_best; 0 is never."""
    layout: Literal["auto", "packed", "padded"] = "auto"
    """auto packs prompts and completions as trees where the self-check allows, else pads and says so."""
    compile: bool = False
    """torch.compile the layers."""
    shard: bool = False
    """Split weights, gradients and optimizer state over the ranks (FSDP2), for models whose training does not fit one device."""


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """The outputs of a reward model: several on one trunk are an ensemble, or the attributes that make up a score."""

    count: Size = 1
    """Members of an ensemble: score heads on one trunk, each drawn anew and taught by its own share of the rows."""
    bag: Annotated[float, Gt(0), Le(1)] = 0.7
    """Share of the rows that each member learns from; a row in no share is learned by one member."""
    rule: Literal["mean", "min", "lower_bound"] = "mean"
    """How members, normalised, become one score: their mean, the smallest, or the mean less k standard deviations."""
    k: AtLeast0 = 1.0
    """Standard deviations over the members that lower_bound takes off."""
    attributes: dict[str, float] = field(default_factory=dict)
    """A head for each attribute, taught by the rows whose `source` is its name; the score is the sum with these weights."""
    solution: Literal["product", "min", "last", "mean"] = "product"
    """How a process reward model makes one score of the probabilities of the steps; `prefopt score solution=...` asks otherwise."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How completions are sampled."""

    samples: Size = 1
    """Completions per prompt."""
    max_new_tokens: Size = 256
    """Longest answer in tokens; one that has not ended by then is cut off."""
    temperature: AtLeast0 = 1.0
    """0 is greedy."""
    top_p: Share = 1.0
    """Draw from the fewest most probable tokens that hold this share of the probability only; 1 is all."""
    top_k: Count = 0
    """Draw from so many most probable tokens only; 0 is all. top_p is taken of what top_k and min_p leave."""
    min_p: Share = 0.0
    """Draw from tokens at least so many times as probable as the most probable one only (arXiv 2407.01082)."""
    stop: str | list[str] = field(default_factory=list)
    """Strings that end an answer; they are cut from its text."""
    regex: str | None = None
    """What the whole answer has to match, in Python's syntax without backreferences and lookaround."""
    banned: str | list[str] = field(default_factory=list)
    """Strings that no answer holds."""
    required: str | list[str] = field(default_factory=list)
    """Strings without which no answer ends by itself."""
    engine: Literal["local", "server", "vllm"] = "local"
    """local is this process; server is an OpenAI-compatible one at `url`; vllm is vLLM in this process (extra vllm)."""
    url: str | None = None
    """Where the server's API is (http://127.0.0.1:8000/v1)."""
    folder: str | None = None
    """The folder the server serves its model from, in training: new weights are written there, and the server reads them again."""
    memory: Annotated[float, Gt(0), Le(1)] = 0.4
    """Share of the device's memory that vLLM in this process takes; the rest is training's."""
    timeout: Positive = 300.0
    """Seconds one request to the server may take."""
    retries: Count = 2
    """How often a request is tried again."""
    batch_size: Size = 64
    """Sequences decoded together."""
    seed: Count = 0
    """Of the samples."""

    @property
    def plain(self) -> bool:
        """Whether answers are drawn from the model's own distribution, to which KL and importance weights refer."""
        cut = self.top_p < 1 or self.top_k > 0 or self.min_p > 0
        return self.temperature == 1 and not (cut or self.regex or self.banned or self.required)


Verifier = Literal["math", "ifeval", "code", "gold", "arithmetic"]


@dataclass(frozen=True, kw_only=True)
class RewardSettings:
    """What rates a sampled answer: every source that is named, times its weight, added up, less the penalties."""

    model: Read[str | None] = None
    """A reward model: a folder or hub name."""
    function: Read[str | list[str] | None] = None
    """Python functions, "file.py:name" or "module:name", called with prompts, completions and the rows' columns, as lists."""
    url: str | None = None
    """An HTTP endpoint that is sent {"prompts": [...], "completions": [...], "rows": [...]} and answers {"rewards": [...]}."""
    verifier: Verifier | list[Verifier] | None = None
    """math: the final answer; ifeval: the instructions; code: the tests, in a sandbox; gold, arithmetic: the synthetic world's truth."""
    answer: str | None = None
    """The column with the right answer for math; when not given final_answer, answer, solution or the row's own completion."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of a source by its name (model, url, a verifier's or a function's name); 1 where not given."""
    length_penalty: AtLeast0 = 0.0
    """Taken off for every token of an answer."""
    overlong_buffer: Count = 0
    """Soft overlong penalty (DAPO, arXiv 2503.14476, eq. 13): it grows from 0 to 1 over the last so many tokens below overlong_limit."""
    overlong_limit: Size | None = None
    """Tokens at which the soft overlong penalty is whole; rollout.max_new_tokens when not given."""
    missing_eos: AtLeast0 = 0.0
    """Taken off an answer that did not end by itself."""
    timeout: Positive = 10.0
    """Seconds that one call of a function, an endpoint or a verifier may take."""
    retries: Count = 1
    """How often an answer whose judging failed is tried again before it is left unjudged."""


def deciding(rollout: Mapping[str, Any]) -> dict[str, Any]:
    """The rollout settings that decide what a training run samples: not where the engine is that is given its weights, nor how many
    sequences this process decodes together.
    """
    local, elsewhere = {"batch_size"}, {"url", "folder", "memory", "timeout", "retries"}
    without = local if rollout["engine"] == "local" else elsewhere
    return {name: value for name, value in rollout.items() if name not in without}


@dataclass(frozen=True, kw_only=True)
class OnlineSettings:
    """How rounds of sampled and judged answers become optimizer steps. null is the method's own."""

    prompts: Size | None = None
    """Prompts of a round; train.batch_size when not given, and all of them for star. More of them make several steps of a round."""
    epochs: Size = 1
    """Passes over the answers of a round."""
    dynamic: bool | None = None
    """Put other prompts in the place of those whose answers all got one reward (DAPO, arXiv 2503.14476, section 3.2)."""
    draws: Size = 4
    """How often prompts are drawn for a round at most, where they are replaced."""
    whiten: bool | None = None
    """Advantages get mean 0 and variance 1 over the tokens of the round."""
    reward_at: Literal["token", "answer"] = "token"
    """Where a KL penalty in the reward stands: at its token, or with the score at the end, the answer being one action."""
    entropy: AtLeast0 = 0.0
    """Weight of an entropy bonus in the loss, per token."""
    importance_cap: Positive | None = None
    """Weigh each token's loss by pi_trainer / pi_sampler, at most this (truncated importance sampling); not given: no weights."""


@dataclass(frozen=True, kw_only=True)
class KLSettings:
    """How a policy that learns from its own samples is held to the reference. null is the method's own."""

    coefficient: AtLeast0 | None = None
    """Reward units per nat. With a target the controller begins there; with a budget it begins at the price of KL at its aim, and a run,
    which begins at no distance, pays e^-1.2 of that, about 0.3, in its first round."""
    place: Literal["reward", "advantage", "loss"] | None = None
    """Taken from the reward before the baseline, from the advantage after it, or a term of the loss."""
    estimator: Literal["k1", "k2", "k3"] | None = None
    """Of a term of the loss; in rewards and advantages it is always k1. With a target or a budget k2 stands for k3, which cannot hold."""
    ratio: bool = False
    """Multiply a term of the loss by the ratio to the policy that sampled: its gradient is then that of KL(pi || ref)."""
    target: Positive | None = None
    """An adaptive coefficient that steers to so many nats an answer (arXiv 1909.08593)."""
    horizon: Size = 10000
    """Answers over which the adaptive coefficient reacts."""
    budget: Positive | None = None
    """Nats an answer that KL(pi || ref) may reach: a controller sets the price, weights beyond are pulled back; in vain, the run ends."""


@dataclass(frozen=True, kw_only=True)
class CriticSettings:
    """The value function of methods that have one (ppo)."""

    path: Read[str | None] = None
    """A model to start from, a reward model for one; the policy itself when not given."""
    shared: bool = False
    """A head on the policy's own trunk instead of a second model."""
    learning_rate: Positive | None = None
    """Ten times that of the policy when not given."""
    weight: Positive = 0.5
    """Weight of its loss; it matters where the trunk is shared."""
    clip: Positive | None = 0.2
    """How far a value may move from that of the round's start before its loss is clipped, in reward units; null is no clipping."""


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Who says which of two answers is better."""

    by: Literal["auto", "gold", "reward", "ai", "labels", "annotator"] = "auto"
    """gold: the synthetic world's own reward; reward: a reward model; ai: a language model behind a server; labels: people's, the column
    `label` of rows that name the models in `model_a` and `model_b`; annotator: a simulated one. auto is reward where path is given, ai
    where url is, else gold."""
    path: Read[str | None] = None
    """The reward model."""
    url: str | None = None
    """An OpenAI-compatible server, such as http://localhost:8000/v1; its key is read from OPENAI_API_KEY."""
    model: str | None = None
    """The model to ask there."""
    criteria: str = "Prefer the answer that is more helpful, correct and honest. Length alone is no merit."
    """What the AI judge is told to look for."""
    workers: Size = 4
    """Questions asked at once."""
    timeout: Positive = 60.0
    """Seconds to wait for an answer."""
    annotator: str = "easy"
    """Which simulated annotator: gold, brisk, polite, easy, wordy (prefopt.world.ANNOTATORS)."""


@dataclass(frozen=True, kw_only=True)
class MonitorSettings:
    """What watches a run that learns from its own samples for reward hacking."""

    evaluator: Read[str | None] = None
    """What the reward is checked against and never trained on: a reward model's folder, "file.py:name", an http address, or the name of a
    verifier (gold)."""
    every: Size = 5
    """Rounds between checks."""
    patience: Size = 2
    """Checks in a row that must find the evaluator fallen and the reward risen before the run is stopped."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Of the interval beyond which the evaluator must have fallen."""
    stop: bool = True
    """End the run and keep the weights of the best check; otherwise only warn."""
    audit_every: Count = 10
    """Rounds between samples of answers written to audit.jsonl for people to read; 0 is never."""
    audit: Size = 8
    """Answers of a sample: half those with the highest rewards, half at random."""


@dataclass(frozen=True, kw_only=True)
class GateRule:
    """What one metric has to be, beyond doubt, for a model to ship."""

    metric: str
    """Required. As evaluations call it: win_rate, refusal, over_refusal, length_words, ..."""
    slice: str = "all"
    """The part of the data."""
    compare: Literal["value", "difference", "ratio"] = "value"
    """value: the metric of the model; difference: less that of the baseline; ratio: divided by that of the baseline."""
    at_least: float | None = None
    """The metric is at least this. A rule has either at_least or at_most."""
    at_most: float | None = None
    """The metric is at most this."""
    min_n: Size = 30
    """Observations below which nothing is decided."""
    confidence: Annotated[float, Gt(0), Lt(1)] | None = None
    """Of this rule; the gate's when not given."""
    stage: str | None = None
    """The evaluate stage it reads, where several measure the metric."""
    required: bool = True
    """Whether a run that does not measure the metric is refused; otherwise the rule is told as not measured."""


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What a gate asks of all its rules together."""

    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """Chance that no rule passes falsely (Holm's correction over the rules)."""
    power: Annotated[float, Gt(0), Lt(1)] = 0.8
    """Chance of a decision at the sample size that an undecided rule is told to need."""


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Where metrics go besides metrics.jsonl."""

    to: list[Literal["tensorboard", "trackio", "wandb"]] | Literal["tensorboard", "trackio", "wandb"] | None = None
    """One or several; nothing is sent anywhere when not given."""
    project: str = "prefopt"
    """What trackio and wandb call the project."""
