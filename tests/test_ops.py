"""`torch.ops.fastvid.prune` as PyTorch sees it: registered, traceable, shapes known before the data."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

import fastvid_kernels
from fastvid_kernels import PruneConfig, ops, prune
from tests.stages import assert_same_bits

OPERATORS = [torch.ops.fastvid.prune, torch.ops.fastvid.prune_eager]


@pytest.fixture(autouse=True)
def forget_compiled_code() -> None:
    torch.compiler.reset()


def video(frames: int = 12, n: int = 20, dim: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (frames, n)
    return (
        torch.randn(*shape, dim, generator=generator),
        torch.rand(*shape, generator=generator),
        torch.randn(frames, 8, generator=generator),
    )


def cu(*starts: int) -> Tensor:
    return torch.tensor(starts, dtype=torch.int32)


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    assert_same_bits(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(operator: Any, dtype: torch.dtype, ragged: bool) -> None:
    tokens, attn, features = video()
    arguments = (tokens.to(dtype), attn, features, cu(0, 5, 12)) if ragged else (tokens.to(dtype), attn)
    torch.library.opcheck(operator.default, arguments, {"retention_ratio": 0.3})


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("retention_ratio", [0.05, 0.1, 0.29, 1.0])
def test_shapes_are_known_without_data(operator: Any, retention_ratio: float) -> None:
    tokens, attn, features = (x.to(torch.bfloat16) for x in video(7, 100))
    real = operator(tokens, attn, features, retention_ratio=retention_ratio)
    with FakeTensorMode() as mode:
        fake = operator(*map(mode.from_tensor, (tokens, attn, features)), retention_ratio=retention_ratio)
    meta = operator(*(x.to("meta") for x in (tokens, attn, features)), retention_ratio=retention_ratio)
    for shapeless in (fake, meta):
        for ours, theirs in zip(shapeless, real, strict=True):
            assert (ours.shape, ours.dtype, ours.stride()) == (theirs.shape, theirs.dtype, theirs.stride())


@pytest.mark.parametrize("features", [True, False])
def test_shapes_on_a_gpu_are_known_without_one(features: bool) -> None:
    with FakeTensorMode():
        tokens = torch.empty(7, 100, 16, dtype=torch.bfloat16, device="cuda")
        frame_features = torch.empty(7, 8, device="cuda") if features else None
        kept, indices = prune(tokens, torch.empty(7, 100, device="cuda"), frame_features, retention_ratio=0.29)
    assert (kept.shape, kept.dtype, kept.device.type) == ((203, 16), torch.bfloat16, "cuda")
    assert (indices.shape, indices.dtype, indices.device.type) == ((203,), torch.int64, "cuda")


@pytest.mark.parametrize(
    ("device", "frames", "tokens_per_frame", "backend"),
    [
        ("cuda", 32, 196, "triton"),
        ("cuda:1", 1, 1, "triton"),
        ("cuda", 2**20, 1024, "triton"),
        ("cuda", 2**20 + 1, 196, "eager"),
        ("cuda", 32, 1025, "eager"),
        ("cpu", 32, 196, "eager"),
        ("mps", 32, 196, "eager"),
    ],
)
def test_cuda_tensors_take_the_kernels_where_they_fit(
    device: str, frames: int, tokens_per_frame: int, backend: str
) -> None:
    pytest.importorskip("triton")
    assert ops.backend_for(torch.device(device), frames, tokens_per_frame) == backend


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_fullgraph_compile_gives_the_same_bits(backend: str, dynamic: bool) -> None:
    def scaled(tokens: Tensor, attn: Tensor, features: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        pruned = prune(tokens, attn, features, retention_ratio=ratio, backend=backend)  # type: ignore[arg-type]
        return pruned.tokens * 2, pruned.indices

    compiled = torch.compile(scaled, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for frames, ratio in ((12, 0.2), (9, 0.2), (9, 0.35)):
        assert_same(compiled(*video(frames), ratio), scaled(*video(frames), ratio))


def test_a_compiled_call_serves_any_number_of_frames() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(prune, fullgraph=True, dynamic=True, backend=count)
    for frames in (11, 12, 13, 40):
        assert_same(compiled(*video(frames)), prune(*video(frames)))
    assert len(graphs) == 1


def test_inductor_compiles_around_it() -> None:
    def around(tokens: Tensor, attn: Tensor) -> Tensor:
        kept, indices = prune(tokens + 1, attn.softmax(-1), retention_ratio=0.2)
        return kept.sum(-1) + indices

    tokens, attn, _ = video()
    torch.testing.assert_close(torch.compile(around, fullgraph=True)(tokens, attn), around(tokens, attn))


def test_compile_of_dense_and_ragged_batches_and_configs() -> None:
    tokens, attn, features = video(12)
    config = PruneConfig(retention_ratio=0.2, min_segments=2)

    def dense(tokens: Tensor, attn: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        batch = (x.unflatten(0, (3, -1)) for x in (tokens, attn, features))
        return tuple(prune(*batch, config=config))

    def ragged(tokens: Tensor, attn: Tensor, features: Tensor, cu_frames: Tensor) -> tuple[Tensor, ...]:
        return tuple(prune(tokens, attn, features, cu_frames, config=config, beta=0.3))

    for function, arguments in ((dense, (tokens, attn, features)), (ragged, (tokens, attn, features, cu(0, 7, 12)))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same(compiled(*arguments), function(*arguments))


def test_export_with_any_number_of_frames() -> None:
    class Pruner(torch.nn.Module):
        def forward(self, tokens: Tensor, attn: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            return tuple(prune(tokens, attn, features, retention_ratio=0.25))

    frames = Dim("frames", min=2, max=4096)
    exported = torch.export.export(Pruner(), video(8), dynamic_shapes=({0: frames}, {0: frames}, {0: frames}))
    assert any(node.target == torch.ops.fastvid.prune.default for node in exported.graph.nodes)
    for count in (2, 8, 33):
        assert_same(exported.module()(*video(count)), prune(*video(count), retention_ratio=0.25))


def test_inference_mode_and_no_grad() -> None:
    expected = prune(*video(), retention_ratio=0.2)
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            assert_same(prune(*video(), retention_ratio=0.2), expected)


@pytest.mark.parametrize("operator", OPERATORS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck_of_a_training_step(operator: Any, dtype: torch.dtype, ragged: bool) -> None:
    tokens, attn, features = video()
    tokens = tokens.to(dtype).requires_grad_()
    arguments = (tokens, attn, features, cu(0, 5, 12)) if ragged else (tokens, attn)
    torch.library.opcheck(operator.default, arguments, {"retention_ratio": 0.3})


@pytest.mark.parametrize("name", ["prune_backward", "prune_backward_eager"])
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck_of_the_gradient(name: str, ragged: bool) -> None:
    tokens, attn, features = video()
    arguments = (tokens, attn, features, cu(0, 5, 12)) if ragged else (tokens, attn)
    operator = getattr(torch.ops.fastvid, name).default
    torch.library.opcheck(operator, (torch.ones(72, 16), *arguments), {"retention_ratio": 0.3})


def test_a_gradient_of_another_shape_is_refused() -> None:
    tokens, attn, _ = video()
    backward = torch.ops.fastvid.prune_backward
    with pytest.raises(ValueError, match=r"grad must have the shape \[F \* K, D\] = \[24, 16\]"):
        backward(torch.ones(23, 16), tokens, attn)
    with pytest.raises(TypeError, match="grad must be float32"):
        backward(torch.ones(24, 16).double(), tokens, attn)
    with pytest.raises(TypeError, match="grad must be float32"), FakeTensorMode():
        backward(torch.ones(24, 16).double(), torch.ones(12, 20, 16), torch.ones(12, 20))


def test_a_second_derivative_is_refused() -> None:
    tokens, attn, _ = video()
    kept = prune(tokens.requires_grad_(), attn, retention_ratio=0.2).tokens
    (gradient,) = torch.autograd.grad(kept.square().sum(), tokens, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "call", [prune, torch.ops.fastvid.prune, torch.ops.fastvid.prune_eager], ids=["api", "auto", "eager"]
)
def test_forward_mode_is_refused(call: Any) -> None:
    tokens, attn, _ = video()
    with torch.autograd.forward_ad.dual_level():
        for one in (tokens, tokens.clone().requires_grad_()):
            dual = torch.autograd.forward_ad.make_dual(one, torch.ones_like(one))
            with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
                call(dual, attn)
        call(tokens, attn)
    with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: call(x, attn)[0], (tokens,), (tokens,))


def test_gradients_under_transforms_are_refused() -> None:
    tokens, attn, _ = video()

    def loss(x: Tensor) -> Tensor:
        return prune(x, attn).tokens.sum()

    batch = torch.stack([tokens, -tokens])
    for call in (
        lambda: torch.func.vmap(torch.func.grad(loss))(batch),
        lambda: torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum())(batch),
        lambda: torch.func.vmap(lambda x: torch.ops.fastvid.prune_backward(x, tokens, attn))(torch.ones(2, 24, 16)),
    ):
        with pytest.raises(NotImplementedError, match="no gradient under vmap"):
            call()


def batch_of_two() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens `[2, 12, 20, 16]`, attention, and the tokens `prune` keeps of each video, with their autograd graph."""
    tokens = torch.stack([video(seed=seed)[0] for seed in (0, 1)])
    attn = torch.stack([video(seed=seed)[1] for seed in (0, 1)])
    leaf = tokens.clone().requires_grad_()
    return leaf, attn, torch.stack([prune(*one, retention_ratio=0.2).tokens for one in zip(leaf, attn, strict=True)])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("batched", ["both", "attention"])
