"""A plug-in for vLLM: `--video-pruning-rate R --video-pruning-method fastvid` (docs/serving.md).

`register` is the entry point that vLLM calls in every process; this module by itself imports neither torch nor vLLM.

`settings`, `digits`, `placement` and `towers` know no vLLM; `startup` checks and prepares its configuration, `method`
is what is changed in vLLM, `processing` counts placeholders, `model` is what the models share; a module each for these.
"""

from __future__ import annotations

import logging

__all__ = ["register"]

logger = logging.getLogger(__name__)


def register() -> None:
    """Make the method and its models known to vLLM; calling it again changes nothing.

    With a version of vLLM that was neither tested nor read, it says so and changes nothing: vLLM serves without the
    method, and refuses it by name.
    """
    from vllm.version import __version__ as version

    from fastvid_kernels.vllm.settings import SUPPORTED, is_supported

    if not is_supported(version):
        logger.warning(
            "fastvid_kernels knows vLLM %s, and this is %s: --video-pruning-method fastvid is not there",
            " and ".join(SUPPORTED),
            version,
        )
        return
    from fastvid_kernels.vllm.method import add_method

    add_method()
