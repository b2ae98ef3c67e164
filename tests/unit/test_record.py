"""Records and the runner: a stage is run once, whole, and again only when something it depends on has changed."""

from __future__ import annotations

import copy
import errno
import gzip
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from prefopt.errors import DataError, OptionError, RewardError, TrainingError
from prefopt.pipeline import kinds, record, stages
from prefopt.pipeline.check import hints
from prefopt.pipeline.kinds import BY_REWARD, KINDS, SECTIONS
from prefopt.pipeline.recipe import Stage, build, single
from prefopt.pipeline.run import Context, Done, Fault, Finished, run, run_stage
from prefopt.pipeline.source import Override, parse, parse_override
from prefopt.training.signals import Interrupted, StopRequest

RECIPE = """\
stages:
  - {kind: world, seed: 1}
  - {kind: sample, model: {path: some/hub-name}, data: {path: "${world.prompts}"}}
  - {kind: label, data: {path: "${sample.data}"}}
  - {kind: score, name: aside, model: {path: some/hub-name}, data: {path: rows.jsonl}}
  - {kind: report}
"""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Stages that only write down that they ran, in a folder with the one outside file."""
    ran: list[str] = []

    def fake(stage: Stage, folder: Path, context: Context) -> Done:
        ran.append(stage.name)
        outputs = {"world": ("pretrain", "sft", "prompts", "heldout"), "report": ("report",)}.get(stage.kind, ("data",))
        for output in outputs:
            (folder / output).write_text(stage.name)
        return Done({output: output for output in outputs}, {"fact": 1}, "done")

    monkeypatch.setattr(stages, "RUN", dict.fromkeys(stages.RUN, fake))
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    return ran


def start(*arguments: str, said: list[str] | None = None) -> Finished:
    recipe = build(parse(RECIPE, "r.yaml"), [parse_override(a) for a in arguments])
    return run(recipe, Path("out"), (said if said is not None else []).append)


# --- the runner


def test_a_second_run_does_nothing_and_says_so(calls: list[str]) -> None:
    first, said = start(), []
    assert calls == ["world", "sample", "label", "aside", "report"]
    second = start(said=said)
    assert len(calls) == 5
    assert said == [f"[{i}/5] {name}: already done" for i, name in enumerate(calls, 1)]
    assert first.outputs == second.outputs
    assert first.outputs["sample"] == {"data": "out/sample/data"}


def test_a_signal_in_a_stages_last_step_ends_the_recipe_after_the_stage(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def late(stage: Stage, folder: Path, context: Context) -> Done:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGTERM)
        return real(stage, folder, context)

    real = stages.RUN["sample"]
    monkeypatch.setattr(stages, "RUN", {**stages.RUN, "sample": late})
    with pytest.raises(Interrupted, match="SIGTERM after stage sample") as caught:
        start()
    assert caught.value.exit_code == 143
    assert calls == ["world", "sample"]
    start()
    assert calls == ["world", "sample", "label", "aside", "report"]


def test_a_change_runs_the_stage_and_what_depends_on_it(calls: list[str]) -> None:
    start()
    calls.clear()
    said: list[str] = []
    start("sample.rollout.temperature=0.5", said=said)
    assert calls == ["sample", "label", "report"]
    assert "[2/5] sample: rollout.temperature: 1.0 -> 0.5; running again, old results are deleted" in said


def test_a_changed_file_runs_what_reads_it(calls: list[str]) -> None:
    start()
    calls.clear()
    Path("rows.jsonl").write_text('{"prompt": "x"}\n')
    start()
    assert calls == ["aside", "report"]


def test_a_touched_file_or_a_moved_run_changes_nothing(calls: list[str]) -> None:
    start()
    calls.clear()
    os.utime("rows.jsonl", (0, 0))
    os.rename("out", "elsewhere")
    recipe = build(parse(RECIPE, "r.yaml"))
    finished = run(recipe, Path("elsewhere"), lambda line: None)
    assert calls == []
    assert finished.outputs["label"]["data"] == "elsewhere/label/data"


def test_a_lost_output_is_made_again(calls: list[str]) -> None:
    start()
    calls.clear()
    Path("out/label/data").unlink()
    Path("out/label/half").write_text("half")
    said: list[str] = []
    start(said=said)
    assert calls == ["label"]
    assert "[3/5] label: an output is gone; running again, old results are deleted" in said
    assert not Path("out/label/half").exists()


def failing(error: BaseException) -> Callable[..., Done]:
    def fail(stage: Stage, folder: Path, context: Context) -> Done:
        (folder / "half").write_text("half")
        raise error

    return fail


def test_a_stage_that_stopped_is_not_done_and_keeps_what_it_had(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = stages.RUN["label"]
    monkeypatch.setitem(stages.RUN, "label", failing(DataError("bad row")))
    with pytest.raises(DataError, match="bad row"):
        start()
    assert not Path("out/label/outputs.json").exists()
    assert "ended" not in json.loads(Path("out/label/record.json").read_text())
    monkeypatch.setitem(stages.RUN, "label", good)
    calls.clear()
    start()
    assert calls == ["label", "aside", "report"]
    assert Path("out/label/half").exists(), "a stopped run of the same settings goes on in its folder"


def test_leftovers_of_other_settings_are_cleared(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = stages.RUN["label"]
    monkeypatch.setitem(stages.RUN, "label", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        start()
    monkeypatch.setitem(stages.RUN, "label", good)
    start("label.seed=5")
    assert not Path("out/label/half").exists()


def test_a_fault_leaves_its_traceback_in_the_folder(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.RUN, "label", failing(ZeroDivisionError("oh")))
    with pytest.raises(Fault, match="stage 'label': ZeroDivisionError: oh") as caught:
        start()
    assert caught.value.path == Path("out/label/traceback.txt")
    assert "ZeroDivisionError: oh" in caught.value.path.read_text()
    assert not Path("out/label/outputs.json").exists()


def test_a_full_disk_is_told_as_one(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.RUN, "label", failing(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(TrainingError, match="disk is full"):
        start()


def test_a_place_closed_to_us_is_told_as_one(calls: list[str]) -> None:
    Path("closed").write_text("a file")
    with pytest.raises(TrainingError, match="cannot be written to"):
        run(build(parse(RECIPE, "r.yaml")), Path("closed/out"), lambda line: None)


def test_a_recipe_under_torchrun_is_refused(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="one process"):
        start()
    assert not Path("out").exists()


def test_a_folder_with_other_files_is_left_alone(calls: list[str]) -> None:
    Path("out/world").mkdir(parents=True)
    Path("out/world/thesis.tex").write_text("years of work")
    with pytest.raises(OptionError, match="not a prefopt stage's"):
        start()
    assert Path("out/world/thesis.tex").read_text() == "years of work"
    assert calls == []


def test_a_file_in_the_place_of_the_folder_is_left_alone(calls: list[str]) -> None:
    Path("out").mkdir()
    Path("out/world").write_text("mine")
    with pytest.raises(OptionError, match="is a file"):
        start()


def alone(seed: int, **how: Any) -> None:
    stage = single({"kind": "world"}, [Override(("seed",), seed)])
    run_stage(stage, Path("one"), Finished(), Context(Path("one"), (), lambda line: None), **how)


def test_a_single_stage_is_only_overwritten_when_asked_to(calls: list[str]) -> None:
    alone(1)
    with pytest.raises(OptionError, match="seed: 1 -> 2") as caught:
        alone(2, replace=False)
    assert "--overwrite" in str(caught.value)
    alone(1, replace=False)
    assert calls == ["world"]
    alone(2, replace=True)
    assert calls == ["world", "world"]


@pytest.mark.parametrize("where", ["one", "./one", "link"])
@pytest.mark.parametrize("replace", [True, False, None])
def test_a_stage_never_clears_what_it_reads(where: str, replace: bool | None, calls: list[str]) -> None:
    alone(1)
    Path("link").symlink_to("one")
    stage = single({"kind": "label", "data": {"path": f"{where}/prompts"}}, [])
    with pytest.raises(OptionError, match=f"reads {where}/prompts, which lies in the folder it is to write") as caught:
        run_stage(stage, Path("one"), Finished(), Context(Path("one"), (), lambda line: None), replace=replace)
    assert "--overwrite" not in str(caught.value)
    assert Path("one/prompts").exists()


# --- settings that name files

EVALUATE = {"kind": "evaluate", "model": {"path": "hub"}, "data": {"path": "hub"}}
SCORE = {"kind": "score", "model": {"path": "hub"}, "data": {"path": "hub"}}
GRPO = {"kind": "grpo", "model": {"path": "hub"}, "data": {"path": "hub"}, "reward": {"url": "http://a"}}
PPO = {**GRPO, "kind": "ppo"}
READ = {
    "ModelSettings.path": (GRPO, "model.path"),
    "ModelSettings.chat_template": (GRPO, "model.chat_template"),
    "ReferenceSettings.path": (GRPO, "reference.path"),
    "DataSettings.path": (GRPO, "data.path"),
    "DataSettings.eval_path": (GRPO, "data.eval_path"),
    "RewardSettings.model": (GRPO, "reward.model"),
    "RewardSettings.function": (GRPO, "reward.function"),
    "MonitorSettings.evaluator": (GRPO, "monitor.evaluator"),
    "CriticSettings.path": (PPO, "critic.path"),
    "JudgeSettings.path": (EVALUATE, "judge.path"),
    "EvaluateOptions.baseline": (EVALUATE, "baseline"),
    "EvaluateOptions.tasks": (EVALUATE, "tasks"),
    "RowsSettings.path": (SCORE, "data.path"),
    "ScoreOptions.reference": (SCORE, "reference"),
    "TokensSettings.path": ({**SCORE, "reward": {"verifier": "math"}}, "model.path"),
    "EnsembleOptions.members": ({"kind": "ensemble"}, "members"),
    "GateOptions.policy": ({"kind": "gate"}, "policy"),
}
"""Every setting that names a file, folder or hub name which is read, and a stage that has it."""
NOT_READ = {
    "LoraSettings": {"targets"},
    "TrainSettings": {"keep_best"},
    "RolloutSettings": {"stop", "regex", "banned", "required", "url", "folder"},
    "RewardSettings": {"url", "answer"},
    "JudgeSettings": {"url", "model", "criteria", "annotator"},
    "TrackSettings": {"project"},
    "LabelOptions": {"annotators"},
    "GateOptions": {"stages"},
}
"""All other settings that are free text."""


def free_text(hint: Any) -> bool:
    """Whether a setting may be any text, or a list of texts."""
    return hint is str or any(free_text(part) for part in get_args(hint) if get_origin(hint) not in (dict, Literal))


def test_every_setting_that_is_text_is_known_to_name_a_file_or_not() -> None:
    """A new one has its place in READ, with the mark `Read` beside its type, or in NOT_READ."""
    every = {*SECTIONS.values(), *(cls for kind in [*KINDS.values(), BY_REWARD] for cls in kind.sections.values())}
    every |= {cls for name, cls in vars(kinds).items() if name.endswith("Options")}
    found = {f"{cls.__name__}.{name}" for cls in every for name, hint in hints(cls).items() if free_text(hint)}
    assert found == READ.keys() | {f"{cls}.{name}" for cls, names in NOT_READ.items() for name in names}


@pytest.mark.parametrize(("given", "key"), READ.values(), ids=READ)
def test_a_stage_runs_again_when_what_a_setting_names_has_changed(
    given: dict[str, Any], key: str, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "train", next(iter(stages.RUN.values())))
    named: Any = "named.py:f" if key.endswith(("function", "evaluator")) else ["named.py"] if key in ("members", "tasks") else "named.py"

    def once() -> None:
        before = [{"name": "before", **EVALUATE}] if given["kind"] == "gate" else []  # it reads an evaluation
        recipe = yaml.safe_dump({"stages": [*before, copy.deepcopy(given)]})
        stage = build(parse(recipe, "r.yaml"), [Override((given["kind"], *key.split(".")), named)]).stages[-1]
        run_stage(stage, Path("one"), Finished(), Context(Path("one"), (), lambda line: None))

    for text, ran in (("a", 1), ("a", 1), ("b", 2)):
        Path("named.py").write_text(f"rules: [{{metric: refusal, at_least: 0.5}}]  # {text}\n")
        once()
        assert len(calls) == ran


# --- a training whose reward has failed


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Gives the command of a training with these settings, which fails after its first checkpoint and ends where it finds one."""
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "x"}\n')
    Path("reward.py").write_text("def f(completions): return [float('nan')]\n")

    def train(stage: Stage, folder: Path, context: Context) -> Done:
        if list(folder.glob("checkpoints/step-*")):
            (folder / "model").mkdir()
            return Done({"model": "model"}, {}, "done")
        (folder / "checkpoints" / "step-00000300").mkdir(parents=True)
        raise RewardError("none could be judged", fix="mend the reward and give the same command again")

    monkeypatch.setattr(stages, "train", train)

    def command(*settings: str, replace: bool | None = None) -> list[str]:
        said: list[str] = []
        given = {"kind": "grpo", "model": {"path": "hub"}, "data": {"path": "rows.jsonl"}, "reward": {"function": "reward.py:f"}}
        stage = single(given, [parse_override(one) for one in settings])
        run_stage(stage, Path("one"), Finished(), Context(Path("one"), (), said.append), replace=replace)
        return said

    with pytest.raises(RewardError):
        command()
    return command