def test_a_loss_outside_of_vmap_has_the_gradient_of_a_loop(batched: str) -> None:
    """Without a batching rule, vmap loops over single calls, each with an autograd graph of its own."""
    leaf, attn, expected = batch_of_two()
    dims = (0, 0)
    if batched == "attention":
        leaf, dims = leaf[0].detach().requires_grad_(), (None, 0)
        expected = torch.stack([prune(leaf, one, retention_ratio=0.2).tokens for one in attn])
    kept = torch.vmap(lambda x, a: prune(x, a, retention_ratio=0.2).tokens, in_dims=dims)(leaf, attn)
    assert_same_bits(kept, expected)
    grad = torch.randn(kept.shape, generator=torch.Generator().manual_seed(0))
    (ours,) = torch.autograd.grad(kept, leaf, grad)
    assert_same_bits(ours, torch.autograd.grad(expected, leaf, grad)[0])


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_several_gradients_at_once_are_those_of_a_loop() -> None:
    """`is_grads_batched`, which `jacobian(vectorize=True)` uses too."""
    leaf, _, kept = batch_of_two()
    grads = torch.randn(3, *kept.shape, generator=torch.Generator().manual_seed(0))
    (together,) = torch.autograd.grad(kept, leaf, grads, is_grads_batched=True, retain_graph=True)
    for ours, grad in zip(together, grads, strict=True):
        assert_same_bits(ours, torch.autograd.grad(kept, leaf, grad, retain_graph=True)[0])


