"""Where the tests' llava comes from: the stand-in, or the real package if it can be imported."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

_MODULE = "llava.model.language_model.llava_qwen"
LANES = ("stand-in", "real")


@contextmanager
def imported(lane: str) -> Iterator[ModuleType]:
    """`llava.model.language_model.llava_qwen` of a lane, while it is in `sys.modules`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield _stand_in(monkeypatch) if lane == "stand-in" else _real()


def _stand_in(monkeypatch: Any) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_MODULE, Path(__file__).with_name("llava_stand_in.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    parents = _MODULE.split(".")[:-1]
    for depth in range(len(parents)):
        name = ".".join(parents[: depth + 1])
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, _MODULE, module)
    spec.loader.exec_module(module)
    return module


def _real() -> ModuleType:
    try:
        return importlib.import_module(_MODULE)
    except ImportError as error:
        pytest.skip(f"not shown: the real llava (LLaVA-NeXT on PYTHONPATH) cannot be imported: {error}")
