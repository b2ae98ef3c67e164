"""Recipes: what is read, and what every mistake in one gets told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.errors import OptionError
from prefopt.pipeline import recipe, record
from prefopt.pipeline.recipe import Recipe, single
from prefopt.pipeline.run import _deciding
from prefopt.pipeline.source import parse, parse_override
from prefopt.settings import TrainSettings

GOOD = """\
stages:
  - kind: sft
    model: {path: ./base}
    data: {path: demos.jsonl}
    train:
      learning_rate: 5e-6
  - kind: dpo
    name: align
    beta: 0.2
    mix: {sft: 0.5}
    model:
      path: ${sft.model}
    data:
      path: [a.jsonl, b.jsonl]
"""


def load(tmp_path: Path, text: str, *arguments: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return recipe.load(path, arguments)


def refused(tmp_path: Path, text: str, *arguments: str) -> str:
    """What the user is told, the folder left out."""
    with pytest.raises(OptionError) as caught:
        load(tmp_path, text, *arguments)
    message = str(caught.value).replace(f"{tmp_path}/", "")
    assert 1 <= len(message.splitlines()) <= 3
    assert len(message) < 500
    return message


# --- what is read


def test_a_recipe_becomes_checked_stages(tmp_path: Path) -> None:
    sft, align = load(tmp_path, GOOD).stages
    assert (sft.kind, sft.name, align.kind, align.name) == ("sft", "sft", "dpo", "align")
    assert sft.sections["train"] == TrainSettings(learning_rate=5e-6)
    assert align.sections["data"].path == ["a.jsonl", "b.jsonl"]
    assert align.options == {"beta": 0.2, "divergence": "reverse_kl", "alpha": None}
    assert align.mix == {"sft": 0.5}
    assert align.references == [("sft", "model")]
    assert "reference" in align.sections
    assert "reference" not in sft.sections


def test_references_are_filled_in_everywhere(tmp_path: Path) -> None:
    text = GOOD.replace("[a.jsonl, b.jsonl]", '["${sft.model}/rows.jsonl", b.jsonl]')
    stage = load(tmp_path, text).stages[1].resolve({"sft": {"model": "/run/sft/model"}})
    assert stage.sections["model"].path == "/run/sft/model"
    assert stage.sections["data"].path == ["/run/sft/model/rows.jsonl", "b.jsonl"]


def test_references_are_filled_in_in_the_kinds_own_options(tmp_path: Path) -> None:
    text = GOOD + "  - {kind: evaluate, baseline: '${sft.model}', model: {path: '${align.model}'}, data: {path: d}}\n"
    stage = load(tmp_path, text).stages[2]
    assert stage.references == [("sft", "model"), ("align", "model")]
    assert stage.resolve({"sft": {"model": "a"}, "align": {"model": "b"}}).options["baseline"] == "a"


def test_what_is_dumped_reads_back_as_the_same_stages(tmp_path: Path) -> None:
    from prefopt.pipeline.run import to_yaml

    read = load(tmp_path, GOOD, "align.train.betas=[0.8, 0.9]")
    again = load(tmp_path, to_yaml(*read.stages))
    assert again.stages == read.stages


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-6", 5e-6),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("1e3", 1000.0),
        ("true", True),
        ("null", None),
        ("~", None),
        ("yes", "yes"),
        ("on", "on"),
        ("0x10", "0x10"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'5'", "5"),
        ("[1, b]", [1, "b"]),
    ],
)
def test_scalars_are_those_of_yaml_1_2_in_files_and_on_the_command_line(text: str, value: Any) -> None:
    for read in (parse(f"key: {text}", "r.yaml").values["key"], parse_override(f"key={text}").value):
        assert read == value
        assert type(read) is type(value)


def test_positions_are_those_of_the_keys() -> None:
    source = parse(GOOD, "r.yaml")
    assert source.at(("stages", 0, "train", "learning_rate")) == "r.yaml:6:7"
    assert source.at(("stages", 1, "data", "path", 1)) == "r.yaml:14:23"
    assert source.at(("stages", 1, "data", "nowhere", "at all")) == "r.yaml:13:5"


# --- the command line over the file


def test_a_key_goes_to_every_stage_that_reads_it(tmp_path: Path) -> None:
    sft, align = load(tmp_path, GOOD, "train.steps=3", "beta=0.7").stages
    assert (sft.sections["train"].steps, align.sections["train"].steps) == (3, 3)
    assert align.options["beta"] == 0.7
    assert "beta" not in sft.options


def test_what_comes_from_an_earlier_stage_stays(tmp_path: Path) -> None:
    sft, align = load(tmp_path, GOOD, "model.path=./other").stages
    assert (sft.sections["model"].path, align.sections["model"].path) == ("./other", "${sft.model}")


def test_a_key_may_name_one_stage(tmp_path: Path) -> None:
    sft, align = load(tmp_path, GOOD, "align.train.steps=3", "align.model.path=./x", "align.beta=1").stages
    assert (sft.sections["train"].steps, align.sections["train"].steps) == (None, 3)
    assert align.sections["model"].path == "./x"
    assert align.options["beta"] == 1


def test_the_last_word_wins_and_numbers_stay_paths_when_quoted(tmp_path: Path) -> None:
    sft, _ = load(tmp_path, GOOD, "sft.data.path=a", "sft.data.path='12'").stages
    assert sft.sections["data"].path == "12"


def test_a_method_mixed_in_brings_its_reference_section(tmp_path: Path) -> None:
    text = "stages: [{kind: simpo, model: {path: m}, data: {path: d}}]"
    assert "reference" not in load(tmp_path, text).stages[0].sections
    assert "reference" in load(tmp_path, text, "mix.dpo=0.1").stages[0].sections
    for order in (["mix.dpo=0.1", "reference.path=x"], ["reference.path=x", "mix.dpo=0.1"], ["reference.path=x", "simpo.mix.dpo=0.1"]):
        assert load(tmp_path, text, *order).stages[0].sections["reference"].path == "x"


def test_defaults_reach_stages_that_read_the_section_and_do_not_set_the_key(tmp_path: Path) -> None:
    text = "defaults:\n  train: {seed: 7, learning_rate: 1e-3}\n  rollout: {samples: 2}\n" + GOOD
    sft, align = load(tmp_path, text).stages
    assert (sft.sections["train"].seed, sft.sections["train"].learning_rate) == (7, 5e-6)
    assert (align.sections["train"].seed, align.sections["train"].learning_rate) == (7, 1e-3)
    assert load(tmp_path, text, "train.seed=9").stages[1].sections["train"].seed == 9


def test_one_stage_from_values() -> None:
    values = {"kind": "dpo", "model": {"path": "m"}, "data": {"path": "d"}}
    stage = single(values, [parse_override("train.learning_rate=1e-4")])
    assert stage.sections["train"].learning_rate == 1e-4
    assert values == {"kind": "dpo", "model": {"path": "m"}, "data": {"path": "d"}}


# --- mistakes

FILE_MISTAKES = {
    "unknown key of a section": (
        "learning_rate: 5e-6",
        "learning_rte: 5e-6",
        ["recipe.yaml:6:7: train.learning_rte: unknown key", "'learning_rate'"],
    ),
    "unknown section": ("train:", "trian:", ["recipe.yaml:5:5: trian: not an option of sft", "did you mean 'train'?"]),
    "a section's key at the wrong level": (
        "beta: 0.2",
        "learning_rate: 1",
        ["recipe.yaml:9:5: learning_rate", "did you mean 'train.learning_rate'?"],
    ),
    "an option of another method": ("beta: 0.2", "gamma: 0.2", ["recipe.yaml:9:5: gamma: not an option of dpo", "beta"]),
    "a section the kind does not read": ("train:", "rollout:", ["recipe.yaml:5:5: rollout: sft does not read this section", "train"]),
    "no number": ("5e-6", "fast", ["recipe.yaml:6:7: train.learning_rate: expected a number above 0 or null, found 'fast'"]),
    "a number out of bounds": ("5e-6", "0", ["train.learning_rate: expected a number above 0 or null, found 0"]),
    "a fraction for a whole number": (
        "learning_rate: 5e-6",
        "steps: 2.5",
        ["train.steps: expected a whole number of at least 1 or null, found 2.5"],
    ),
    "a whole number in quotes": ("learning_rate: 5e-6", "steps: '2'", ["train.steps: expected a whole number", "found '2'"]),
    "a boolean for a number": ("learning_rate: 5e-6", "steps: true", ["train.steps: expected a whole number", "found true"]),
    "yess": ("learning_rate: 5e-6", "compile: yess", ["train.compile: expected true or false, found 'yess'"]),
    "yes": ("learning_rate: 5e-6", "compile: yes", ["train.compile: expected true or false, found 'yes'"]),
    "a misspelt choice": ("learning_rate: 5e-6", "schedule: cosin", ["expected constant, linear or cosine, found 'cosin'", "'cosine'?"]),
    "a list that is too short": ("learning_rate: 5e-6", "betas: [0.9]", ["train.betas: expected a list of 2 numbers of at least 0"]),
    "a decay that never ends": ("learning_rate: 5e-6", "betas: [0.9, 1.0]", ["and below 1, found [0.9, 1.0]"]),
    "a scalar for a section": (
        "{path: demos.jsonl}",
        "demos.jsonl",
        ["recipe.yaml:4:5: data: expected a mapping of keys, found 'demos.jsonl'"],
    ),
    "a path that is a number": ("demos.jsonl", "3", ["data.path: expected text or a list of text, found 3"]),
    "a missing key": ("{path: demos.jsonl}", "{limit: 3}", ["recipe.yaml:4:5: data.path: required"]),
    "a missing section": ("    data: {path: demos.jsonl}\n", "", ["recipe.yaml:2:5: data.path: required"]),
    "a duplicate key": ("beta: 0.2", "beta: 0.2\n    beta: 0.3", ["recipe.yaml:10:5: beta: duplicate key, first given on line 9"]),
    "a duplicate section": ("mix: {sft: 0.5}", "data: {}", ["recipe.yaml:13:5: data: duplicate key, first given on line 10"]),
    "an option's type": ("beta: 0.2", "beta: strong", ["recipe.yaml:9:5: beta: expected a number, found 'strong'"]),
    "an option's choice": ("beta: 0.2", "divergence: jss", ["divergence: expected reverse_kl", "did you mean 'js'?"]),
    "an option's domain": ("beta: 0.2", "beta: -1", ["recipe.yaml:7:5: dpo: beta=-1"]),
    "a method that is none in mix": ("{sft: 0.5}", "{stf: 0.5}", ["recipe.yaml:10:11: mix.stf: not a method", "did you mean 'sft'?"]),
    "a method that does not mix": ("{sft: 0.5}", "{kto: 0.5}", ["recipe.yaml:10:11: mix.kto:", "labels"]),
    "a weight that is none": ("{sft: 0.5}", "{sft: much}", ["recipe.yaml:10:11: mix.sft: expected a number, found 'much'"]),
    "an unknown kind": ("kind: dpo", "kind: dop", ["recipe.yaml:7:5: kind: unknown kind 'dop'", "did you mean"]),
    "no kind": ("kind: dpo\n    name: align", "name: align", ["a stage needs `kind:`"]),
    "a name taken": ("name: align", "name: sft", ["recipe.yaml:8:5: two stages are named 'sft'"]),
    "a name that is a section's": ("name: align", "name: train", ["recipe.yaml:8:5: name: 'train' cannot name a stage"]),
    "a name that is a path": ("name: align", "name: ../x", ["'../x' cannot name a stage"]),
    "a reference to no stage": (
        "${sft.model}",
        "${stf.model}",
        ["recipe.yaml:12:7: model.path: ${stf.model} names no earlier stage", "'sft.model'?"],
    ),
    "a reference to itself": ("${sft.model}", "${align.model}", ["${align.model} names no earlier stage"]),
    "a reference to no output": ("${sft.model}", "${sft.data}", ["the stage 'sft' has no output 'data'", "${sft.model}"]),
    "an unknown key at the top": ("stages:", "stage:\nstages:", ["recipe.yaml:1:1: stage: unknown key", "'stages'"]),
    "a default of no section": (
        "stages:",
        "defaults: {trian: {}}\nstages:",
        ["recipe.yaml:1:12: defaults.trian: unknown section", "'train'"],
    ),
    "a default of no key": ("stages:", "defaults: {train: {stesp: 1}}\nstages:", ["defaults.train.stesp: unknown key", "'steps'"]),
    "a tag": ("beta: 0.2", "beta: !!python/name:os.system x", ["recipe.yaml:9:11: the tag"]),
    "broken syntax": ("{sft: 0.5}", "{sft: 0.5", ["recipe.yaml:11:", "not YAML"]),
    "a tab": ("    beta", "\tbeta", ["recipe.yaml:9:", "not YAML"]),
}


@pytest.mark.parametrize("name", FILE_MISTAKES)
def test_a_mistake_in_the_file_is_told_with_its_place(tmp_path: Path, name: str) -> None:
    old, new, says = FILE_MISTAKES[name]
    assert GOOD.count(old) >= 1
    message = refused(tmp_path, GOOD.replace(old, new, 1))
    for part in says:
        assert part in message


LINE_MISTAKES = {
    "train.learning_rte=3": ["command line: train.learning_rte: unknown key", "'learning_rate'"],
    "learning_rate=3": ["learning_rate: not an option of sft, dpo", "did you mean 'train.learning_rate'?"],
    "gamma=1": ["gamma: not an option of sft, dpo"],
    "rollout.samples=2": ["rollout.samples: not read by sft, dpo"],
    "align.train.steps=many": ["train.steps: expected a whole number"],
    "sft.beta=1": ["command line: beta: not an option of sft"],
    "sft.reference.cache=true": ["command line: reference: sft does not read this section"],
    "train.steps": ["expected key=value, found 'train.steps'"],
    "train.steps=": ["train.steps: no value after '='", "leave the option out"],
    "=3": ["expected key=value"],
    "train..steps=3": ["expected key=value"],
    "data.path=[a": ["not YAML"],
    "align.kind=sft": ["align.kind: a stage's kind and name are the recipe's"],
    "model.path.deep=1": ["model.path.deep: not read by"],
    "align.model.path.deep=1": ["expected a mapping of keys"],
    "stages=1": ["stages: not an option of sft, dpo"],
}


@pytest.mark.parametrize("argument", LINE_MISTAKES)
def test_a_mistake_on_the_command_line_is_told(tmp_path: Path, argument: str) -> None:
    message = refused(tmp_path, GOOD, argument)
    for part in LINE_MISTAKES[argument]:
        assert part in message


DATA = "model: {path: m}, data: {path: d}"
TOGETHER = {
    "what the method refuses": (
        f"kind: dpo, {DATA}, reference: {{cache: true, sync_every: 5}}",
        "reference.sync_every: a cached",
    ),
    "a section as a whole": (f"kind: dpo, {DATA}, heads: {{}}", "heads: dpo does not read"),
    "patience for nothing": ("kind: dpo, model: {path: m}, data: {path: d, eval_path: e}, train: {patience: 2}", "train.patience"),
    "nothing held out": (f"kind: dpo, {DATA}, train: {{eval_every: 2}}", "train.eval_every: there is no held-out data"),
    "one evaluation": ("kind: dpo, model: {path: m}, data: {path: d, eval_path: e}, train: {keep_best: eval/loss}", "train.keep_best: one"),
    "held out twice": (
        "kind: sft, model: {path: m}, data: {path: d, eval_path: e, eval_fraction: 0.1}",
        "data.eval_path is set too",
    ),
    "chunks of pairs": ("kind: dpo, model: {path: m}, data: {path: d, truncation: chunk}", "data.truncation: chunk splits plain text"),
    "pairs of demonstrations": ("kind: sft, model: {path: m}, data: {path: d, pairs: best_worst}", "data.pairs: sft takes no pairs"),
    "pairs of thumbs": ("kind: kto, model: {path: m}, data: {path: d, pairs: best_worst}", "data.pairs: kto takes no pairs"),
    "k of a mean": (f"kind: reward, {DATA}, heads: {{count: 3, k: 4.0}}", "heads.k: read by heads.rule=lower_bound alone"),
    "no reward": (f"kind: grpo, {DATA}", "reward: nothing rates the answers"),
    "a weight of no source": (f"kind: grpo, {DATA}, reward: {{verifier: math, weights: {{url: 1}}}}", "reward.weights.url: a weight for"),
    "a monitor of nothing": (
        f"kind: grpo, {DATA}, reward: {{verifier: math}}, monitor: {{every: 1}}",
        "monitor.every: read by",
    ),
    "a server's patience": (
        f"kind: grpo, {DATA}, reward: {{verifier: math}}, rollout: {{timeout: 5}}",
        "rollout.timeout: read by",
    ),
    "vLLM's memory": (f"kind: sample, {DATA}, rollout: {{memory: 0.9}}", "rollout.memory: read by rollout.engine=vllm alone"),
    "an address of nobody": (f"kind: sample, {DATA}, rollout: {{url: 'http://x/v1'}}", "rollout.url: read by rollout.engine=server alone"),
    "a server nowhere": (f"kind: sample, {DATA}, rollout: {{engine: server}}", "rollout.url: a server without an address"),
    "new weights of none": (
        f"kind: sample, {DATA}, rollout: {{engine: server, url: 'http://x/v1', folder: f}}",
        "rollout.folder: only",
    ),
    "one server for two models": (
        f"kind: evaluate, baseline: b, {DATA}, rollout: {{engine: server, url: 'http://x/v1'}}",
        "rollout.engine: one server answers for one model",
    ),
    "a judge without a model": (f"kind: evaluate, {DATA}, judge: {{by: reward}}", "judge: judge.by=reward needs judge.path"),
    "a judge without a name": (f"kind: evaluate, {DATA}, judge: {{url: 'http://x/v1'}}", "judge: judge.by=ai needs judge.model"),
    "shots of no task": (f"kind: evaluate, {DATA}, shots: 5", "shots: read by tasks alone"),
    "a limit of no buffer": ("kind: score, data: {path: d}, reward: {verifier: math, overlong_limit: 5}", "read by reward.overlong_buffer"),
    "k of a minimum": ("kind: ensemble, members: [a, b], rule: min, k: 2.0", "k: read by rule=lower_bound alone"),
    "a gate of no evaluation": ("kind: gate, policy: none.yaml", "4:5: gate: a gate reads evaluations"),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_settings_that_do_not_go_together_are_told_before_the_first_stage_runs(tmp_path: Path, name: str) -> None:
    last, says = TOGETHER[name]
    message = refused(tmp_path, f"stages:\n  - kind: world\n  -\n    {{name: last, {last}}}\n")
    assert says in message
    assert message.startswith("recipe.yaml:4:")


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("stages: [evluate]", "stages: no evaluate stage before it is called 'evluate'\ndid you mean 'evaluate'?"),
        ("stages: [world]", "stages: no evaluate stage before it is called 'world'"),
        ("policy: none.yaml", "none.yaml: cannot be read: No such file"),
    ],
)
def test_a_gate_that_cannot_decide_is_told_before_the_first_stage_runs(tmp_path: Path, gate: str, says: str) -> None:
    text = f"stages:\n  - kind: world\n  - {{kind: evaluate, {DATA}}}\n  - {{kind: gate, {gate}}}\n"
    assert says in refused(tmp_path, text)


def test_what_reads_a_setting_lets_it_be(tmp_path: Path) -> None:
    whole = "model: {path: m}, data: {path: d, eval_fraction: 0.1"
    for stage in (
        f"kind: dpo, {whole}, pairs: best_worst}}, train: {{keep_best: eval/loss, eval_every: 5, patience: 2}}",
        f"kind: pl_dpo, {whole}, pairs: best_worst}}, mix: {{dpo: 0.1}}",
        f"kind: reward, {DATA}, heads: {{count: 3, rule: lower_bound, k: 4.0}}",
        f"kind: gspo, {DATA}, reward: {{verifier: math}}, monitor: {{evaluator: gold, every: 1}}, reference: {{path: r}}",
        "kind: iterative_dpo, model: {path: m}, data: {path: d, pairs: best_worst}, reward: {verifier: math}",
        f"kind: evaluate, {DATA}, rollout: {{engine: server, url: 'http://x/v1', timeout: 5, retries: 0}}",
        f"kind: evaluate, {DATA}, tasks: [arc_easy], shots: 5, judge: {{url: 'http://x/v1', model: n}}",
        "kind: ensemble, members: [a, b], rule: lower_bound, k: 2.0",
    ):
        assert load(tmp_path, f"stages: [{{{stage}}}]").stages


def test_a_list_where_a_section_stands_is_told_although_the_command_line_sets_a_key_of_it(tmp_path: Path) -> None:
    """Found by `make fuzz`."""
    text = "stages:\n  - kind: pretrain\n    train: []\n    data: {path: d}\n"
    assert "recipe.yaml:3:5: train: expected a mapping of keys, found []" in refused(tmp_path, text, "train.steps=1")


def test_a_loss_decides_which_options_there_are(tmp_path: Path) -> None:
    text = "stages:\n  - kind: online_dpo\n    model: {path: m}\n    data: {path: d}\n    reward: {verifier: math}\n"
    (tmp_path / "recipe.yaml").write_text(text)
    for order in (["gamma=0.7", "loss=simpo"], ["loss=simpo", "gamma=0.7"]):
        (stage,) = recipe.load(tmp_path / "recipe.yaml", order).stages
        assert stage.options == {"beta": 2.0, "gamma": 0.7, "loss": "simpo"}
    assert "gamma: not an option of online_dpo" in refused(tmp_path, text, "gamma=0.7")
    wrong = refused(tmp_path, text + "    loss: simpoo\n")
    assert "recipe.yaml:6:5: loss: 'simpoo' is no loss of pairs" in wrong
    assert "did you mean 'simpo'?" in wrong


def test_a_key_that_every_stage_takes_from_earlier_ones_is_refused(tmp_path: Path) -> None:
    text = "stages:\n  - kind: world\n  - kind: create\n    data: {path: '${world.sft}'}\n"
    assert "every stage that reads it takes it from an earlier stage" in refused(tmp_path, text, "data.path=x")


@pytest.mark.parametrize("text", ["", "stages:", "stages: []", "- kind: sft", "stages: {kind: sft}", "just text", "null"])
def test_a_file_without_stages_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected `stages:`" in refused(tmp_path, text)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00", b"stages: [\xc3"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(OptionError):
        recipe.load(tmp_path / "recipe.yaml")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="No such file"):
        recipe.load(tmp_path / "none.yaml")
    with pytest.raises(OptionError, match="directory"):
        recipe.load(tmp_path)


def test_an_alias_inside_its_own_anchor_is_refused(tmp_path: Path) -> None:
    assert "its own anchor" in refused(tmp_path, "stages: &all [*all]")


def test_every_setting_has_a_type_that_can_be_described() -> None:
    from prefopt.pipeline.check import describe, hints
    from prefopt.pipeline.kinds import KINDS, SECTIONS

    for types in [hints(cls) for cls in SECTIONS.values()] + [kind.options for kind in KINDS.values()]:
        for hint in types.values():
            assert "typing" not in describe(hint)
            assert "<class" not in describe(hint)


def test_the_resolved_recipe_is_plain_yaml(tmp_path: Path) -> None:
    from prefopt.pipeline.run import to_yaml

    assert yaml.safe_load(to_yaml(*load(tmp_path, GOOD).stages))["stages"][1]["train"]["betas"] == [0.9, 0.95]


RLHF = """\
stages:
  - kind: reward
    model: {path: ./base}
    data: {path: pairs.jsonl}
  - kind: ppo
    model: {path: ./base}
    data: {path: prompts.jsonl}
    reward: {model: "${reward.model}"}
