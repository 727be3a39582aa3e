"""Add the pruning settings to the names of output folders, which lmms-eval takes from the checkpoint alone.

The caches of answers need no such change: their keys hold all of `--model_args`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from fastvid_kernels.evaluation.arguments import split

_SEPARATORS = re.compile(r"[^\w.+=-]+")


def label(ours: Mapping[str, Any]) -> str:
    """The settings as part of a folder's name: "method=visionzip,retention_ratio=0.1"."""
    return ",".join(f"{name}={_SEPARATORS.sub('-', str(ours[name]))}" for name in sorted(ours))


class FolderName:
    """Names a run by its `--model_args` as lmms-eval does, and appends our settings.

    Args:
        original: lmms-eval's own function.
    """

    def __init__(self, original: Callable[[str], str]) -> None:
        self._original = original

    def __call__(self, model_args: str) -> str:
        """The name of a run."""
        from lmms_eval.utils import simple_parse_args_string

        name = self._original(model_args)
        ours, _ = split(simple_parse_args_string(model_args)) if isinstance(model_args, str) else ({}, {})
        return f"{name},{label(ours)}" if ours else name


def name_folders_by_settings() -> None:
    """Make lmms-eval add our settings to the names of output folders; calling it again changes nothing."""
    from lmms_eval.loggers.evaluation_tracker import GeneralConfigTracker

    original = GeneralConfigTracker._get_model_name
    if not isinstance(original, FolderName):
        GeneralConfigTracker._get_model_name = FolderName(original)
