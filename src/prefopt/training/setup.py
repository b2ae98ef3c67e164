"""From a model and settings to a `Job`: adapter, precision, optimizer, reference and layout, each checked before the first step."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from prefopt.errors import DataError, ModelError, OptionError, TrainingError
from prefopt.losses.methods import METHODS, Method
from prefopt.model.attention import COMPILED, NAME, packed_attention
from prefopt.model.forward import base_of, border_of, layers_of, scored_states
from prefopt.model.load import load_causal, load_tokenizer, silence_dropout
from prefopt.model.reference import AdapterReference, FrozenReference, Reference, cached_reference
from prefopt.model.room import free_memory, is_oom
from prefopt.model.selfcheck import alike, check_head, go_back, size_of
from prefopt.pack.plan import passes
from prefopt.pack.tree import Pairs
from prefopt.rollout.policy import LanguageModel
from prefopt.settings import (
    CriticSettings,
    HeadSettings,
    KLSettings,
    LoraSettings,
    ModelSettings,
    OnlineSettings,
    ReferenceSettings,
    RolloutSettings,
    TrainSettings,
)
from prefopt.training import distributed, shard
from prefopt.training.checks import check_heads, check_online, check_shard
from prefopt.training.critic import build_critic
from prefopt.training.job import Job, Penalty
from prefopt.training.lora import add_adapter
from prefopt.training.memory import Load, explain_oom, load_of, require
from prefopt.training.optim import Optimizer
from prefopt.types import TokenTree

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is asked of a run: the method with its options, and the sections of settings it reads."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    mix: Mapping[str, float] = field(default_factory=dict)
    train: TrainSettings = field(default_factory=TrainSettings)
    reference: ReferenceSettings = field(default_factory=ReferenceSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    heads: HeadSettings = field(default_factory=HeadSettings)
    pairs: Pairs = "all"
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    online: OnlineSettings = field(default_factory=OnlineSettings)
    kl: KLSettings = field(default_factory=KLSettings)
    critic: CriticSettings = field(default_factory=CriticSettings)
    watched: bool = False
    """Whether somebody beside the loss asks how far the policy is from the reference."""

    @property
    def row(self) -> Method:
        """The method's row of METHODS with what is mixed in."""
        return METHODS[self.method].using(self.options).mixed(self.mix)

    @property
    def learning_rate(self) -> float:
        """The one asked for, or the method's own."""
        return self.row.learning_rate if self.train.learning_rate is None else self.train.learning_rate

    @property
    def held(self) -> KLSettings:
        """How the policy is held to the reference: what is asked for, and the method's own where it is not."""
        online, kl = self.row.online, self.kl
        if online is None:
            return kl
        steered = bool(kl.budget or kl.target)
        own = online.kl or (0.05 if steered else 0.0)
        coefficient = own if kl.coefficient is None else kl.coefficient
        # What is steered is KL(pi || ref). The gradient of plain k3 is that of KL(ref || pi), at most 1 a token however far the policy is.
        estimator = kl.estimator or ("k2" if steered and online.estimator == "k3" and not kl.ratio else online.estimator)
        return replace(kl, coefficient=coefficient, place=kl.place or online.place, estimator=estimator)

    @property
    def needs_reference(self) -> bool:
        """Whether there is a reference policy."""
        if self.row.online is None:
            return self.row.needs_reference
        read = any(column.startswith("ref") for column in self.row.needs)
        return read or self.watched or bool(self.held.coefficient) or self.row.online.explores

    @property
    def can_cache(self) -> bool:
        """Whether all that a reference is asked can be asked before the training."""
        fixed = self.row.online is None and not self.reference.sync_every and not self.train.shard
        return fixed and self.row.coupling != "mismatched_kl"

    @property
    def replaces(self) -> bool:
        """Whether prompts whose answers all got one reward give way to others."""
        online, asked = self.row.online, self.online.dynamic
        return online is not None and (online.dynamic if asked is None else asked)

    def round_size(self, rows: int) -> tuple[int, int]:
        """Prompts of a round, and optimizer steps of one pass over it, of a method that samples."""
        whole = self.row.online is not None and self.row.online.anew == "policy"
        prompts = min(self.online.prompts or (rows if whole else self.train.batch_size), rows)
        return prompts, math.ceil(prompts / self.train.batch_size)

    def steps_per_epoch(self, rows: int) -> int:
        """Optimizer steps in which every row of the data is read, or answered, once."""
        if self.row.online is None:
            return math.ceil(rows / self.train.batch_size)
        prompts, per_pass = self.round_size(rows)
        return math.ceil(rows / prompts) * self.online.epochs * per_pass

    def size(self, tree: TokenTree) -> int:
        """Positions a tree of the row takes at most: answers that are still to be sampled are parted where they are not compared."""
        if self.row.online is None:
            return tree.packed_tokens
        one, whole = (tree.packed_tokens + n * self.rollout.max_new_tokens for n in (1, self.rollout.samples))
        return whole if "rank" in self.row.online.gives else min(whole, max(one, self.train.micro_tokens))

    def check(self) -> None:
        """Refuse combinations that cannot mean what they say.

        Raises:
            OptionError: an option that would be ignored or cannot work.
        """
        METHODS[self.method].check_options(self.options, self.mix)
        if self.row.data == "judgements" and self.pairs != "all":
            raise OptionError(f"{self.method} learns from every pair, ties among them", where="data.pairs", fix="leave data.pairs out")
        if self.pairs != "all" and "pair" not in self.row.units:
            raise OptionError(f"{self.method} takes no pairs from rankings", where="data.pairs", fix="leave data.pairs out")
        if self.row.coupling == "mismatched_kl" and self.train.batch_size < 2:
            what = f"{self.method} measures how far the policy has gone on prompts with other rows' completions, and a step has one row"
            raise OptionError(what, where="train.batch_size", fix="set train.batch_size to 8 or more")
        if not self.lora.rank and self.lora != LoraSettings():
            raise OptionError("read by lora.rank alone: without it all weights learn", where="lora", fix="set lora.rank, or leave it out")
        check_heads(self)
        self._check_reference()
        if self.train.shard:
            check_shard(self)
        if self.row.coupling == "batch" and self.lora.dropout:
            what = f"{self.method} reads the rows of a step twice, and dropout would differ"
            raise OptionError(what, where="lora.dropout", fix="set lora.dropout=0")
        if self.row.online is not None:
            check_online(self, self.row.online)

    def _check_reference(self) -> None:
        asked = self.reference != ReferenceSettings()
        if asked and not self.needs_reference:
            raise OptionError(f"{self.method} has no reference policy", where="reference", fix="leave the reference options out")
        if self.reference.cache and self.reference.sync_every:
            raise OptionError("a cached reference cannot follow the policy", where="reference.sync_every", fix="set reference.cache=false")
        if self.reference.sync_rate != ReferenceSettings().sync_rate and not self.reference.sync_every:
            what, fix = "read by reference.sync_every alone", "set reference.sync_every, or leave it out"
            raise OptionError(what, where="reference.sync_rate", fix=fix)
        if self.row.online is not None and self.row.online.anew == "reference" and self.reference.path is not None:
            what = f"every round of {self.method} begins with the policy as its reference, so another model would never be read"
            raise OptionError(what, where="reference.path", fix="leave reference.path out")
        if self.reference.sync_every and self.reference.path is not None and self.lora.rank:
            what, fix = "a reference with weights of its own cannot follow an adapter", "leave reference.path out, or train all weights"
            raise OptionError(what, where="reference.path", fix=fix)
        if self.reference.cache and self.row.coupling == "mismatched_kl":
            what = f"{self.method} measures prompts with other rows' completions, anew each epoch"
            raise OptionError(what, where="reference.cache", fix="set reference.cache=false")


