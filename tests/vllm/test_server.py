"""The server from the command line, asked over HTTP with a video file."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from tests.adapters import tiny
from tests.vllm import engine, server
from tests.vllm.engine import Request
from tests.vllm.family import Family
from tests.vllm.llava import KEPT_A_FRAME, Llava
from tests.vllm.server import Server

FRAMES = 12
QUESTION = "What happens?"


@pytest.mark.parametrize(("family", "newlines"), [("llava", 1), ("next-video", 0)], indirect=["family"])
def test_a_video_file_over_http(family: Family, newlines: int, tmp_path: Path) -> None:
    """The reported usage counts the kept tokens; the answer is that of the independent computation."""
    settings = family.settings()
    pruning = [
        f"--video-pruning-rate={settings['video_pruning_rate']}",
        f"--video-pruning-method={settings['video_pruning_method']}",
        f"--additional-config={json.dumps(settings['additional_config'])}",
    ]
    file = server.mp4(engine.film(1, FRAMES, 40, 40))
    with (
        Server(family.checkpoint, tmp_path / "pruned.log", *pruning) as first,
        Server(family.checkpoint, tmp_path / "plain.log") as second,
    ):
        for one in (first, second):
            one.wait()
        pruned, plain = (one.answer(server.video_part(file), server.text_part(QUESTION)) for one in (first, second))
    assert not first.left() + second.left()
    assert plain.prompt == FRAMES * tiny.TOKENS_PER_FRAME + newlines + len(QUESTION)
    assert pruned.prompt == FRAMES * KEPT_A_FRAME + newlines + len(QUESTION)
    question = family.processor.tokenizer(QUESTION)["input_ids"]
    family.check(Request([tiny.VIDEO, *question], (server.read_by_vllm(file),)), pruned)


@pytest.mark.parametrize("family", ["llava"], indirect=True)
def test_a_server_ends_with_a_test_that_fails(family: Llava, tmp_path: Path) -> None:
    class Failure(Exception):
        pass

    with contextlib.suppress(Failure), Server(family.checkpoint, tmp_path / "log") as one:
        assert one.left()
        raise Failure
    assert not one.left()


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nothing/at/all"), Server(Path("nothing/at/all"), tmp_path / "log") as one:
        one.wait()
