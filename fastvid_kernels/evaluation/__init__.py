"""Models that prune their videos, for lmms-eval: `--model_args ...,method=visionzip` (docs/evaluation.md).

`manifests` is the entry point that lmms-eval calls when it starts; this module by itself imports neither torch nor
lmms-eval. `arguments`, `counts`, `failure`, `files` and `naming` do not depend on a model. `pruned` has the base
classes of all models, and each model has a module whose classes subclass lmms-eval's own.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["CLASSES", "SUPPORTED", "manifests"]

logger = logging.getLogger(__name__)

SUPPORTED = "0.7.3"
"""The version of lmms-eval whose classes are subclassed here."""
CLASSES = {
    "llava_hf": ("llava_hf.LlavaHf", "llava_hf.LlavaHfChat"),
    "llava_onevision": ("llava_onevision.LlavaOneVision", None),
    "llava_vid": ("llava_vid.LlavaVid", None),
    "qwen2_vl": ("qwen2_vl.Qwen2VL", None),
    "qwen2_5_vl": ("qwen2_5_vl.Qwen25VL", "qwen2_5_vl.Qwen25VLChat"),
    "qwen3_vl": ("qwen3_vl.Qwen3VL", "qwen3_vl.Qwen3VLChat"),
    "qwen3_5": ("qwen3_5.Qwen35", "qwen3_5.Qwen35Chat"),
}
"""For each model, our classes for tasks with `doc_to_text` and with `doc_to_messages`.

The keys are lmms-eval's own names of the models, because tasks choose their prompts by these names.
"""


def manifests() -> list[ModelManifest]:
    """The classes that lmms-eval loads for the names in `CLASSES`, instead of its own.

    With another version of lmms-eval, log a warning and return an empty list, because only `SUPPORTED` was tested.
    lmms-eval then refuses our arguments.
    """
    from importlib.metadata import version

    from lmms_eval.models.registry_v2 import ModelManifest

    installed = version("lmms-eval")
    if installed != SUPPORTED:
        logger.warning("fastvid_kernels supports lmms-eval %s, got %s: videos are not pruned", SUPPORTED, installed)
        return []
    return [
        ModelManifest(model, _path(simple), None if chat is None else _path(chat))
        for model, (simple, chat) in CLASSES.items()
    ]


def _path(name: str) -> str:
    return f"{__name__}.{name}"