def build_job(
    setup: Setup, model: LanguageModel, trees: Sequence[TokenTree], stack: ExitStack, say: Say, *, heldout: Sequence[TokenTree] = ()
) -> Job:
    """Everything a training step works with.

    Args:
        setup: what is asked.
        model: the policy or reward model; with lora.rank its `model` is wrapped in place.
        trees: all trees of training and held-out data, with distinct `index`.
        stack: keeps the layout's attention in force until it is closed.
        say: told what was decided.
        heldout: those of the trees that nothing is learned from.
    """
    setup.check()
    torch.manual_seed(setup.train.seed + distributed.rank())
    silence_dropout(base_of(model.model))
    layout = choose_layout(setup.train, model, trees, say)
    if setup.lora.rank:
        model.model = add_adapter(base_of(model.model), setup.lora, scorer=setup.row.reads == "scores", seed=setup.train.seed)
    precision = choose_precision(setup.train, model)
    load = fitting_load(setup, model, trees, precision)
    distributed.assert_same(model.model.parameters())
    twin = None
    if setup.train.shard:
        twin = copy.deepcopy(model.model) if setup.row.needs_reference and not setup.lora.rank and not setup.reference.path else None
        shard.split(model.model, precision)
    optimizer = Optimizer(model.model, setup.train, setup.learning_rate, "fp32" if setup.train.shard else precision)
    model.model.train()
    if layout == "packed" and model.device.type in COMPILED:
        layout = learned_layout(setup.train, model, trees[0], load, say)
    if setup.train.compile:
        compile_layers(base_of(model.model))
    lay_out = stack.enter_context(model.laid_out(layout, "judged" if setup.row.data == "judgements" else setup.pairs))
    micros = passes(trees, setup.train.micro_tokens, padded=layout == "padded", border=border_of(model.model))
    reference = build_reference(setup, model, trees, micros, lay_out, stack, twin) if setup.needs_reference else None
    job = Job(
        method=setup.row,
        options=setup.options,
        model=model.model,
        optimizer=optimizer,
        reference=reference,
        lay_out=lay_out,
        micro_tokens=setup.train.micro_tokens,
        load=load,
        padded=layout == "padded",
        sharded=setup.train.shard,
        learns_RE=who_learns(setup, trees, heldout, model.device),
        **(_online(setup, model, precision) if setup.row.online else {}),
    )
    if reference is not None:
        reference.temperature = job.temperature
    if reference is not None and setup.reference.path is None:
        check_start(job, trees[:4])
    return job


