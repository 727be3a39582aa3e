from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.adapters import flash, llava_lanes, tiny


@pytest.fixture(autouse=True)
def no_gradients() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def siglip_directory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A full SigLIP checkpoint whose head fits `tiny.llava_onevision()`."""
    directory = tmp_path_factory.mktemp("siglip")
    tiny.siglip().save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def head() -> Any:
    """The same head as a module of transformers."""
    return tiny.siglip()


@pytest.fixture(params=["sdpa", "eager", "flash"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param != "flash":
        return tiny.llava_onevision(attention=request.param)
    model = tiny.llava_onevision()
    flash.stand_in(monkeypatch, model)
    return model


@pytest.fixture
def patched(model: Any, siglip_directory: Any) -> Any:
    """`model`, patched to prune; the independent computation runs on a twin that was never patched."""
    from fastvid_kernels.adapters import apply_fastvid

    apply_fastvid(model, siglip=siglip_directory, **tiny.HYPERPARAMETERS)
    return model


@pytest.fixture
def twin(model: Any) -> Any:
    """An unpatched model of the same weights; instead of FlashAttention it uses sdpa, which takes explicit masks."""
    path = model.config._attn_implementation
    return tiny.llava_onevision(attention="sdpa" if path.startswith("flash") else path)


@pytest.fixture
def unpatched(model: Any, twin: Any) -> Any:
    """An unpatched model with the same weights and the same attention implementation."""
    for ours, its in ((twin.config, model.config), (twin.config.text_config, model.config.text_config)):
        ours._attn_implementation_internal = its._attn_implementation
    return twin


@pytest.fixture(scope="session", params=llava_lanes.LANES)
def llava(request: pytest.FixtureRequest) -> Any:
    """The module of the llava package that defines the model: the stand-in's, and the real one's if there is one."""
    with llava_lanes.imported(request.param) as module:
        yield module