"""


def test_reward_is_a_stage_and_a_section(tmp_path: Path) -> None:
    arguments = ("reward.centering=0.1", "reward.train.steps=7", "reward.length_penalty=0.5", "train.steps=9")
    reward, ppo = load(tmp_path, RLHF, *arguments).stages
    assert reward.options["centering"] == 0.1
    assert (reward.sections["train"].steps, ppo.sections["train"].steps) == (9, 9)
    assert (ppo.sections["reward"].length_penalty, ppo.sections["reward"].model) == (0.5, "${reward.model}")
    assert ppo.references == [("reward", "model")]
    assert load(tmp_path, RLHF, "reward.weights.model=2").stages[1].sections["reward"].weights == {"model": 2}


def test_methods_that_sample_say_how_many_answers_they_want(tmp_path: Path) -> None:
    grpo = "stages: [{kind: grpo, model: {path: m}, data: {path: p.jsonl}, reward: {verifier: math}}]"
    (stage,) = load(tmp_path, grpo).stages
    assert stage.sections["rollout"].samples == 8
    (stage,) = load(tmp_path, grpo, "rollout.samples=3", "rollout.max_new_tokens=9").stages
    assert (stage.sections["rollout"].samples, stage.sections["rollout"].max_new_tokens) == (3, 9)
    assert "critic" not in stage.sections
    assert stage.options["scale"] == "group"
    assert "not read by grpo" in refused(tmp_path, grpo, "critic.shared=true")


def test_a_run_that_trains_may_go_on_with_its_server_elsewhere() -> None:
    """What only samples is another run there: it would be another model."""

    def key(kind: str, url: str) -> str:
        stage = {"kind": kind, "model": {"path": "m"}, "data": {"path": "p"}, "rollout": {"engine": "server", "url": url}}
        if kind == "grpo":
            stage |= {"reward": {"verifier": "math"}, "rollout": {"engine": "server", "url": url, "folder": "served"}}
        return record.digest(_deciding(single(stage, [], "test")))

    here, there = "http://a/v1", "http://b/v1"
    assert key("grpo", here) == key("grpo", there)
    assert key("sample", here) != key("sample", there)


def test_a_run_that_trains_may_go_on_with_other_batches_of_samples() -> None:
    """Of its own samples, which do not depend on them."""

    def key(**rollout: object) -> str:
        stage = {"kind": "grpo", "model": {"path": "m"}, "data": {"path": "p"}, "reward": {"verifier": "math"}, "rollout": rollout}
        return record.digest(_deciding(single(stage, [], "test")))

    assert key(batch_size=8) == key(batch_size=64)
    assert key(samples=4) != key(samples=8)
    served = {"engine": "server", "url": "http://a/v1", "folder": "served"}
    assert key(batch_size=8, **served) != key(batch_size=64, **served)


@pytest.mark.parametrize(
    "setting", ["train.save_every=5", "train.micro_tokens=64", "track.to=wandb", "reward.timeout=60", "reward.retries=3"]
)
def test_a_run_that_trains_is_the_same_whatever_does_not_decide_its_result(setting: str) -> None:
    def key(*settings: str) -> str:
        stage = {"kind": "grpo", "model": {"path": "m"}, "data": {"path": "p"}, "reward": {"verifier": "math"}}
        return record.digest(_deciding(single(stage, [parse_override(one) for one in settings], "test")))

    assert key(setting) == key()
    assert key("train.batch_size=5") != key() != key("reward.length_penalty=0.1")


def test_how_long_a_score_may_wait_for_its_reward_decides_what_is_judged() -> None:
    def key(timeout: float) -> str:
        stage = {"kind": "score", "data": {"path": "p"}, "reward": {"verifier": "math", "timeout": timeout}}
        return record.digest(_deciding(single(stage, [], "test")))

    assert key(5) != key(60)