def who_learns(setup: Setup, trees: Sequence[TokenTree], heldout: Sequence[TokenTree], device: torch.device) -> torch.Tensor | None:
    """Which outputs of a reward model learn from each row [R, E]: a random share of the rows each, or the rows of their attribute.

    A row that no share holds is learned by one member; held-out rows are judged by all.

    Raises:
        DataError: a row whose source is no attribute.
    """
    heads, rows = setup.heads, max(tree.index for tree in trees) + 1
    if heads.attributes:
        names = list(heads.attributes)
        learns = torch.zeros(rows, len(names), dtype=torch.bool)
        for tree in trees:
            if tree.source not in heads.attributes:
                fix = f"the column `source` says which attribute a row judges; known: {', '.join(names)}"
                raise DataError(f"the row's source is '{tree.source}', which is no attribute", where=tree.where, fix=fix)
            learns[tree.index, names.index(tree.source)] = True
        return learns.to(device)
    if heads.count == 1:
        return None
    draw = torch.rand(rows, heads.count, generator=torch.Generator().manual_seed(setup.train.seed))
    learns = (draw < heads.bag) | (draw == draw.amin(1, keepdim=True))
    learns[torch.tensor([tree.index for tree in heldout], dtype=torch.int64)] = True
    return learns.to(device)


def _online(setup: Setup, model: LanguageModel, precision: str) -> dict[str, Any]:
    """What a job has besides when it learns from its own samples."""
    online, held = setup.row.online, setup.held
    assert online is not None
    critic, rate = None, setup.learning_rate
    if online.has_critic:
        words = model.tokenizer.get_vocab()
        critic = build_critic(setup.critic, setup.train, model.model, vocabulary=words, learning_rate=rate, precision=precision)
    in_loss = held.place == "loss" and held.coefficient
    return {
        "critic": critic,
        "penalty": Penalty(float(held.coefficient or 0), held.estimator or "k2", held.ratio) if in_loss else None,
        "entropy": setup.online.entropy,
        "room": setup.rollout.max_new_tokens,
        "temperature": setup.rollout.temperature if "advantages" in online.gives else 1.0,
    }


