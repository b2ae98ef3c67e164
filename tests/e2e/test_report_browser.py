"""The report in a real browser: filters show what they say, nothing overflows on a phone, and axe finds no serious fault.

The page itself may run no script, so a copy without that rule stands in a frame of the wanted width, and the page around it asks.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from prefopt.pipeline.gate import changed
from prefopt.report import build
from tests.run_folders import HOSTILE, write_run

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = write_run(tmp_path_factory.mktemp("runs") / "quickstart", answer=f"{HOSTILE} {'long' * 120}")
    return build(run, changed=changed).read_text(encoding="utf-8")


def asked(page: str, question: str, tmp_path: Path, *, width: int = 390, scripts: str = "") -> Any:
    """What JavaScript says of the page in a frame of `width`; `doc` and `win` are the frame's, the last expression is awaited."""
    copy, policies = POLICY.subn("", page)
    assert policies == 1
    outer = f"""<!DOCTYPE html><body><iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(copy)}"></iframe>
<script>{scripts}</script><script>
const frame = document.querySelector("iframe");
frame.onload = async () => {{
  const win = frame.contentWindow, doc = frame.contentDocument;
  let said;
  try {{ said = await (async () => {{ {question} }})(); }} catch (error) {{ said = "error: " + error; }}
  const out = document.createElement("pre"); out.id = "said"; out.textContent = JSON.stringify(said);
  frame.remove(); document.body.append(out);
}};
</script></body>"""
    path = tmp_path / "outer.html"
    path.write_text(outer, encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom", path.as_uri()]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("width", [390, 1100])
def test_nothing_is_wider_than_the_page(page: str, width: int, tmp_path: Path) -> None:
    question = """
    for (const details of doc.querySelectorAll("details")) details.open = true;
    const wide = [...doc.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > win.innerWidth + 1);
    const out = wide.filter(e => !e.closest(".scroll, svg")).map(e => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40));
    return {width: win.innerWidth, page: doc.documentElement.scrollWidth, out: out.slice(0, 5)};
    """
    found = asked(page, question, tmp_path, width=width)
    assert found["width"] == width
    assert found["page"] <= width
    assert found["out"] == []


def test_filters_show_what_they_say(page: str, tmp_path: Path) -> None:
    question = """
    const shown = () => [...doc.querySelectorAll(".sample")].filter(e => e.getClientRects().length);
    const pick = text => [...doc.querySelectorAll(".filter label")].find(e => e.textContent === text).click();
    const count = () => ({all: shown().length, parts: [...new Set(shown().map(e => e.querySelector(".tag").textContent))],
      tones: [...new Set(shown().map(e => ["worse", "better", "same"].find(tone => e.classList.contains(tone))))]});
    const found = {start: count()};
    pick("harmful"); found.harmful = count();
    pick("sft wins"); found.both = count();
    pick("all"); found.worse = count();
    pick("whoever won"); found.end = count();
    found.labels = [...doc.querySelectorAll(".filter label")].every(e => e.getClientRects().length);
    return found;
    """
    found = asked(page, question, tmp_path)
    assert found["harmful"]["parts"] == ["harmful"]
    assert len(found["harmful"]["tones"]) > 1
    assert found["both"]["parts"] == ["harmful"]
    assert found["both"]["tones"] == found["worse"]["tones"] == ["worse"]
    assert 0 < found["both"]["all"] < found["harmful"]["all"]
    assert len(found["worse"]["parts"]) > 1
    assert found["end"] == found["start"]
    assert found["labels"]


def test_what_a_model_said_is_never_run(page: str, tmp_path: Path) -> None:
    question = 'return [doc.scripts.length, doc.images.length, doc.body.innerText.includes("<script>")];'
    assert asked(page, question, tmp_path) == [0, 0, True]


def test_axe_finds_no_serious_fault(page: str, tmp_path: Path) -> None:
    npm = shutil.which("npm")
    root = subprocess.run([npm, "root", "-g"], capture_output=True, text=True, check=False).stdout.strip() if npm else ""
    axe = Path(root) / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core is not installed (npm install -g axe-core)")
    question = """
    const script = doc.createElement("script"); script.textContent = axeSource; doc.head.append(script);
    for (const details of doc.querySelectorAll("details")) details.open = true;
    const found = await win.axe.run(doc, {resultTypes: ["violations"]});
    return found.violations.filter(v => ["serious", "critical"].includes(v.impact))
      .map(v => v.id + ": " + v.help + " | " + v.nodes.slice(0, 3).map(n => n.html.slice(0, 160)).join(" | "));
    """
    source = json.dumps(axe.read_text(encoding="utf-8")).replace("</", "<\\/")
    assert asked(page, question, tmp_path, width=1100, scripts=f"const axeSource = {source};") == []
