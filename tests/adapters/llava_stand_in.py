"""Stands in for `llava.model.language_model.llava_qwen`: the names and the data flow that the adapter touches.

`llava_lanes` loads it under that module name, so that its classes say they come from llava. Videos and images go
through tower and projector together. Then they are split, videos are pooled, newlines are added, and the result takes
the place of the prompt's negative ids. A row of text takes an entry of `images` too but does not use it, as in llava.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

IMAGE_TOKEN_INDEX = -200


class LlavaQwenConfig(Qwen2Config):
    model_type = "llava_qwen"


class LlavaQwenModel(Qwen2Model):
    config_class = LlavaQwenConfig


class LlavaQwenForCausalLM(Qwen2ForCausalLM):
    config_class = LlavaQwenConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model = LlavaQwenModel(config)
        self.post_init()

    def get_model(self) -> Any:
        return self.model

    def get_vision_tower(self) -> Any:
        return getattr(self.model, "vision_tower", None)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.model.mm_projector(self.model.vision_tower(images))

    def get_2dPool(self, image_feature: Tensor, stride: int = 2) -> Tensor:
        side = self.get_vision_tower().num_patches_per_side
        grid = image_feature.mT.unflatten(2, (side, side))
        mode = self.config.mm_spatial_pool_mode
        if mode == "bilinear":
            grid = functional.interpolate(grid, size=[math.ceil(side / stride)] * 2, mode="bilinear")
        else:
            grid = {"average": functional.avg_pool2d, "max": functional.max_pool2d}[mode](grid, stride)
        return grid.flatten(2).mT.contiguous()

    def add_token_per_grid(self, image_feature: Tensor) -> Tensor:
        rows = image_feature.unflatten(1, (math.isqrt(image_feature.shape[1]), -1)).flatten(0, 1)
        return self.add_token_per_frame(rows).flatten(0, 1)

    def add_token_per_frame(self, image_feature: Tensor) -> Tensor:
        return torch.cat([image_feature, self.model.image_newline.expand(len(image_feature), 1, -1)], dim=1)

    def _with_newlines(self, feature: Tensor, is_video: bool) -> Tensor:
        position = self.config.mm_newline_position if is_video else "one_token"
        if position == "grid":
            return self.add_token_per_grid(feature)
        if position == "frame":
            return self.add_token_per_frame(feature).flatten(0, 1)
        newline = [self.model.image_newline[None]] if position == "one_token" else []
        return torch.cat([feature.flatten(0, 1), *newline])

    def _visual(self, images: Any, modalities: list[str]) -> list[Tensor]:
        features = list(self.encode_images(torch.cat(list(images))).split([len(image) for image in images]))
        for number, modality in enumerate(modalities):
            if modality == "video":
                features[number] = self.get_2dPool(features[number])
        return [self._with_newlines(one, kind == "video") for one, kind in zip(features, modalities, strict=True)]

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Any,
        attention_mask: Any,
        past_key_values: Any,
        labels: Any,
        images: Any,
        modalities: Any = ("image",),
        image_sizes: Any = None,
    ) -> tuple[Any, ...]:
        if images is None or input_ids.shape[1] == 1:
            return input_ids, position_ids, attention_mask, past_key_values, None, labels
        visual = iter(self._visual(images, [modalities] if isinstance(modalities, str) else list(modalities)))
        own = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        targets = torch.full_like(input_ids, -100) if labels is None else labels
        rows = [
            self._row(ids[real], target[real], visual)
            for ids, target, real in zip(input_ids, targets, own, strict=True)
        ]
        side = getattr(self.config, "tokenizer_padding_side", "right")
        embeds, targets, real, places = (
            pad_sequence([row[part] for row in rows], True, padding, side)
            for part, padding in enumerate((0.0, -100, False, 0))
        )
        return (
            None,
            None if position_ids is None else places,
            None if attention_mask is None else real.to(attention_mask.dtype),
            past_key_values,
            embeds,
            None if labels is None else targets,
        )

    def _row(self, ids: Tensor, labels: Tensor, visual: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, labels, ones and positions of a row without padding."""
        places = (ids == IMAGE_TOKEN_INDEX).nonzero().flatten().tolist()
        if not places:
            next(visual)
        embeds, targets, first = [], [], 0
        for place in [*places, len(ids)]:
            embeds.append(self.model.embed_tokens(ids[first:place]))
            targets.append(labels[first:place])
            if place < len(ids):
                embeds.append(next(visual))
                targets.append(labels.new_full((len(embeds[-1]),), -100))
            first = place + 1
        limit = getattr(self.config, "tokenizer_model_max_length", None)
        row = torch.cat(embeds)[:limit]
        places = torch.arange(len(row))
        return row, torch.cat(targets)[:limit], torch.ones_like(places, dtype=torch.bool), places

    def forward(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Any = None,
        labels: Any = None,
        images: Any = None,
        image_sizes: Any = None,
        modalities: Any = ("image",),
        cache_position: Any = None,
        **kwargs: Any,
    ) -> Any:
        if inputs_embeds is None:
            input_ids, position_ids, attention_mask, past_key_values, inputs_embeds, labels = (
                self.prepare_inputs_labels_for_multimodal(
                    input_ids, position_ids, attention_mask, past_key_values, labels, images, modalities, image_sizes
                )
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: Any = None,
        images: Any = None,
        image_sizes: Any = None,
        modalities: Any = ("image",),
        **kwargs: Any,
    ) -> Any:
        mask = kwargs.pop("attention_mask", None)
        if images is None:
            embeds = self.model.embed_tokens(inputs)
        else:
            _, _, mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
                inputs, None, mask, None, None, images, modalities, image_sizes
            )
        return super().generate(attention_mask=mask, inputs_embeds=embeds, **kwargs)