def compile_layers(base: Any) -> None:
    """torch.compile every decoder layer, for batches of any size; attention over trees stays as it is.

    Raises:
        ModelError: the model keeps its layers where we do not know.
    """
    layers = layers_of(base)
    if not layers:
        raise ModelError(f"{type(base).__name__} has no list of layers to compile", where="train.compile", fix="set train.compile=false")
    for layer in layers:
        layer.compile(dynamic=True)


def fitting_load(setup: Setup, model: LanguageModel, trees: Sequence[TokenTree], precision: str) -> Load:
    """What the run will hold in memory.

    Raises:
        TrainingError: more than the machine has; with the options that take less.
    """
    sizes = sorted((setup.size(tree) for tree in trees), reverse=True)
    base = base_of(model.model)
    copied = setup.needs_reference and not setup.reference.cache and (setup.reference.path is not None or not setup.lora.rank)
    load = load_of(
        model.model,
        setup.train,
        precision=precision,
        positions=sum(sizes[: setup.train.batch_size]),
        longest=sizes[0],
        reference=sum(p.numel() for p in base.parameters()) if copied else 0,
        checkpointing=any(getattr(module, "gradient_checkpointing", False) for module in base.modules()),
    )
    if setup.row.online is not None:
        compared = "rank" in setup.row.online.gives
        load = replace(load, samples=setup.rollout.samples if compared else 0, answer=setup.rollout.max_new_tokens)
        if setup.row.online.has_critic and not setup.critic.shared and setup.critic.path is None:  # one by path may be of any size
            load = replace(load, critic=sum(p.numel() for p in base.base_model.parameters()))
    slow = setup.reference.sync_every > 0 and setup.reference.sync_rate < 1 and not setup.train.shard  # split weights are fp32 themselves
    load = replace(load, slow=slow, cacheable=setup.can_cache)
    if setup.train.shard:
        ranks = distributed.world_size()
        load = replace(load, **{name: getattr(load, name) // ranks for name in ("parameters", "trained", "reference")})
    require(load, free_memory(model.device), loaded=load.stored)
    return load


def choose_layout(train: TrainSettings, model: LanguageModel, trees: Sequence[TokenTree], say: Say) -> str:
    """Packed where the self-check allows it.

    Raises:
        ModelError: packed was demanded and does not hold, or the model's head is not read as the model reads it.
    """
    if train.layout == "padded":
        if model.reads == "logps":
            check_head(model.model, trees)
        return "padded"
    found = model.check(trees)
    if found.layout == "padded":
        return _padded(train, found.reason, say)
    say(f"self-check: packed and padded values agree within {found.difference:.1e}")
    return found.layout


def learned_layout(train: TrainSettings, model: LanguageModel, tree: TokenTree, load: Load, say: Say) -> str:
    """Packed where the model goes back so too, as it will be trained: some GPUs have no room for FlexAttention's backward kernel.

    Raises:
        ModelError: packed was demanded and the model does not.
        TrainingError: one tree is out of memory already.
    """
    try:
        go_back(model.model, tree, reads=model.reads)
    except (RuntimeError, MemoryError) as error:
        if is_oom(error):
            raise explain_oom(error, step=1, batch=None, load=load) from error
        return _padded(train, str(error).split("\n")[0], say)
    return "packed"


def _padded(train: TrainSettings, reason: str, say: Say) -> str:
    if train.layout == "packed":
        raise ModelError(f"this model cannot be trained packed: {reason}", where="train.layout", fix="set train.layout=auto")
    say(f"self-check: {reason}; training on the padded path, which is slower and gives the same result")
    return "padded"


def choose_precision(train: TrainSettings, model: LanguageModel) -> str:
    """What the model computes in.

    Raises:
        OptionError: bf16 on a GPU that has none.
    """
    cuda = model.device.type == "cuda"
    if train.precision == "auto":
        return "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    if train.precision == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise OptionError("this GPU has no bf16", where="train.precision", fix="set train.precision=fp32")
    return train.precision


def build_reference(
    setup: Setup,
    model: LanguageModel,
    trees: Sequence[TokenTree],
    micros: Iterable[Sequence[TokenTree]],
    lay_out: Any,
    stack: ExitStack,
    twin: Any = None,
) -> Reference:
    """The reference the settings ask for; without a path it is the policy as it starts, in the same precision.

    `twin` is a copy of the policy taken before it was split over ranks, when it is.
    """
    if setup.reference.path is not None or twin is not None:
        path, follows = setup.reference.path, setup.reference.sync_every > 0
        frozen = _other_model(path, model, follows=follows) if path is not None else twin
        if setup.train.shard:
            shard.split(frozen, choose_precision(setup.train, model))
        if setup.train.compile:
            compile_layers(frozen)
        if base_of(model.model).config._attn_implementation == NAME:
            stack.enter_context(packed_attention(frozen))
        reference: Reference = FrozenReference(frozen)
    elif setup.lora.rank:
        reference = AdapterReference(model.model)
        frozen = None
    elif setup.reference.cache:
        return cached_reference(model.model, trees, micros, lay_out)
    else:
        frozen = copy.deepcopy(model.model)
        reference = FrozenReference(frozen)
    if setup.reference.cache:
        return cached_reference(frozen if frozen is not None else base_of(model.model), trees, micros, lay_out)
    return reference


def _other_model(path: str, model: LanguageModel, *, follows: bool) -> Any:
    """A reference from elsewhere; it must read the same tokens, and be of the policy's shape where it follows it.

    Raises:
        ModelError: its vocabulary or its shape differs.
    """
    other = load_tokenizer(path).get_vocab()
    if other != model.tokenizer.get_vocab():
        what = f"the reference's vocabulary ({len(other)} tokens) is not the policy's ({len(model.tokenizer.get_vocab())})"
        raise ModelError(what, where=path, fix="reference.path must be a model with the policy's own tokenizer")
    dtype = next(base_of(model.model).parameters()).dtype
    frozen: Any = load_causal(ModelSettings(path=path, dtype="bf16" if dtype == torch.bfloat16 else "fp32"))
    sizes = [m.get_output_embeddings().weight.shape[0] for m in (frozen, base_of(model.model))]
    if sizes[0] != sizes[1]:
        raise ModelError(f"the reference has {sizes[0]} output tokens, the policy {sizes[1]}", where=path, fix="use one vocabulary size")
    shapes = [[weight.shape for weight in m.parameters()] for m in (frozen, base_of(model.model))]
    if follows and shapes[0] != shapes[1]:
        fix = "leave reference.sync_every out, or name a reference of the policy's own shape"
        raise ModelError("the reference is of another shape than the policy, so it cannot follow it", where=path, fix=fix)
    return frozen


@torch.no_grad()
def check_start(job: Job, trees: Sequence[TokenTree]) -> None:
    """A policy that has not moved must equal its reference: DPO's first loss is ln 2, every log-ratio 0.

    Raises:
        TrainingError: they differ, so every loss would be wrong.
    """
    batch = job.lay_out(job.passes(trees)[0])
    view, dtype = job.look(batch), next(base_of(job.model).parameters()).dtype
    assert view.logps_T is not None
    assert view.ref_logps_T is not None
    gap_T = (view.logps_T - view.ref_logps_T).abs()
    size = 0.0
    if dtype == torch.bfloat16:
        states_TD, head = scored_states(job.model, batch, temperature=job.temperature)
        worst = gap_T.topk(min(64, len(gap_T))).indices
        size = size_of(head.logits(states_TD[worst]), batch.target_T[worst])
    if not alike(view.logps_T, view.ref_logps_T, dtype, size):
        difference = float(gap_T.max())
        what = f"before the first step policy and reference differ by {difference:.2g} nats on a token"
        raise TrainingError(what, where="reference", fix="clear the reference cache (PREFOPT_CACHE), or report this")
