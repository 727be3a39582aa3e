"""Synthetic inputs that look like video to the operator: shots, smooth scenes, slow motion, sensor noise.

With random tokens the comparison of arms would mean little: segments would be as long as chance has it, no token would
have a close neighbour, and attention would be flat. Here a shot is one scene under a slowly moving camera, so that
there are segments, density peaks and tokens to merge.
"""

from dataclasses import dataclass
from math import isqrt, sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SCENE_RANK = 24  # independent patterns a scene is composed of
_CANVAS = 7  # control points of a pattern along each side; a frame shows the middle part
_MARGIN = 0.7  # share of the canvas, from its centre, that a frame shows before the camera moves
_PEAKINESS = 2.0  # standard deviation of the attention's logits
_SHARED_APPEARANCE = 0.5  # expected cosine of two different shots' features
_MEAN_TOKEN = 0.3  # weight of a vector that all tokens of a video share, relative to scenes of unit variance


class Video(NamedTuple):
    """Inputs of one call: `tokens [F, N, D]`, `attn [F, N]`, `frame_features [F, G]`."""

    tokens: Tensor
    attn: Tensor
    frame_features: Tensor


@dataclass(frozen=True)
class Preset:
    """A kind of video; the fields are arguments of `synthetic_video`."""

    shots: int
    drift: float
    noise: float
    equal_shots: bool = False


PRESETS = {
    "many cuts": Preset(shots=14, drift=0.2, noise=0.3),
    "few cuts": Preset(shots=4, drift=0.2, noise=0.3),
    "one static shot": Preset(shots=1, drift=0.02, noise=0.1),
}
EQUAL_SHOTS = "eight equal shots"
"""Not one of `PRESETS`: a film whose segments have a known length."""
_KINDS = PRESETS | {EQUAL_SHOTS: Preset(shots=8, drift=0.2, noise=0.3, equal_shots=True)}


def synthetic_video(
    frames: int,
    tokens_per_frame: int,
    dim: int,
    *,
    shots: int,
    drift: float,
    noise: float,
    seed: int,
    equal_shots: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    feature_dim: int = 1152,
) -> Video:
    """Make a video of `shots` shots.

    The values depend on the seed and the sizes, never on dtype or device: everything is drawn in float32 on
    the CPU, then converted.

    Args:
        shots: number of shots, 1 to `frames`.
        drift: motion from frame to frame; the camera moves by at most about this share of a scene's detail, and
            consecutive features of a shot have a cosine of about `1 - drift²/2` or more.
        noise: standard deviation of the noise in every channel of every token, relative to scenes of unit variance.
        equal_shots: whether shots are equally long, up to a frame, instead of randomly.

    Returns:
        `tokens [F, N, D]`, `attn [F, N]` (positive, each frame sums to 1) and `frame_features [F,
        feature_dim]`.

    Raises:
        ValueError: `shots` is not between 1 and `frames`.
    """
    if not 1 <= shots <= frames:
        raise ValueError(f"shots must be between 1 and the number of frames ({frames}), got {shots}")
    generator = torch.Generator().manual_seed(seed)
    mean_token = _MEAN_TOKEN * torch.randn(dim, generator=generator)
    shared_appearance = torch.randn(feature_dim, generator=generator)

    tokens = torch.empty(frames, tokens_per_frame, dim).normal_(generator=generator).mul_(noise)
    attn = torch.empty(frames, tokens_per_frame)
    features = torch.empty(frames, feature_dim)
    start = 0
    for length in _equal_lengths(frames, shots) if equal_shots else _shot_lengths(frames, shots, generator):
        shot = slice(start, start + length)
        motion = drift * _uniform(length, low=0.3, high=1.0, generator=generator)  # [L]
        patterns = _moving_patterns(motion, tokens_per_frame, generator)  # [L, N, rank + 1]
        colours = torch.randn(_SCENE_RANK, dim, generator=generator) / sqrt(_SCENE_RANK)
        tokens[shot] += patterns[..., :-1] @ colours + mean_token
        attn[shot] = _attention(patterns[..., -1], generator)
        features[shot] = _features(motion, shared_appearance, generator)
        start += length
    return Video(tokens.to(device, dtype), attn.to(device, dtype), features.to(device, dtype))


def preset_video(
    preset: str,
    frames: int,
    tokens_per_frame: int,
    dim: int,
    *,
    seed: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Video:
    """`synthetic_video` of a kind in `PRESETS`, or of `EQUAL_SHOTS`; of at most one shot a frame."""
    kind = _KINDS[preset]
    return synthetic_video(
        frames,
        tokens_per_frame,
        dim,
        shots=min(kind.shots, frames),
        drift=kind.drift,
        noise=kind.noise,
        seed=seed,
        equal_shots=kind.equal_shots,
        dtype=dtype,
        device=device,
    )


def _uniform(*shape: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator)


def _shot_lengths(frames: int, shots: int, generator: torch.Generator) -> list[int]:
    cuts = torch.randperm(frames - 1, generator=generator)[: shots - 1].sort().values + 1
    return torch.diff(cuts, prepend=cuts.new_zeros(1), append=cuts.new_full((1,), frames)).tolist()


def _equal_lengths(frames: int, shots: int) -> list[int]:
    return [frames * (shot + 1) // shots - frames * shot // shots for shot in range(shots)]


def _moving_patterns(motion: Tensor, tokens_per_frame: int, generator: torch.Generator) -> Tensor:
    """Smooth patterns `[L, N, rank + 1]` under a camera that moves one way; the last drives attention."""
    height = next(side for side in range(isqrt(tokens_per_frame), 0, -1) if tokens_per_frame % side == 0)
    width = tokens_per_frame // height
    canvas = torch.randn(1, _SCENE_RANK + 1, _CANVAS, _CANVAS, generator=generator)
    rows, columns = torch.linspace(-_MARGIN, _MARGIN, height), torch.linspace(-_MARGIN, _MARGIN, width)
    view = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)  # [height, width, (x, y)]
    heading = F.normalize(torch.randn(2, generator=generator), dim=0)
    control_spacing = 2 / (_CANVAS - 1)
    shift = motion.cumsum(0)[:, None, None, None] * control_spacing * heading
    # The camera is reflected at the edge of the canvas, so that long shots never leave the scene.
    seen = F.grid_sample(
        canvas.expand(len(motion), -1, -1, -1),
        view + shift,
        mode="bicubic",
        padding_mode="reflection",
        align_corners=True,
    )
    return seen.flatten(2).mT


def _attention(saliency: Tensor, generator: torch.Generator) -> Tensor:
    """Attention `[L, N]` with peaks: the scene's smooth saliency, with noise that differs from frame to frame."""
    grain = torch.randn(saliency.shape, generator=generator)
    logits = 0.9 * saliency / saliency.std() + 0.3 * grain
    return (_PEAKINESS * logits).softmax(dim=-1)


def _features(motion: Tensor, shared_appearance: Tensor, generator: torch.Generator) -> Tensor:
    """Features `[L, G]` that drift from a shot's own direction, faster where there is more motion."""
    feature_dim = len(shared_appearance)
    own = torch.randn(feature_dim, generator=generator)
    first = sqrt(_SHARED_APPEARANCE) * shared_appearance + sqrt(1 - _SHARED_APPEARANCE) * own
    steps = motion[:, None] * torch.randn(len(motion), feature_dim, generator=generator)
    return first + steps.cumsum(0)
