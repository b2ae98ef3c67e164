"""What each kind of stage does: settings and a folder in, files and facts out. `run.py` decides whether it has to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import OptionError
from prefopt.pipeline import record, rows
from prefopt.pipeline.contradictions import setup_of
from prefopt.pipeline.create import create as create_model
from prefopt.pipeline.kinds import CreateOptions, EvaluateOptions, LabelOptions, RowsSettings, ScoreOptions
from prefopt.pipeline.lineage import HELDOUT, training
from prefopt.pipeline.recipe import Stage
from prefopt.pipeline.run import Context, Done
from prefopt.settings import ModelSettings, RewardSettings

if TYPE_CHECKING:
    from prefopt.losses.methods import Method
    from prefopt.pack.prepare import Prepared
    from prefopt.training.monitor import Monitor
    from prefopt.types import Example, TokenTree

_SHOWN_TREES = 6
SCALED_ON = 500
"""Training rows by which a reward model's outputs are normalised where nothing is held out."""


def train(stage: Stage, folder: Path, context: Context) -> Done:
    """Every method: load, prepare, fit."""
    from prefopt.losses.methods import METHODS
    from prefopt.pack.prepare import prepare
    from prefopt.rollout.rewards import build as build_reward
    from prefopt.training import distributed
    from prefopt.training.fit import fit

    distributed.start()  # before a model is loaded, which goes to this process's own device
    settings, method = stage.sections, METHODS[stage.kind]
    data, seed = settings["data"], settings["train"].seed
    model = _to_train(stage)
    room = settings["rollout"].max_new_tokens if method.online else 0
    reward = build_reward(settings["reward"], max_new_tokens=room) if method.online else None
    prepared = prepare(data, model.renderer, data=method.data, max_length=model.max_length, room=room, seed=seed, say=context.say)
    record.write_json(folder / "preflight.json", prepared.preflight.to_dict())
    record.write_text(folder / "tokens.json", json.dumps([shown(model.renderer, tree) for tree in prepared.train[:_SHOWN_TREES]]))
    if prepared.heldout:
        record.write_text(folder / HELDOUT, "".join(f"{tree.where}\n" for tree in prepared.heldout))
    watch = [_monitor(stage, prepared, folder, context)] if method.online else []
    result = fit(setup_of(stage), model, prepared, out=folder, track=settings["track"], reward=reward, watch=watch)
    if method.reads == "scores":
        _examine(model, method, prepared, seed, folder, context)
    facts = {
        "tokenizer_and_template": model.renderer.identity(),
        "template_sha256": record.digest(model.renderer.template),
        "model_sha256": record.digest_path(result.model),
        "steps": result.steps,
        "stopped": result.stopped,
        "metrics": result.metrics,
    }
    return Done({"model": "model"}, facts, f"{result.steps} steps, {_headline(result.metrics)}")


def _monitor(stage: Stage, prepared: Prepared, folder: Path, context: Context) -> Monitor:
    """What watches a run for reward hacking; its evaluator is asked before the run whether it can judge these prompts."""
    from prefopt.rollout.rewards import build as build_reward
    from prefopt.training.monitor import Monitor, evaluator_settings

    settings, evaluator = stage.sections["monitor"], None
    if settings.evaluator is not None:
        evaluator = build_reward(evaluator_settings(settings.evaluator), max_new_tokens=stage.sections["rollout"].max_new_tokens)
        evaluator.check([tree.example for tree in prepared.train if tree.example is not None])
    return Monitor(settings, evaluator, folder, stage.sections["train"].seed, context.say)


