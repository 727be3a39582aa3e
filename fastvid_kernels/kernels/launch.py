"""What the launches of a call share: request, sizes, tiles, scratch, common arguments. Nothing here reads data."""

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
from fastvid_kernels.kernels.overlap import APART

_ALIGNMENT = 16
# Rows of per-token scratch are padded to a multiple of this many elements. Kernels take the number of such vectors in a
# row, so that the compiler knows the alignment.
_ROW_ALIGNMENT = 8
ROW_VECTOR = tl.constexpr(_ROW_ALIGNMENT)
# With more tokens a frame than this, frames go in chunks, whose Gram matrices take a fraction of the tokens' bytes.
_ONE_CHUNK_TOKENS = 256
_GRAM_SHARE = 8
# The slots that tokens join are stored for a chunk of each segment's anchor frames at a time. They take up to the
# larger of a fraction of the tokens' bytes, and _NEAREST_BYTES.
_NEAREST_SHARE = 8
_NEAREST_BYTES = 1 << 26
# From this size on, these slots overwrite the Gram matrices, which are no longer needed by then. Smaller ones have
# memory of their own, so that all the scratch of a finished call can be inspected.
_OVERLAID_BYTES = 1 << 20
# How every kernel is compiled. Products and sums are never fused, so that kernels compute what is written, whatever
# the compiler's default (Triton 3.6 fuses; Triton 3.10 reverses its default).
OPTIONS: dict[str, Any] = {"num_warps": 4, "enable_fp_fusion": False, **APART}
# Elements of a tile of distances: 32 registers a thread.
_CANDIDATE_TILE = 4096


