"""METHODS: every way of training, one row each.

A row is a loss and what leads a batch to it. The arguments of the loss are its columns (see `columns.COLUMNS`), its keyword-only arguments
the options users set; `columns` says where the names differ or a keyword-only argument is filled from the batch after all. So a new method
is a function and a row.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import Tensor

from prefopt.errors import OptionError, did_you_mean
from prefopt.losses import advantages, listwise, metrics, outputs, pairwise, policy, reward, supervised, unpaired
from prefopt.losses.columns import COLUMNS, View, probe
from prefopt.losses.numeric import require
from prefopt.losses.online import Online
from prefopt.losses.ragged import segment_mean, segment_sum
from prefopt.losses.reduce import Term
from prefopt.types import Stat

Unit = Literal["token", "sequence", "pair", "list", "step"]
Data = Literal["text", "demonstrations", "pairs", "judgements", "labels", "rankings", "steps", "prompts"]
Coupling = Literal["", "mismatched_kl", "reward_shift", "batch"]


@dataclass(frozen=True)
class Method:
    """A row of METHODS.

    Attributes:
        loss: the function; tensors in, unreduced tensor out.
        unit: what one value of the loss belongs to; the loss is the mean over these in an optimizer step.
        data: the kind of rows it learns from.
        paper: arXiv id, and the equation or section where it could be checked.
        learning_rate: for a full fine-tune of a model of about 7B parameters, the paper's or the field's; see `explain.sized`.
        reads: what the model gives, "logps" (a language model) or "scores" (a reward model).
        columns: argument of the loss -> column, where the names differ or the argument is keyword-only.
        plus: other rows added with a weight, as a user does with mix.NAME=WEIGHT.
        coupling: what the loop must know before the loss besides the batch: of the whole optimizer step "mismatched_kl" (View.kl) or
            "batch" (all pairs in one call), of the steps before it "reward_shift" (View.delta).
        per_token: rewards of the metrics are per token, as the loss's are.
        online: how it learns from its own samples; None for a method that learns from a data set.
        within: how a loss of tokens is gathered to one of sequences.
        defaults: the row's own defaults of options.
        about: one line, where the loss's own says too little.
    """

    loss: Callable[..., Tensor]
    unit: Unit
    data: Data
    paper: str
    learning_rate: float
    reads: Literal["logps", "scores"] = "logps"
    columns: Mapping[str, str] = field(default_factory=dict)
    plus: Mapping[str, float] = field(default_factory=dict)
    coupling: Coupling = ""
    per_token: bool = False
    online: Online | None = None
    within: Literal["mean", "sum"] = "mean"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    @cached_property
    def arguments(self) -> dict[str, str]:
        """Argument of the loss -> column that fills it."""
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: self.columns.get(p.name, p.name) for p in parameters if p.kind is not p.KEYWORD_ONLY or p.name in self.columns}

    @cached_property
    def options(self) -> dict[str, Any]:
        """Option -> default: the keyword-only arguments that no column fills, and those that make advantages of rewards."""
        return {**self._loss_options, **(self.online.options if self.online else {}), **self.defaults}

    @cached_property
    def _loss_options(self) -> dict[str, Any]:
        parameters = inspect.signature(self.loss).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in self.arguments}

    @cached_property
    def hints(self) -> dict[str, Any]:
        """Option -> type."""
        every = {**get_type_hints(self.loss), **(get_type_hints(self.online.make) if self.online else {}), "loss": str}
        return {name: every[name] for name in self.options}

    @cached_property
    def needs(self) -> frozenset[str]:
        """Columns read, those of added rows included."""
        return frozenset(self.arguments.values()).union(*(METHODS[name].needs for name in self.plus))

    @cached_property
    def readings(self) -> frozenset[str]:
        """What the model must give, "logps", "scores" or both."""
        return frozenset({self.reads}).union(*(METHODS[name].readings for name in self.plus))

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs of a reference policy are read."""
        return any(column.startswith("ref") for column in self.needs) or bool(self.online and self.online.kl)

    @property
    def needs_collision(self) -> bool:
        """Whether View.collision_T is read."""
        return "chosen_weight" in self.needs

    @property
    def needs_margin(self) -> bool:
        """Whether pairs of a data set make no sense without a margin (for others it is optional; sampled ones have their rewards')."""
        if self.online:
            return False
        required = {p.name for p in inspect.signature(self.loss).parameters.values() if p.default is p.empty}
        own = any(column == "margin" and name in required for name, column in self.arguments.items())
        return own or any(METHODS[name].needs_margin for name in self.plus)

    @property
    def needs_thumbs(self) -> bool:
        """Whether labels have to be true or false, none between."""
        return "label" in self.needs

    @property
    def units(self) -> frozenset[str]:
        """Units to count over the step: the keys `reduce` looks up."""
        return frozenset({self.unit}).union(*(METHODS[name].units for name in self.plus))

    @property
    def more_than_its_loss(self) -> str:
        """One line of a method that its loss alone does not describe, else empty."""
        return self.about or (self.online.about if self.online else "")

    @property
    def summary(self) -> str:
        """One line: what it is."""
        return self.more_than_its_loss or (inspect.getdoc(self.loss) or "").partition("\n")[0]

    def mixed(self, mix: Mapping[str, float] | None) -> Method:
        """The row with `mix` folded in (a weight given there replaces the row's own); its needs and units say so."""
        return replace(self, plus={**self.plus, **mix}) if mix else self

    def using(self, options: Mapping[str, Any]) -> Method:
        """The row with the loss that the option `loss` names, of any row of pairs, and with that row's own options and learning rate.

        Raises:
            OptionError: no row of pairs has that name.
        """
        own = self.online.loss if self.online else ""
        name = options.get("loss", own) if own else own
        if name == own or self.online is None:
            return self
        rows = {other: row for other, row in METHODS.items() if row.data == "pairs" and row.reads == "logps"}
        if not isinstance(name, str) or name not in rows:
            fix = did_you_mean(name, rows) if isinstance(name, str) else "name one of " + ", ".join(rows)
            raise OptionError(f"{name!r} is no loss of pairs", where="loss", fix=fix)
        as_there = ("loss", "learning_rate", "columns", "plus", "coupling", "per_token", "defaults")
        online = replace(self.online, loss=name)
        return replace(self, online=online, **{part: getattr(rows[name], part) for part in as_there})

    def terms(self, view: View, options: Mapping[str, Any] | None = None, mix: Mapping[str, float] | None = None) -> list[Term]:
        """The unreduced terms of a batch: the loss itself, then those of each added row (with that row's default options).

        Args:
            view: the batch and what was computed for it.
            options: the method's own options where they differ from the defaults.
            mix: row -> weight, added to `plus`.
        """
        chosen = {**self.options, **(options or {})}
        if self.reads == "scores" and outputs.several(view):
            values = outputs.each(view, self.unit, lambda one: self._values(one, chosen))
        else:
            values = self._values(view, chosen)
        own = Term(values, self.unit, 1.0, self.loss.__name__)
        added = [(name, weight, term) for name, weight in self.mixed(mix).plus.items() for term in METHODS[name].terms(view)]
        return [own, *(term._replace(weight=weight * term.weight, name=name) for name, weight, term in added)]

    def _values(self, view: View, options: Mapping[str, Any]) -> Tensor:
        """The loss of a view, unreduced."""
        columns = {name: COLUMNS[column](view) for name, column in self.arguments.items()}
        return self.gathered(self.loss(**columns, **{name: options[name] for name in self._loss_options}), view)

    def gathered(self, values: Tensor, view: View) -> Tensor:
        """A loss of tokens [T] in the row's unit, importance weights applied; any other loss as it is."""
        if "logps" not in self.arguments.values():
            return values
        if view.batch.weights_T is not None:
            values = values * view.batch.weights_T
        if self.unit != "sequence":
            return values
        gather = segment_mean if self.within == "mean" else segment_sum
        return gather(values, COLUMNS["sequence"](view), view.batch.sequences)

    def divided_by(self, view: View) -> float:
        """What the row's loss divides rewards by besides its unit, so that a price of KL beside it is in reward units per nat too."""
        return float(view.room) if "room" in self.arguments.values() and view.room is not None else 1.0

    def metrics(self, view: View, options: Mapping[str, Any] | None = None) -> dict[str, Stat]:
        """What to log of a batch, as sums and counts; `metrics.UNITS_OF_METRICS` says what each is."""
        options = {**self.options, **(options or {})}
        if self.reads == "scores":
            return metrics.of_scores(view)
        per_token = self.per_token or bool(options.get("length_normalized") and self.needs_reference)
        relative = any(column.startswith("ref") for column in self.arguments.values())
        found = metrics.of_logps(view, self.data, beta=float(options.get("beta", 1.0)), per_token=per_token, relative=relative)
        return found | metrics.of_samples(view, options, by_sequence="sequence" in self.arguments.values()) if self.online else found

    def check_options(self, options: Mapping[str, Any], mix: Mapping[str, float] | None = None) -> None:
        """Refuse options the method does not read, of a wrong type or outside their domain, and rows that cannot be mixed in.

        Raises:
            OptionError: says which option, what is wrong and what is allowed.
        """
        row = self.using(options)
        if row is not self:
            return row.check_options(options, mix)
        for name, value in options.items():
            if name not in self.options:
                raise OptionError(f"this method reads no option '{name}'", fix=did_you_mean(name, self.options))
            check_type(name, value, self.hints[name])
        require(options.get("beta", 1) > 0, "beta", options.get("beta"), "a positive number")
        for name, weight in (mix or {}).items():
            self._check_mix(name, weight)
        self.terms(probe(), options)
        if self.online:
            self.online.check(options)

    def _check_mix(self, name: str, weight: float) -> None:
        """Refuse a row that is unknown, samples, reads other data, or couples the batch."""
        where = f"mix.{name}"
        if name not in METHODS:
            raise OptionError(f"'{name}' is no method", where=where, fix=did_you_mean(name, METHODS))
        check_type(where, weight, float)
        other, data = METHODS[name], self.online.gives[0] if self.online else self.data
        if other.online:
            what = f"{name} samples its own answers and cannot be added to another method"
            raise OptionError(what, where=where, fix="leave it out")
        language = self.reads == "scores" and other.unit == "token"  # a language model's loss on the trunk of a reward model
        if (other.reads != self.reads and not language) or (other.data != data and (other.data, data) not in MIXABLE):
            raise OptionError(f"{name} reads {other.data} and cannot be added to a method that reads {self.data}", where=where)
        if other.coupling:
            raise OptionError(f"{name} couples the completions of a step and cannot be added to another method", where=where)


