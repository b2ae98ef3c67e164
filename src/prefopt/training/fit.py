"""A whole training run: train with the one loop, evaluate, checkpoint, go on after a stop, keep the best, save.

`fit` may be killed at any step and called again with the same arguments: it goes on from the newest whole checkpoint and ends with the
same metrics and weights, to the bit, as a run that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from prefopt.errors import DataError, OptionError, PrefoptError, TrainingError, did_you_mean
from prefopt.model.room import is_oom
from prefopt.model.split import like
from prefopt.pack.plan import Plan
from prefopt.pack.prepare import Prepared
from prefopt.pack.shelf import Chain
from prefopt.rollout.policy import LanguageModel
from prefopt.rollout.rewards import Reward
from prefopt.settings import TrackSettings, deciding
from prefopt.training import checkpoint, distributed, shard
from prefopt.training.checks import check_evaluations
from prefopt.training.job import Job
from prefopt.training.loop import NotFinite, train_step
from prefopt.training.lora import merged
from prefopt.training.memory import explain_oom
from prefopt.training.monitor import Watch
from prefopt.training.online import Rounds
from prefopt.training.optim import schedule
from prefopt.training.progress import Progress
from prefopt.training.rounds import stand_in
from prefopt.training.setup import Setup, build_job
from prefopt.training.signals import Interrupted, StopRequest
from prefopt.training.stream import Rows, Stream
from prefopt.training.track import Trackers, open_trackers
from prefopt.types import Stat, TokenTree

Found = TypeVar("Found")


@dataclass(frozen=True)
class FitResult:
    """Steps done, the last metrics of training and of the held-out data, where the model lies, and why it ended."""

    steps: int
    metrics: dict[str, float]
    model: Path
    stopped: str


@dataclass
class Progressed:
    """What a checkpoint must hold besides weights, optimizer and reference."""

    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    evaluated: int = 0
    ended: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def fit(
    setup: Setup,
    model: LanguageModel,
    data: Prepared,
    *,
    out: Path,
    track: TrackSettings | None = None,
    reward: Reward | None = None,
    watch: Sequence[Watch] = (),
) -> FitResult:
    """Train `model` on `data` and leave the result in `out/model`.

    Args:
        setup: the method and its settings.
        model: trained in place.
        data: token trees; `heldout` may be empty.
        out: the run folder: metrics.jsonl, checkpoints/, model/.
        track: other places for metrics.
        reward: judges the answers of a method that samples them.
        watch: told of every round of such a method.

    Raises:
        OptionError: settings that contradict each other.
        TrainingError: loss not finite, out of memory, disk full; with what to do about it.
        Interrupted: SIGINT or SIGTERM, after a checkpoint.
    """
    distributed.start()
    setup = replace(setup, watched=any(one.needs_kl(0) for one in watch))
    _check(setup, data)
    out.mkdir(parents=True, exist_ok=True)
    _require_room(model, out)
    epoch = setup.steps_per_epoch(len(data.train))
    total = setup.train.steps if setup.train.steps is not None else math.ceil(setup.train.epochs * epoch)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(total, title=setup.method, rank=distributed.rank()))
        job, stream = _open(setup, model, data, stack, out=out, say=progress.say, reward=reward, watch=watch)
        run = Run(setup, job, data, stream, total, out, progress)
        run.require_best()
        run.resume()
        progress.begin(run.at.step)
        run.forget_later()
        first = distributed.rank() == 0
        opened = open_trackers(track or TrackSettings(), out, step=run.at.step, config=_plain(setup)) if first else Trackers([])
        trackers = stack.enter_context(opened)
        stopped = run.train(trackers, stack.enter_context(StopRequest()))
        run.take_best()
        if told := run.kept(stream.finish):
            progress.say(told)
        if setup.train.shard:
            shard.join(model.model)
        if distributed.rank() == 0:
            model.model = merged(model.model, out)
            _save(model, out / "model")
        distributed.wait()
    return FitResult(run.at.step, run.at.metrics, out / "model", stopped)


def _open(
    setup: Setup,
    model: LanguageModel,
    data: Prepared,
    stack: ExitStack,
    *,
    out: Path,
    say: Callable[[str], None],
    reward: Reward | None,
    watch: Sequence[Watch],
) -> tuple[Job, Stream]:
    """What is trained, and where its steps come from: the rows, or rounds of samples."""
    rows = Chain(data.train, data.heldout)
    if setup.row.online is None:
        job = build_job(setup, model, rows, stack, say, heldout=data.heldout)
        return job, Rows(job, data.train, data.heldout, Plan(len(data.train), setup.train.batch_size, setup.train.seed))
    if reward is None:
        raise OptionError("nothing rates the answers", where="reward", fix="name a reward.model, .function, .url or .verifier")
    job = build_job(setup, model, [stand_in(tree) for tree in rows], stack, say)
    return job, Rounds(setup, job, model, data, reward, out=out, say=say, watch=watch)


@dataclass
class Run:
    """One run in progress."""

    setup: Setup
    job: Job
    data: Prepared
    stream: Stream
    total: int
    out: Path
    progress: Progress
    at: Progressed = field(default_factory=Progressed)
    named: list[int] = field(default_factory=list)
    """The best steps of the checkpoints, which a run that is killed goes back to."""

    @property
    def checkpoints(self) -> Path:
        """Where they lie."""
        return self.out / "checkpoints"

    @property
    def best(self) -> Path:
        """Where the weights of the best step lie."""
        return self.checkpoints / checkpoint.BEST

    def train(self, trackers: Trackers, stop: StopRequest) -> str:
        """Steps until the end, a signal, or patience runs out; says which ("done", "early", "stopped")."""
        train, span = self.setup.train, self.stream.restarts or self.total
        factor = schedule(train, span)
        if self.evaluate(trackers):  # what a run that was stopped had still to do
            self.save()
        while not self.over():
            trees = self.kept(lambda: self.stream.step(self.at.step))
            if self.stream.ended:
                self.progress.say(f"{self.stream.ended}: stopping")
                self.at.ended = "stopped"
                break
            self.step(trees, factor(self.at.step % span), trackers)
            self.evaluate(trackers)
            last = self.at.step == self.total
            if not last and distributed.any_rank(bool(stop.requested)):
                self.save()
                raise Interrupted(stop.requested or "SIGTERM", f"step {self.at.step} of {self.total}")
            if train.save_every and self.at.step % train.save_every == 0:
                self.save()
        self.evaluate(trackers)
        return self.at.ended or "done"

    def over(self) -> bool:
        """Whether there is no further step."""
        train = self.setup.train
        if train.patience and self.at.waited >= train.patience and not self.at.ended:
            self.progress.say(f"{train.keep_best} has not improved for {train.patience} evaluations: stopping")
            self.at.ended = "early"
        return bool(self.at.ended) or self.at.step >= self.total

    def kept(self, work: Callable[[], Found]) -> Found:
        """What the stream is asked for; where it cannot be had (a reward or a server that fails) the run is kept as it stands."""
        try:
            return work()
        except PrefoptError as error:
            if self.at.step:
                self.save()
                self.progress.say(f"kept as after step {self.at.step}: the same command goes on from there")
            raise error

    def step(self, trees: Sequence[TokenTree], lr_factor: float, trackers: Trackers) -> None:
        """One optimizer step, its metrics, and the reference's own step."""
        try:
            metrics = train_step(self.job, trees, self.at.step, lr_factor) if trees else {"skipped_steps": 1.0}
        except NotFinite as error:
            raise self._kept(error, trees) from error
        except (RuntimeError, MemoryError) as error:
            if not is_oom(error):
                raise
            raise explain_oom(error, step=self.at.step + 1, batch=self.job.looking_at, load=self.job.load) from error
        metrics |= self.stream.metrics(self.at.step)
        self.at.step += 1
        self.at.metrics = metrics | {
            "lr": self.setup.learning_rate * lr_factor,
            "epoch": self.at.step / self.setup.steps_per_epoch(len(self.data.train)),
        }
        sync = self.setup.reference.sync_every
        if sync and self.job.reference is not None and self.at.step % sync == 0:
            self.job.reference.sync(self.job.model, self.setup.reference.sync_rate)
        trackers.log(self.at.step, self.at.metrics)
        self.progress.update(self.at.step, metrics)

    def evaluate(self, trackers: Trackers) -> bool:
        """Held-out metrics where it is time for them, and whether it was; remembers the weights when they are the best so far."""
        every = self.setup.train.eval_every
        due = self.at.step == self.total or bool(self.at.ended) or (every and self.at.step % every == 0)
        if not (self.data.heldout and due and self.at.evaluated < self.at.step):
            return False
        found = self.kept(self.stream.evaluate)
        self.at.evaluated = self.at.step
        trackers.log(self.at.step, found)
        self.at.metrics |= found
        name = self.setup.train.keep_best
        if name is None:
            return True
        value = -found[name] if name.endswith("loss") else found[name]
        if self.at.best is None or value > self.at.best:
            self.at.best, self.at.best_step, self.at.waited = value, self.at.step, 0
            weights = shard.whole({key: t.detach() for key, t in self.job.optimizer.weights.masters.items()})
            if distributed.rank() == 0:
                checkpoint.save(self.best, self.at.step, weights, {}, keep=None)
                self._tidy()
        else:
            self.at.waited += 1
        return True

    def _tidy(self) -> None:
        """Of the best weights keep the best, and those that a checkpoint names."""
        checkpoint.keep_steps(self.best, {self.at.best_step, *self.named})

    def require_best(self) -> None:
        """Find out before the training, on as few held-out rows as it takes, that the metric it is to be judged by is measured.

        Raises:
            OptionError: it is not; with those that are.
        """
        name = self.setup.train.keep_best
        if name is None:
            return
        known: dict[str, float] = {}
        sampled, rows, first = self.setup.row.online is not None, len(self.data.heldout), 1
        with torch.random.fork_rng(devices=[]):
            while name not in known and first < 2 * rows and not (sampled and known):  # of answers all metrics are measured, or none
                known |= self.stream.evaluate(first=first)
                first *= 2
        if name not in known:
            raise OptionError(f"{name} is not measured", where="train.keep_best", fix=did_you_mean(name, known))

    def take_best(self) -> None:
        """Put the best weights back, when a metric was named to judge by."""
        if self.at.best is None or self.at.best_step == self.at.step:
            return
        distributed.wait()
        found = checkpoint.restore(self.best, step=self.at.best_step)
        if found is None:
            raise self._best_is_gone()
        weights = self.job.optimizer.weights
        with torch.no_grad():
            for name, master in weights.masters.items():
                master.copy_(like(found.tensors[name], master))
        weights.publish()
        self.job.version += 1
        self.progress.say(f"keeping the weights of step {self.at.best_step}, the best {self.setup.train.keep_best}")

    def save(self) -> None:
        """Everything the run needs to go on."""
        reference = self.job.reference.state() if self.job.reference is not None else {}
        trained = {f"{name}/{k}": t for name, optimizer in self.job.optimizers.items() for k, t in optimizer.state().items()}
        tensors = shard.whole(trained)
        tensors |= shard.whole({f"reference/{k}": t for k, t in reference.items()})
        generators = distributed.each(checkpoint.generator_states(checkpoint.default_generators()))
        if distributed.rank() == 0:
            flow, kept = self.stream.state(self.at.step)
            tensors |= {f"stream/{k}": t for k, t in flow.items()}
            state = {
                "stream": kept,
                "fingerprint": self.fingerprint(),
                "progress": dataclasses.asdict(self.at),
                "shift": {k: list(v) for k, v in self.job.shift.items()},
                "generators": generators,
            }
            checkpoint.save(self.checkpoints, self.at.step, tensors, state)
            self.named = [*(step for step in self.named if step != self.at.best_step), self.at.best_step][-2:]  # of two checkpoints
            self._tidy()
        distributed.wait()

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of this very run, if there is one.

        Raises:
            TrainingError: the checkpoints are of other settings or other data.
        """
        found = checkpoint.restore(self.checkpoints, say=self.progress.say)
        if found is None:
            return
        if found.state["fingerprint"] != self.fingerprint():
            what = "this folder holds checkpoints of a run with other settings or data"
            raise TrainingError(what, where=str(self.checkpoints), fix="choose another --out, or delete the folder to start again")
        for name, optimizer in self.job.optimizers.items():
            optimizer.load(_under(f"{name}/", found.tensors))
        if self.job.reference is not None:
            self.job.reference.load(_under("reference/", found.tensors))
        self.stream.load(_under("stream/", found.tensors), found.state["stream"])
        self.at = Progressed(**found.state["progress"])
        self.job.version += 1
        self.job.shift = {k: Stat(*v) for k, v in found.state["shift"].items()}
        generators = found.state["generators"]
        checkpoint.set_generator_states(checkpoint.default_generators(), generators[distributed.rank() % len(generators)])
        self.progress.say(f"going on from step {self.at.step} of {self.total}")

    def forget_later(self) -> None:
        """Delete best weights of steps after those this run has done: a run that was killed left them, and this one may not repeat it.

        Raises:
            TrainingError: the best weights so far are not there.
        """
        steps = [checkpoint.step_of(path) for path in checkpoint.checkpoints(self.best)]
        self.named = [step for step in steps if step <= self.at.best_step]
        if self.at.best is not None and self.at.best_step not in self.named:
            raise self._best_is_gone()
        if distributed.rank() == 0:
            self._tidy()

    def _best_is_gone(self) -> TrainingError:
        what = f"the weights of step {self.at.best_step}, the best so far, are gone"
        return TrainingError(what, where=str(self.best), fix="delete the checkpoints to start again")

    def fingerprint(self) -> str:
        """A hash of every token and of what decides the result: settings, but not when to save, who watches, where an engine is, or how
        a batch is cut into passes, which a run that was out of memory has to change.
        """
        plain = _plain(self.setup)
        del plain["train"]["save_every"], plain["train"]["micro_tokens"], plain["watched"]
        for other in ("reference", "critic"):  # a folder of models may have moved since
            plain[other]["path"] = plain[other]["path"] is not None
        plain["rollout"] = deciding(plain["rollout"])
        digest = hashlib.sha256(json.dumps([plain, self.total], sort_keys=True, default=str).encode())
        for tree in Chain(self.data.train, self.data.heldout):
            digest.update(tree.prompt.tobytes() + b"|" + b"|".join(b.ids.tobytes() + b.scored.tobytes() for b in tree.branches))
        return digest.hexdigest()

    def _kept(self, error: NotFinite, trees: Sequence[TokenTree]) -> TrainingError:
        """Write the rows that broke the run beside it, and say where."""
        path, guilty = self.out / "not-finite.json", set(error.rows)
        rows = [
            {"where": t.where, "prompt_ids": t.prompt.tolist(), "completions_ids": [b.ids.tolist() for b in t.branches]}
            for t in trees
            if t.index in guilty
        ]
        path.write_text(json.dumps({"step": self.at.step + 1, "rows": rows}, indent=1))
        fix = f"the batch is kept in {path}; lower train.learning_rate or train.grad_clip, or look at its rows"
        return TrainingError(error.what, where=f"step {self.at.step + 1}", fix=fix)


def _save(model: LanguageModel, place: Path) -> None:
    """Write the model beside its place, then put it there: a folder called model is whole.

    Raises:
        TrainingError: it could not be written.
    """
    draft = place.with_name(f".{place.name}.writing")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        model.save(draft)
        shutil.rmtree(place, ignore_errors=True)
        draft.rename(place)
    except (OSError, SafetensorError) as error:
        fix = f"make room or mend the permissions and give the same command again: {checkpoint.goes_on(place.with_name('checkpoints'))}"
        raise TrainingError(f"the trained model could not be written: {error}", where=str(place), fix=fix) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _require_room(model: LanguageModel, out: Path) -> None:
    """Find out before the training that its result will not fit on the disk.

    Raises:
        TrainingError: less is free than the weights take.
    """
    size, free = sum(p.numel() * p.element_size() for p in model.model.parameters()), shutil.disk_usage(out).free
    if free < size:
        what = f"the trained model takes {size / 1e9:.2f} GB and {free / 1e9:.2f} GB are free on this disk"
        raise TrainingError(what, where=str(out), fix="make room, or choose another --out")


def _check(setup: Setup, data: Prepared) -> None:
    if not data.train:
        raise OptionError("no rows are left to train on", where="data.path", fix="see the preflight table for why they were dropped")
    every = Chain(data.train, data.heldout)
    between = (tree for tree in every if any(isinstance(branch.label, float) for branch in tree.branches))
    soft = next(between, None) if setup.row.needs_thumbs else None
    if soft is not None:
        fix = "round the labels to true and false, or train orm"
        raise DataError(f"{setup.method} learns from thumbs up and down, and this label lies between", where=soft.where, fix=fix)
    bare = next((tree for tree in every if tree.margin is None), None) if setup.row.needs_margin else None
    if bare is not None:
        raise DataError(f"{setup.method} needs a column `margin`, and this row has none", where=bare.where, fix="add it, or train dpo")
    scaled = setup.options.get("form") == "scaled"
    turned = next((tree for tree in every if (tree.margin or 0) < 0), None) if scaled else None
    if turned is not None:
        what = f"{setup.method} form=scaled counts a preference `margin` times, which cannot be {turned.margin:g}"
        raise DataError(what, where=turned.where, fix="exchange chosen and rejected where the margin is negative, or set form=soft")
    check_evaluations(setup.train, heldout=bool(data.heldout))


def _plain(setup: Setup) -> dict[str, Any]:
    return dataclasses.asdict(setup)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