def mend() -> None:
    Path("reward.py").write_text("def f(completions): return [0.0] * len(completions)\n")


@pytest.mark.parametrize("replace", [None, False])
@pytest.mark.parametrize("setting", ["", "reward.url=http://b", "reward.timeout=60", "train.save_every=5", "monitor.audit_every=3"])
def test_a_training_goes_on_with_a_mended_reward(setting: str, replace: bool | None, training: Callable[..., list[str]]) -> None:
    if not setting:
        mend()
    said = training(*filter(None, [setting]), replace=replace)
    assert "going on" in said[0]
    assert setting or "reward.py has changed" in said[0]
    entry = json.loads(Path("one/record.json").read_text())
    (before,) = entry["sittings"]
    assert (before["inputs"] == entry["inputs"]) == bool(setting), "the record keeps what the reward was"
    assert training(*filter(None, [setting]), replace=replace) == ["grpo: already done"]


def test_a_training_goes_on_when_its_reward_model_is_trained_anew(
    training: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = """\
stages:
  - {kind: reward, model: {path: hub}, data: {path: rows.jsonl}}
  - {kind: grpo, model: {path: hub}, data: {path: rows.jsonl}, reward: {model: "${reward.model}"}}
"""
    unready = stages.train

    def train(stage: Stage, folder: Path, context: Context) -> Done:
        return unready(stage, folder, context) if stage.kind == "grpo" else Done({"model": "record.json"}, {}, "done")

    monkeypatch.setattr(stages, "train", train)
    said: list[str] = []
    with pytest.raises(RewardError):
        run(build(parse(recipe, "r.yaml")), Path("out"), said.append)
    run(build(parse(recipe, "r.yaml"), [parse_override("reward.train.seed=1")]), Path("out"), said.append)
    assert any(line.startswith("[2/2] grpo: out/reward/record.json has changed; not finished last time, going on") for line in said)


def test_a_reward_that_is_changed_after_the_end_trains_again(training: Callable[..., list[str]]) -> None:
    training()
    mend()
    with pytest.raises(OptionError, match=r"reward\.py has changed"):
        training(replace=False)
    with pytest.raises(RewardError):
        training()
    assert "sittings" not in json.loads(Path("one/record.json").read_text())


def test_checkpoints_of_an_unfinished_training_are_only_deleted_when_asked_to(training: Callable[..., list[str]]) -> None:
    for replace in (None, False):
        with pytest.raises(OptionError, match=r"train.batch_size: 32 -> 8"):
            training("train.batch_size=8", replace=replace)
        assert Path("one/checkpoints/step-00000300").exists()
    with pytest.raises(RewardError):  # begun again
        training("train.batch_size=8", replace=True)


def test_a_mended_reward_begins_again_when_asked_to(training: Callable[..., list[str]]) -> None:
    mend()
    with pytest.raises(RewardError):
        training(replace=True)


def test_a_record_keeps_every_sitting(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("prefopt.pipeline.run.time", SimpleNamespace(monotonic=lambda: clock[0]))

    def sit(seconds: float, how: Callable[..., Done]) -> None:
        def work(*arguments: Any) -> Done:
            clock[0] += seconds
            return how(*arguments)

        monkeypatch.setitem(stages.RUN, "label", work)
        one_label()

    good = stages.RUN["label"]
    for seconds, stopped in ((1, DataError("bad row")), (10, KeyboardInterrupt()), (100, ZeroDivisionError("oh"))):
        with pytest.raises((DataError, KeyboardInterrupt, Fault)):
            sit(seconds, failing(stopped))
    sit(1000, good)
    entry = json.loads(Path("one/record.json").read_text())
    assert [sitting["seconds"] for sitting in entry["sittings"]] == [1, 11, 111]
    assert entry["seconds"] == 1111
    assert all({"started", "code", "packages", "hardware"} <= sitting.keys() for sitting in entry["sittings"])
    assert not any("sittings" in sitting or "ended" in sitting for sitting in entry["sittings"])


def one_label() -> None:
    stage = single({"kind": "label", "data": {"path": "rows.jsonl"}}, [])
    run_stage(stage, Path("one"), Finished(), Context(Path("one"), (), lambda line: None))


def test_the_record_says_what_made_what(calls: list[str]) -> None:
    start()
    entry = json.loads(Path("out/label/record.json").read_text())
    assert entry["inputs"] == {"out/sample/data": record.digest_path("out/sample/data")}
    assert entry["parents"] == {"sample": json.loads(Path("out/sample/record.json").read_text())["key"]}
    assert entry["seeds"] == {"seed": 0}
    assert entry["stage"]["data"]["path"] == "${sample.data}"
    assert entry["outputs"] == {"data": "data"}
    assert entry["fact"] == 1
    assert entry["started"] <= entry["ended"]
    assert {"code", "packages", "hardware"} <= entry.keys()
    assert list(json.loads(Path("out/report/record.json").read_text())["parents"]) == ["world", "sample", "label", "aside"]


def test_each_folder_holds_a_recipe_that_runs_by_itself(calls: list[str]) -> None:
    start()
    alone_again = build(parse(Path("out/label/recipe.yaml").read_text(), "r.yaml")).stages[0]
    assert alone_again.sections["data"].path == "out/sample/data"
    assert [s.name for s in build(parse(Path("out/recipe.yaml").read_text(), "r.yaml")).stages] == [
        "world",
        "sample",
        "label",
        "aside",
        "report",
    ]


# --- hashes and files


def test_a_gzip_file_has_the_hash_of_what_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"rows" * 10_000)
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b"rows" * 10_000)
    assert record.digest_path(tmp_path / "a.jsonl") == record.digest_path(tmp_path / "a.jsonl.gz")


