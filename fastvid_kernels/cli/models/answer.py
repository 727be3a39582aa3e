"""The work of `fastvid run`, which a script can also call without the command line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fastvid_kernels.adapters.scoring import DEFAULT_SIGLIP
from fastvid_kernels.adapters.versions import check_transformers
from fastvid_kernels.cli.common.checks import MAX_FRAMES, check_retention, chosen_device, device_name
from fastvid_kernels.cli.common.errors import CommandError, named
from fastvid_kernels.cli.common.progress import progress_bar
from fastvid_kernels.cli.models import glm, llava, next_video, omni, qwen, small
from fastvid_kernels.cli.models.chat import Chat, Film
from fastvid_kernels.cli.models.measure import Comparison, compare, process_peak_bytes
from fastvid_kernels.cli.models.request import SYNTHETIC, Request
from fastvid_kernels.cli.videos.synthetic import SYNTHETIC_RATE, synthetic_frames
from fastvid_kernels.ops import backend_for
from fastvid_kernels.vision import load_siglip_head

ARCHITECTURES = (*llava.ARCHITECTURES, *small.ARCHITECTURES)
# The class of each of transformers' model types that needs no SigLIP.
_CHATS: dict[str, type[next_video.NextVideo | qwen.Qwen]] = {
    **dict.fromkeys(next_video.MODEL_TYPES, next_video.NextVideo),
    **dict.fromkeys(qwen.MODEL_TYPES, qwen.Qwen),
    **dict.fromkeys(glm.MODEL_TYPES, glm.Glm),
    **omni.CHATS,
}


def answer(request: Request, console: Console) -> Comparison:
    """Load a model, let it answer with and without pruning, measure both, and print the results.

    Raises:
        CommandError: something is wrong that the user can fix.
    """
    _check(request)
    device = chosen_device(request.device)
    film = _film(request, console)
    if not console.is_terminal:
        transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with console.status("loading the model"):
        chat = _chat(request, device)
    for placeholder in chat.placeholders:
        if placeholder in request.question:
            raise CommandError(
                f"--question must not contain {placeholder}, which stands for an image or a video: use other words"
            )
    with named(chat.name):
        inputs = chat.inputs(request.question, film)
    retention = chat.default_retention if request.retention is None else request.retention
    check_retention(retention, chat.tokens_per_frame(inputs))
    patch = partial(chat.patch, retention)
    # Patch once before any work, since the head may not fit the model.
    with named(chat.name):
        patch().remove()
    with console.status("answering"), named(chat.name):
        without = _generated(chat, inputs, request.new_tokens)
        with patch():
            pruned = _generated(chat, inputs, request.new_tokens)
    # No progress bar here: the thread that draws it would disturb the timing.
    compared = compare(chat.model, inputs, chat.placeholder_id, patch, request.repeats)

    console.print(_figures(compared, chat, inputs, film.description, retention))
    if chat.note:
        console.print(chat.note)
    for name, words in (("without pruning", without), ("pruned", pruned)):
        console.print(f"[cyan]{name}:[/cyan] {escape(words)}", soft_wrap=True)
    return compared


def _check(request: Request) -> None:
    with named("transformers"):
        check_transformers()
    sizes = ", ".join(ARCHITECTURES)
    if (request.model is None) == (request.random_weights is None):
        raise CommandError(f"give either --model, or --random-weights with one of {sizes}")
    if request.random_weights not in (None, *ARCHITECTURES):
        raise CommandError(f"--random-weights must be one of {sizes}, got {request.random_weights}")
    for name, value, highest in (
        ("--frames", request.frames, MAX_FRAMES),
        ("--new-tokens", request.new_tokens, 4096),
        ("--repeats", request.repeats, 1000),
    ):
        if not 1 <= value <= highest:
            raise CommandError(f"{name} must be from 1 to {highest}, got {value}")
    if request.retention is not None:
        check_retention(request.retention)


def _film(request: Request, console: Console) -> Film:
    if request.video == SYNTHETIC:
        indices = tuple(range(request.frames))
        description = f"{SYNTHETIC}, {request.frames} frames"
        return Film(synthetic_frames(request.frames), indices, request.frames, SYNTHETIC_RATE, description)
    # Imported where it is needed: a synthetic video needs no decoder.
    from fastvid_kernels.cli.videos.video import default_clip, lost_frames, sample_video

    path = default_clip() if request.video is None else Path(request.video)
    with progress_bar(console, "decoding") as on_progress:
        video = sample_video(path, request.frames, on_progress)
    if video.lost:
        console.print(lost_frames(video))
    description = f"{path}, {len(video.frames)} of {video.num_source_frames} frames"
    return Film(video.frames, video.source_indices, video.num_source_frames, video.frames_per_second, description)


def _chat(request: Request, device: torch.device) -> Chat:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model_type = None if request.model is None else _supported_type(request.model)
    if request.siglip is not None and model_type not in llava.MODEL_TYPES:
        raise CommandError("--siglip must be left out: it is for a LLaVA-OneVision of --model alone")
    if request.random_weights in llava.ARCHITECTURES:
        return llava.randomly_weighted(request.random_weights, device, dtype)
    if request.random_weights is not None:
        return small.randomly_weighted(request.random_weights, device, dtype)
    assert request.model is not None
    assert model_type is not None
    if model_type in _CHATS:
        return _CHATS[model_type].load(request.model, device, dtype)
    # Load the head first: it is small, and may be missing.
    siglip = request.siglip or DEFAULT_SIGLIP
    with named(f"--siglip {siglip}"):
        head = load_siglip_head(siglip)
    return llava.load(request.model, head, device, dtype)


def _supported_type(source: str) -> str:
    """The type of a checkpoint's model.

    Raises:
        CommandError: it is not supported, or cannot be read.
    """
    model_type = _model_type(source)
    supported = (*llava.MODEL_TYPES, *_CHATS)
    if model_type not in supported:
        raise CommandError(
            f"--model {source} is of type {model_type}: fastvid run takes transformers' checkpoints of "
            f"type {', '.join(supported)}"
        )
    return model_type


def _model_type(source: str) -> str:
    path = Path(source)
    # A hub id has at most one slash, and does not begin with a dot, a slash or a tilde.
    if (source.count("/") > 1 or source[:1] in "./~") and not path.is_dir():
        raise CommandError(f"--model {source} cannot be loaded: there is no such folder")
    with named(f"--model {source}", "loaded"):
        return str(transformers.AutoConfig.from_pretrained(source).model_type)


@torch.inference_mode()
def _generated(chat: Chat, inputs: dict[str, Any], new_tokens: int) -> str:
    ids = chat.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **chat.generation)
    return chat.text(ids[0, inputs["input_ids"].shape[1] :])


def _figures(compared: Comparison, chat: Chat, inputs: dict[str, Any], video: str, retention: float) -> Table:
    device = chat.model.device
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
        # The CPU's allocator keeps no statistics: only the peak of the whole process is known.
        table.add_row("peak memory", "", _gibibytes(process_peak_bytes()), "of the process")
    backend = backend_for(device, chat.frames(inputs), chat.tokens_per_frame(inputs))
    table.caption_justify = "left"
    table.caption = (
        f"{chat.name}; {video}; retention {retention:g}; {backend} backend on {device_name(device)}, "
        f"{str(chat.model.dtype).removeprefix('torch.')}; medians of {compared.repeats} after one to warm up; "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.1f} ms" if seconds < 0.1 else f"{1e3 * seconds:,.0f} ms"


def _ratio(plain: float, pruned: float) -> str:
    return f"{plain / pruned:.1f}x"


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
