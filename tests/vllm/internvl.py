"""InternVL as it is served in tests, in both formats, against transformers pruned by the oracle on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import reference
from tests.adapters import independent, tiny
from tests.adapters.tiny import IMAGE, VIDEO
from tests.vllm import checkpoints, engine
from tests.vllm.engine import Request
from tests.vllm.family import Family
from tests.vllm.llava import requests_with, video, words

CONTEXT, VIDEO_PAD, START, END, NEWLINE = 122, 123, 124, 125, 126
NAMES = {
    "<video>": VIDEO,
    "<image>": IMAGE,
    "<IMG_CONTEXT>": CONTEXT,
    "<|video_pad|>": VIDEO_PAD,
    "<img>": START,
    "</img>": END,
    "\n": NEWLINE,
}
SPECIAL = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
VISION = {
    "model_type": "internvl_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": [40, 40],
    "patch_size": [4, 4],
    "attention_bias": True,
}
TEXT = checkpoints.LLAVA_TEXT | {"model_type": "qwen3", "head_dim": 32}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEPT_A_FRAME = 6
CHAT_CONFIG = """
from transformers import AutoConfig, PretrainedConfig


class InternVLChatConfig(PretrainedConfig):
    model_type = "internvl_chat"

    def __init__(self, vision_config=None, llm_config=None, **others):
        super().__init__(**others)
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        self.llm_config = AutoConfig.for_model(**(llm_config or {"model_type": "qwen2"}))
"""
# Of a checkpoint in transformers' format, the parts of names that InternVL's own has other names for.
OWN_NAMES = {
    "vision_tower.": "vision_model.",
    "encoder.layer.": "encoder.layers.",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    ".attention.projection_layer": ".attn.proj",
    ".attention.q_norm": ".attn.q_norm",
    ".attention.k_norm": ".attn.k_norm",
    ".layernorm_before": ".norm1",
    ".layernorm_after": ".norm2",
    ".lambda_1": ".ls1",
    ".lambda_2": ".ls2",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}


def model(vision: dict[str, Any], text: dict[str, Any]) -> Any:
    """`InternVLForConditionalGeneration`, its weights spread so wide that attention is far from uniform."""
    config = transformers.InternVLConfig(
        vision_config=VISION | vision, text_config=TEXT | text, image_token_id=CONTEXT, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    built = transformers.InternVLForConditionalGeneration(config)
    tiny.spread(built)
    prompts = []
    for seed in range(4):
        ids = [*words(seed, 4), *[CONTEXT] * (tiny.FRAMES * tiny.TOKENS_PER_FRAME), *words(seed + 1, 7)]
        prompts.append({"input_ids": torch.tensor([ids]), "pixel_values": tiny.film(seed)[0]})
    tiny.talkative(built.eval(), *prompts)
    # No placeholder is ever generated.
    built.lm_head.weight.data[VIDEO - 20 :] = 0
    return built


class InternVL(Family):
    """Transformers' format of checkpoints."""

    hyperparameters = tiny.HYPERPARAMETERS
    chunk = 64
    image = CONTEXT
    video = VIDEO
    between: tuple[int, ...] = (NEWLINE,)

    def __init__(
        self,
        directory: Path,
        vision: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        named: dict[str, int] = NAMES,
    ) -> None:
        self.model = model(vision or {}, text or {})
        self.checkpoint = directory
        sizes = {"size": {"height": 40, "width": 40}, "image_mean": MEAN, "image_std": STD}
        tokenizer = checkpoints.tokenizer(named)
        tokenizer._set_model_specific_special_tokens(SPECIAL)
        self.processor = transformers.InternVLProcessor(
            image_processor=transformers.GotOcr2ImageProcessor(**sizes),
            tokenizer=tokenizer,
            video_processor=transformers.InternVLVideoProcessor(**sizes),
            image_seq_length=tiny.TOKENS_PER_FRAME,
            chat_template=checkpoints.CHAT.replace("{{ video }}", "<video>"),
        )
        self.save()

    def save(self) -> None:
        """Save the checkpoint."""
        self.model.save_pretrained(self.checkpoint)
        self.processor.save_pretrained(self.checkpoint)

    def requests(self) -> dict[str, Request]:
        return requests_with(self.video, self.image, longest=24)

    def short(self, seed: int) -> Request:
        return Request([*words(seed, 2 + seed % 5), self.video, *words(seed + 50, 4)], (video(seed, 4 + seed % 7),))

    def expected(self, request: Request, new: int = engine.NEW) -> tuple[list[int], Tensor]:
        return independent.continued(self.model, *self.embedded(request), new)

    def embedded(self, request: Request) -> tuple[Tensor, Tensor]:
        """The row as the language model should see it: embeddings `[S, D]`, and original positions `[S]`."""
        ids, runs = self.unpruned(request)
        with torch.no_grad():
            embeds = self.model.get_input_embeddings()(torch.tensor(ids))
            keep = torch.ones(len(ids), dtype=torch.bool)
            clips, pictures = iter(request.videos), iter(request.images)
            for kind, places in runs:
                pixels = self.pixels(next(clips) if kind == VIDEO else np.asarray(next(pictures))[None])
                tokens = self.model.model.get_image_features(pixel_values=pixels).pooler_output
                if kind != VIDEO:
                    embeds[places] = tokens.flatten(0, 1)
                    continue
                attention, features = self.attention_and_features(pixels)
                pruned = reference.prune(tokens, attention, features, None, **self.hyperparameters)
                keep[places] = False
                keep[places[pruned.indices]] = True
                embeds[places[pruned.indices]] = pruned.tokens.to(embeds.dtype)
        return embeds[keep], keep.nonzero()[:, 0]

    def unpruned(self, request: Request) -> tuple[list[int], list[tuple[int, Tensor]]]:
        """Ids of the unpruned prompt, and for each image and video its kind and the places of its tokens."""
        ids: list[int] = []
        runs: list[tuple[int, Tensor]] = []
        clips: Iterator[Any] = iter(request.videos)
        for one in request.ids:
            if one not in (self.image, self.video):
                ids.append(one)
                continue
            places: list[int] = []
            for number in range(len(next(clips)) if one == self.video else 1):
                if one == self.video:
                    between = [] if number == 0 else self.between
                    ids += [*between, *self.processor.tokenizer(f"Frame{number + 1}: ")["input_ids"]]
                places += range(len(ids) + 1, len(ids) + 1 + tiny.TOKENS_PER_FRAME)
                ids += [START, *[CONTEXT] * tiny.TOKENS_PER_FRAME, END]
            runs.append((VIDEO if one == self.video else IMAGE, torch.tensor(places)))
        return ids, runs

    def pixels(self, frames: Any) -> Tensor:
        """What the tower gets of frames `[F, 40, 40, 3]`, which are not resized."""
        return ((torch.tensor(frames) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)

    def attention_and_features(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """[CLS] attention of tokens `[F, N]` by transformers' own eager attention, and the states of [CLS] `[F, H]`."""
        tower = self.model.model.vision_tower
        used = tower.config._attn_implementation
        tower.set_attn_implementation("eager")
        outputs = tower(pixels, output_attentions=True)
        tower.set_attn_implementation(used)
        return pooled(outputs.attentions[-1][:, :, 0, 1:].mean(1)), outputs.last_hidden_state[:, 0]


class InternVLChat(InternVL):
    """InternVL's own format of checkpoints, with the configuration's code in the checkpoint."""

    image = IMAGE
    between = ()
    engine_settings: ClassVar[dict[str, Any]] = {"trust_remote_code": True}

    def requests(self) -> dict[str, Request]:
        """vLLM's processor for this format takes no arrays as images."""
        return {
            name: replace(one, images=tuple(Image.fromarray(picture) for picture in one.images))
            for name, one in super().requests().items()
        }

    def save(self) -> None:
        """Save the checkpoint, which has no processor in this format."""
        self.processor.tokenizer.save_pretrained(self.checkpoint)
        (self.checkpoint / "configuration_internvl_chat.py").write_text(CHAT_CONFIG)
        vision = self.model.config.vision_config
        language_model = type(self.model.model.language_model).__name__.replace("Model", "ForCausalLM")
        config = {
            "architectures": ["InternVLChatModel"],
            "auto_map": {"AutoConfig": "configuration_internvl_chat.InternVLChatConfig"},
            "model_type": "internvl_chat",
            "dtype": "float32",
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": 40,
            "llm_config": self.model.config.text_config.to_dict() | {"architectures": [language_model]},
            "max_dynamic_patch": 4,
            "min_dynamic_patch": 1,
            "ps_version": "v2",
            "select_layer": -1,
            "use_thumbnail": True,
            "vision_config": {
                "hidden_act": vision.hidden_act,
                "hidden_size": vision.hidden_size,
                "image_size": 40,
                "initializer_factor": 0.1,
                "intermediate_size": vision.intermediate_size,
                "layer_norm_eps": vision.layer_norm_eps,
                "model_type": "intern_vit_6b",
                "norm_type": vision.norm_type,
                "num_attention_heads": vision.num_attention_heads,
                "num_hidden_layers": vision.num_hidden_layers,
                "patch_size": 4,
                "qk_normalization": vision.use_qk_norm,
                "qkv_bias": vision.attention_bias,
            },
        }
        (self.checkpoint / "config.json").write_text(json.dumps(config))
        self.model.save_pretrained(self.checkpoint / "other")
        tensors = in_own_format(load_file(self.checkpoint / "other" / "model.safetensors"))
        save_file(tensors, self.checkpoint / "model.safetensors", metadata={"format": "pt"})


def in_own_format(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in InternVL's own format, where queries, keys and values are one projection."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attention.q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            name, tensor = name.replace("attention.q_proj", "attn.qkv"), torch.cat(parts)
        elif ".attention.k_proj" in name or ".attention.v_proj" in name:
            continue
        for old, new in OWN_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def pooled(grid: Tensor) -> Tensor:
    """`[F, 100]`, 10 by 10 patches, to means of 5 by 5 tokens, `[F, 25]`."""
    return grid.unflatten(1, (5, 2, 5, 2)).mean((2, 4)).flatten(1)
