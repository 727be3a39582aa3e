"""What the launches of a call share: request, sizes, tiles, scratch, common arguments. Nothing here looks at data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from fastvid_kernels.config import PruneConfig
from fastvid_kernels.kernels.groups import GROUP
from fastvid_kernels.kernels.limits import FRAME_TILES

_ALIGNMENT = 16
# Rows of per-token scratch hold whole vectors of so many elements; kernels take the number of vectors, and so know it.
_ROW_ALIGNMENT = 8
ROW_VECTOR = tl.constexpr(_ROW_ALIGNMENT)
# Beyond this many tokens a frame, the Gram matrices of all frames at once would outgrow a fraction of the tokens.
_ONE_CHUNK_TOKENS = 256
_GRAM_SHARE = 8
# What tokens join is kept for so many of a segment's anchor frames at once as fit a fraction of the tokens, or this.
_NEAREST_SHARE = 8
_NEAREST_BYTES = 1 << 26
# From this size on it lies where the Gram matrices were, of which nothing is needed by then. Smaller ones lie apart, so
# that all the scratch of a finished call can be looked into.
_OVERLAID_BYTES = 1 << 20
# How every kernel is compiled. Products and sums are never fused: what is written is what is computed, whatever a
# compiler's default is (on in Triton 3.6, and Triton 3.10 turns it round).
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False}
# Elements of a tile of distances: 32 registers a thread.
_CANDIDATE_TILE = 4096


@dataclass(frozen=True)
class Request:
    """All that the launches of a call depend on but for addresses; it can be hashed.

    Attributes:
        frames: F, of all videos.
        tokens_per_frame: N.
        channels: D.
        dtype: of the tokens.
        token_strides: of frames, tokens and channels, in elements.
        attn_strides: of frames and tokens.
        feature_channels: G, or None for the mean token as feature.
        feature_strides: of frames and channels, (0, 0) without features.
        videos: B of a ragged batch, or None without `cu_frames`.
        config: the hyperparameters.
        on_amd: whether the device is AMD's.
        interpreted: whether Triton's interpreter runs the kernels.
        frames_per_chunk, ordinals_per_chunk: sizes of chunks, or None for those that bound the scratch.
        is_backward: whether it is the gradient that is asked for.
    """

    frames: int
    tokens_per_frame: int
    channels: int
    dtype: torch.dtype
    token_strides: tuple[int, ...]
    attn_strides: tuple[int, ...]
    feature_channels: int | None
    feature_strides: tuple[int, ...]
    videos: int | None
    config: PruneConfig
    on_amd: bool
    interpreted: bool
    frames_per_chunk: int | None = None
    ordinals_per_chunk: int | None = None
    is_backward: bool = False

    @property
    def strides(self) -> dict[str, int]:
        """Of the tokens, as arguments."""
        return {f"stride_{axis}": stride for axis, stride in zip("tnd", self.token_strides, strict=True)}

    @property
    def arithmetic(self) -> dict[str, Any]:
        """How matrix products are computed: never in TF32, and as float32 where the interpreter knows no bfloat16."""
        three_tf32 = self.dtype == torch.float32 and not self.on_amd and not self.interpreted
        return {
            "PRECISION": "tf32x3" if three_tf32 else "ieee",
            "UPCAST": self.interpreted and self.dtype == torch.bfloat16,
        }

    @property
    def depth(self) -> int:
        """Channels of a product's tile: 128 bytes."""
        return 128 // self.dtype.itemsize

    @property
    def stages(self) -> int:
        """Tiles in flight: AMD's shared memory holds two."""
        return 2 if self.on_amd else 3