def _examine(model: Any, method: Method, prepared: Prepared, seed: int, folder: Path, context: Context) -> None:
    """Fit a trained reward model's scale and temperature on held-out rows, say what it is worth, and save how it is read."""
    from prefopt.evaluate.calibrate import examine, scaled, unit_of

    unit = unit_of(method.unit, method.data)
    if not record.is_first():
        return
    model.path = str(folder / "model")
    model.model.eval()
    if prepared.heldout:
        found = examine(model, prepared.heldout, unit, seed=seed, out=folder)
        model.reading = found.reading
        context.say("\n".join(found.lines))
    else:
        model.reading = scaled(model, prepared.train[:SCALED_ON], unit)
        context.say("  no held-out rows: accuracy and calibration are not known (set data.eval_fraction=0.1)")
    model.save(folder / "model")


def _to_train(stage: Stage) -> Any:
    """The policy a method trains, or its reward model with as many outputs as it asks for."""
    from prefopt.losses.methods import METHODS
    from prefopt.model.reading import Reading

    method, settings, train = METHODS[stage.kind].mixed(stage.mix), stage.sections["model"], stage.sections["train"]
    if settings.dtype == "auto" and (not stage.sections["lora"].rank or train.precision == "fp32"):
        settings = replace(settings, dtype="fp32")  # masters must not start from rounded weights
    if method.reads != "scores":
        return open_model(settings, kind="policy", seed=train.seed)
    reading = Reading.of_heads(stage.sections["heads"], steps=method.unit == "step")
    shape: dict[str, Any] = {"outputs": len(reading.outputs), "language_head": "logps" in method.readings}
    model = open_model(settings, kind="reward", seed=train.seed, **shape)
    model.reading = reading
    return model


def _headline(metrics: dict[str, float]) -> str:
    """The two or three numbers a reader looks for first."""
    names = {"loss": "loss", "reward": "reward", "rewards/accuracies": "accuracy", "accuracy": "accuracy", "eval/loss": "held-out loss"}
    names |= {"eval/rewards/accuracies": "held-out accuracy", "eval/accuracy": "held-out accuracy"}
    return ", ".join(f"{word} {metrics[name]:.3f}" for name, word in names.items() if name in metrics)


def shown(renderer: Any, tree: TokenTree) -> dict[str, Any]:
    """A row as its tokens, each with whether it is scored, for people to look at."""
    pieces = renderer.pieces(tree)
    names = [_branch_name(tree, i) for i in range(len(tree.branches))]
    return {"where": tree.where, "sequences": [{"name": n, "tokens": [list(t) for t in p]} for n, p in zip(names, pieces, strict=True)]}


def _branch_name(tree: TokenTree, i: int) -> str:
    branch = tree.branches[i]
    if isinstance(branch.label, float):
        return f"label {branch.label:g}"
    if branch.label is not None:
        return "thumbs up" if branch.label else "thumbs down"
    if branch.rank is None or len(tree.branches) == 1:
        return "text" if not tree.prompt.size else "completion"
    return ("chosen", "rejected")[branch.rank] if len(tree.branches) == 2 and branch.rank < 2 else f"rank {branch.rank + 1}"


def world(stage: Stage, folder: Path, context: Context) -> Done:
    """The synthetic world's data files."""
    from prefopt.world import write

    sizes = {name: size for name, size in stage.options.items() if name not in ("seed", "slice", "answers")}
    files = write(folder, sizes, stage.options["seed"], slice_=stage.options["slice"], answers=stage.options["answers"])
    facts = {"sha256": {name: record.digest_path(path) for name, path in files.items()}}
    return Done({name: path.name for name, path in files.items()}, facts, ", ".join(f"{size} {name}" for name, size in sizes.items()))


def create(stage: Stage, folder: Path, context: Context) -> Done:
    """A tokenizer trained on text and a model with random weights."""
    parameters = create_model(_rows(stage.sections["data"]), CreateOptions(**stage.options), folder / "model")
    facts = {"parameters": parameters, "model_sha256": record.digest_path(folder / "model")}
    return Done({"model": "model"}, facts, f"{parameters / 1e6:.2f}M parameters")


def sample(stage: Stage, folder: Path, context: Context) -> Done:
    """Completions of a policy."""
    facts, summary = write_samples(stage, folder / "samples.jsonl")
    return Done({"data": "samples.jsonl"}, facts, summary)


