"""A plug-in for vLLM: `--video-pruning-rate R --video-pruning-method fastvid` (docs/serving.md).

`register` is the entry point that vLLM calls in every process; this module by itself imports neither torch nor vLLM.

`settings`, `digits`, `placement`, `towers` and `internvl_config` do not depend on vLLM. `startup` checks and prepares
vLLM's configuration, `method` makes the changes to vLLM, and `processing` counts placeholders. `model` has the base
classes of the models, each of which has a module of its own.
"""

from __future__ import annotations

import logging

__all__ = ["register"]

logger = logging.getLogger(__name__)


def register() -> None:
    """Make the method and its models known to vLLM; calling it again changes nothing.

    With a version of vLLM that is not supported, log a warning and change nothing: vLLM then serves without the method,
    and refuses its name.
    """
    from vllm.version import __version__ as version

    from fastvid_kernels.vllm.settings import SUPPORTED, is_supported

    if not is_supported(version):
        logger.warning(
            "fastvid_kernels supports vLLM %s, got %s: --video-pruning-method fastvid is not available",
            " and ".join(SUPPORTED),
            version,
        )
        return
    from fastvid_kernels.vllm.method import add_method

    add_method()
