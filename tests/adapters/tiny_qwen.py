"""Small Qwen-VL models and their kin with random weights, from real configs; prompts and videos for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from tests.adapters import tiny
from tests.adapters.tiny import PAD, spread, transformers

WORDS, START, END, VIDEO, IMAGE, VOCABULARY = 100, 117, 118, 120, 121, 128
AUDIO, AUDIO_START, AUDIO_END = 122, 115, 116
MERGE, PATCH, FRAMES_A_PATCH = 2, 4, 2
HYPERPARAMETERS: dict[str, Any] = {"min_segments": 3, "tau": 0.5}
# Frames, rows and columns of patches: neither square, nor of an even number of windows (2 x 2 tokens).
GRID, WIDE = (6, 6, 10), (4, 4, 14)

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "rope_parameters": _ROPE,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
_VISION = {
    "depth": 3,
    "num_heads": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "out_hidden_size": 48,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": FRAMES_A_PATCH,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LINEAR = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": _ROPE | {"partial_rotary_factor": 1.0, "mrope_interleaved": True},
}
_POSITIONS = {"num_position_embeddings": 64}


@dataclass(frozen=True)
class Kind:
    """A family: its classes, settings of its own, and how a video appears in a prompt.

    Attributes:
        prefix: of the names of its classes.
        text: settings of the language model.
        vision: settings of the tower.
        timestamps: whether each frame of a video has its own placeholders, after a time as text.
        placeholder: the id that stands for a token of a video.
        seconds: positions in time between two frames, of a model that is not told the time.
        window: side of the tower's windows, in tokens.
        marks: ids around videos.
        audio: settings of the encoder of sound, if there is one.
        frame_seconds: time between two frames of a `Prompt`, if the model is told.
    """

    prefix: str
    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    timestamps: bool = False
    placeholder: int = VIDEO
    seconds: int = 1
    window: int | None = None
    marks: dict[str, int] = field(default_factory=lambda: {"vision_start_token_id": START, "vision_end_token_id": END})
    audio: dict[str, Any] | None = None
    frame_seconds: float | None = None


_INTERLEAVED = {"rope_parameters": _ROPE | {"mrope_interleaved": True}}
_DEEPSTACK = _POSITIONS | {"deepstack_visual_indexes": [0, 1]}
_GLM_TEXT = {"head_dim": 16, "rope_parameters": _ROPE | {"partial_rotary_factor": 0.5}}
_GLM_MOE = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GLM: dict[str, Any] = {
    "vision": {"image_size": 32},
    "timestamps": True,
    "placeholder": IMAGE,
    "marks": {"video_start_token_id": START, "video_end_token_id": END},
}
_AUDIO = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "num_mel_bins": 8,
    "output_dim": 48,
}
_OMNI_MARKS = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "audio_token_id": AUDIO,
    "audio_start_token_id": AUDIO_START,
    "audio_end_token_id": AUDIO_END,
}
KINDS = {
    "qwen2": Kind("Qwen2VL", vision={"embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}),
    "qwen2.5": Kind(
        "Qwen2_5_VL",
        vision={"window_size": 2 * MERGE * PATCH, "fullatt_block_indexes": [1, 2], "tokens_per_second": 4},
        seconds=4,
        window=2,
    ),
    "qwen3": Kind("Qwen3VL", text=_INTERLEAVED, vision=_DEEPSTACK, timestamps=True),
    "qwen3-moe": Kind("Qwen3VLMoe", text=_INTERLEAVED | _MOE, vision=_DEEPSTACK, timestamps=True),
    "qwen3.5": Kind("Qwen3_5", text=_LINEAR, vision=_POSITIONS, timestamps=True),
    "qwen3.5-moe": Kind(
        "Qwen3_5Moe", text=_LINEAR | _MOE | {"shared_expert_intermediate_size": 32}, vision=_POSITIONS, timestamps=True
    ),
    "glm4.1": Kind("Glm4v", text=_GLM_TEXT, **_GLM),
    "glm4.5-moe": Kind("Glm4vMoe", text=_GLM_TEXT | _GLM_MOE, **_GLM),
    "glm4.6": Kind("Glm46V", text=_GLM_TEXT, **_GLM),
}
# On 5.17 the parts of these models lie elsewhere; versions between were not tried.
HAS_OMNI = Version(transformers.__version__) >= Version("5.23")
if HAS_OMNI:
    KINDS |= {
        "qwen2.5-omni": Kind(
            "Qwen2_5OmniThinker",
            vision={"window_size": 2 * MERGE * PATCH, "fullatt_block_indexes": [1, 2]},
            window=2,
            marks=_OMNI_MARKS,
            audio=_AUDIO | {"n_window": 4, "max_source_positions": 64},
            frame_seconds=0.4,
        ),
        "qwen3-omni": Kind(
            "Qwen3OmniMoeThinker",
            text=_INTERLEAVED | _MOE,
            vision=_DEEPSTACK,
            marks=_OMNI_MARKS,
            audio=_AUDIO | {"downsample_hidden_size": 8},
            frame_seconds=0.4,
        ),
    }


def model(kind: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32, seed: int = 0, **text: Any) -> Any:
    """The family's `...ForConditionalGeneration`; no special id is ever generated."""
    own = KINDS[kind]
    config_class = getattr(transformers, f"{own.prefix}Config")
    config = config_class(
        # A copy, since a config of transformers may change what it is given.
        text_config=copy.deepcopy(_TEXT | own.text | text),
        vision_config=_VISION | own.vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        tie_word_embeddings=False,
        **own.marks,
        **({} if own.audio is None else {"audio_config": own.audio}),
    )
    torch.manual_seed(seed)
    built = getattr(transformers, f"{own.prefix}ForConditionalGeneration")(config)
    spread(built)
    with torch.no_grad():
        for name, parameter in built.model.language_model.named_parameters():
            # With wider weights, the gated states of random models would lose five digits by themselves.
            if "linear_num_key_heads" in own.text and parameter.dim() > 1:
                parameter *= 0.25 if "linear_attn" in name else 0.5 if "mlp" in name else 1
        built.lm_head.weight[PAD] = 0
        built.lm_head.weight[WORDS:] = 0
    built.set_attn_implementation(attention)
    return built.to(dtype).eval()


