"""The command line without models: help, exit codes, and messages of at most three lines."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import prefopt
from prefopt import cli
from prefopt.errors import DataError, Refused
from prefopt.losses.methods import METHODS

COMMANDS = [["quickstart"], ["run"], ["train"], ["generate"], ["score"], ["methods"], ["doctor"], ["report"], ["verify"], ["data", "check"]]
Captured = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[2]


def said(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command run in this process."""
    code = cli.run(list(arguments))
    out, err = capsys.readouterr()
    assert len(err.splitlines()) <= 3
    assert "Traceback" not in err
    return code, out, err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(capsys: Captured, command: list[str]) -> None:
    code, out, _ = said(capsys, *command, "--help")
    assert code == 0
    assert f"Example: prefopt {' '.join(command)}" in " ".join(out.split())


def test_help_lists_every_command_in_full(capsys: Captured) -> None:
    code, out, _ = said(capsys, "--help")
    assert code == 0
    for command in COMMANDS:
        assert f"\n  {command[0]} " in out
    assert "...\n" not in out.split("Commands:")[1]
    assert said(capsys)[:2] == (0, out)


def test_version(capsys: Captured) -> None:
    assert said(capsys, "--version") == (0, f"{prefopt.__version__}\n", "")


def test_help_loads_nothing_heavy_and_takes_little_time() -> None:
    heavy = "torch transformers datasets rich numpy pydantic"
    code = (
        "import sys, time; start = time.process_time(); from prefopt.cli import run; code = run(['--help']);"
        f"print(code, sorted(set('{heavy}'.split()) & set(sys.modules)), time.process_time() - start)"
    )
    last = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()[-1] for _ in range(3)
    ]
    assert all(line.startswith("0 []") for line in last)
    assert min(float(line.split()[-1]) for line in last) <= 0.3


MISTAKES = {
    "no such command": (["trian"], ["No such command 'trian'"]),
    "no such flag": (["train", "dpo", "--beta", "0.1"], ["--beta", "options are key=value", "prefopt train --help"]),
    "a missing flag": (["train", "dpo", "--model", "m"], ["--data", "prefopt train --help"]),
    "no such method": (["train", "dop", "--model", "m", "--data", "d", "--out", "o"], ["'dop' is no method", "did you mean"]),
    "a stage that is no method": (["train", "sample", "--model", "m", "--data", "d", "--out", "o"], ["'sample' is no method"]),
    "an unknown option": (["train", "dpo", "--model", "m", "--data", "d", "--out", "o", "trian.steps=1"], ["'train.steps'"]),
    "an option of another method": (
        ["train", "sft", "--model", "m", "--data", "d", "--out", "o", "beta=1"],
        ["beta: not an option of sft"],
    ),
    "an option without value": (
        ["train", "dpo", "--model", "m", "--data", "d", "--out", "o", "beta"],
        ["expected key=value, found 'beta'"],
    ),
    "an option of no command": (["generate", "--model", "m", "--data", "d", "--out", "o", "train.steps=1"], ["not read by sample"]),
    "a recipe that is not there": (["run", "none.yaml"], ["none.yaml: cannot be read"]),
    "a method page that is not there": (["methods", "dpoo"], ["'dpoo' is no method", "did you mean 'dpo'?"]),
    "data that are not there": (["data", "check", "none.jsonl"], ["none.jsonl"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_exit_code_2_and_leaves_nothing_behind(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, parts = MISTAKES[name]
    code, out, err = said(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("prefopt: ")
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


def test_exit_codes(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def command_that(error: BaseException) -> None:
        def fail(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(cli, "app", fail)

    command_that(Refused("no", where="here", fix="mend it"))
    assert said(capsys, "x") == (1, "", "prefopt: here: no\nmend it\n")
    command_that(DataError("1\n2\n3\n4"))
    assert said(capsys, "x") == (2, "", "prefopt: 1\n2\n3\n")
    command_that(KeyboardInterrupt())
    assert said(capsys, "x")[0] == 130


def test_a_fault_is_one_line_and_keeps_its_traceback(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(cli, "app", fail)
    code, out, err = said(capsys, "x")
    assert (code, out) == (4, "")
    assert err.startswith("prefopt: a fault: ZeroDivisionError: a b")
    path = Path(err.rsplit(" in ", 1)[1].strip().rstrip(")"))
    assert "Traceback" in path.read_text()
    path.unlink()


def test_methods_lists_every_row_and_has_a_page_for_each(capsys: Captured) -> None:
    code, out, _ = said(capsys, "methods")
    assert code == 0
    for name, method in METHODS.items():
        assert f"\n{name} " in out
        code, page, _ = said(capsys, "methods", name)
        assert code == 0
        assert method.paper in page
        for option in method.options:
            assert f"{option}=" in page


def test_data_check_says_yes_or_no(capsys: Captured, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    bad.write_text(good.read_text() + json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n" + "{half\n")
    code, out, _ = said(capsys, "data", "check", str(good))
    assert code == 0
    assert "1 pairs" in out
    code, out, err = said(capsys, "data", "check", str(bad))
    assert code == 1
    assert "bad.jsonl:2" in out
    assert "bad.jsonl:3" in out
    assert "cannot be trained on" in err


def test_doctor_names_what_this_machine_has(capsys: Captured) -> None:
    code, out, err = said(capsys, "doctor")
    assert (code, err) == (0, "")
    for word in ("torch", "cores", "GB", "bf16", "GPU", "wandb", "forward pass"):
        assert word in out
    assert not any(line.startswith("no ") for line in out.splitlines())


def test_doctor_knows_every_optional_package_and_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an extra of pyproject.toml installs for users, with the way to it."""
    from prefopt.cli import doctor
    from prefopt.rollout.sandbox.run import require

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {re.split("[><=]", line)[0].replace("-", "_"): name for name, lines in extras.items() if name != "dev" for line in lines}
    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None)))
    monkeypatch.setattr("shutil.which", lambda name: None)
    require.cache_clear()
    lines = {finding.name: finding for finding in doctor.findings()}
    for package, extra in packages.items():
        assert lines[package].state == "-"
        assert f"pip install 'prefopt[{extra}]'" in lines[package].text
    assert lines["sandbox"].state == "-"
    assert "install bubblewrap" in lines["sandbox"].text


def test_doctor_says_no_when_training_cannot_work(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefopt.cli import doctor

    def broken() -> str:
        raise RuntimeError("illegal instruction\nmore")

    monkeypatch.setattr(doctor, "_tiny_forward", broken)
    code, out, _ = said(capsys, "doctor")
    assert code == 1
    assert "no  forward pass  RuntimeError: illegal instruction" in out


def test_a_reader_that_leaves_is_no_fault() -> None:
    """`prefopt methods | head -1`."""
    command = f"{sys.executable} -m prefopt.cli methods | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert done.returncode in (0, 120)
    assert "Traceback" not in done.stderr
