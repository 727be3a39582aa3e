"""Faults planted in the PTX of the kernels, one kind at a time, are found by the emulator's checks.

Each is planted where it has an effect. A test that removes a barrier which another one follows at once, for instance,
would prove nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch

pytest.importorskip("triton")

from fastvid_kernels import PruneConfig
from fastvid_kernels.kernels import pipeline
from fastvid_kernels.kernels.pipeline import Call
from tests.eager.test_parity import video
from tests.emulator import Emulator
from tests.emulator.guarded import emulated_calls
from tests.emulator.lane import can_emulate
from tests.emulator.library import Options, Order, TensorCores
from tests.kernels.explained import overlapping, run_kernels
from tests.stages import assert_same_bits

pytestmark = pytest.mark.skipif(not can_emulate(), reason="needs g++, and kernels that are compiled")

Edit = Callable[[str], str]
HYPERPARAMETERS = {"retention_ratio": 0.4, "min_segments": 2, "tau": -1.5, "anchor_interval": 2}


def run(emulator: Emulator, dtype: torch.dtype = torch.bfloat16) -> Call:
    with emulated_calls(emulator):
        return run_kernels(*video(5, 66, 64, dtype, seed=3), **HYPERPARAMETERS)


def run_many_frames(emulator: Emulator, dtype: torch.dtype) -> Call:
    """A call with more frames than a warp has lanes, so that the warps of `plan`'s block exchange data."""
    with emulated_calls(emulator):
        return run_kernels(*video(140, 3, 8, dtype, seed=300), retention_ratio=0.4, min_segments=1, tau=0.9)


def run_many_channels(emulator: Emulator, dtype: torch.dtype) -> Call:
    """A call with more tiles of channels than are in flight at once."""
    with emulated_calls(emulator):
        return run_kernels(*video(2, 66, 512, dtype, seed=3), **HYPERPARAMETERS)


def planted(
    kernel: str,
    edit: Edit,
    arch: int = 80,
    dtype: torch.dtype = torch.bfloat16,
    run: Callable[[Emulator, torch.dtype], Call] = run,
) -> Counter[str]:
    """How often each error is found, by its first words, after an edit of one kernel's PTX, which must change it."""

    def edit_one(name: str, ptx: str) -> str:
        if name != f"{kernel}_kernel":
            return ptx
        edited = edit(ptx)
        assert edited != ptx, "nothing was planted"
        return edited

    emulator = Emulator(arch, edit=edit_one)
    run(emulator, dtype)
    found: Counter[str] = Counter()
    for finding, count in emulator.findings.items():
        found[finding.split(" | ")[0]] += count
    return found


def assert_found(found: Counter[str], words: str) -> None:
    assert any(words in finding for finding in found), f"{words!r} is not among {dict(found)}"


def replaced(pattern: str, replacement: str, count: int = 0) -> Edit:
    return lambda ptx: re.sub(pattern, replacement, ptx, count=count)


def guarded_by_half_a_warp(pattern: str) -> Edit:
    """Guards the first instruction that matches, so that only 16 lanes of each warp run it."""
    half = "mov.u32 %fault_lane, %laneid;\n\tsetp.lt.u32 %fault, %fault_lane, 16;\n\t@%fault "

    def edit(ptx: str) -> str:
        declared = ptx.replace("\n{\n", "\n{\n\t.reg .pred %fault;\n\t.reg .b32 %fault_lane;\n", 1)
        return re.sub(pattern, lambda match: half + match.group(), declared, count=1)

    return edit


@cache
def clean() -> Call:
    emulator = Emulator()
    call = run(emulator)
    assert emulator.findings == {}
    return call


def test_nothing_is_found_where_nothing_is_planted() -> None:
    clean()
    for arch, dtype in ((80, torch.float32), (90, torch.bfloat16), (90, torch.float32)):
        emulator = Emulator(arch)
        run(emulator, dtype)
        assert emulator.findings == {}
        assert len(emulator.runs) == 8


@pytest.mark.parametrize(
    "options",
    [
        Options(order=Order.SHUFFLED, quantum=40, seed=1),
        Options(order=Order.SHUFFLED, quantum=7, seed=2),
        Options(order=Order.REVERSED),
    ],
    ids=str,
)
def test_the_order_of_blocks_and_warps_does_not_matter(options: Options) -> None:
    emulator = Emulator(options=options)
    call = run(emulator)
    assert emulator.findings == {}
    assert torch.equal(call.indices, clean().indices)
    assert_same_bits(call.output, clean().output)


@pytest.mark.parametrize("kernel", ["plan", "gram", "density", "select", "assign", "emit"])
def test_missing_barriers(kernel: str) -> None:
    found = planted(kernel, replaced(r"bar\.sync\s+0;", ""))
    assert_found(found, "between warps in shared memory")


