"""vLLM's server as users start it, from the command line, and questions to it over HTTP."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

import av
import psutil

from tests.vllm import engine
from tests.vllm.engine import Answer

START_SECONDS = 300
END_SECONDS = 30


class Server:
    """A server that runs while a `with` block does, and ends with it even after an exception.

    Args:
        checkpoint: the model that it serves.
        log: a file for its output.
        options: more options of its command line.
    """

    def __init__(self, checkpoint: Path, log: Path, *options: str) -> None:
        self._model = str(checkpoint)
        self._log = log
        self._options = options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._address = f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        general = "--dtype float32 --enforce-eager --max-model-len 1024 --block-size 32 --host 127.0.0.1 --port"
        program = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self._model]
        # The engine runs in a process of its own, as it does for users.
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        with self._log.open("w") as out:
            # In a session of its own, so that all processes that it starts can be ended with it.
            self._process = subprocess.Popen(
                [*program, *general.split(), str(self._port), *self._options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        # Killed processes take a moment to disappear.
        end = time.monotonic() + END_SECONDS
        while self.left() and time.monotonic() < end:
            time.sleep(0.1)

    def left(self) -> list[int]:
        """The processes of the server's session that still run."""
        found = []
        for one in psutil.process_iter(["status"]):
            # The process may end meanwhile.
            with contextlib.suppress(ProcessLookupError):
                if one.info["status"] != psutil.STATUS_ZOMBIE and os.getsid(one.pid) == self._process.pid:
                    found.append(one.pid)
        return found

    def wait(self) -> None:
        """Wait until the server answers."""
        for _ in range(START_SECONDS):
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self._address}/health", timeout=5):
                return
            time.sleep(1)
        raise AssertionError(f"no answer in {START_SECONDS} s: {self._log.read_text()[-3000:]}")

    def answer(self, *content: dict[str, Any]) -> Answer:
        """The answer to a user's message, as `Engine.answer` gives it."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": engine.NEW,
            "temperature": 0,
            "logprobs": True,
            "top_logprobs": 5,
            "return_tokens_as_token_ids": True,
        }
        request = urllib.request.Request(
            f"{self._address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        steps = answer["choices"][0]["logprobs"]["content"]
        return Answer(
            answer["usage"]["prompt_tokens"],
            [_token_id(step) for step in steps],
            [{_token_id(one): one["logprob"] for one in step["top_logprobs"]} for step in steps],
            0,
        )


def _token_id(step: dict[str, Any]) -> int:
    return int(step["token"].removeprefix("token_id:"))


def mp4(frames: Any) -> bytes:
    """An MP4 file of frames `[F, H, W, 3]`, two a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=2, width=frames.shape[2], height=frames.shape[1])
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def video_part(file: bytes) -> dict[str, Any]:
    """The part of a message that holds a video file."""
    url = f"data:video/mp4;base64,{base64.b64encode(file).decode()}"
    return {"type": "video_url", "video_url": {"url": url}}


def text_part(text: str) -> dict[str, Any]:
    """The part of a message that holds text."""
    return {"type": "text", "text": text}


def read_by_vllm(file: bytes) -> Any:
    """The frames that a server gets from a file, `[F, H, W, 3]`."""
    from vllm.multimodal.media import ImageMediaIO, VideoMediaIO

    frames, _ = VideoMediaIO(ImageMediaIO()).load_bytes(file).media
    return frames