@dataclass(frozen=True)
class Request:
    """All that the launches of a call depend on, except addresses; hashable.

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
        shared_bytes: shared memory of a multiprocessor.
        frames_per_chunk, ordinals_per_chunk: sizes of chunks, or None for sizes that bound the scratch.
        is_backward: whether the call is a backward pass.
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
    shared_bytes: int
    frames_per_chunk: int | None = None
    ordinals_per_chunk: int | None = None
    is_backward: bool = False

    @property
    def strides(self) -> dict[str, int]:
        """Strides of the tokens, as kernel arguments."""
        return {f"stride_{axis}": stride for axis, stride in zip("tnd", self.token_strides, strict=True)}

    @property
    def arithmetic(self) -> dict[str, Any]:
        """How matrix products are computed: never in plain TF32; the interpreter computes bfloat16 ones in float32."""
        three_tf32 = self.dtype == torch.float32 and not self.on_amd and not self.interpreted
        return {
            "PRECISION": "tf32x3" if three_tf32 else "ieee",
            "UPCAST": self.interpreted and self.dtype == torch.bfloat16,
        }

    @property
    def depth(self) -> int:
        """Channels in a tile of a product: 128 bytes of them."""
        return 128 // self.dtype.itemsize

    @property
    def least_stages(self) -> int:
        """Stages of software pipelining, which change no bits: the tiles of so many fit any GPU, or any of AMD's."""
        return 2 if self.on_amd else 3

    def stages(self, tile_bytes: int, *, blocks: int, most: int) -> int:
        """As many stages as a multiprocessor's shared memory holds tiles for so many blocks, up to `most`."""
        if self.on_amd:
            return self.least_stages
        return max(self.least_stages, min(most, self.shared_bytes // (blocks * tile_bytes)))


@dataclass(frozen=True)
class Shapes:
    """Sizes of a call, and the sizes of its tiles.

    Tiles and splits, and with them the order of every sum, follow from N, D and the hyperparameters alone, so that a
    video's bits do not depend on the rest of the batch. Chunks bound the scratch, and change no sum.
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
        """Size of a tile that holds all tokens of a frame: one of a few, since each is compiled on its own."""
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
        """Vectors in a row of per-token scratch."""
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
        # A backward pass keeps its Gram matrices in its output.
        share = 1 if request.is_backward else _GRAM_SHARE
        frames_per_chunk = min(frames, max(1, token_bytes // share // gram_bytes))
    ordinals = ordinals_per_chunk = -(-frames // interval)
    if slots > 0:
        nearest_bytes = max(token_bytes // _NEAREST_SHARE, _NEAREST_BYTES)
        ordinal_bytes = 2 * frames * _round_up(n, _ROW_ALIGNMENT)
        # In half precision, chunks of a backward pass need scratch as large as the tokens, for the lower halves of the
        # sums (`low`). So there is one chunk, unless several take less memory.
        has_low = request.is_backward and request.dtype.itemsize < 4
        if not (has_low and ordinals * ordinal_bytes <= token_bytes + nearest_bytes):
            # Chunks are whole groups, so that they do not change which anchor frames go together.
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
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def lay_out(request: Request, shapes: Shapes) -> tuple[dict[str, Array], int]:
    """The scratch arrays of a call by name, except those that `lies_in_output` names, and their total size in bytes."""
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
    # Without anchors these are never read. They keep their types, so that the compiled kernels are the same.
    anchor_frames = frames if shapes.has_anchors else 0
    wanted |= {"s": (torch.float32, (anchor_frames, padded)), "key": (torch.int32, (anchor_frames, padded))}
    if "gram" not in lies_in_output(request, shapes):
        matrices = shapes.frames_per_chunk if shapes.has_anchors else 0
        wanted["gram"] = (torch.float32, (matrices, shapes.gram_splits, padded, padded))
    # By segments, of which the host knows no length: see `Joined`.
    wanted["nearest"] = (torch.int16, (anchor_frames * shapes.ordinals_per_chunk * padded,))
    if request.is_backward:
        # Between launches, the output holds the float32 sums, or in half precision their upper halves; `low` holds the
        # lower halves.
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
    """Scratch that a backward pass keeps in its output, which is as large as the tokens and is written last."""
    matrix_bytes = shapes.gram_splits * shapes.padded**2 * 4
    output_bytes = shapes.frames * shapes.tokens_per_frame * shapes.channels * request.dtype.itemsize
    fits = shapes.has_anchors and shapes.frames_per_chunk * matrix_bytes <= output_bytes
    return {"gram": torch.float32} if request.is_backward and fits else {}


class Pointer:
    """An address that a launch accepts in place of a tensor; it costs less to make than a view."""

    __slots__ = ("_address", "dtype")

    def __init__(self, address: int, dtype: torch.dtype) -> None:
        self._address = address
        self.dtype = dtype

    def data_ptr(self) -> int:
        """The address, by the method that Triton calls."""
        return self._address


class Workspace:
    """The scratch of a call, in one allocation: addresses for launches, and tensors to inspect it."""

    def __init__(self, arrays: dict[str, Array], size: int, device: torch.device) -> None:
        self._arrays = arrays
        self._bytes = torch.empty(size, dtype=torch.uint8, device=device)

    @property
    def size(self) -> int:
        """Total size in bytes."""
        return len(self._bytes)

    def __getitem__(self, name: str) -> Tensor:
        array = self._arrays[name]
        return self._bytes[array.offset : array.offset + array.size].view(array.dtype).view(array.shape)

    @property
    def is_aligned(self) -> bool:
        """Whether the allocation starts at a multiple of 16 bytes."""
        return self._bytes.data_ptr() % _ALIGNMENT == 0

    def addresses(self) -> dict[str, int]:
        """Addresses of the arrays by name; null for an empty one, since an address past the end may be on no device."""
        base = self._bytes.data_ptr()
        return {name: base + array.offset if array.size else 0 for name, array in self._arrays.items()}

    def pointers(self) -> dict[str, Pointer]:
        """Addresses of the arrays by name, with their types, by which Triton compiles."""
        return {name: Pointer(address, self._arrays[name].dtype) for name, address in self.addresses().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name, as tensors, for Triton's interpreter, which needs more than addresses."""
        return {name: self[name] for name in self._arrays}


@dataclass(frozen=True)
class Step:
    """One launch: a kernel, its grid, the name of the array for each of its pointers, and its other arguments."""

    kernel: Any
    grid: tuple[int, ...]
    arrays: dict[str, str]
    constants: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of the stage."""
        return str(self.kernel.__name__).removesuffix("_kernel")

    def run(self, arrays: dict[str, Any]) -> Any:
        """Launch it on arrays by name; returns the kernel that Triton compiled for it, or None if it compiled none."""
        pointers = {parameter: arrays[name] for parameter, name in self.arrays.items()}
        return self.kernel[self.grid](**pointers, **self.constants)

    def relaunch(self, compiled: Any, stream: int, addresses: dict[str, int | None]) -> None:
        """Launch what an earlier `run` returned, on arrays of the same types and alignments.

        Triton asks the driver about each tensor that it is given, but about no address.
        """
        template, positions = self._positional
        arguments = template.copy()
        for position, name in positions:
            arguments[position] = addresses[name]
        compiled[self._whole_grid](*arguments, stream=stream)

    @cached_property
    def _positional(self) -> tuple[list[Any], list[tuple[int, str]]]:
        """All arguments in the kernel's order, and the positions and names of those that are arrays."""
        names = self.kernel.arg_names
        positions = [(names.index(parameter), name) for parameter, name in self.arrays.items()]
        return [self.constants.get(name) for name in names], positions

    @cached_property
    def _whole_grid(self) -> tuple[int, ...]:
        return (*self.grid, 1, 1)[:3]


# The pointers through which a kernel reads the segment of its frame.
SEGMENT_ARRAYS = {"segment_start_ptr": "segment_start", "segment_end_ptr": "segment_end"}


# Triton must not specialise kernels on these integers (as 1 or as multiples of 16), since they vary from call to call.
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
