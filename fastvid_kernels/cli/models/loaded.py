"""What the models of `fastvid run` share: how a checkpoint is loaded, and how a question becomes a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from fastvid_kernels.adapters import FastVidHandle, apply_fastvid
from fastvid_kernels.cli.common.errors import CommandError, named


class Marks(NamedTuple):
    """The words of a family's prompts that stand for a video, for an image, and around a video."""

    video: str
    image: str
    start: str = ""
    end: str = ""


@dataclass(frozen=True)
class Loaded:
    """What every `Chat` has.

    Attributes:
        name: what it is, for people.
        model: a model that `apply_fastvid` accepts.
        tokenizer: its tokenizer.
        chat_template: a Jinja template, or None for the bare question.
        image_processor: turns pictures into pixel values.
        generation: arguments of `generate` that make its output readable text.
        note: a remark to print about its answers, or "".
    """

    name: str
    model: Any
    tokenizer: Any
    chat_template: str | None
    image_processor: Any
    generation: dict[str, Any]
    note: str = ""

    marks: ClassVar[Marks]
    default_retention: ClassVar[float]

    @classmethod
    def load(cls, source: str, device: torch.device, dtype: torch.dtype, **more: Any) -> Self:
        """Load a model from a checkpoint's directory or hub id; `more` is what the class has beside the above.

        Raises:
            CommandError: it cannot be loaded.
        """
        from transformers import AutoTokenizer
        from transformers.processing_utils import ProcessorMixin

        with named(f"--model {source}", "loaded"):
            tokenizer = AutoTokenizer.from_pretrained(source)
            image_processor = cls.load_image_processor(source)
            processor, _ = ProcessorMixin.get_processor_dict(source)
            model = cls.load_model(source, dtype)
        return cls(
            name=source,
            model=model.to(device).eval(),
            tokenizer=tokenizer,
            chat_template=processor.get("chat_template") or tokenizer.chat_template,
            image_processor=image_processor,
            generation={},
            **more,
        )

    @staticmethod
    def load_model(source: str, dtype: torch.dtype) -> Any:
        """The model of a checkpoint."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(source, dtype=dtype)

    @staticmethod
    def load_image_processor(source: str) -> Any:
        """The image processor of a checkpoint; one that needs no torchvision, as the models' video processors do."""
        raise NotImplementedError

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Words that stand for images and videos in its prompts."""
        return self.marks.video, self.marks.image

    @property
    def placeholder_id(self) -> int:
        """The id that stands for a token of a video in its inputs."""
        return int(self.model.config.video_token_id)

    def patch(self, retention: float) -> FastVidHandle:
        """Make the model prune."""
        return apply_fastvid(self.model, retention_ratio=retention)

    def around_video(self, question: str) -> tuple[str, str]:
        """The prompt of a question about a video, before and after the word that stands for the video.

        Raises:
            CommandError: the chat template has no such word, or several.
        """
        messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}]
        text = f"{self.marks.start}{self.marks.video}{self.marks.end}{question}"
        if self.chat_template is not None:
            text = self.tokenizer.apply_chat_template(
                messages, chat_template=self.chat_template, add_generation_prompt=True, tokenize=False
            )
        before, found, after = text.partition(self.marks.video)
        if not found:
            raise CommandError(f"the chat template of {self.name} has no place for a video ({self.marks.video})")
        if self.marks.video in after:
            raise CommandError(f"the chat template of {self.name} has several places for a video ({self.marks.video})")
        return before, after

    def text(self, ids: Tensor) -> str:
        """The generated ids as text."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
