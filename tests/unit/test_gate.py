"""The gate: verdicts follow from the figures, sample sizes decide, old verdicts go stale, and every wrong input is told."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli import run
from prefopt.errors import DataError, OptionError
from prefopt.evaluate.gate import Evidence, Outcome, Placed, judge
from prefopt.evaluate.rows import Figure, figure, to_json
from prefopt.pipeline import gate as gates
from prefopt.pipeline import stages
from prefopt.pipeline.recipe import Stage, build
from prefopt.pipeline.record import digest_path
from prefopt.pipeline.run import Context
from prefopt.pipeline.source import Source
from prefopt.settings import GateRule, GateSettings
from prefopt.stats import clustered_mean, score_rate

WIN = "rules:\n  - metric: win_rate\n    at_least: 0.5\n    min_n: 100\n"
HASHES = {"model_sha256": "aa", "baseline_sha256": "bb", "data_sha256": "dd"}


def shares(metric: str, mine: Any, theirs: Any, part: str = "all") -> list[Figure]:
    """Both models' shares and their paired difference, as a suite writes them."""
    mine, theirs = np.asarray(mine, float), np.asarray(theirs, float)
    own = figure(metric, score_rate(mine), model="dpo", slice=part, model_sha256="aa", data_sha256="dd")
    other = figure(metric, score_rate(theirs), model="sft", slice=part, model_sha256="bb", data_sha256="dd")
    return [own, other, figure(metric, clustered_mean(mine - theirs), model="dpo", slice=part, difference_from="sft", **HASHES)]


def wins(won: int, lost: int) -> Figure:
    return figure("win_rate", score_rate([1.0] * won + [0.0] * lost), model="dpo", **HASHES)


def decided(rows: list[Figure], *rules: GateRule, **settings: Any) -> Outcome:
    placed = [Placed(rule, f"gate.yaml:{i}") for i, rule in enumerate(rules)]
    return judge(placed, GateSettings(**settings), [Evidence("evaluate", "dpo", "sft", rows)])


def write_run(folder: Path, rows: list[Figure], stage: str = "evaluate", **notes: Any) -> Path:
    (folder / stage).mkdir(parents=True, exist_ok=True)
    found = {"suite": "truth", "model": "dpo", "baseline": "sft", "n": 1, **notes, "rows": [to_json(row) for row in rows]}
    (folder / stage / "evaluation.json").write_text(json.dumps(found))
    return folder


BETTER = GateRule(metric="win_rate", at_least=0.5)


@pytest.mark.parametrize(
    ("won", "lost", "verdict"),
    [(240, 160, "PASS"), (160, 240, "FAIL"), (205, 195, "INCONCLUSIVE"), (220, 180, "PASS"), (219, 181, "INCONCLUSIVE")],
)
def test_a_bound_on_a_win_rate(won: int, lost: int, verdict: str) -> None:
    """The 95% interval leaves the bound out: 400 answers need a z of 1.96, so 219.6 wins."""
    assert decided([wins(won, lost)], BETTER).verdict == verdict


def test_holm_over_the_rules() -> None:
    rows = [wins(220, 180), *(Figure(**{**to_finite(wins(220, 180)), "metric": f"m{i}"}) for i in range(3))]
    rules = [GateRule(metric=name, at_least=0.5) for name in ("win_rate", "m0", "m1", "m2")]
    assert decided(rows[:1], *rules[:1]).verdict == "PASS"
    assert decided(rows, *rules).verdict == "INCONCLUSIVE"
    assert decided(rows, *rules).findings[0].p == pytest.approx(4 * decided(rows[:1], rules[0]).findings[0].p)


def to_finite(row: Figure) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Figure.__dataclass_fields__}


def test_the_needed_size_decides() -> None:
    """More of the same answers: at the size it names the rule is decided with the power it names, here nearly surely by the mean."""
    undecided = decided([wins(108, 92)], BETTER).findings[0]
    assert undecided.status == "INCONCLUSIVE"
    assert undecided.needed == math.ceil(((1.9600 + 0.8416) * 0.5 / 0.04) ** 2)
    assert str(f"{undecided.needed:,}") in undecided.reason
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(200):
        won = int(rng.binomial(undecided.needed, 0.54))
        passed += decided([wins(won, undecided.needed - won)], BETTER).verdict == "PASS"
    assert passed / 200 == pytest.approx(0.8, abs=0.09)
    assert decided([wins(100, 100)], BETTER).findings[0].needed is None


