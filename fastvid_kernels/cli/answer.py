"""What `fastvid run` does; a script can call it without the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastvid_kernels.adapters import FastVidHandle, apply_fastvid
from fastvid_kernels.adapters.llava_onevision import check_version
from fastvid_kernels.cli.checks import MAX_FRAMES, check_retention, chosen_device, device_name
from fastvid_kernels.cli.errors import CommandError
from fastvid_kernels.cli.llava import ARCHITECTURES, Llava, load, randomly_weighted
from fastvid_kernels.cli.measure import Comparison, compare, process_peak_bytes
from fastvid_kernels.cli.progress import progress_bar
from fastvid_kernels.cli.request import SYNTHETIC, Request
from fastvid_kernels.cli.synthetic import synthetic_frames
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.ops import backend_for
from fastvid_kernels.vision import load_siglip_head


def answer(request: Request, console: Console) -> Comparison:
    """Load a model, let it answer with pruning and without, measure both, print all of it.

    Raises:
        CommandError: something about the request that its author can mend.
    """
    _check(request)
    device = chosen_device(request.device)
    frames, described = _frames(request, console)
    if not console.is_terminal:
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with console.status("loading the model"):
        llava = _llava(request, device)
    check_retention(request.retention, llava.tokens_per_frame)

    def patch() -> FastVidHandle:
        return apply_fastvid(llava.model, siglip=llava.siglip, retention_ratio=request.retention)

    # Before any work: the head may not fit the model.
    with _named(llava.name):
        patch().remove()
    inputs = llava.inputs(request.question, frames)
    with console.status("answering"):
        without = _generated(llava, inputs, request.new_tokens)
        with patch():
            pruned = _generated(llava, inputs, request.new_tokens)
    # No progress here: the thread that draws it would be in the way of the clock.
    compared = compare(llava.model, inputs, patch, request.repeats)

    console.print(_figures(compared, llava, described, request, device))
    if llava.note:
        console.print(llava.note)
    for name, words in (("without pruning", without), ("pruned", pruned)):
        console.print(f"[cyan]{name}:[/cyan] {escape(words)}", soft_wrap=True)
    return compared


def _check(request: Request) -> None:
    with _named("transformers"):
        check_version()
    sizes = " or ".join(ARCHITECTURES)
    if (request.model is None) == (request.random_weights is None):
        raise CommandError(f"give either --model, or --random-weights {sizes}")
    if request.random_weights not in (None, *ARCHITECTURES):
        raise CommandError(f"--random-weights must be {sizes}, got {request.random_weights}")
    for name, value, highest in (
        ("--frames", request.frames, MAX_FRAMES),
        ("--new-tokens", request.new_tokens, 4096),
        ("--repeats", request.repeats, 1000),
    ):
        if not 1 <= value <= highest:
            raise CommandError(f"{name} must be from 1 to {highest}, got {value}")
    check_retention(request.retention)


def _frames(request: Request, console: Console) -> tuple[np.ndarray, str]:
    """The frames, and what they are."""
    if request.video == SYNTHETIC:
        return synthetic_frames(request.frames), f"{SYNTHETIC}, {request.frames} frames"
    # Imported where it is needed: a synthetic video needs no decoder.
    from fastvid_kernels.cli.video import default_clip, sample_video

    path = default_clip() if request.video is None else Path(request.video)
    with progress_bar(console, "decoding") as on_progress:
        video = sample_video(path, request.frames, on_progress)
    return video.frames, f"{path}, {len(video.frames)} of {video.num_source_frames} frames"


def _llava(request: Request, device: torch.device) -> Llava:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    if request.random_weights is not None:
        return randomly_weighted(request.random_weights, device, dtype)
    assert request.model is not None
    # First what is small and may be missing.
    with _named(f"--siglip {request.siglip}"):
        head = load_siglip_head(request.siglip)
    return load(request.model, head, device, dtype)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Errors in one line that says of what they are."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise CommandError(f"{what} cannot be used: {error}") from error


@torch.inference_mode()
def _generated(llava: Llava, inputs: dict[str, Any], new_tokens: int) -> str:
    ids = llava.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **llava.generation)
    return llava.text(ids[0, inputs["input_ids"].shape[1] :])


def _figures(compared: Comparison, llava: Llava, video: str, request: Request, device: torch.device) -> Table:
    plain, pruned = compared.plain, compared.pruned
    table = Table(title="FastVID", title_justify="left", title_style="bold")
    table.add_column(style="cyan", no_wrap=True)
    for name in ("without pruning", "pruned", "ratio"):
        table.add_column(name, justify="right")
    table.add_row("video tokens", f"{plain.video_tokens:,}", f"{pruned.video_tokens:,}",
                  _ratio(plain.video_tokens, pruned.video_tokens))  # fmt: skip
    for name, field in (("prefill", "prefill_seconds"), ("pixels to first token", "first_token_seconds")):
        times = [getattr(arm, field) for arm in (plain, pruned)]
        table.add_row(name, *map(_milliseconds, times), _ratio(*times))
    share = compared.pruning_seconds / pruned.prefill_seconds
    table.add_row("the pruning itself", "", _milliseconds(compared.pruning_seconds), f"{share:.1%} of prefill")
    if plain.peak_bytes is not None and pruned.peak_bytes is not None:
        peaks = (plain.peak_bytes, pruned.peak_bytes)
        table.add_row("peak memory", *map(_gibibytes, peaks), _ratio(*peaks))
    else:
        # The CPU's allocator keeps no count: there is only what the whole process took.
        table.add_row("peak memory", "", _gibibytes(process_peak_bytes()), "of the process")
    frames = (plain.video_tokens - 1) // llava.tokens_per_frame
    backend = backend_for(device, frames, llava.tokens_per_frame)
    config = PruneConfig(retention_ratio=request.retention)
    table.caption_justify = "left"
    table.caption = (
        f"{llava.name}; {video}; retention {config.retention_ratio:g}; {backend} backend on {device_name(device)}, "
        f"{str(llava.model.dtype).removeprefix('torch.')}; medians of {compared.repeats} after one to warm up; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def _ratio(plain: float, pruned: float) -> str:
    return f"{plain / pruned:.1f}x"


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
