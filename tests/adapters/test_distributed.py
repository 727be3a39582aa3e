"""A training step on two processes, wrapped by DDP and sharded by FSDP, against one computation of both batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import reference
from fastvid_kernels.adapters import apply_fastvid
from tests.adapters import independent, test_onevision_prefill, tiny
from tests.adapters.test_onevision_prefill import video_prompt
from tests.adapters.training import check_gradients, labels_of, loss_of, prune_by_the_equations

RANKS = 2
STEPS = 2


def sharded(model: Any) -> Any:
    for layer in model.model.language_model.layers:
        fully_shard(layer)
    return fully_shard(model)


def in_parallel(model: Any) -> Any:
    # LLaVA reads the tower's last hidden state before the tower's last norm, so nothing uses that norm.
    return DistributedDataParallel(model, find_unused_parameters=True)


WRAPPERS = {"DDP": in_parallel, "FSDP": sharded}


def train(rank: int, wrapper: str, folder: Path) -> None:
    """One process: each step sees a prompt of this process's own; the last step's gradients and loss are saved."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model = tiny.llava_onevision().train()
    apply_fastvid(model, siglip=folder / "siglip", **tiny.HYPERPARAMETERS)
    wrapped = WRAPPERS[wrapper](model)
    prompt = video_prompt(3 + rank)
    inputs = test_onevision_prefill.inputs_of(prompt)
    for _ in range(STEPS):
        wrapped.zero_grad()
        loss = wrapped(**inputs, labels=labels_of(inputs, [prompt.ids])).loss
        loss.backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    if wrapper == "FSDP":
        gradients = {name: one.full_tensor() for name, one in gradients.items()}
    torch.save({"loss": loss.detach(), "gradients": gradients}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_gloo_available(), reason="gloo is not in this build of torch")
@pytest.mark.parametrize("wrapper", sorted(WRAPPERS))
def test_a_step_on_two_processes(wrapper: str, tmp_path: Path, head: Any) -> None:
    tiny.siglip().save_pretrained(tmp_path / "siglip")
    with torch.enable_grad():
        multiprocessing.spawn(train, (wrapper, tmp_path), nprocs=RANKS)  # type: ignore[no-untyped-call]
        twin = tiny.llava_onevision()
        losses = []
        for rank in range(RANKS):
            prompt = video_prompt(3 + rank)
            with mock.patch.object(reference, "prune", prune_by_the_equations):
                kept = independent.embedded(twin, head, prompt, tiny.HYPERPARAMETERS)
            losses.append(loss_of([independent.decoded.__wrapped__(twin, *kept)], [prompt.ids]))
        torch.stack(losses).mean().backward()
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for one, loss in zip(found, losses, strict=True):
        torch.testing.assert_close(one["loss"], loss.detach())
        model = tiny.llava_onevision()
        for name, parameter in model.named_parameters():
            parameter.grad = one["gradients"].get(name)
        check_gradients(model, twin, "model.vision_tower", "model.multi_modal_projector", "model.language_model")