def test_paired_differences_and_ratios() -> None:
    rng = np.random.default_rng(0)
    theirs = (rng.random(400) < 0.9).astype(float)
    mine = np.where(rng.random(400) < 0.02, 1 - theirs, theirs)
    rows = shares("refusal", mine, theirs, "harmful")
    safe = GateRule(metric="refusal", slice="harmful", compare="difference", at_least=-0.05)
    assert decided(rows, safe).verdict == "PASS"
    assert decided(rows, safe).findings[0].estimate.method == "t"
    unpaired = decided(rows[:2], safe).findings[0]
    assert unpaired.estimate.method == "unpaired difference"
    assert unpaired.estimate.std_error > 2 * decided(rows, safe).findings[0].estimate.std_error
    words = rng.integers(20, 60, 400).astype(float)
    longer = shares_of_words(words * 1.5, words)
    short = GateRule(metric="length_words", compare="ratio", at_most=1.25)
    found = decided(longer, short).findings[0]
    assert found.status == "FAIL"
    assert found.estimate.value == pytest.approx(1.5)
    assert decided(shares_of_words(words * 1.1, words), short).verdict == "PASS"


def shares_of_words(mine: np.ndarray, theirs: np.ndarray) -> list[Figure]:
    own = figure("length_words", clustered_mean(mine), model="dpo", model_sha256="aa", data_sha256="dd")
    other = figure("length_words", clustered_mean(theirs), model="sft", model_sha256="bb", data_sha256="dd")
    return [own, other, figure("length_words", clustered_mean(mine - theirs), model="dpo", difference_from="sft", **HASHES)]


def test_equal_answers_prove_little_when_they_are_few() -> None:
    safe = GateRule(metric="refusal", compare="difference", at_least=-0.05)
    assert decided(shares("refusal", [1.0] * 40, [1.0] * 40), safe).verdict == "INCONCLUSIVE"
    assert decided(shares("refusal", [1.0] * 100, [1.0] * 100), safe).verdict == "PASS"