MIXABLE = {
    ("demonstrations", "pairs"),
    ("demonstrations", "judgements"),
    ("demonstrations", "rankings"),
    ("pairs", "rankings"),
    ("demonstrations", "rank"),
    ("pairs", "rank"),
    ("demonstrations", "keep"),
}
"""(added row's data, method's data) that go together besides equal ones: a ranking holds pairs, and both hold a best answer to imitate.
So do the answers that a method has sampled and ranked; those it keeps are for imitation alone."""


def check_type(name: str, value: object, hint: Any) -> None:
    """Refuse a value that does not fit the annotation of its option.

    Raises:
        OptionError: says what was found and what was expected.
    """
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kinds = {k for k in (get_args(hint) or (hint,)) if isinstance(k, type)}
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if value in choices or (float in kinds and number) or (type(value) in kinds and not isinstance(value, float)):
        return
    expected = "one of " + ", ".join(choices) if choices else " or ".join(sorted(k.__name__ for k in kinds)).replace("NoneType", "nothing")
    raise OptionError(f"{name} is {value!r}, expected {expected.replace('float', 'a number').replace('bool', 'true or false')}")


LENGTHS = {"chosen_len": "chosen_len", "rejected_len": "rejected_len"}
STEPS = {"logits": "step_logits", "labels": "step_labels"}