def test_explain_keeps_no_graph() -> None:
    tokens, attn, _ = video()
    assert not fastvid_kernels.explain(torch.nn.Parameter(tokens), attn, retention_ratio=0.2).tokens.requires_grad


def test_a_compiled_function_may_ask_for_reasons() -> None:
    """The graph breaks at `explain`: how many tokens joined an anchor depends on the data."""
    tokens, attn, _ = video()

    def reasons(tokens: Tensor, attn: Tensor) -> tuple[Tensor, Tensor]:
        why = fastvid_kernels.explain(tokens * 2, attn)
        return why.tokens + 1, why.anchors

    for ours, expected in zip(torch.compile(reasons)(tokens, attn), reasons(tokens, attn), strict=True):
        assert torch.equal(ours, expected)


def test_a_number_of_frames_that_depends_on_data_can_be_traced() -> None:
    def chosen(tokens: Tensor, attn: Tensor, wanted: Tensor) -> Tensor:
        frames = wanted.nonzero().squeeze(1)
        return prune(tokens[frames], attn[frames], retention_ratio=0.2).tokens

    tokens, attn, _ = video()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(chosen, fullgraph=True, backend="aot_eager")
        wanted = torch.arange(12) % 3 > 0
        assert_same_bits(compiled(tokens, attn, wanted), chosen(tokens, attn, wanted))