@dataclass(frozen=True)
class Clip:
    """Patches of a video or an image, `[F * H * W, C]`, and F, H and W."""

    patches: Tensor
    grid: tuple[int, int, int]

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[1] * self.grid[2] // MERGE**2


def film(seed: int, grid: tuple[int, int, int] = GRID) -> Clip:
    """Two shots that drift."""
    frames, rows, columns = grid
    generator = torch.Generator().manual_seed(seed)
    channels = 3 * FRAMES_A_PATCH * PATCH**2
    shots = torch.randn(2, rows * columns, channels, generator=generator)
    shot = (torch.arange(frames) >= frames // 2).long()
    drift = 0.3 * torch.randn(frames, rows * columns, channels, generator=generator)
    return Clip((shots[shot] + drift).flatten(0, 1), grid)


def words(seed: int, count: int) -> list[int]:
    """Ids that are no placeholder."""
    return torch.randint(1, WORDS, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass(frozen=True)
class Prompt:
    """A row: its ids, which of them are text (0), image (1) or video (2), and what the placeholders stand for.

    `frame_seconds` is as in `Kind`.
    """

    ids: list[int]
    types: list[int]
    videos: tuple[Clip, ...] = ()
    images: tuple[Clip, ...] = ()
    frame_seconds: float | None = None

    def then(self, *parts: Any, kind: str) -> Prompt:
        """The row continued."""
        more = prompt(kind, *parts)
        return Prompt(
            self.ids + more.ids,
            self.types + more.types,
            self.videos + more.videos,
            self.images + more.images,
            self.frame_seconds,
        )

    def only_after(self, first: Prompt) -> Prompt:
        """What the row adds to the row `first`, which it continues."""
        return Prompt(
            self.ids[len(first.ids) :],
            self.types[len(first.types) :],
            self.videos[len(first.videos) :],
            self.images[len(first.images) :],
            self.frame_seconds,
        )

    def without_last(self, count: int) -> Prompt:
        """The row without its last words."""
        return Prompt(self.ids[:-count], self.types[:-count], self.videos, self.images, self.frame_seconds)


def prompt(kind: str, *parts: Any) -> Prompt:
    """A row of words (lists of ids), videos (`Clip`) and images (`Clip` of one frame)."""
    own = KINDS[kind]
    ids: list[int] = []
    types: list[int] = []
    videos, images = [], []
    for part in parts:
        if isinstance(part, list):
            ids += part
            types += [0] * len(part)
            continue
        is_image = part.grid[0] == 1
        (images if is_image else videos).append(part)
        per_group = part.tokens_per_frame * (1 if own.timestamps or is_image else part.grid[0])
        for group in range(part.grid[0] * part.tokens_per_frame // per_group):
            stamp = words(900 + group, 2) if own.timestamps and not is_image else []
            placeholder = IMAGE if is_image else own.placeholder
            ids += [*stamp, START, *[placeholder] * per_group, END]
            types += [*[0] * len(stamp), 0, *[1 if is_image else 2] * per_group, 0]
    return Prompt(ids, types, tuple(videos), tuple(images), own.frame_seconds)


def talkative(kind: str) -> Any:
    """`model(kind)`, changed so that its answers depend on the prompt."""
    prompts = [prompt(kind, words(seed, 4), film(seed), words(seed + 1, 7)) for seed in range(4)]
    return tiny.talkative(model(kind), *(inputs_of(one) for one in prompts))


def inputs_of(*prompts: Prompt, side: str = "left") -> dict[str, Tensor]:
    """Arguments of `forward` for rows padded to one length."""
    width = max(len(one.ids) for one in prompts)

    def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor(
            [
                [*[fill] * (width - len(row)), *row] if side == "left" else [*row, *[fill] * (width - len(row))]
                for row in rows
            ]
        )

    inputs = {
        "input_ids": padded([one.ids for one in prompts], PAD),
        "attention_mask": padded([[1] * len(one.ids) for one in prompts], 0),
    }
    if prompts[0].frame_seconds is None:
        inputs["mm_token_type_ids"] = padded([one.types for one in prompts], 0)
    else:
        videos = sum(len(one.videos) for one in prompts)
        inputs["video_second_per_grid"] = torch.full((videos,), prompts[0].frame_seconds)
    for name, grid_name, clips in (
        ("pixel_values_videos", "video_grid_thw", [clip for one in prompts for clip in one.videos]),
        ("pixel_values", "image_grid_thw", [clip for one in prompts for clip in one.images]),
    ):
        if clips:
            inputs[name] = torch.cat([clip.patches for clip in clips])
            inputs[grid_name] = torch.tensor([clip.grid for clip in clips])
    return inputs
