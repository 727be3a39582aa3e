"""`python -m tests.vllm.alone CHECKPOINT REQUESTS ANSWERS`: vLLM in a process of its own, without pruning.

The environment variable VLLM_PLUGINS chooses plug-ins: all if it is not set, none if it is empty.

REQUESTS is a pickled tuple: settings of the engine, and a list of requests. The program answers them one by one,
and writes a pickled tuple to ANSWERS: the name of the model's module, whether the package was imported, and the list of
answers.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest

from tests.vllm import engine, recurrence


def main() -> None:
    os.environ |= engine.ENVIRONMENT
    recurrence.stand_in(pytest.MonkeyPatch())
    checkpoint, given, answers = (Path(one) for one in sys.argv[1:])
    settings, requests = pickle.loads(given.read_bytes())
    with engine.running(checkpoint, **settings) as plain:
        found = [plain.answer(one)[0] for one in requests]
        module = type(plain.model).__module__
    answers.write_bytes(pickle.dumps((module, "fastvid_kernels" in sys.modules, found)))


if __name__ == "__main__":
    main()