def test_the_hash_of_a_folder_is_that_of_names_and_contents(tmp_path: Path) -> None:
    def folder(name: str, **files: str) -> str:
        (tmp_path / name / "sub").mkdir(parents=True)
        for file, text in files.items():
            (tmp_path / name / file.replace("__", "/")).write_text(text)
        return record.digest_path(tmp_path / name)

    assert folder("a", x="1", sub__y="2") == folder("b", sub__y="2", x="1")
    assert folder("c", x="1", sub__y="3") != folder("d", x="1", sub__y="2")
    assert folder("e", x="1", y="2") != folder("f", x="2", y="1")
    (tmp_path / "a" / ".cache").write_text("passing")
    assert record.digest_path(tmp_path / "a") == record.digest_path(tmp_path / "b")


def test_a_pattern_has_the_hash_of_the_files_that_fit_it(tmp_path: Path) -> None:
    shards = str(tmp_path / "shard-*.jsonl")
    found = [record.digest_path(shards)]
    for name, text in (("shard-1.jsonl", "a"), ("shard-2.jsonl", "b"), ("shard-2.jsonl", "c"), ("other.jsonl", "d")):
        (tmp_path / name).write_text(text)
        found.append(record.digest_path(shards))
    assert len(set(found)) == 4
    assert found[-1] == found[-2]


