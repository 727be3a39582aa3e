"""Stands in for lmms-eval: the parts that our code uses, and a class that answers as its own do, faults included."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from tests.adapters import tiny

NEW = 4


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None


class GeneralConfigTracker:
    @staticmethod
    def _get_model_name(model_args: str) -> str:
        return model_args.split("pretrained=")[1].split(",")[0]


def parse(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(","))


def install(monkeypatch: Any) -> list[dict[str, Any]]:
    """Put the modules in place; returns the list that receives logged metrics."""
    logged: list[dict[str, Any]] = []
    contents: dict[str, dict[str, Any]] = {
        "lmms_eval": {},
        "lmms_eval.loggers": {},
        "lmms_eval.loggers.evaluation_tracker": {"GeneralConfigTracker": type("T", (GeneralConfigTracker,), {})},
        "lmms_eval.models": {},
        "lmms_eval.models.model_utils": {},
        "lmms_eval.models.model_utils.gen_metrics": {"log_metrics": lambda **metrics: logged.append(metrics)},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.utils": {"simple_parse_args_string": parse},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return logged


def request(seed: int, video: bool = True) -> dict[str, Any]:
    """Arguments of `generate`."""
    ids = [*tiny.words(seed, 5), *(tiny.placeholders() if video else []), *tiny.words(seed + 1, 4)]
    inputs: dict[str, Any] = tiny.batch([ids])
    return inputs | ({"pixel_values_videos": tiny.film(seed)} if video else {})


class Upstream:
    """Like a class of lmms-eval: errors of `generate` become empty answers, and videos it cannot read get one too."""

    def __init__(self, pretrained: str = "", device: str = "cuda") -> None:
        self.arguments = {"pretrained": pretrained, "device": device}
        self._model: Any = tiny.llava_onevision()

    @property
    def model(self) -> Any:
        return self._model

    def generate_until(self, requests: list[Any]) -> list[Any]:
        return [self._answer(one) for one in requests]

    def _answer(self, one: Any) -> Any:
        if isinstance(one, str):
            try:
                one = self.load_video(one, 8)
            except OSError:
                return "the video cannot be loaded"
        if "skipped" in one:
            return "the video cannot be loaded"
        try:
            return self.model.generate(**one, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist()
        except Exception:
            return ""

    def load_video(self, path: str, frames: int) -> Any:
        raise FileNotFoundError(path)

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        return [0.0 for _ in requests]

    def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
        return ["" for _ in requests]


def answer(model: Any, one: dict[str, Any]) -> list[int]:
    """A model's answer without lmms-eval."""
    with torch.inference_mode():
        found: list[int] = model.generate(**one, max_new_tokens=NEW, do_sample=False)[0, -NEW:].tolist()
    return found