RUNNING = Online(
    advantages.running_baseline,
    ("advantages", "baseline"),
    samples=1,
    kl=0.05,
    about="REINFORCE: what did better than the running mean becomes likelier.",
)
TO_GO = Online(
    advantages.reward_to_go,
    samples=1,
    kl=0.01,
    whitens=True,
    about="REINFORCE++: no critic; what is still to come at each token, whitened over the round.",
)
WHITENED = Online(
    advantages.group_whitened,
    kl=0.01,
    place="loss",
    estimator="k2",
    whitens=True,
    about="REINFORCE++ with baseline: minus the group's mean, whitened over the round.",
)
GREEDY = Online(advantages.against_greedy, samples=1, kl=0.05, about="ReMax: REINFORCE against the reward of the greedy answer.")
OTHERS = Online(
    advantages.leave_one_out, samples=4, kl=0.05, about="RLOO: REINFORCE, each answer against the mean of the others to its prompt."
)
CRITIC = Online(
    advantages.gae,
    ("advantages", "returns"),
    samples=1,
    kl=0.05,
    whiten=True,
    about="PPO: a critic, GAE, clipped ratios, several passes over a round.",
)
GROUP = Online(advantages.group_advantages, place="loss", estimator="k3")
PENALISED = replace(GROUP, kl=0.04, about="GRPO: each answer in units of its group's spread, clipped ratios, KL in the loss.")
CONTRAST = replace(
    GROUP, dynamic=True, about="DAPO: GRPO with a wider upper clip, a mean over tokens, and only groups that differ in reward."
)
PAIRS = Online(
    advantages.ranks,
    ("rank",),
    samples=2,
    loss="dpo",
    about="Online: a loss of pairs, on pairs of the policy's own answers ranked by the reward.",
)
AS_IPO = replace(PAIRS, loss="ipo")
EXPLORING = replace(PAIRS, explores=True, loss="", about="XPO: online DPO that is paid for leaving the reference's answers.")
ROUNDS = replace(
    PAIRS, samples=8, anew="reference", about="Iterative DPO: rounds of answers, pairs and training, the reference renewed each round."
)
BEST = Online(advantages.best_of_group, ("keep",), about="Best-of-n distillation: imitates the best of the policy's own answers.")
ACCEPTED = Online(advantages.accepted, ("keep",), about="Rejection-sampling fine-tuning: imitates the policy's own answers that pass.")
ANEW = replace(ACCEPTED, anew="policy", about="STaR: imitates its answers that pass, from the first model anew each round.")