def write_samples(stage: Stage, path: Path) -> tuple[dict[str, Any], str]:
    """Sample for every prompt and write one row each; the facts and a line to print."""
    policy = open_model(stage.sections["model"], kind="policy")
    finished: Counter[bool] = Counter()
    drawn = rows.sampled(policy, _read(stage.sections["data"]), stage.sections["rollout"])
    with record.writing(path):
        written = rows.write_rows(path, _counted(drawn, finished))
    total = sum(finished.values())
    share = finished[True] / max(1, total)
    facts = {"prompts": written, "completions": total, "finished": share, "tokenizer_and_template": policy.renderer.identity()}
    return facts, f"{total} completions of {written} prompts, {share:.1%} ended by themselves"


def _counted(drawn: Iterator[rows.Row], finished: Counter[bool]) -> Iterator[rows.Row]:
    for row in drawn:
        finished.update(row["finished"])
        yield row


def score(stage: Stage, folder: Path, context: Context) -> Done:
    """Rewards, implicit rewards or log-probs of the completions of each row."""
    facts, summary = write_scores(stage, folder / "scores.jsonl")
    return Done({"data": "scores.jsonl"}, facts, summary)


def write_scores(stage: Stage, path: Path) -> tuple[dict[str, Any], str]:
    """Score every completion of every row and write one row each; the facts and a line to print."""
    if stage.sections["reward"] != RewardSettings():
        return _write_rewards(stage, path)
    model = open_model(stage.sections["model"])
    reference, beta, solution = (stage.options[name] for name in ("reference", "beta", "solution"))
    if solution is not None and not getattr(getattr(model, "reading", None), "solution", ""):
        what = "solution says how the steps of a solution become one score, and this is no process reward model"
        raise OptionError(what, where="solution", fix="leave solution out")
    if solution is not None:
        model.reading = replace(model.reading, solution=solution)
    if reference is not None and hasattr(model, "score"):
        raise OptionError("a reward model is measured against no reference", where="reference", fix="leave reference out")
    if beta != ScoreOptions().beta and hasattr(model, "score"):
        raise OptionError("a reward model's scores are multiplied by nothing", where="beta", fix="leave beta out")
    other = open_model(stage.sections["model"], kind="policy", path=reference) if reference else None
    examples = _read(stage.sections["data"])
    with record.writing(path):
        written = rows.write_rows(path, rows.scored(examples, model, reference=other, beta=beta))
    return {"rows": written}, f"{written} rows scored"


def _write_rewards(stage: Stage, path: Path) -> tuple[dict[str, Any], str]:
    """The same by the rewards of training."""
    from prefopt.model.load import load_tokenizer
    from prefopt.pipeline.rewarding import Rewarded
    from prefopt.text.chat import Renderer

    whose = stage.sections["model"].path
    rater = Rewarded(stage.sections["reward"], Renderer(load_tokenizer(whose)) if whose else None)
    with record.writing(path):
        summary = rater.write(path, _read(stage.sections["data"]))
    return {"rows": rater.rows, "answers": rater.judged, "unjudged": len(rater.unjudged)}, summary


def ensemble(stage: Stage, folder: Path, context: Context) -> Done:
    """Several reward models as one."""
    from prefopt.rollout.ensemble import average, combine

    members, rule, out = stage.options["members"], stage.options["rule"], folder / "model"
    if rule == "average_weights":
        average(members, out)
    else:
        combine(members, out, rule=rule, k=stage.options["k"])
    return Done({"model": "model"}, {"model_sha256": record.digest_path(out)}, f"{len(members)} members, {rule}")


