"""Several processes that train together, started without a launcher: each is told its rank as torchrun would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def together(script: Path, *arguments: str, ranks: int = 2, command: list[str] | None = None) -> None:
    """Run a script as `ranks` gloo processes, or once under the launcher `command`; fail with what the failed one said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    own = [common] if command else [{**common, "WORLD_SIZE": str(ranks), "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(ranks)]
    started = [
        subprocess.Popen([*(command or [sys.executable]), str(script), *arguments], env=env, stderr=subprocess.PIPE, text=True)
        for env in own
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    for process, words in zip(started, said, strict=True):
        assert process.returncode == 0, words[-3000:]
