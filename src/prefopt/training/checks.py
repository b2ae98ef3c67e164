"""Settings of methods that learn from their own samples: combinations that cannot mean what they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prefopt.errors import OptionError
from prefopt.losses.online import Online
from prefopt.rollout.sampler import check_engine
from prefopt.settings import CriticSettings, HeadSettings, KLSettings, OnlineSettings, TrainSettings
from prefopt.training import distributed

if TYPE_CHECKING:
    from prefopt.training.setup import Setup

Wrong = tuple[bool, str, str, str]
"""Whether it is wrong, where, what, and how to mend it."""


def check_shard(setup: Setup) -> None:
    """Refuse what does not work on a model that is split over ranks.

    Raises:
        OptionError: the first such option.
    """
    unfit = {
        "kind": setup.row.online is not None,
        "reference.cache": setup.reference.cache,
        "train.compile": setup.train.compile,
        "train.optimizer": setup.train.optimizer == "muon",
    }
    for option in (name for name, given in unfit.items() if given):
        raise OptionError("does not work with train.shard", where=option, fix="leave one of the two out")


def check_evaluations(train: TrainSettings, *, heldout: bool) -> None:
    """Refuse evaluations that have nothing to judge by or to choose from; `heldout` says whether rows are held out.

    Raises:
        OptionError: the first such option.
    """
    best, every = train.keep_best, train.eval_every
    if (best or every) and not heldout:
        where = "train.keep_best" if best else "train.eval_every"
        raise OptionError("there is no held-out data to judge by", where=where, fix="set data.eval_path or data.eval_fraction")
    if train.patience and not (best and every):
        raise OptionError("patience needs a metric and evaluations", where="train.patience", fix="set train.keep_best and train.eval_every")
    if best and not every:
        what, fix = "one evaluation, at the end, is no choice", "set train.eval_every, or leave train.keep_best out"
        raise OptionError(what, where="train.keep_best", fix=fix)


def check_heads(setup: Setup) -> None:
    """Refuse options of a reward model's outputs that nothing would read.

    Raises:
        OptionError: the first such option.
    """
    heads, plain = setup.heads, HeadSettings()
    if heads.attributes and heads.count > 1:
        raise OptionError("heads are either members of an ensemble or attributes", where="heads.count", fix="leave one of them out")
    if heads != plain and setup.row.reads != "scores":
        raise OptionError(f"{setup.method} trains no reward model", where="heads", fix="leave the heads options out")
    if heads.solution != plain.solution and setup.row.unit != "step":
        raise OptionError(f"{setup.method} judges no steps", where="heads.solution", fix="leave it out, or train with prm")
    if heads.count == 1 and (heads.bag, heads.rule, heads.k) != (plain.bag, plain.rule, plain.k):
        what = "attributes are weighed, they are no ensemble" if heads.attributes else "one head is no ensemble"
        fix = "leave heads.bag, heads.rule and heads.k out" + ("" if heads.attributes else ", or set heads.count")
        raise OptionError(what, where="heads", fix=fix)
    if heads.k != plain.k and heads.rule != "lower_bound":
        raise OptionError("read by heads.rule=lower_bound alone", where="heads.k", fix="set it, or leave heads.k out")


def check_online(setup: Setup, online: Online) -> None:
    """Refuse an option that would be ignored, or that breaks what the method rests on.

    Raises:
        OptionError: the first that is wrong.
    """
    check_engine(setup.rollout)
    for wrong, where, what, fix in (*_samples(setup, online), *_engine(setup), *_penalty(setup, online), *_rest(setup, online)):
        if wrong:
            raise OptionError(what, where=where, fix=fix)


def _samples(setup: Setup, online: Online) -> Iterator[Wrong]:
    rollout = setup.rollout
    compared = "group" in online.arguments
    what = f"{setup.method} compares the answers to a prompt, and there is one"
    yield compared and not online.explores and rollout.samples < 2, "rollout.samples", what, f"set rollout.samples={online.samples}"
    what = f"{setup.method} compares one answer of the policy with one of the reference"
    yield online.explores and setup.rollout.samples != 2, "rollout.samples", what, "set rollout.samples=2"
    what = "prompts whose answers all got one reward are replaced: with one answer each, all of them"
    fix = "set rollout.samples above 1, or leave online.dynamic out"
    yield setup.replaces and rollout.samples < 2, "online.dynamic", what, fix
    ratios = "advantages" in online.gives
    what = "greedy answers are no samples of the policy, whose log-probs the loss is made of"
    yield ratios and rollout.temperature == 0, "rollout.temperature", what, "set rollout.temperature=1"
    alike = "greedy answers to a prompt are all the same" + (", as long as policy and reference are" if online.explores else "")
    fix = "set rollout.temperature above 0" + ("" if compared else ", or rollout.samples=1")
    yield rollout.temperature == 0 and rollout.samples > 1, "rollout.temperature", alike, fix
    what = "answers cut to a nucleus are no samples of the policy: every ratio would be wrong"
    yield ratios and rollout.top_p < 1, "rollout.top_p", what, "set rollout.top_p=1"
    what = "answers drawn from the most probable tokens alone are no samples of the policy: every ratio would be wrong"
    yield ratios and rollout.top_k > 0, "rollout.top_k", what, "set rollout.top_k=0"
    yield ratios and rollout.min_p > 0, "rollout.min_p", what, "set rollout.min_p=0"
    what = "answers under a constraint are no samples of the policy: every ratio would be wrong"
    for name in ("regex", "banned", "required"):
        fix = "leave it out, or reward what keeps to it"
        yield ratios and bool(getattr(rollout, name)), f"rollout.{name}", what, fix


def _engine(setup: Setup) -> Iterator[Wrong]:
    rollout = setup.rollout
    what, fix = "the server has to be given new weights, and nothing says where it reads them", "name the folder that it serves"
    yield rollout.engine == "server" and rollout.folder is None, "rollout.folder", what, fix
    what = "an engine of its own is given whole models, not adapters"
    yield rollout.engine != "local" and setup.lora.rank > 0, "lora.rank", what, "sample with rollout.engine=local, or train all weights"


def _penalty(setup: Setup, online: Online) -> Iterator[Wrong]:
    kl, held = setup.kl, setup.held
    what = f"the reference of {setup.method} is the policy that began the round, so no KL to it tells how far the run has gone"
    for name in ("coefficient", "target", "budget", "place", "estimator", "ratio"):
        yield online.anew == "reference" and bool(getattr(kl, name)), f"kl.{name}", what, "leave it out, or use online_dpo"
    alone = kl.target is None and kl.horizon != KLSettings().horizon
    yield alone, "kl.horizon", "read by kl.target alone", "set kl.target, or leave it out"
    yield (kl.target and kl.budget) is not None, "kl.budget", "a target and a budget both steer the coefficient", "leave one of them out"
    steered = kl.target is not None or kl.budget is not None
    yield steered and not held.coefficient, "kl.coefficient", "0 cannot be steered", "leave it out, or start above 0"
    what = "a KL to a reference that moves does not tell how far the run has gone"
    yield steered and setup.reference.sync_every > 0, "reference.sync_every", what, "leave it out, or kl.target and kl.budget"
    alone = held.place == "loss" and held.estimator == "k1" and not held.ratio and bool(held.coefficient)
    fix = "set kl.estimator=k2 or k3, or kl.ratio=true"
    yield alone, "kl.estimator", "k1 in the loss has no gradient on average", fix
    twice = held.place == "loss" and held.estimator == "k2" and held.ratio and bool(held.coefficient)
    what = "k2 has the gradient of KL(policy || reference) by itself; with the ratio it has another"
    yield twice, "kl.ratio", what, "leave one of kl.ratio and kl.estimator=k2 out"
    bent = "advantages" not in online.gives and not setup.rollout.plain  # where there are advantages, `_samples` sees to it
    what = "answers that are not drawn from the policy itself (rollout.temperature, top_p, top_k, min_p, constraints) do not measure its KL"
    for name in ("ratio", "target", "budget"):
        yield bent and bool(getattr(kl, name)), f"kl.{name}", what, f"draw them at temperature 1 from all tokens, or leave kl.{name} out"
    divided = held.place == "reward" and setup.options.get("scale", setup.row.options.get("scale")) == "group"
    what = "the penalty would be divided by the spread of the group, which is its own where answers earn alike: its price would cancel"
    yield divided and bool(held.coefficient), "kl.place", what, "set kl.place=loss or advantage, or the option scale=none or batch"
    outside = held.place != "loss"
    yield kl.ratio and outside, "kl.ratio", "there is no KL term in the loss to multiply", "set kl.place=loss, or leave it out"
    what = f"half of the answers of {setup.method} are the reference's, which no ratio to the policy corrects"
    yield kl.ratio and online.explores, "kl.ratio", what, "set kl.estimator=k2 in its place"
    what = "in rewards and advantages the estimate is k1, which alone is right there"
    yield kl.estimator not in (None, "k1") and outside, "kl.estimator", what, "set kl.place=loss, or leave it out"


def _rest(setup: Setup, online: Online) -> Iterator[Wrong]:
    ratios, settings = "advantages" in online.gives, setup.online
    where = {"advantage": "kl.place", "loss": ""}.get(str(setup.held.place), "")
    yield bool(where) and not ratios, where, f"{setup.method} has no advantages", "set kl.place=reward or loss"
    yield from _unpaid(setup)
    what = f"{setup.method} whitens its advantages by itself"
    yield online.whitens and settings.whiten is not None, "online.whiten", what, "leave it out"
    for name, value in (("whiten", settings.whiten), ("importance_cap", settings.importance_cap), ("entropy", settings.entropy)):
        yield bool(value) and not ratios, f"online.{name}", f"{setup.method} has no advantages", "leave it out"
    fix = "set online.dynamic=true, or leave it out"
    yield not setup.replaces and settings.draws != OnlineSettings().draws, "online.draws", "read by online.dynamic alone", fix
    at_answers = settings.reward_at == "answer" and ("lengths" not in online.arguments or setup.held.place != "reward")
    what = "there is no penalty in a token's reward to move" if "lengths" in online.arguments else f"{setup.method} rewards whole answers"
    yield at_answers, "online.reward_at", what, "leave it out"
    yield setup.critic != CriticSettings() and not online.has_critic, "critic", f"{setup.method} has no critic", "leave it out"
    yield setup.critic.shared and setup.critic.path is not None, "critic.path", "a shared critic is a head on the policy", "leave one out"
    yield setup.reference.cache, "reference.cache", "answers that are sampled later cannot be in a cache", "set reference.cache=false"
    elsewhere = setup.rollout.engine != "local" and distributed.world_size() > 1
    what = "an engine is given new weights by one process"
    yield elsewhere, "rollout.engine", what, "start it without torchrun, or sample with rollout.engine=local"


def _unpaid(setup: Setup) -> Iterator[Wrong]:
    """A KL that is asked for in detail and costs nothing; a coefficient of 0 that is written out says so itself."""
    free = setup.kl.coefficient is None and not setup.held.coefficient
    for name in ("place", "estimator", "ratio"):
        what = f"{setup.method} pays nothing for KL of itself"
        yield free and bool(getattr(setup.kl, name)), f"kl.{name}", what, f"set kl.coefficient, or leave kl.{name} out"
