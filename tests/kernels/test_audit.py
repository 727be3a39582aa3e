"""What one call asks of the device: launches, other device work, host reads, scratch, atomics, width of addresses."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter replaces the compiler", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

import fastvid_kernels.kernels
from benchmarks.compiled.offline import Launch, compile_for, record_call, recorded_launches
from benchmarks.compiled.targets import TARGETS
from fastvid_kernels import PruneConfig, ops
from fastvid_kernels.kernels import pipeline

MAX_WORK = 8
KERNELS = Path(fastvid_kernels.kernels.__file__).parent
_ALLOCATIONS = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}
_READS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class DeviceWork(TorchDispatchMode):
    """Records the torch operators that reach the device, and refuses those for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_host = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        assert not to_host, f"{func} copies to the host"
        assert not _READS & set(func.tags), f"{func} is read on the host"
        if not _is_free(func):
            self.operators.append(str(func))
        return func(*args, **kwargs)


def _is_free(func: Any) -> bool:
    """Allocations, views and questions about a tensor's metadata start nothing on the device."""
    results = func._schema.returns
    is_view = any(one.alias_info is not None and not one.alias_info.is_write for one in results)
    return is_view or func.namespace == "prim" or func._schema.name.removeprefix("aten::") in _ALLOCATIONS


def device_work(tokens: Tensor, *, features: bool = True, videos: int = 1, **hyperparameters: Any) -> list[str]:
    """Names of all kernels and operators of one call, for tokens `[F, N, D]` on the meta device.

    For meta tensors the operator itself computes only shapes, so this runs the function behind it, checks included.
    """
    frames, tokens_per_frame, _ = tokens.shape
    frame_features = tokens.new_empty(frames, 1152) if features else None
    cu_frames = torch.empty(videos + 1, dtype=torch.int32, device="meta") if videos > 1 else None
    attn = tokens.new_empty(frames, tokens_per_frame)
    with recorded_launches() as launches, DeviceWork() as work:
        ops._implementation("triton")(tokens, attn, frame_features, cu_frames, *PruneConfig(**hyperparameters).values())
    return [launch.name for launch in launches] + work.operators


