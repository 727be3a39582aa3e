"""Small calls of all kinds to the kernels, for tools that check each memory access.

compute-sanitizer --tool memcheck python -m benchmarks.gpu.small_calls
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

import fastvid_kernels

# (frames of each video, tokens a frame, channels)
_SIZES = (((5,), 20, 24), ((1, 4, 2), 33, 40), ((3,), 70, 130), ((2, 1), 300, 16))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all; other tests check their results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.small_calls")
    parser.add_argument("--device", default="cuda")
    device = torch.device(parser.parse_args(arguments).device)
    backend = "triton" if device.type == "cuda" else "eager"
    calls = 0
    for frames, tokens_per_frame, channels in _SIZES:
        for dtype in _DTYPES:
            generator = torch.Generator().manual_seed(calls)
            tokens = torch.randn(sum(frames), tokens_per_frame, channels, generator=generator)
            tokens[0, :3] = tokens[0, 0]  # duplicates
            tokens[-1, -1, 0] = torch.nan
            attn = torch.rand(sum(frames), tokens_per_frame, generator=generator)
            cu_frames = torch.tensor([0, *frames], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            for features in (None, torch.randn(sum(frames), 20, generator=generator)):
                moved = (None if one is None else one.to(device) for one in (attn, features, cu_frames))
                fastvid_kernels.prune(
                    # Without anchors too: some arrays of the kernels are then empty.
                    tokens.to(device, dtype),
                    *moved,
                    retention_ratio=0.3,
                    min_segments=2,
                    dtm_ratio=0.4 * (calls % 3 > 0),
                    backend=backend,
                )
                calls += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    print(f"{calls} calls on {device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
