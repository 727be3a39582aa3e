"""The lane of lmms-eval: in an environment of its own (make test-lmms-eval), offline, on the CPU."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("lmms_eval") is None:
    # `make test-lmms-eval` runs these tests in an environment that has lmms-eval.
    collect_ignore_glob = ["test_*.py"]

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "FORCE_QWENVL_VIDEO_READER": "decord"}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: Any) -> list[Path]:
    from tests.evaluation.lane import tasks

    return tasks.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: Any, clips: list[Path]) -> Path:
    """The task about the clips."""
    from tests.evaluation.lane import tasks

    return tasks.write(tmp_path_factory.mktemp("task"), clips)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: Any) -> dict[str, Any]:
    """Arguments for LLaVA-OneVision of transformers that are not about pruning."""
    from tests.evaluation.lane import checkpoints

    path = checkpoints.write_llava(tmp_path_factory.mktemp("llava"))
    return {"pretrained": path, "max_frames_num": 6}


@pytest.fixture(scope="session")
def siglip(tmp_path_factory: Any) -> Path:
    from tests.evaluation.lane import checkpoints

    return checkpoints.write_siglip(tmp_path_factory.mktemp("siglip"))