def meta_tokens(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("videos", [1, 3])
@pytest.mark.parametrize(("frames", "tokens_per_frame"), [(1, 196), (32, 196), (64, 169), (1024, 196), (1024, 256)])
def test_a_call_is_eight_launches_and_nothing_else(
    frames: int, tokens_per_frame: int, videos: int, features: bool, dtype: torch.dtype
) -> None:
    tokens = meta_tokens(frames, tokens_per_frame, 3584, dtype=dtype)
    work = device_work(tokens, features=features, videos=videos)
    assert len(work) == MAX_WORK
    assert len(set(work)) == MAX_WORK, "one launch a stage"


@pytest.mark.parametrize("dtm_ratio", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("retention_ratio", [0.01, 0.25, 1.0])
def test_no_budget_asks_for_more(retention_ratio: float, dtm_ratio: float) -> None:
    work = device_work(meta_tokens(32, 196, 3584), retention_ratio=retention_ratio, dtm_ratio=dtm_ratio)
    assert len(work) <= MAX_WORK


def test_strided_tokens_are_not_copied() -> None:
    assert len(device_work(meta_tokens(3584, 32, 196).permute(1, 2, 0))) == MAX_WORK


@pytest.mark.parametrize("frames", [1, 8, 32, 1024])
def test_large_frames_take_eight_launches_a_chunk(frames: int) -> None:
    tokens = meta_tokens(frames, 1024, 3584)
    chunks = -(-frames // prepared(tokens).shapes.frames_per_chunk)
    assert len(device_work(tokens)) <= MAX_WORK * chunks
    assert chunks <= 16, "chunks are few: the scratch may be a share of the tokens"


@pytest.mark.parametrize("frames", [1700, 2**13, 2**17, 2**20])
def test_however_many_frames_the_scratch_stays_a_share(frames: int) -> None:
    """Scratch never holds all pairs of a frame and an anchor frame at once: further launches take the rest in turn."""
    tokens = meta_tokens(frames, 196, 3584)
    call = prepared(tokens)
    assert call.workspace.size <= 0.25 * tokens.numel() * tokens.element_size()
    chunks = -(-call.shapes.ordinals // call.shapes.ordinals_per_chunk)
    assert (chunks > 1) == (frames > 1700)
    if frames <= 2**13:
        assert len(device_work(tokens)) == MAX_WORK + 2 * (chunks - 1)


def prepared(tokens: Tensor) -> Any:
    frames, tokens_per_frame, _ = tokens.shape
    features = tokens.new_empty(frames, 1152)
    return pipeline.prepare(tokens, tokens.new_empty(frames, tokens_per_frame), features, None, PruneConfig())


def _extra_fill(call: Any) -> None:
    call.output.zero_()


def _extra_copy(call: Any) -> None:
    call.tokens.clone()


def _extra_arithmetic(call: Any) -> None:
    call.indices + 1


@pytest.mark.parametrize("extra", [_extra_fill, _extra_copy, _extra_arithmetic])
def test_the_audit_sees_a_planted_operator(extra: Any) -> None:
    with mock.patch.object(pipeline, "launch", _then(pipeline.launch, extra)):
        assert len(device_work(meta_tokens(32, 196, 3584))) == MAX_WORK + 1


@pytest.mark.parametrize(
    "read",
    [lambda x: x[0].item(), lambda x: x.tolist(), lambda x: x.cpu(), lambda x: bool(x[0] > 0), lambda x: x.nonzero()],
    ids=["item", "tolist", "cpu", "bool", "nonzero"],
)
def test_the_audit_sees_a_planted_read(read: Any) -> None:
    planted = _then(pipeline.launch, lambda call: read(call.indices))
    with mock.patch.object(pipeline, "launch", planted), pytest.raises(AssertionError, match="host"):
        device_work(meta_tokens(32, 196, 3584))


def _then(launch: Any, extra: Any) -> Any:
    def both(call: Any) -> None:
        launch(call)
        extra(call)

    return both


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("frames", [32, 64, 128, 200, 300, 512, 1024, 4096, 16384])
@pytest.mark.parametrize("tokens_per_frame", [169, 196, 1024])
def test_scratch_is_at_most_a_quarter_of_the_tokens(frames: int, tokens_per_frame: int, dtype: torch.dtype) -> None:
    tokens = meta_tokens(frames, tokens_per_frame, 3584).to(dtype)
    call = prepared(tokens)
    assert call.workspace.size <= tokens.numel() * tokens.element_size() / 4


def test_nothing_is_tuned_at_run_time() -> None:
    """An autotuner would benchmark during graph capture, and different tiles give different bits."""
    for launch in record_call("sm_90", meta_tokens(32, 196, 3584)):
        assert type(launch.kernel) is JITFunction
    for source in KERNELS.glob("*.py"):
        assert not re.search(r"autotune|heuristics", source.read_text()), source.name


@pytest.mark.parametrize("target", TARGETS)
def test_no_float_is_added_atomically(target: str) -> None:
    """The order of atomic additions is undefined: it changes sums of floats, but not of integers."""
    found = []
    tokens = meta_tokens(32, 196, 3584)
    for launch in (*record_call(target, tokens), record_call(target, tokens, backward=True)[-1]):
        code = compile_for(launch, target).code
        found += atomics(code["ttir"])
        assert not re.search(r"\b(atom|red)\.[\w.:]*\.(f16|f32|f64|bf16|f16x2|bf16x2)\b", code.get("ptx", ""))
        assert not re.search(r"atomic_(pk_)?add_(f|bf)", code.get("amdgcn", ""))
    assert set(found) == {"add"}, "assign counts, with integers"


def atomics(ttir: str) -> list[str]:
    """Kinds of the atomic operations of a kernel: "add" is of integers, "fadd" of floats."""
    return re.findall(r"tt\.atomic_rmw (\w+)", ttir) + re.findall(r"tt\.(atomic_cas)", ttir)


@triton.jit
def _float_atomic_kernel(total_ptr):
    tl.atomic_add(total_ptr, 1.0)


def test_a_float_atomic_is_found() -> None:
    launch = Launch(_float_atomic_kernel, (1,), {"total_ptr": torch.empty(1, device="meta")})
    code = compile_for(launch, "sm_90").code
    assert atomics(code["ttir"]) == ["fadd"]
    assert re.search(r"\b(atom|red)\.[\w.:]*\.f32\b", code["ptx"])


_LARGEST_INT32 = 2**31 - 1
_OPERATION = re.compile(r'^\s*(%\w+)(?::\d+)? = "?([a-z_]+\.[a-z_]+)"?(.*)$')
_FOR = re.compile(r"scf\.for (%\w+) = (%\w+) to (%\w+) step")
_ADDPTR = re.compile(r"tt\.addptr (%[\w#]+), (%[\w#]+)")


@dataclass
class Addresses:
    """Bounds of the integers of a kernel, from its grid and arguments, and the pointer offsets that may overflow.

    A value is tainted if it, or a value that it was computed from, may be too large for its own 32 bits. Values that
    are loaded or carried through a loop are taken to be at most `count`, since kernels count frames and tokens.
    """

    launch: Launch
    count: int
    bounds: dict[str, int] = field(default_factory=dict)
    tainted: set[str] = field(default_factory=set)
    offsets: int = 0
    overflowing: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, launch: Launch, ttir: str, count: int) -> Addresses:
        addresses = cls(launch, count)
        for name, value in launch.arguments.items():
            if isinstance(value, int):
                addresses.bounds[f"%{name}"] = abs(value)
        # Names are reused once their region is closed, so the latest definition counts.
        for line in ttir.splitlines():
            addresses._read(line.split(" loc(")[0])
        return addresses

    def _read(self, line: str) -> None:
        if loop := _FOR.search(line):
            variable, *limits = loop.groups()
            self._define(variable, max(self._bound(one) for one in limits), False)
        definition = _OPERATION.match(line)
        if definition is None:
            return
        name, operation, rest = definition.groups()
        operands = re.findall(r"%[\w#]+", rest)
        if access := _ADDPTR.search(line):
            self.offsets += 1
            if access.group(2) in self.tainted:
                self.overflowing.append(line.strip())
            return
        bound = self._result(operation, rest, operands)
        is_narrow = re.search(r"\bi32$|xi32>$", rest.rstrip()) is not None
        is_fresh = operation in ("tt.load", "arith.cmpi", "arith.trunci") or operation.startswith("scf.")
        tainted = not is_fresh and any(one in self.tainted for one in operands)
        self._define(name, bound, tainted or (is_narrow and bound > _LARGEST_INT32))

    def _define(self, name: str, bound: int, tainted: bool) -> None:
        self.bounds[name] = bound
        (self.tainted.add if tainted else self.tainted.discard)(name)

    def _bound(self, operand: str) -> int:
        return self.bounds.get(operand, self.count)

    def _result(self, operation: str, rest: str, operands: list[str]) -> int:
        bounds = [self._bound(one) for one in operands]
        if operation == "arith.constant":
            value = re.match(r" (?:dense<)?(-?\d+)>? : ", rest)
            return abs(int(value.group(1))) if value else self.count
        if operation == "tt.make_range":
            return int(re.findall(r"end = (\d+)", rest)[0])
        if operation == "tt.get_program_id":
            axis = "xyz".index(rest.split()[0])
            return self.launch.grid[axis] - 1 if axis < len(self.launch.grid) else 0
        if operation in ("arith.addi", "arith.subi"):
            return sum(bounds)
        if operation == "arith.muli":
            return bounds[0] * bounds[1]
        if operation == "arith.minsi":
            return min(bounds)
        if operation == "arith.remsi":
            return bounds[1]
        if operation == "arith.select":
            return max(bounds[1:])
        if operation in ("arith.maxsi", "arith.divsi", "arith.extsi", "tt.splat", "tt.broadcast", "tt.expand_dims"):
            return max(bounds[:1] if operation == "arith.divsi" else bounds)
        return self.count


def overflowing_addresses(launch: Launch, count: int) -> list[str]:
    """Accesses of a kernel by an offset that 32 bits may not hold, if tensors have at most `count` frames or tokens."""
    addresses = Addresses.of(launch, compile_for(launch, "sm_90").code["ttir"], count)
    assert addresses.offsets > 0
    return addresses.overflowing


# Tokens of more than 2**31 elements. In each of the first three, a different dimension has the stride that takes
# offsets into tokens and attention past 2**31; in the last, the number of frames alone does so for scratch and output.
HUGE = {
    "frames": meta_tokens(1024, 1024, 3584),
    "positions": meta_tokens(1024, 1024, 3584).permute(1, 0, 2),
    "channels": meta_tokens(3584, 1024, 1024).permute(1, 2, 0),
    "many frames": meta_tokens(2**15, 256, 1024),
}


@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("layout", HUGE)
def test_addresses_are_computed_in_64_bits(layout: str, features: bool) -> None:
    tokens = HUGE[layout]
    given = {"attn": tokens[..., 0], "feature_channels": 1152 if features else None, "retention_ratio": 0.5}
    launches = [*record_call("sm_90", tokens, **given), *record_call("sm_90", tokens, backward=True, **given)]
    distinct = {launch.name: launch for launch in launches}
    assert len(distinct) == 9, "eight of a call, and the last of its backward pass"
    overflowing = {name: overflowing_addresses(one, max(tokens.shape[:2])) for name, one in distinct.items()}
    assert {name: found for name, found in overflowing.items() if found} == {}


@triton.jit
def _narrow_kernel(x_ptr, stride_t, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * stride_t + tl.arange(0, BLOCK)
    tl.store(x_ptr + offset, 0.0)


@triton.jit
def _extended_too_late_kernel(x_ptr, stride_t, BLOCK: tl.constexpr):
    offset = (tl.program_id(0) * stride_t).to(tl.int64) + tl.arange(0, BLOCK)
    tl.store(x_ptr + offset, 0.0)


@triton.jit
def _wide_kernel(x_ptr, stride_t, BLOCK: tl.constexpr):
    offset = tl.program_id(0).to(tl.int64) * stride_t + tl.arange(0, BLOCK)
    tl.store(x_ptr + offset, 0.0)


@pytest.mark.parametrize(
    ("kernel", "overflows"), [(_narrow_kernel, True), (_extended_too_late_kernel, True), (_wide_kernel, False)]
)
def test_an_address_in_32_bits_is_found(kernel: Any, overflows: bool) -> None:
    arguments = {"x_ptr": meta_tokens(1024, 1024 * 3584), "stride_t": 1024 * 3584, "BLOCK": 64}
    assert bool(overflowing_addresses(Launch(kernel, (1024,), arguments), 1024)) == overflows
