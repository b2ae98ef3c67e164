"""Planted faults are noticed: a fixed sample of them here, all with `make mutate`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.mutation import run
from tests.mutation.faults import FAULTS, Fault

SAMPLE = (
    "losses/pairwise.py: chosen and rejected swapped",
    "losses/unpaired.py: kto: reference point not clamped",
    "losses/reward.py: margin added",
    "losses/numeric.py: reference differentiated",
    "losses/reduce.py: mean of the micro-batch",
    "losses/kl.py: k3 of the other divergence",
)
"""One fault each of six files whose tests take seconds."""


def test_there_are_enough_faults_and_nearly_all_apply() -> None:
    """`make mutate` fails on a fault that no longer applies; here a few may wait for that."""
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 150
    assert set(SAMPLE) <= set(names)
    lost = []
    for fault in FAULTS:
        source = (run.ROOT / "src" / "prefopt" / fault.file).read_text()
        mutated = fault.applied(source)
        if mutated in (None, source):
            lost.append(fault.name)
        else:
            compile(str(mutated), fault.file, "exec")
    assert len(lost) <= len(FAULTS) // 20, lost


def test_every_file_has_tests_of_its_own() -> None:
    for fault in FAULTS:
        for test in run.tests_of(fault.file):
            assert (run.ROOT / test.partition("::")[0]).exists(), f"{fault.file} is said to be tested by {test}"


def test_a_sample_is_noticed() -> None:
    """In a process of its own: a fork must not have loaded prefopt."""
    sample = [fault for fault in FAULTS if fault.name in SAMPLE]
    lines = ["from tests.mutation import run", "from tests.mutation.faults import FAULTS"]
    lines += [f"for result in run.mutants([fault for fault in FAULTS if fault.name in {SAMPLE!r}], 1):"]
    lines += ["    print(result.state, result.fault.name, result.noticed, sep=' | ')"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, cwd=run.ROOT, timeout=550, check=False)
    found = done.stdout.splitlines()
    assert len(found) == len(sample), done.stderr
    assert [line for line in found if not line.startswith("killed")] == []
    assert [line for line in found if "| tests/" not in line] == [], "noticed by a test, not by a crash of the command"


# --- the command --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "old", "applied"),
    [
        ("", "a = 1", "a = 2\na = 3\ndef f(): a = 3"),
        ("def f", "a = 3", "a = 1\na = 3\ndef f(): a = 2"),
        ("", "a = 3", None),
        ("def g", "a = 3", None),
        ("", "b", None),
    ],
)
def test_a_fault_changes_one_place(where: str, old: str, applied: str | None) -> None:
    assert Fault("x.py", "what", where, old, "a = 2").applied("a = 1\na = 3\ndef f(): a = 3") == applied


def test_the_page_counts_and_names_the_survivors() -> None:
    one, two, three = (Fault(file, what, "", "", "") for file, what in (("a.py", "sign"), ("a.py", "mask"), ("b.py", "beta")))
    results = [
        run.Result(one, "tests/unit/test_a.py::test", 1.0),
        run.Result(two, "tests/golden/test_golden.py::test", 1.0),
        run.Result(three, "", 1.0),
    ]
    text = run.page(results, [one, two, three, Fault("b.py", "sum", "", "", "")])
    assert "**2 of 3 planted faults are killed (66.7%)**" in text
    assert "1 of them first by the golden trajectories" in text
    assert "| `a.py` | 2 | 2 | 2 | 1 |" in text
    assert "| `b.py` | 2 | 1 | 0 | 0 |" in text
    assert "1 of 4 have not been tried" in text
    assert "- `b.py`, beta: no test sees it" in text