def label(stage: Stage, folder: Path, context: Context) -> Done:
    """Preference pairs of sampled answers, by simulated annotators."""
    seen: Counter[str] = Counter()
    pairs = rows.labelled(_rows(stage.sections["data"]), LabelOptions(**stage.options), seen)
    written = rows.write_rows(folder / "pairs.jsonl", pairs)
    left_out = f"{seen['tie']} ties, {seen['empty']} empty answers, {seen['no_pair']} prompts without two different ones"
    return Done({"data": "pairs.jsonl"}, {"pairs": written, **seen}, f"{written} pairs ({left_out})")


def evaluate(stage: Stage, folder: Path, context: Context) -> Done:
    """A model, and what it is compared with, on a suite."""
    from prefopt.evaluate import suites
    from prefopt.evaluate.bench import Bench, Subject
    from prefopt.evaluate.table import names_of

    options, settings, data = EvaluateOptions(**stage.options), stage.sections["model"], stage.sections["data"]
    paths = [settings.path, *([options.baseline] if options.baseline else [])]
    subjects = [
        Subject(path, name, partial(open_model, settings, path=path), record.digest_path(path))
        for path, name in zip(paths, names_of(paths), strict=True)
    ]
    files = data.eval_path or data.path
    files = [files] if isinstance(files, str) else files
    bench = Bench(
        subjects[0],
        subjects[1] if len(subjects) > 1 else None,
        data,
        rollout=stage.sections["rollout"],
        judge=stage.sections["judge"],
        seed=options.seed,
        out=folder,
        say=context.say,
        data_sha256=record.digest([record.digest_path(path) for path in files]),
        open=lambda path: open_model(ModelSettings(path=path, dtype=settings.dtype)),
        training=training(paths),
        seen=options.seen,
        harm=options.harm,
        beta=options.beta,
        false_positive_rate=options.false_positive_rate,
        tasks=options.tasks,
        shots=options.shots,
        formats=options.formats,
    )
    models = {s.path if s.sha256.startswith(record.HUB) else record.relative(Path(s.path), folder): s.sha256 for s in subjects}
    facts = {"model_sha256": subjects[0].sha256, "data_sha256": bench.data_sha256, "models": models}
    return Done({"evaluation": "evaluation.json"}, facts, suites.run(options.suite, bench))


def gate(stage: Stage, folder: Path, context: Context) -> Done:
    """Whether the model of the evaluations before may ship."""
    from prefopt.pipeline import gate as gates

    policy = gates.read_policy(Path(stage.options["policy"]) if stage.options["policy"] else None)
    outcome = gates.decide(context.run, policy, names=stage.options["stages"], before=context.before, write=folder / "gate.json")
    return Done({"verdict": "gate.json"}, {"verdict": outcome.verdict}, "\n".join(gates.lines(outcome)))


def report(stage: Stage, folder: Path, context: Context) -> Done:
    """One HTML page of the run."""
    from prefopt.pipeline.gate import changed
    from prefopt.report import build

    page = build(context.run, changed=changed)
    return Done({"report": str(Path("..") / page.name)}, {}, str(page))


RUN: dict[str, Callable[[Stage, Path, Context], Done]] = {
    "world": world,
    "create": create,
    "sample": sample,
    "score": score,
    "ensemble": ensemble,
    "label": label,
    "evaluate": evaluate,
    "gate": gate,
    "report": report,
}
"""Kind -> what it does; every other kind is a method and trains."""


def open_model(settings: ModelSettings, *, kind: Any = "auto", seed: int = 0, path: str | None = None, **shape: Any) -> Any:
    """The policy or reward model of a `model` section, or another one loaded as it says."""
    from prefopt.rollout.policy import load

    return load(**{**vars(settings), "path": path or settings.path}, kind=kind, seed=seed, **shape)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers (one for each saved file) inside."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


def _rows(settings: RowsSettings) -> Iterator[Example]:
    from prefopt.data.formats import as_chat
    from prefopt.data.read import read

    examples = read(settings.path, limit=settings.limit)
    return map(as_chat, examples) if settings.chat else examples


def _read(settings: RowsSettings) -> Sequence[Example]:
    return list(_rows(settings))
