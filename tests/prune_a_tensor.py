"""Prunes with the installed fastvid_kernels, not the one in this folder; `make dist` runs it on the wheel."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

import fastvid_kernels

installed = Path(fastvid_kernels.__file__).resolve()
if Path(__file__).resolve().parent.parent in installed.parents and "site-packages" not in installed.parts:
    raise SystemExit(f"{installed} is not the installed package")
tokens, attn = torch.randn(32, 196, 64), torch.rand(32, 196)
kept, indices = fastvid_kernels.prune(tokens, attn, retention_ratio=0.1)
if kept.shape != (608, 64) or not bool((indices.diff() > 0).all()):
    raise SystemExit(f"it kept {list(kept.shape)} tokens")
if version("fastvid_kernels") != fastvid_kernels.__version__:
    raise SystemExit(f"{version('fastvid_kernels')} calls itself {fastvid_kernels.__version__}")
print(f"fastvid_kernels {fastvid_kernels.__version__} with torch {torch.__version__} kept {len(kept)} tokens")