def test_a_missing_barrier_between_what_warps_exchange_in_global_memory() -> None:
    found = planted("plan", replaced(r"bar\.sync\s+0;", ""), run=run_many_frames)
    assert_found(found, "between warps in global memory")


def run_overlapping(emulator: Emulator, dtype: torch.dtype) -> Call:
    """A call whose launches may start before earlier ones have ended."""
    with overlapping():
        return run(emulator, dtype)


def test_launches_that_overlap() -> None:
    emulator = Emulator(90)
    call = run_overlapping(emulator, torch.bfloat16)
    assert emulator.findings == {}
    assert all("griddepcontrol.wait" in one.ptx for one in emulator.compiled.values())
    apart = run(Emulator(90))
    assert torch.equal(call.indices, apart.indices)
    assert_same_bits(call.output, apart.output)


def test_launches_of_a_backward_pass_that_overlap() -> None:
    inputs = video(5, 66, 64, torch.bfloat16, seed=3)
    config = PruneConfig(**HYPERPARAMETERS)
    grad = torch.ones(5 * config.kept_per_frame(66), 64, dtype=torch.bfloat16)
    emulators = Emulator(90), Emulator(90)
    with emulated_calls(emulators[0]):
        apart = pipeline.prune_backward(grad, *inputs, None, config)
    with overlapping(), emulated_calls(emulators[1]):
        together = pipeline.prune_backward(grad, *inputs, None, config)
    assert emulators[0].findings == emulators[1].findings == {}
    assert all("griddepcontrol.wait" in one.ptx for one in emulators[1].compiled.values())
    assert "gradient_kernel" in {one.name for one in emulators[1].compiled.values()}
    assert_same_bits(together, apart)


@pytest.mark.parametrize("kernel", ["frame", "plan", "gram", "density", "delta", "select", "assign", "emit"])
def test_memory_used_before_earlier_launches_are_waited_for(kernel: str) -> None:
    def late(ptx: str) -> str:
        without = re.sub(r"griddepcontrol\.wait\s*;", "", ptx)
        assert without != ptx
        return without.replace("\tret;", "\tgriddepcontrol.wait;\n\tret;")

    found = planted(kernel, late, arch=90, run=run_overlapping)
    assert_found(found, "before earlier launches are waited for")


def test_copies_that_are_not_waited_for() -> None:
    found = planted("gram", replaced(r"cp\.async\.wait_group\s+\d+;", "cp.async.wait_group 9;"))
    assert_found(found, "destination of a copy in flight")


def test_copies_that_belong_to_no_group() -> None:
    found = planted("gram", replaced(r"cp\.async\.commit_group\s*;", ""))
    assert_found(found, "copies never committed")
    assert_found(found, "destination of a copy in flight")


def test_products_that_are_not_waited_for() -> None:
    found = planted("gram", replaced(r"wgmma\.wait_group\.sync\.aligned\s+\d+;", ""), arch=90)
    assert_found(found, "undefined value stored to global memory")


def test_memory_that_changes_under_a_product() -> None:
    """Without these waits, the next tiles are copied over the memory that a product reads."""
    no_wait = replaced(r"wgmma\.wait_group\.sync\.aligned\s+[1-9];", "")
    found = planted("gram", no_wait, arch=90, run=run_many_channels)
    assert_found(found, "memory changed under a product in flight")


def test_a_store_to_shared_memory_moved_by_four_bytes() -> None:
    found = planted(
        "assign", replaced(r"(st\.shared(?:::cta)?\.v\d\.b\d+\s+\[\s*%r\d+)(?:\s*\+\s*\d+)?\s*\]", r"\1+4]")
    )
    assert_found(found, "misaligned access of 16 bytes")


def test_shared_memory_beyond_its_end() -> None:
    found = planted("emit", replaced(r"(ld\.shared\.\S+\s+[^\[]*\[%r\d+)(\+\d+)?\]", r"\1+1048576]"))
    assert_found(found, "shared memory out of bounds")


def test_a_load_beyond_its_array() -> None:
    found = planted("density", replaced(r"(ld\.global\.\S+ \{[^}]*\}, \[ %rd\d+ \+) 0 \]", r"\1 16777216 ]", 1))
    assert_found(found, "global memory out of bounds")


def test_stores_without_their_mask() -> None:
    found = planted("density", replaced(r"@%p\d+ (st\.global)", r"\1"))
    assert_found(found, "global memory out of bounds")


def test_an_output_that_is_not_written() -> None:
    found = planted("select", replaced(r"@%p\d+ st\.global\.b64[^;]*;", ""))
    assert_found(found, "indices not wholly written")


def test_scratch_that_nobody_wrote() -> None:
    """`delta` reads the density of tokens, which is uninitialised."""
    found = planted("density", replaced(r"(@%p\d+ )?st\.global\.b32[^;]*;", ""))
    assert any("undefined" in finding for finding in found), dict(found)


