"""Checks of options that several commands take."""

from __future__ import annotations

import torch

from fastvid_kernels.cli.common.errors import CommandError
from fastvid_kernels.config import PruneConfig
from fastvid_kernels.validation import check_keeps_some

MAX_FRAMES = 256


def check_retention(retention: float, tokens_per_frame: int | None = None) -> PruneConfig:
    """Check `--retention`, and return the hyperparameters for it.

    Raises:
        CommandError: it is out of range, or none of a frame's tokens would be kept.
    """
    try:
        config = PruneConfig(retention_ratio=retention)
    except ValueError as error:
        raise CommandError(f"--retention must be above 0 and at most 1, got {retention:g}") from error
    if tokens_per_frame is not None:
        try:
            check_keeps_some(tokens_per_frame, config)
        except ValueError as error:
            raise CommandError(f"--retention {retention:g} is too small: {error}") from error
    return config


def chosen_device(name: str) -> torch.device:
    """The device for `--device`.

    Raises:
        CommandError: it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        # PyTorch's messages about missing devices have several lines.
        raise CommandError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def device_name(device: torch.device) -> str:
    """The name of a device, for people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
