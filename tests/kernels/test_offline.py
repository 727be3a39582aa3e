"""Every kernel of a call, compiled for each target as production launches it: no spill, no lack of shared memory."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton

from benchmarks.compiled.offline import Launch, compile_for, record_call
from benchmarks.compiled.situations import CORE, SITUATIONS, Situation
from benchmarks.compiled.targets import TARGETS
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.limits import LEAST_SHARED_BYTES

# By version of Triton; then by kernel, dtype and target: bytes. The version that tests are pinned to spills nothing.
SPILLS_BY_TRITON: dict[str, dict[tuple[str, str, str], int]] = {
    "3.6": {("emit_kernel", "bf16", "sm_80"): 8, ("emit_kernel", "fp16", "sm_80"): 8},
    "3.8": {
        ("emit_kernel", "fp32", "sm_89"): 8,
        ("plan_kernel", "bf16", "sm_90"): 144,
        ("plan_kernel", "bf16", "sm_100"): 160,
    },
}
KNOWN_SPILLS = SPILLS_BY_TRITON.get(".".join(triton.__version__.split(".")[:2]), {})
MATRIX_KERNELS = ("assign_kernel", "emit_kernel", "gram_kernel")
EVERY = [
    *CORE,
    *(pytest.param(one, marks=pytest.mark.slow) for one in (*SITUATIONS, Situation(1, 196)) if one not in CORE),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("situation", EVERY, ids=str)
def test_kernels_fit_the_target(situation: Situation, target: str) -> None:
    launches = situation.launches(target)
    found = {launch.name: compile_for(launch, target).resources for launch in launches}
    assert len(found) == 9, "eight of a call, and the last of its backward pass"
    known = {name: KNOWN_SPILLS.get((name, situation.dtype, target), 0) for name in found}
    spilling = {name: one.spilled_bytes for name, one in found.items() if one.spilled_bytes > known[name]}
    assert not spilling, "bytes of stack"
    limit = TARGETS[target].block_shared_bytes
    too_large = {name: one.shared_bytes for name, one in found.items() if one.shared_bytes > limit}
    assert not too_large, "bytes of shared memory"


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize(("frames", "tokens_per_frame"), [(32, 196), (64, 169)])
def test_half_precision_products_use_the_tensor_cores_of_hopper(frames: int, tokens_per_frame: int, dtype: str) -> None:
    launches = Situation(frames, tokens_per_frame, dtype=dtype).launches("sm_90")
    code = {one.name: compile_for(one, "sm_90").code["ptx"] for one in launches if one.name in MATRIX_KERNELS}
    assert sorted(code) == sorted(MATRIX_KERNELS)
    assert [name for name, ptx in code.items() if "wgmma" not in ptx] == []


def test_float32_products_are_not_rounded_to_tf32() -> None:
    """`tf32x3` makes a product of three TF32 ones, which recover the bits that a single one would lose."""
    launches = Situation(32, 196, dtype="fp32").launches("sm_90")
    for launch in launches:
        if launch.name in MATRIX_KERNELS:
            assert "inputPrecision = tf32x3" in compile_for(launch, "sm_90").code["ttir"]


def test_a_spill_is_reported() -> None:
    """The other tests rely on that report. Here a block holds a whole frame's matrix, too large for its registers."""
    (gram,) = (one for one in Situation(32, 196).launches("sm_90") if one.name == "gram_kernel")
    oversized = Launch(gram.kernel, gram.grid, {**gram.arguments, "BLOCK": 256})
    resources = compile_for(oversized, "sm_90").resources
    assert resources.spilled_bytes > 0


@pytest.mark.parametrize(
    ("target", "stages"), [("sm_89", (3, 3, 3)), ("sm_80", (5, 4, 3)), ("sm_90", (5, 4, 3)), ("gfx942", (2, 2, 2))]
)
def test_more_tiles_are_in_flight_where_shared_memory_holds_them(target: str, stages: tuple[int, ...]) -> None:
    launches = {launch.name: launch for launch in CORE[0].launches(target)}
    products = [launches[f"{stage}_kernel"].arguments["num_stages"] for stage in ("gram", "assign", "emit")]
    assert tuple(products) == stages


def test_elsewhere_than_on_a_gpu_shared_memory_is_the_least() -> None:
    assert pipeline.shared_bytes_of(torch.device("meta")) == LEAST_SHARED_BYTES
    assert min(one.shared_bytes for one in TARGETS.values() if one.backend == "cuda") == LEAST_SHARED_BYTES


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_frames_that_lie_apart_spill_nothing_either(target: str, dtype: torch.dtype) -> None:
    """`emit` finds their tokens in another way."""
    tokens = torch.empty(32, 197, 3584, dtype=dtype, device="meta")[:, :196]
    (emit,) = (one for one in record_call(target, tokens) if one.name == "emit_kernel")
    assert not emit.arguments["FRAMES_FOLLOW"]
    assert compile_for(emit, target).resources.spilled_bytes == 0
