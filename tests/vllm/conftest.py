"""The lane of vLLM: in an environment of its own (make test-vllm), offline, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.vllm import engine, recurrence
from tests.vllm.family import Family

if find_spec("vllm") is None:
    # `make test-vllm` runs these tests in an environment that has vLLM.
    collect_ignore_glob = ["test_*.py"]

os.environ |= engine.ENVIRONMENT


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    """The family that the parameter names: "llava" or another of `makers`, or a kind of Qwen or GLM."""
    # Imported only here, since all load transformers.
    from tests.vllm.internvl import InternVL, InternVLChat
    from tests.vllm.llava import Llava
    from tests.vllm.next_video import NextVideo
    from tests.vllm.qwen import Qwen

    makers: dict[str, Callable[[Path], Family]] = {
        "llava": Llava,
        "next-video": NextVideo,
        "internvl": InternVL,
        "internvl-chat": InternVLChat,
    }
    make = makers.get(request.param, partial(Qwen, request.param))
    directory = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        recurrence.stand_in(monkeypatch)
        yield make(directory)


@pytest.fixture(scope="module")
def served(family: Family) -> Iterator[engine.Engine]:
    """An engine that prunes the family's videos."""
    with engine.running(family.checkpoint, **family.settings()) as running:
        yield running
