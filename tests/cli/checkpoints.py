"""Small checkpoints on disk, in the formats that the real ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.adapters import tiny
from tests.adapters.test_onevision_prefill import inputs_of, video_prompt

CHAT_TEMPLATE = (
    "{% for message in messages %}ask {% for part in message['content'] %}"
    "{{ '<video> ' if part['type'] == 'video' else part['text'] }}{% endfor %} answer{% endfor %}"
)
WORDS = ["[PAD]", "[UNK]", "ask", "answer", *(f"w{number}" for number in range(4, tiny.VIDEO)), "<video>", "<image>"]


def llava() -> Any:
    """`tiny.llava_onevision()`, whose answers depend on the prompt."""
    model = tiny.llava_onevision(seed=2)
    tiny.talkative(model, *(inputs_of(video_prompt(seed)) for seed in range(4)))
    model.lm_head.weight.data[tiny.VIDEO :] = 0
    return model


def write_llava(directory: Path, *, chat_template: str = CHAT_TEMPLATE) -> Path:
    """`llava()`, with a tokenizer of words and a chat template in the processor's file."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    llava().save_pretrained(directory)
    vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, unk_token="[UNK]", pad_token="[PAD]")
    tokenizer.save_pretrained(directory)
    preprocessor = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "size": {"height": 40, "width": 40},
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": chat_template}))
    return directory


def write_siglip(directory: Path, **settings: Any) -> Path:
    """`tiny.siglip()`."""
    tiny.siglip(**settings).save_pretrained(directory)
    return directory