def test_a_register_that_nobody_wrote() -> None:
    found = planted("frame", replaced(r"mov\.u32\s+%r\d+, %tid\.x;", ""))
    assert any("undefined" in finding for finding in found), dict(found)


def test_atomics_made_plain() -> None:
    """The count of an anchor is loaded, increased and stored, instead of an atomic addition."""

    def edit(ptx: str) -> str:
        declared = ptx.replace("\n{\n", "\n{\n\t.reg .b32 %fault;\n", 1)
        # Triton 3.6 writes atom, with a result that is not used.
        atomic = r"(@%p\d+ )?(?:red|atom)\.global\.gpu\.relaxed\.add\.u32 (?:%r\d+, )?(\[[^\]]*\]), (%r\d+);"
        plain = r"\1ld.global.b32 %fault, \2;\n\tadd.s32 %fault, %fault, \3;\n\t\1st.global.b32 \2, %fault;"
        return re.sub(atomic, plain, declared)

    found = planted("assign", edit)
    assert_found(found, "between blocks in global memory")


def test_a_barrier_in_a_diverged_warp() -> None:
    assert_found(planted("select", guarded_by_half_a_warp(r"bar\.sync\s+0;")), "barrier in a diverged warp")


def test_a_shuffle_in_a_diverged_warp() -> None:
    found = planted("select", guarded_by_half_a_warp(r"shfl\.sync\S+\s"))
    assert_found(found, "collective operation in a diverged warp")


def test_a_warp_that_leaves_while_others_wait() -> None:
    leave = "mov.u32 %fault_lane, %tid.x;\n\tsetp.ge.u32 %fault, %fault_lane, 96;\n\t@%fault ret;\n\tbar.sync 0;"

    def edit(ptx: str) -> str:
        declared = ptx.replace("\n{\n", "\n{\n\t.reg .pred %fault;\n\t.reg .b32 %fault_lane;\n", 1)
        return re.sub(r"bar\.sync\s+0;", leave, declared, count=1)

    assert_found(planted("select", edit), "a warp left while others wait at a barrier")


def test_a_fused_product_changes_the_plan() -> None:
    """What a compiler would make of `x - x == 0` as a test for finiteness, where x is a product.

    Fused, the difference is the product's rounding error, which is not 0 for a finite product.
    """
    tokens, attn, features = video(12, 30, 16, torch.float32, seed=1)
    features[:] = torch.randn(12, 24, generator=torch.Generator().manual_seed(1)).sort(dim=0).values

    def fused(name: str, ptx: str) -> str:
        if name != "plan_kernel":
            return ptx
        scale = re.search(r"mul\.rn\.f64\s+(%rd\d+), (%rd\d+), (%rd\d+);(?=[^;]*;[^;]*;)", ptx)
        assert scale is not None
        finite = re.search(rf"abs\.f64\s+(%rd\d+), {re.escape(scale.group(1))};", ptx)
        assert finite is not None, "is_finite looks at the product"
        product, x, y = scale.groups()
        declared = ptx.replace("\n{\n", "\n{\n\t.reg .b64 %fault;\n", 1)
        # abs(product) becomes infinite unless fma(x, y, -product) is 0.
        magnitude = finite.group(1)
        error = [
            f"neg.f64 %fault, {product};",
            f"fma.rn.f64 %fault, {x}, {y}, %fault;",
            f"abs.f64 {magnitude}, %fault;",
            f"mul.rn.f64 {magnitude}, {magnitude}, 0d7FF0000000000000;",
        ]
        return declared.replace(finite.group(), "\n\t".join(error))

    starts = []
    for edit in (None, fused):
        with emulated_calls(Emulator(edit=edit)):
            call = run_kernels(tokens, attn, features, retention_ratio=0.4, min_segments=1, tau=-1.5)
        starts.append(call.workspace["segment_start"].unique().tolist())
    assert starts[0] == [0]
    assert len(starts[1]) > 1


@pytest.mark.parametrize("arch", [80, 90])
def test_tensor_cores_make_the_error_of_a_distance(arch: int) -> None:
    """Sums that are rounded once an instruction are more accurate than the truncated sums of hardware."""
    tokens, attn, features = video(1, 70, 2048, torch.float16, seed=14)
    errors = []
    for cores in (TensorCores.EXACT, TensorCores.AMPERE if arch == 80 else TensorCores.HOPPER):
        with emulated_calls(Emulator(arch, Options(cores))):
            call = run_kernels(tokens, attn, features, retention_ratio=0.1, min_segments=1)
        x = tokens[0].double()
        gram = call.workspace["gram"][0, :, :70, :70].double().sum(0)
        errors.append(((gram.diagonal() - x.square().sum(1)) / x.square().sum(1)).mean().item() * 2**24)
    assert abs(errors[0]) < 5
    assert errors[1] < -20, "cutting off makes norms smaller"
