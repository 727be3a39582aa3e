"""lmms-eval's command: what it exits with, and the folder it writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.adapters import tiny
from tests.evaluation.lane import tasks

ROOT = Path(__file__).parents[3]


def command(folder: Path, output: Path, arguments: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    words = {
        "--model": "llava_hf",
        "--model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
        "--tasks": tasks.NAME,
        "--include_path": folder,
        "--device": "cpu",
        "--batch_size": 1,
        "--output_path": output,
    }
    line = [sys.executable, "-m", "lmms_eval", *(str(word) for pair in words.items() for word in pair)]
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_results_have_counts_in_a_folder_of_the_settings(
    folder: Path, llava: dict[str, Any], siglip: Path, tmp_path: Path
) -> None:
    done = command(folder, tmp_path, {**llava, "siglip": siglip, "retention_ratio": 0.25, "method": "visionzip"})
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.rglob("*_results.json")
    assert "method=visionzip,retention_ratio=0.25,siglip=" in written.parent.name
    assert llava["pretrained"].name in written.parent.name
    speed = json.loads(written.read_text())["throughput"]
    assert speed["avg_fastvid_tokens_in"] == 3 * tiny.FRAMES * tiny.TOKENS_PER_FRAME
    assert speed["avg_fastvid_tokens_kept"] == 3 * tiny.KEPT


def test_it_exits_with_an_error_where_a_clip_cannot_be_read(
    llava: dict[str, Any], siglip: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no film")
    folder = tasks.write(tmp_path, [broken])
    done = command(folder, tmp_path / "out", {**llava, "siglip": siglip, "retention_ratio": 0.25})
    assert done.returncode == 1
    assert "RunFailed" in done.stderr
    assert not list(tmp_path.rglob("*_results.json"))