METHODS: dict[str, Method] = {
    # demonstrations
    "pretrain": Method(supervised.nll, "token", "text", "2005.14165 sec. 2", 3e-4, about="Next-token prediction on plain text."),
    "sft": Method(supervised.nll, "token", "demonstrations", "2203.02155 sec. 3.5", 2e-5, about="Supervised fine-tuning on answers."),
    "dft": Method(supervised.dft, "token", "demonstrations", "2508.05629", 5e-5),
    # preference pairs and a reference: functions of the margin
    "dpo": Method(pairwise.dpo, "pair", "pairs", "2305.18290 eq. 7", 5e-7),
    "cdpo": Method(pairwise.cdpo, "pair", "pairs", "ericmitchell.ai/cdpo.pdf", 5e-7),
    "robust_dpo": Method(pairwise.robust_dpo, "pair", "pairs", "2403.00409 sec. 3.1", 5e-7),
    "ipo": Method(pairwise.ipo, "pair", "pairs", "2310.12036 eq. 17", 5e-7, columns=LENGTHS),
    "hinge": Method(pairwise.hinge, "pair", "pairs", "2309.06657 eq. 10", 5e-7),
    "exo": Method(pairwise.exo, "pair", "pairs", "2402.00856 eq. 16", 1e-6),
    "discopop": Method(pairwise.discopop, "pair", "pairs", "2406.08414 eq. 5", 5e-7),
    "odpo": Method(pairwise.odpo, "pair", "pairs", "2402.10571", 5e-7, columns={"offset": "margin"}),
    "wpo": Method(pairwise.wpo, "pair", "pairs", "2406.11827 eq. 2", 5e-7),
    "rdpo": Method(pairwise.rdpo, "pair", "pairs", "2403.19159", 5e-7),
    "ld_dpo": Method(pairwise.ld_dpo, "pair", "pairs", "2409.06411", 5e-7),
    "dpo_norm": Method(pairwise.dpo_norm, "pair", "pairs", "2411.15124", 5e-7, per_token=True),
    "rpo": Method(pairwise.rpo, "pair", "pairs", "2404.19733 eq. 1", 5e-7),
    # functions of both log-ratios
    "nca": Method(pairwise.nca, "pair", "pairs", "2402.05369 sec. 4.1", 5e-6),
    "bco_pair": Method(pairwise.bco_pair, "pair", "pairs", "2404.04656 sec. 4", 5e-7),
    "sppo": Method(pairwise.sppo, "pair", "pairs", "2405.00675 sec. 3", 5e-7),
    "apo_zero": Method(pairwise.apo_zero, "pair", "pairs", "2408.06266 eq. 7", 2e-7),
    "apo_down": Method(pairwise.apo_down, "pair", "pairs", "2408.06266 eq. 8", 2e-7),
    "dpop": Method(pairwise.dpop, "pair", "pairs", "2402.13228 eq. 3", 5e-7),
    "chipo": Method(pairwise.chipo, "pair", "pairs", "2407.13399 alg. 1", 5e-7),
    "aot": Method(pairwise.aot, "pair", "pairs", "2406.05882 sec. 3", 5e-7, coupling="batch"),
    "aot_unpaired": Method(pairwise.aot_unpaired, "pair", "pairs", "2406.05882 sec. 3", 5e-7, coupling="batch"),
    # preference pairs without a reference
    "simpo": Method(pairwise.simpo, "pair", "pairs", "2405.14734 eq. 6", 5e-7, per_token=True),
    "slic": Method(pairwise.slic, "pair", "pairs", "2305.10425 eq. 4", 1e-6),
    "cpo": Method(pairwise.cpo, "pair", "pairs", "2401.08417 sec. 3", 1e-6, columns={"chosen_len": "chosen_len"}),
    "orpo": Method(pairwise.orpo, "pair", "pairs", "2403.07691 eqs. 4, 6, 7", 8e-6, plus={"sft": 1.0}, per_token=True),
    # thumbs up and down
    "kto": Method(unpaired.kto, "sequence", "labels", "2402.01306 eq. 7", 5e-7, columns={"kl": "kl"}, coupling="mismatched_kl"),
    "bco": Method(unpaired.bco, "sequence", "labels", "2404.04656 sec. 4", 5e-7, columns={"delta": "delta"}, coupling="reward_shift"),
    "apo_zero_unpaired": Method(unpaired.apo_zero_unpaired, "sequence", "labels", "2408.06266 eq. 7", 2e-7),
    # rankings
    "pl_dpo": Method(listwise.pl_dpo, "list", "rankings", "2305.18290 eq. 20", 5e-7),
    # reward models
    "reward": Method(reward.bradley_terry, "pair", "pairs", "2203.02155 eq. 1", 1e-5, reads="scores", columns={"margin": "margin"}),
    "reward_ties": Method(reward.bradley_terry_ties, "pair", "judgements", "2410.05328", 1e-5, reads="scores"),
    "reward_graded": Method(reward.graded, "pair", "pairs", "2410.01257 eq. 3", 1e-5, reads="scores", columns={"strength": "margin"}),
    "reward_ranking": Method(listwise.plackett_luce, "list", "rankings", "2301.11270", 1e-5, reads="scores"),
    "orm": Method(reward.outcome_bce, "sequence", "labels", "2110.14168 sec. 4.2", 1e-5, reads="scores"),
    "prm": Method(reward.step_bce, "step", "steps", "2305.20050", 1e-5, reads="scores", columns=STEPS),
    # the policy's own samples, judged: advantages
    "reinforce": Method(policy.reinforce, "sequence", "prompts", "2402.14740 sec. 3.2", 1e-6, online=RUNNING, within="sum"),
    "reinforce_pp": Method(policy.ppo_clip, "token", "prompts", "2501.03262 eq. 5", 1e-6, online=TO_GO),
    "reinforce_pp_baseline": Method(policy.ppo_clip, "token", "prompts", "2501.03262 sec. 3.2", 1e-6, online=WHITENED),
    "remax": Method(policy.reinforce, "sequence", "prompts", "2310.10505 alg. 1", 1e-6, online=GREEDY, within="sum"),
    "rloo": Method(policy.reinforce, "sequence", "prompts", "2402.14740 sec. 4", 1e-6, online=OTHERS, within="sum"),
    "ppo": Method(policy.ppo_clip, "token", "prompts", "1707.06347 eq. 7", 1e-6, online=CRITIC),
    "grpo": Method(policy.ppo_clip, "sequence", "prompts", "2402.03300 eq. 3", 1e-6, online=PENALISED),
    "dr_grpo": Method(policy.dr_grpo, "sequence", "prompts", "2503.20783", 1e-6, online=GROUP, within="sum", defaults={"scale": "none"}),
    "dapo": Method(policy.ppo_clip, "token", "prompts", "2503.14476 eq. 10", 1e-6, online=CONTRAST, defaults={"clip_high": 0.28}),
    "gspo": Method(policy.gspo, "sequence", "prompts", "2507.18071 eq. 5", 1e-6, online=GROUP),
    "cispo": Method(policy.cispo, "token", "prompts", "2506.13585 eq. 4", 1e-6, online=GROUP),
    # ... pairs of better and worse
    "online_dpo": Method(pairwise.dpo, "pair", "prompts", "2402.04792", 5e-7, online=PAIRS),
    "online_ipo": Method(pairwise.ipo, "pair", "prompts", "2403.08635", 5e-7, columns=LENGTHS, online=AS_IPO),
    "xpo": Method(policy.xpo, "pair", "prompts", "2405.21046 alg. 1", 5e-7, online=EXPLORING),
    "iterative_dpo": Method(pairwise.dpo, "pair", "prompts", "2312.11456", 5e-7, online=ROUNDS),
    # ... and the good ones, to imitate
    "best_of_n": Method(supervised.nll, "token", "prompts", "2304.06767", 1e-5, online=BEST),
    "rejection_sampling": Method(supervised.nll, "token", "prompts", "2308.01825", 1e-5, online=ACCEPTED),
    "star": Method(supervised.nll, "token", "prompts", "2203.14465 alg. 1", 1e-5, online=ANEW),
}