@dataclass(frozen=True)
class Shapes:
    """Sizes of a call, and the sizes of its tiles.

    Tiles, splits and so the order of every sum follow from N, D and the hyperparameters alone, so that a video gives
    the same bits in any company. Chunks bound the scratch, and change no sum.
    """

    frames: int
    tokens_per_frame: int
    channels: int
    kept_per_frame: int
    slots: int
    ordinals: int
    ordinals_per_chunk: int
    feature_splits: int
    gram_splits: int
    frames_per_chunk: int

    @property
    def block_n(self) -> int:
        """A tile that holds all tokens of a frame: one of few, since each is a kernel of its own."""
        return next(tile for tile in FRAME_TILES if tile >= self.tokens_per_frame)

    @property
    def candidate_rows(self) -> int:
        """Rows of a tile that holds all distances of some tokens."""
        return max(1, min(16, _CANDIDATE_TILE // self.block_n))

    @property
    def padded(self) -> int:
        """Row length of per-token scratch, so that rows load in vectors of 16 bytes."""
        return _round_up(self.tokens_per_frame, _ROW_ALIGNMENT)

    @property
    def row_vectors(self) -> int:
        """Vectors of such a row."""
        return self.padded // _ROW_ALIGNMENT

    @property
    def has_anchors(self) -> bool:
        """Whether any video of these sizes can have anchors."""
        return self.slots > 0


def plan_shapes(request: Request) -> Shapes:
    """The sizes of a request."""
    frames, n, dim, config = request.frames, request.tokens_per_frame, request.channels, request.config
    kept = config.kept_per_frame(n)
    interval = min(config.anchor_interval, frames)
    # A segment of L frames has at least L / p anchor frames, which share at most K * L * d anchors.
    slots = min(n - kept, config.context_share(kept * interval) + 1)
    if config.context_share(kept * frames) == 0:
        slots = 0
    gram_splits = 2 if dim >= 1024 else 1
    token_bytes = request.dtype.itemsize * n * dim * frames
    frames_per_chunk = frames
    if n > _ONE_CHUNK_TOKENS and slots > 0:
        gram_bytes = gram_splits * _round_up(n, _ROW_ALIGNMENT) ** 2 * 4
        # Those of a backward pass lie in its output.
        share = 1 if request.is_backward else _GRAM_SHARE
        frames_per_chunk = min(frames, max(1, token_bytes // share // gram_bytes))
    ordinals = ordinals_per_chunk = -(-frames // interval)
    if slots > 0:
        nearest_bytes = max(token_bytes // _NEAREST_SHARE, _NEAREST_BYTES)
        ordinal_bytes = 2 * frames * _round_up(n, _ROW_ALIGNMENT)
        # Chunks of a backward pass in half precision keep halves of all sums, as large as the tokens: not for less.
        has_low = request.is_backward and request.dtype.itemsize < 4
        if not (has_low and ordinals * ordinal_bytes <= token_bytes + nearest_bytes):
            # Whole groups: which anchor frames go together may not depend on chunks.
            groups = max(1, nearest_bytes // ordinal_bytes // GROUP)
            ordinals_per_chunk = min(ordinals, groups * GROUP)
    return Shapes(
        frames=frames,
        tokens_per_frame=n,
        channels=dim,
        kept_per_frame=kept,
        slots=slots,
        ordinals=ordinals,
        ordinals_per_chunk=request.ordinals_per_chunk or ordinals_per_chunk,
        feature_splits=min(32, -(-(request.feature_channels or dim) // 128)),
        gram_splits=gram_splits,
        frames_per_chunk=request.frames_per_chunk or frames_per_chunk,
    )


@dataclass(frozen=True)
class Array:
    """A part of the scratch: `shape` elements of `dtype`, `offset` bytes from its start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def lay_out(request: Request, shapes: Shapes) -> tuple[dict[str, Array], int]:
    """All scratch of a call by name, and the bytes of it all; without what `lies_in_output` names."""
    frames, padded, slots = shapes.frames, shapes.padded, max(shapes.slots, 1)
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "partial": (torch.float64, (frames, shapes.feature_splits, 3)),
        "packed": (torch.int64, (frames,)),
        "segment_first": (torch.int32, (frames,)),
        "segment_id": (torch.int32, (frames,)),
        "segment_start": (torch.int32, (frames,)),
        "segment_end": (torch.int32, (frames,)),
        "rank": (torch.int16, (frames, padded)),
        "state": (torch.int16, (frames, padded)),
        "anchor": (torch.int32, (frames, slots)),
        "anchor_row": (torch.int32, (frames, slots)),
        "inverse_norm": (torch.float32, (frames, slots)),
        "count": (torch.int32, (frames, slots)),
    }
    # Without anchors nobody reads these; they are of the same type, so that kernels are the same.
    anchor_frames = frames if shapes.has_anchors else 0
    wanted |= {"s": (torch.float32, (anchor_frames, padded)), "key": (torch.int32, (anchor_frames, padded))}
    if "gram" not in lies_in_output(request, shapes):
        matrices = shapes.frames_per_chunk if shapes.has_anchors else 0
        wanted["gram"] = (torch.float32, (matrices, shapes.gram_splits, padded, padded))
    wanted["nearest"] = (torch.int16, (anchor_frames, shapes.ordinals_per_chunk, padded))
    if request.is_backward:
        # Where terms come in several launches, sums so far wait in the output: all bits of float32, or the upper half.
        waits = shapes.ordinals > shapes.ordinals_per_chunk and request.dtype.itemsize < 4
        wanted["low"] = (torch.int16, (frames * shapes.tokens_per_frame if waits else 0, shapes.channels))
    arrays: dict[str, Array] = {}
    end = 0
    for name, (dtype, shape) in wanted.items():
        offset = end
        if name == "nearest" and "gram" in arrays and Array(dtype, shape, 0).size >= _OVERLAID_BYTES:
            offset = arrays["gram"].offset
        arrays[name] = Array(dtype, shape, offset)
        end = max(end, offset + _round_up(arrays[name].size, _ALIGNMENT))
    return arrays, end


def lies_in_output(request: Request, shapes: Shapes) -> dict[str, torch.dtype]:
    """Scratch that a backward pass keeps in its output: that is as large as the tokens, and written last."""
    matrix_bytes = shapes.gram_splits * shapes.padded**2 * 4
    output_bytes = shapes.frames * shapes.tokens_per_frame * shapes.channels * request.dtype.itemsize
    fits = shapes.has_anchors and shapes.frames_per_chunk * matrix_bytes <= output_bytes
    return {"gram": torch.float32} if request.is_backward and fits else {}


class Pointer:
    """An address that a launch takes where it would take a tensor; making it costs less than a view."""

    __slots__ = ("_address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self._address = address
        self.dtype = dtype

    def data_ptr(self) -> int:
        """The address, by the name that Triton asks for."""
        return self._address


class Workspace:
    """The scratch of a call, in one allocation: addresses for launches, tensors for whoever looks into it."""

    def __init__(self, arrays: dict[str, Array], size: int, device: torch.device) -> None:
        self._arrays = arrays
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self._bytes)

    def __getitem__(self, name: str) -> Tensor:
        array = self._arrays[name]
        return self._bytes[array.offset : array.offset + array.size].view(array.dtype).view(array.shape)

    @property
    def is_aligned(self) -> bool:
        """Whether its arrays start at multiples of 16 bytes, as far as their layout lets them."""
        return self._bytes.data_ptr() % _ALIGNMENT == 0

    def pointers(self) -> dict[str, Pointer]:
        """Of every array; null of an empty one, since an address behind the allocation is no device's to a driver."""
        base = self._bytes.data_ptr()
        return {
            name: Pointer(base + array.offset if array.size else 0, array.dtype) for name, array in self._arrays.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """As `pointers`, for Triton's interpreter, which looks behind them."""
        return {name: self[name] for name in self._arrays}


@dataclass(frozen=True)
class Step:
    """One launch: a kernel, its grid, which array goes to which of its pointers, and all its other arguments."""

    kernel: Any
    grid: tuple[int, ...]
    arrays: dict[str, str]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the stage."""
        return str(self.kernel.__name__).removesuffix("_kernel")

    def run(self, arrays: dict[str, Any]) -> Any:
        """Launch it on arrays by name; returns what Triton compiled for that, or None where nothing was."""
        pointers = {parameter: arrays[name] for parameter, name in self.arrays.items()}
        return self.kernel[self.grid](**pointers, **self.constants)

    def run_compiled(self, compiled: Any, arrays: dict[str, Any]) -> None:
        """Launch what an earlier `run` returned, on arrays of the same types and alignments."""
        template, positions = self._positional
        arguments = template.copy()
        for position, name in positions:
            arguments[position] = arrays[name]
        compiled[self._whole_grid](*arguments)

    @cached_property
    def _positional(self) -> tuple[list[Any], list[tuple[int, str]]]:
        """All arguments in the kernel's order, and which of them are arrays."""
        names = self.kernel.arg_names
        positions = [(names.index(parameter), name) for parameter, name in self.arrays.items()]
        return [self.constants.get(name) for name in names], positions

    @cached_property
    def _whole_grid(self) -> tuple[int, ...]:
        return (*self.grid, 1, 1)[:3]


# Where a kernel reads its frame's segment, and from what it knows the frame's budget.
SEGMENT_ARRAYS = {"segment_start_ptr": "segment_start", "segment_end_ptr": "segment_end"}


# Integers that merely count are left out of what Triton compiles in (1, multiples of 16): they change with every call.
BUDGET_ARGUMENTS = ("N", "K", "context_millionths", "interval")


def budget_arguments(request: Request, shapes: Shapes) -> dict[str, int]:
    """Arguments from which a kernel knows the budget of a frame, given its segment."""
    return {
        "N": shapes.tokens_per_frame,
        "K": shapes.kept_per_frame,
        "context_millionths": request.config.dtm_millionths,
        "interval": min(request.config.anchor_interval, shapes.frames),
    }


def next_power_of_2(size: int) -> int:
    """The smallest power of 2 that is at least `size`."""
    return 1 << max(0, size - 1).bit_length()


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
