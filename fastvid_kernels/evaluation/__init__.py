"""Models that prune their videos, for lmms-eval: `--model_args ...,method=visionzip` (docs/evaluation.md).

`manifests` is the entry point that lmms-eval calls when it starts; this module by itself imports neither torch nor
lmms-eval. `arguments`, `counts`, `failure` and `naming` know no model; `pruned` is what all models share, and a module
each subclasses lmms-eval's own classes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["CLASSES", "SUPPORTED", "manifests"]

logger = logging.getLogger(__name__)

SUPPORTED = "0.7.3"
"""The version of lmms-eval whose classes these subclass."""
CLASSES = {
    "llava_hf": ("llava_hf.LlavaHf", "llava_hf.LlavaHfChat"),
    "llava_onevision": ("llava_onevision.LlavaOneVision", None),
    "llava_vid": ("llava_vid.LlavaVid", None),
    "qwen2_5_vl": ("qwen2_5_vl.Qwen25VL", "qwen2_5_vl.Qwen25VLChat"),
    "qwen3_vl": ("qwen3_vl.Qwen3VL", "qwen3_vl.Qwen3VLChat"),
}
"""By lmms-eval's name of a model, our classes for `doc_to_text` and for `doc_to_messages`.

The names are lmms-eval's own, because tasks choose their prompts by them.
"""


def manifests() -> list[ModelManifest]:
    """What lmms-eval shall load for the names in `CLASSES` instead of its own classes.

    With another version of lmms-eval, nothing: that was neither tested nor read. It says so, and lmms-eval then refuses
    the arguments that are ours.
    """
    from importlib.metadata import version

    from lmms_eval.models.registry_v2 import ModelManifest

    installed = version("lmms-eval")
    if installed != SUPPORTED:
        logger.warning("fastvid_kernels knows lmms-eval %s, and this is %s: it prunes nothing", SUPPORTED, installed)
        return []
    return [
        ModelManifest(model, _path(simple), None if chat is None else _path(chat))
        for model, (simple, chat) in CLASSES.items()
    ]


def _path(name: str) -> str:
    return f"{__name__}.{name}"
