"""What a backward pass asks of the device: launches, scratch, and how many kernels Triton compiles for it."""

from __future__ import annotations

import os
import re

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

from benchmarks.compiled.offline import Launch, compile_for, recorded_launches, specialise
from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline
from tests.kernels.test_audit import DeviceWork

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def backward(frames: int, n: int, dim: int = 3584, dtype: torch.dtype = torch.bfloat16) -> tuple[list[Launch], Tensor]:
    """Launches and gradient of a backward pass at a retention ratio of 0.1, on meta tensors."""
    config = PruneConfig()
    tokens = torch.empty(frames, n, dim, dtype=dtype, device="meta")
    grad = torch.empty(frames * config.kept_per_frame(n), dim, dtype=dtype, device="meta")
    attn = torch.empty(frames, n, device="meta")
    with recorded_launches() as launches, DeviceWork() as work:
        gradient = pipeline.prune_backward(grad, tokens, attn, None, None, config)
    assert work.operators == [], "it starts nothing but launches, and reads nothing on the host"
    return launches, gradient


@pytest.mark.parametrize(("frames", "n"), [(1, 196), (32, 196), (64, 169), (1024, 256), (8192, 196)])
def test_a_backward_pass_is_eight_launches_and_nothing_else(frames: int, n: int) -> None:
    launches, gradient = backward(frames, n)
    assert len(launches) == len({launch.name for launch in launches}) == 8
    assert launches[-1].name == "gradient_kernel"
    assert gradient.shape == (frames, n, 3584)


def scratch_share(frames: int, n: int, dim: int, dtype: torch.dtype, **hyperparameters: float) -> float:
    """Memory that a backward pass takes beside its gradient, as a share of the tokens'."""
    config = PruneConfig(**hyperparameters)
    tokens = torch.empty(frames, n, dim, dtype=dtype, device="meta")
    grad = torch.empty(frames * config.kept_per_frame(n), dim, dtype=dtype, device="meta")
    call = pipeline.prepare(tokens, tokens[:, :, 0], None, None, config, grad=grad)
    return (call.workspace.size + call.indices.nbytes) / tokens.nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("frames", "n", "dim"),
    [(8, 196, 896), (32, 196, 3584), (64, 169, 3584), (8, 1024, 3584), (256, 576, 4096), (2048, 196, 3584)],
)
def test_beside_the_gradient_it_takes_less_than_a_quarter_of_the_tokens(
    frames: int, n: int, dim: int, dtype: torch.dtype
) -> None:
    assert scratch_share(frames, n, dim, dtype) < 0.25
    assert scratch_share(frames, n, dim, dtype, retention_ratio=0.5, dtm_ratio=1.0) < 0.25


@pytest.mark.parametrize("frames", [4096, 8192, 2**17, 2**20])
def test_however_many_frames_it_is_bounded_by_the_tokens(frames: int) -> None:
    """In half precision the anchors that tokens join may take about as much memory as the lower halves of sums."""
    assert scratch_share(frames, 196, 3584, torch.float32) < 0.25
    assert scratch_share(frames, 196, 3584, torch.bfloat16) < 1.2
    assert scratch_share(frames, 196, 3584, torch.bfloat16) > 0.25, "the bound in the docstring is out of date"


def test_frames_of_all_sizes_share_one_kernel() -> None:
    kinds = set()
    for frames, n in ((1, 11), (2, 16), (7, 100), (32, 196), (64, 169), (1024, 256), (3, 1024)):
        launches, _ = backward(frames, n)
        kinds |= {repr(specialise(one, "sm_90")) for one in launches if one.name == "gradient_kernel"}
    assert len(kinds) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_it_compiles_without_a_fused_product_or_an_approximation(target: str, dtype: torch.dtype) -> None:
    launches, _ = backward(32, 196, dtype=dtype)
    assert launches[-1].arguments["enable_fp_fusion"] is False
    code = compile_for(launches[-1], target).code
    if "ptx" in code:
        assert set(re.findall(r"\b\w+\.(?:approx|full)\S*|\S+\.ftz\S*|\bfma\.\S+|\batom\S+", code["ptx"])) == set()
