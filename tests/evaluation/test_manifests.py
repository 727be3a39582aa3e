"""The manifests that tell lmms-eval what to load."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from fastvid_kernels import evaluation
from tests.evaluation import stand_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def version(monkeypatch: Any) -> Any:
    """Sets the version of lmms-eval that appears to be installed."""
    stand_in.install(monkeypatch)
    return lambda number: monkeypatch.setattr(importlib.metadata, "version", lambda name: number)


def bases_of(path: str) -> list[str]:
    """Names of a class's bases, read from its source file."""
    module, name = path.rsplit(".", 1)
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return [ast.unparse(base) for base in found.bases]


def test_entry_point_is_the_callable() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, name = project["entry-points"]["lmms_eval.models"]["fastvid"].split(":")
    assert getattr(import_module(module), name) is evaluation.manifests


def test_names_are_those_of_lmms_eval_and_classes_are_ours(version: Any) -> None:
    version(evaluation.SUPPORTED)
    found = {manifest.model_id: manifest for manifest in evaluation.manifests()}
    assert set(found) == {
        "llava_hf",
        "llava_onevision",
        "llava_vid",
        "qwen2_vl",
        "qwen2_5_vl",
        "qwen3_vl",
        "qwen3_5",
    }
    for name, manifest in found.items():
        for kind, path in (("simple", manifest.simple_class_path), ("chat", manifest.chat_class_path)):
            if path is None:
                assert (name, kind) in {("llava_onevision", "chat"), ("llava_vid", "chat"), ("qwen2_vl", "chat")}
                continue
            assert path.startswith(f"fastvid_kernels.evaluation.{name}.")
            bases = bases_of(path)
            assert bases[0] in ("Pruned", "_OneDevice")
            assert bases[-1].startswith(f"{kind}.")


def test_another_version_gets_nothing_and_is_told(version: Any, caplog: pytest.LogCaptureFixture) -> None:
    version("0.8.0")
    assert evaluation.manifests() == []
    assert "supports lmms-eval 0.7.3, got 0.8.0" in caplog.text


def test_importing_it_imports_no_model_library() -> None:
    check = (
        "import sys, fastvid_kernels.evaluation; print([m for m in ('lmms_eval', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
