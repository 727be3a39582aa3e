"""Functions that the lane's task applies to a document; lmms-eval reads this file from the task's folder."""

from __future__ import annotations

from typing import Any


def doc_to_visual(doc: dict[str, Any]) -> list[Any]:
    if doc["kind"] == "image":
        from PIL import Image

        return [Image.open(doc["path"]).convert("RGB")]
    return {"text": [], "video": [doc["path"]], "two videos": [doc["path"]] * 2}[doc["kind"]]


def doc_to_text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str] | None = None) -> str:
    own = lmms_eval_specific_kwargs or {}
    options = " ".join(f"{letter}) {option}" for letter, option in zip("ABC", doc["options"], strict=True))
    return f"{own.get('pre_prompt', '')}{doc['question']} {options}{own.get('post_prompt', '')}"


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"accuracy": float(results[0].strip()[:1] == doc["answer"])}