def test_the_needed_size_of_equal_answers_counts_observations_not_prompts() -> None:
    safe = GateRule(metric="refusal", compare="difference", at_least=-0.05)

    def found(prompts: int, samples: int) -> Outcome:
        apart = clustered_mean(np.zeros(prompts * samples), [i // samples for i in range(prompts * samples)])
        rows = shares("refusal", [1.0] * 8, [1.0] * 8)[:2]
        return decided([*rows, figure("refusal", apart, model="dpo", difference_from="sft", **HASHES)], safe)

    needed = {samples: found(40, samples).findings[0].needed for samples in (1, 4)}
    assert needed[1] is not None
    assert needed[4] is not None
    assert needed[4] == pytest.approx(4 * needed[1], abs=4)
    assert found(math.ceil(needed[4] / 4), 4).verdict == "PASS"
    assert found(needed[4] // 4 - 1, 4).verdict == "INCONCLUSIVE"


def test_too_few_or_no_interval_is_inconclusive_and_says_so() -> None:
    few = decided([wins(20, 0)], BETTER).findings[0]
    assert (few.status, few.needed) == ("INCONCLUSIVE", 30)
    assert "n is 20, below the rule's min_n of 30" in few.reason
    bare = Figure(metric="win_rate", value=0.9, low=math.nan, high=math.nan, n=500, method="", model="dpo")
    assert "no measure of uncertainty" in decided([bare], BETTER).findings[0].reason


def test_not_measured_is_told_or_refused() -> None:
    extra = GateRule(metric="perplexity", at_most=9.0, required=False)
    outcome = decided([wins(300, 100)], BETTER, extra)
    assert [f.status for f in outcome.findings] == ["PASS", "NOT MEASURED"]
    assert outcome.verdict == "PASS"
    assert decided([wins(300, 100)], extra).verdict == "INCONCLUSIVE"
    with pytest.raises(DataError, match=r"'win_rat'.*\n.*did you mean 'win_rate'"):
        decided([wins(1, 1)], GateRule(metric="win_rat", at_least=0.5))
    with pytest.raises(DataError, match="slice 'harmfull'"):
        decided(shares("refusal", [1, 0], [1, 0], "harmful"), GateRule(metric="refusal", slice="harmfull", at_least=0.5))


def test_a_gate_without_evidence_of_safety_says_what_the_data_lack_and_the_way_without() -> None:
    rules = list(gates.read_policy(None).rules)
    with pytest.raises(DataError) as caught:
        judge(rules, GateSettings(), [Evidence("evaluate", "dpo", "sft", [wins(300, 100), *shares("over_refusal", [1, 0], [0, 0])])])
    message = str(caught.value)
    assert "no evaluation measures 'refusal'" in message
    assert "`label` calls unsafe" in message
    assert "required: false" in message
    assert len(message.splitlines()) <= 3


def test_mismatches_are_refused() -> None:
    rows = shares("refusal", [1, 0] * 50, [1, 0] * 50)
    other = Evidence("other", "dpo", "base", [figure("kl", clustered_mean([1.0, 2.0]), model="dpo", model_sha256="zz")])
    rule, kl = Placed(GateRule(metric="refusal", at_least=0.1), "a"), Placed(GateRule(metric="kl", at_most=9.0, min_n=1), "b")
    with pytest.raises(DataError, match="different models"):
        judge([rule, kl], GateSettings(), [Evidence("e", "dpo", "sft", rows), other])
    with pytest.raises(DataError, match="several evaluations measure refusal: e, f"):
        judge([rule], GateSettings(), [Evidence("e", "dpo", "sft", rows), Evidence("f", "dpo", "sft", rows)])
    elsewhere = Figure(**{**to_finite(rows[1]), "data_sha256": "ee"})
    difference = GateRule(metric="refusal", compare="difference", at_least=-0.1)
    with pytest.raises(DataError, match="different data"):
        decided([rows[0], elsewhere], difference)
    with pytest.raises(DataError, match="no baseline"):
        judge([Placed(difference, "a")], GateSettings(), [Evidence("e", "dpo", "", rows)])


def words(part: str, baseline: str, paired: bool) -> list[Figure]:
    """The length of answers of one model, and of a baseline that an evaluation is about."""
    own = figure("length_words", clustered_mean([20.0, 30.0] * 50), model="dpo", slice=part, model_sha256="aa", data_sha256="dd")
    other = figure("length_words", clustered_mean([21.0, 29.0] * 50), model="sft", slice=part, model_sha256=baseline, data_sha256="dd")
    hashes = {**HASHES, "baseline_sha256": baseline}
    apart = figure("length_words", clustered_mean([-1.0, 1.0] * 50), model="dpo", slice=part, difference_from="sft", **hashes)
    return [own, other, *([apart] if paired else [])]


@pytest.mark.parametrize("compare", ["ratio", "difference"])
@pytest.mark.parametrize("paired", [False, True])
def test_one_gate_has_one_baseline_however_it_is_compared(compare: Any, paired: bool) -> None:
    rules = [Placed(GateRule(metric="length_words", slice=part, compare=compare, at_most=1.25), part) for part in ("one", "two")]
    for second, same in (("bb", True), ("cc", False)):
        evidence = [Evidence(part, "dpo", "sft", words(part, sha, paired)) for part, sha in (("one", "bb"), ("two", second))]
        if same:
            assert len(judge(rules, GateSettings(), evidence).findings) == 2
        else:
            with pytest.raises(DataError, match="different baselines"):
                judge(rules, GateSettings(), evidence)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rules"), ("rules: []", "rules"), ("rule: 3\nrules: [{metric: x, at_least: 1}]", "unknown key"),
        ("rules: [{metric: x}]", "one bound"), ("rules: [{metric: x, at_least: 1, at_most: 2}]", "one bound"),
        ("rules: [{at_least: 1}]", "metric"), ("rules: [{metric: x, atleast: 1}]", "at_least"),
        ("rules: [{metric: x, at_most: high}]", "a number"), ("rules: [{metric: x, compare: ratio, at_most: 0}]", "above 0"),
        ("confidence: 95\nrules: [{metric: x, at_most: 1}]", "below 1"),
    ],
)  # fmt: skip
def test_a_policy_is_checked(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        gates.parse_policy(text, "gate.yaml")


def test_the_default_policy_reads() -> None:
    assert [placed.rule.metric for placed in gates.read_policy().rules][:3] == ["win_rate", "refusal", "over_refusal"]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "gate.yaml"
    policy.write_text(WIN)
    for won, code in ((300, 0), (100, 1), (205, 3)):
        place = write_run(tmp_path / str(won), [wins(won, 400 - won)])
        assert run(["gate", str(place), "--policy", str(policy)]) == code
    said = capsys.readouterr()
    assert "PASS: 1 of 1 rules hold" in said.out
    assert "observations would decide" in said.out
    assert len(said.err.splitlines()) <= 4
    place = tmp_path / "300"
    found = json.loads((place / "gate.json").read_text())
    assert found["policy"]["text"] == WIN
    assert found["rules"][0]["estimate"]["value"] == 0.75
    assert run(["gate", str(place), "--check"]) == 0
    write_run(place, [wins(301, 99)])
    assert run(["gate", str(place), "--check"]) == 1
    assert "evaluate/evaluation.json" in capsys.readouterr().err
    assert run(["gate", str(place), "--policy", str(policy)]) == 0
    assert "no longer holds" in capsys.readouterr().out
    policy.write_text(WIN.replace("0.5", "0.6"))
    assert run(["gate", str(place), "--policy", str(policy), "--check"]) == 1
    write_run(place, [wins(301, 99)], stage="second")
    assert run(["gate", str(place), "--check"]) == 1
    assert run(["gate", str(tmp_path / "none")]) == 2
    assert run(["gate"]) == 2
    assert run(["gate", str(place), "--policy", str(tmp_path / "no.yaml")]) == 2
    assert run(["gate", "--show-default"]) == 0


def gate_after(*names: str, **options: Any) -> Stage:
    """A gate stage after evaluate stages of these names."""
    before = [{"kind": "evaluate", "name": name, "model": {"path": "m"}, "data": {"path": "d"}} for name in names]
    return build(Source("test", {"stages": [*before, {"kind": "gate", **options}]})).stages[-1]


def test_the_stage_reads_the_evaluations_before_it(tmp_path: Path) -> None:
    policy = tmp_path / "gate.yaml"
    policy.write_text(WIN)
    write_run(tmp_path, [wins(300, 100)])
    write_run(tmp_path, [wins(1, 399)], stage="later")
    (tmp_path / "gate").mkdir()
    stage = gate_after("evaluate", policy=str(policy))
    done = stages.gate(stage, tmp_path / "gate", Context(tmp_path, ("evaluate",)))
    assert done.facts["verdict"] == "PASS"
    found = json.loads((tmp_path / "gate" / "gate.json").read_text())
    assert [Path(name).parent.name for name in found["inputs"]] == ["evaluate"]


@pytest.mark.parametrize(("named", "new"), [([], ["../later/evaluation.json"]), (["evaluate"], [])])
def test_a_new_evaluation_ends_a_stages_verdict_unless_it_names_what_it_reads(named: list[str], new: list[str], tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text(WIN)
    write_run(tmp_path, [wins(300, 100)])
    (tmp_path / "gate").mkdir()
    stage = gate_after("evaluate", policy=str(tmp_path / "gate.yaml"), stages=named)
    stages.gate(stage, tmp_path / "gate", Context(tmp_path, ("evaluate",)))
    assert gates.changed(tmp_path / "gate" / "gate.json") == []
    write_run(tmp_path, [wins(1, 399)], stage="later")
    assert gates.changed(tmp_path / "gate" / "gate.json") == new


def test_a_stage_reads_the_evaluations_it_names(tmp_path: Path) -> None:
    policy = tmp_path / "gate.yaml"
    policy.write_text(WIN)
    write_run(tmp_path, [wins(300, 100)], stage="first")
    write_run(tmp_path, [wins(1, 399)], stage="second")
    (tmp_path / "gate").mkdir()
    context = Context(tmp_path, ("first", "second"))
    with pytest.raises(DataError, match=r"several evaluations measure win_rate: first, second\n.*RUN/STAGE"):
        stages.gate(gate_after("first", "second", policy=str(policy)), tmp_path / "gate", context)
    for name, verdict in (("first", "PASS"), ("second", "FAIL")):
        stage = gate_after("first", "second", policy=str(policy), stages=[name])
        assert stages.gate(stage, tmp_path / "gate", context).facts["verdict"] == verdict
    with pytest.raises(OptionError, match=r"'frist'\n.*'first'"):
        gate_after("first", "second", stages=["frist"])
    assert run(["gate", str(tmp_path / "first"), "--policy", str(policy)]) == 0


@pytest.mark.parametrize("note", ["rows_seen_in_training_kept", "task_items_seen_in_training"])
def test_rows_that_trained_the_model_decide_nothing(note: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gate.yaml").write_text(WIN)
    for won in (300, 100):
        place = write_run(tmp_path / str(won), [wins(won, 400 - won)], **{note: 12})
        assert run(["gate", str(place), "--policy", str(tmp_path / "gate.yaml")]) == 3
        found = json.loads((place / "gate.json").read_text())["rules"][0]
        assert (found["status"], found["needed"], found["estimate"]["value"]) == ("INCONCLUSIVE", None, won / 400)
        assert "12 of the rows trained the models (seen=keep)" in capsys.readouterr().out


def test_a_model_of_unknown_training_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gate.yaml").write_text(WIN)
    place = write_run(tmp_path / "run", [wins(300, 100)], training_unknown="dpo: no record of what trained it")
    assert run(["gate", str(place), "--policy", str(tmp_path / "gate.yaml")]) == 0
    said = "evaluate: whether its rows trained the models is not known: dpo: no record of what trained it"
    assert f"note: {said}" in capsys.readouterr().out
    assert said in json.loads((place / "gate.json").read_text())["notes"]


def test_a_judge_that_trained_the_model_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gate.yaml").write_text(WIN)
    place = write_run(tmp_path / "run", [wins(300, 100)], judge_is_the_trained_reward=True)
    assert run(["gate", str(place), "--policy", str(tmp_path / "gate.yaml")]) == 0
    assert "note: evaluate: its judge is the reward model that a model was trained to please" in capsys.readouterr().out


def with_model(folder: Path, recorded: str | None = None) -> Path:
    """A run whose evaluation opened `model` in the run's folder and a model of the hub."""
    write_run(folder, [wins(300, 100)])
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    models = {recorded or "../model": digest_path(folder / "model"), "org/name": "hub:org/name"}
    (folder / "evaluate" / "record.json").write_text(json.dumps({"models": models}))
    return folder


@pytest.mark.parametrize("recorded", [None, "run/model"])  # the second as older records have it, relative to where it was run
def test_a_model_that_changed_is_refused_from_any_folder(recorded: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, policy = with_model(tmp_path / "run", recorded), gates.parse_policy(WIN, "gate.yaml")
    monkeypatch.chdir(tmp_path)
    if recorded is None:
        place = place.rename(tmp_path / "moved")
        monkeypatch.chdir(place / "evaluate")
    assert gates.decide(place, policy).notes == ()
    (place / "model" / "config.json").write_text("{ }")
    with pytest.raises(DataError, match="has changed since it was evaluated"):
        gates.decide(place, policy)


def test_a_model_that_is_gone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = with_model(tmp_path / "run")
    (tmp_path / "gate.yaml").write_text(WIN)
    (place / "model").rename(place / "elsewhere")
    assert run(["gate", str(place), "--policy", str(tmp_path / "gate.yaml")]) == 0
    assert "note: evaluate: the model ../model is not where it was" in capsys.readouterr().out
    assert "../model is not where it was" in json.loads((place / "gate.json").read_text())["notes"][0]
    (place / "evaluate" / "record.json").unlink()
    assert "no record of the models it opened" in gates.decide(place, gates.parse_policy(WIN, "gate.yaml")).notes[0]


def test_weights_end_a_verdict_where_they_are_asked_for_and_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place, verdict = with_model(tmp_path / "run"), tmp_path / "run" / "gate.json"
    gates.decide(place, gates.parse_policy(WIN, "gate.yaml"), write=verdict)
    assert run(["gate", str(place), "--check"]) == 0
    assert capsys.readouterr().out.endswith("still holds\n")
    (place / "model" / "config.json").write_text("{ }")
    assert (gates.changed(verdict), gates.changed(verdict, weights=True)) == ([], ["model"])
    assert run(["gate", str(place), "--check"]) == 1
    (place / "model").rename(tmp_path / "elsewhere")
    assert run(["gate", str(place), "--check"]) == 0
    assert "still holds, as far as can be told without model" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("root", "stages_of", "code"),
    [(None, "FP", 1), (None, "IF", 1), (None, "IP", 3), ("P", "PF", 1), ("P", "IP", 3), ("F", "PP", 1), ("P", "PP", 0)],
)
def test_the_worst_of_several_verdicts_is_the_exit_code(root: str | None, stages_of: str, code: int, tmp_path: Path) -> None:
    won = {"P": 300, "I": 205, "F": 100}
    policy = gates.parse_policy(WIN, "gate.yaml")
    for name, verdict in (("a", stages_of[0]), ("b", stages_of[1]), ("root", root)):
        if verdict is not None:
            write_run(tmp_path, [wins(won[verdict], 400 - won[verdict])], stage=name)
            (tmp_path / f"gate_{name}").mkdir()
            place = tmp_path / "gate.json" if name == "root" else tmp_path / f"gate_{name}" / "gate.json"
            gates.decide(tmp_path, policy, names=[name], write=place)
    assert run(["gate", str(tmp_path), "--check"]) == code


def simulated(rate: float, runs: int, n: int = 400) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([decided([wins(won, n - won)], BETTER).verdict == "PASS" for won in rng.binomial(n, rate, size=runs).tolist()]))


def test_equal_policies_rarely_pass_and_better_ones_do() -> None:
    assert simulated(0.5, 500) <= 0.05
    assert simulated(0.6, 200) >= 0.9
