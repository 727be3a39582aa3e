"""What a call takes beyond its output stays below a quarter of its tokens, whatever their number."""

from __future__ import annotations

import ctypes
import time

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.inputs.videos import preset_video
from benchmarks.measured import memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("frames", "tokens_per_frame"), [(32, 196), (64, 169)])
def test_the_eager_backend(frames: int, tokens_per_frame: int, dtype: torch.dtype) -> None:
    video = preset_video("few cuts", frames, tokens_per_frame, 3584, seed=0, dtype=dtype)
    assert 0.01 < memory.eager_share(*video) < 0.25


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("frames", memory.FRAMES)
@pytest.mark.parametrize("tokens_per_frame", [169, 196])
def test_the_triton_backend(frames: int, tokens_per_frame: int, dtype: torch.dtype) -> None:
    assert memory.scratch_share(frames, tokens_per_frame, 3584, dtype) < 0.25


def test_a_copy_of_the_tokens_is_seen() -> None:
    tokens = torch.rand(1 << 20)
    assert tokens.nbytes <= memory.peak_bytes(lambda: tokens.clone()) < 1.01 * tokens.nbytes


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_a_copy_of_the_tokens_is_sampled() -> None:
    tokens = torch.rand(1 << 24)

    def run() -> None:
        copied = tokens.clone()
        time.sleep(0.5)
        del copied

    # The rest of the process allocates and frees as well.
    assert 0.9 < memory.sampled_peak_bytes(run) / tokens.nbytes < 1.1
