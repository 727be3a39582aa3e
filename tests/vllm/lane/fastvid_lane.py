"""Run at the start of every process in the lane's environment: defines operators that torchvision lacks there.

Beside a CPU build of torch, the ordinary build of torchvision has no operators, but needs two of them when imported.
"""

import importlib.abc
import sys


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing: it only learns that torchvision is about to be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            _define_operators()


def _define_operators():
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Finder())