def test_indices_of_a_batch() -> None:
    tokens, attn, features = video(12)
    ragged = prune(tokens, attn, features, cu(0, 4, 8, 12), retention_ratio=0.2)
    dense = prune(*(x.unflatten(0, (3, 4)) for x in (tokens, attn, features)), retention_ratio=0.2)
    assert dense.tokens.shape == (3, 16, 16)
    assert dense.indices.shape == (3, 16)
    assert torch.equal(dense.tokens.flatten(0, 1), ragged.tokens)
    assert torch.equal((dense.indices + torch.tensor([[0], [80], [160]])).flatten(), ragged.indices)


@pytest.fixture(params=["oneDNN", "without oneDNN"])
def _products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without oneDNN":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.usefixtures("_products")
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_matrix_precision_of_the_process_does_not_matter(precision: str) -> None:
    tokens, attn, features = video(16, 50, 256)
    expected = prune(tokens, attn, features, retention_ratio=0.2)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert_same(prune(tokens, attn, features, retention_ratio=0.2), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


NEW_PRECISION_API = """
import torch, fastvid_kernels
torch.backends.cuda.matmul.fp32_precision = "tf32"
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
print(len(fastvid_kernels.prune(torch.rand(8, 20, 6), torch.rand(8, 20)).indices))
"""


def test_a_process_may_use_the_newer_precision_settings() -> None:
    assert in_a_fresh_process(NEW_PRECISION_API) == "16"


@pytest.mark.usefixtures("_products")
def test_autocast_does_not_matter() -> None:
    tokens, attn, features = video(16, 50, 256)
    expected = prune(tokens, attn, features, retention_ratio=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(prune(tokens, attn, features, retention_ratio=0.2), expected)


def test_threads_may_prune_at_once() -> None:
    tokens, attn, features = video(16, 50, 64)
    expected = prune(tokens, attn, features, retention_ratio=0.2)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(prune(tokens, attn, features, retention_ratio=0.2)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    for result in results:
        assert_same(result, expected)


def in_a_fresh_process(program: str) -> str:
    root = Path(fastvid_kernels.__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


def test_importing_the_package_is_all_it_takes() -> None:
    program = """
import torch, fastvid_kernels
kept, indices = torch.ops.fastvid.prune(torch.rand(8, 20, 6), torch.rand(8, 20))
print(tuple(kept.shape), len(indices))
"""
    assert in_a_fresh_process(program) == "(16, 6) 16"


def test_it_works_where_triton_cannot_be_imported() -> None:
    program = """
import sys
sys.modules["triton"] = None
import torch, fastvid_kernels
print(len(fastvid_kernels.prune(torch.rand(8, 20, 6), torch.rand(8, 20)).indices))
print(fastvid_kernels.ops.backend_for(torch.device("cuda"), 8, 20))
"""
    assert in_a_fresh_process(program).split() == ["16", "eager"]


def test_importing_pulls_in_neither_triton_nor_extras_nor_the_oracle() -> None:
    program = """
import sys, fastvid_kernels
unwanted = {"triton", "transformers", "av", "PIL", "rich", "typer", "reference"}
print(sorted(unwanted & set(sys.modules)))
"""
    before = in_a_fresh_process("import sys, torch; print('triton' in sys.modules)")
    loaded_by_torch = ["triton"] if before == "True" else []
    assert in_a_fresh_process(program) == str(loaded_by_torch)