def test_a_split_of_a_saved_folder_has_the_hash_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "data").write_text("a")
    split = f"{tmp_path / 'saved'}:train"
    before = record.digest_path(split)
    assert not before.startswith("hub:")
    assert before != record.digest_path(f"{tmp_path / 'saved'}:test")
    (tmp_path / "saved" / "data").write_text("b")
    assert record.digest_path(split) != before


def test_a_damaged_file_has_a_hash_and_whoever_reads_it_complains(tmp_path: Path) -> None:
    whole = gzip.compress(b"rows" * 1000)
    (tmp_path / "half.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.jsonl.gz").write_bytes(b"\x1f\x8bnothing")
    assert len({record.digest_path(tmp_path / name) for name in ("half.jsonl.gz", "none.jsonl.gz")}) == 2


def test_what_is_not_on_disk_is_a_hub_name() -> None:
    assert record.digest_path("org/model") == "hub:org/model"


def test_the_hash_of_values_does_not_know_their_order() -> None:
    assert record.digest({"a": 1, "b": [1, 2]}) == record.digest({"b": [1, 2], "a": 1}) != record.digest({"a": 1, "b": [2, 1]})


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record.write_json(tmp_path / "a.json", {"old": 1})

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        record.write_json(tmp_path / "a.json", {"new": 1})
    assert record.read_json(tmp_path / "a.json") == {"old": 1}


def test_what_cannot_be_read_is_none(tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"a": ')
    assert record.read_json(tmp_path / "half.json") is None
    assert record.read_json(tmp_path / "none.json") is None


def test_the_environment_names_versions_and_hardware() -> None:
    found = record.environment()
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", found["code"]["version"])
    assert {"python", "torch", "transformers", "numpy"} <= found["packages"].keys()
    assert found["hardware"]["cores"] >= 1
    assert found["hardware"]["memory_gb"] > 0


def test_the_commit_is_known_in_a_repository_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import prefopt

    (tmp_path / "prefopt").mkdir()
    monkeypatch.setattr(prefopt, "__file__", str(tmp_path / "prefopt" / "__init__.py"))
    assert record.code() == {"version": prefopt.__version__, "commit": None, "dirty": None}
