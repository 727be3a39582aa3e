"""Start-up of the lane's environment, for every process in it: what vLLM on a CPU lacks there, and a GPU's has.

- torchvision's operators are not in its ordinary build beside a CPU torch, and it asks for two of them when imported;
- vLLM 0.32's runner for CPUs does not learn that the model prunes, as its runner for GPUs does.
"""

import importlib.abc
import importlib.machinery
import sys


def _define_nms(_=None):
    import torch

    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _tell_runner(module):
    runner = module.CPUModelRunner
    load = runner.load_model

    def load_model(self, *args, **kwargs):
        load(self, *args, **kwargs)
        config = self.model_config.multimodal_config
        self.is_multimodal_pruning_enabled = (
            getattr(self.get_model(), "supports_multimodal_pruning", False)
            and config is not None
            and config.is_multimodal_pruning_enabled()
        )

    runner.load_model = load_model


_BEFORE = {"torchvision": _define_nms}
_AFTER = {"vllm.v1.worker.cpu_model_runner": _tell_runner}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        before, after = _BEFORE.pop(name, None), _AFTER.pop(name, None)
        if before is not None:
            before()
        if after is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            after(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
