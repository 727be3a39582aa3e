"""The lane of lmms-eval: in an environment of its own (make test-lmms-eval), offline, on the CPU."""

from __future__ import annotations

import os
from importlib.util import find_spec

if find_spec("lmms_eval") is None:
    # make test-lmms-eval has it, in an environment of its own.
    collect_ignore_glob = ["test_*.py"]

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "FORCE_QWENVL_VIDEO_READER": "decord"}
