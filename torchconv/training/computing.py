"""What a training computes on and with: the device, mixed precision, compilation, determinism."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from torchconv.training import UserError
from torchconv.training.distributed import World
from torchconv.training.runs import one_line

AMP = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}
Autocast = Callable[[], AbstractContextManager[Any]]


def usable(options: argparse.Namespace, world: World) -> torch.device:
    """The device that was asked for, if tensors can be put there; each process on a machine has its own GPU."""
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if options.batch_size < world.size:
        raise UserError(f"--batch-size {options.batch_size} is less than one image for each of {world.size} processes")
    asked = name
    if name == "cuda" and world.size > 1:
        name = f"cuda:{world.local_rank}"
    try:
        device = torch.empty(0, device=name).device
    # Each backend has its own exception for a device that is unknown, not compiled in, or not there.
    except Exception as error:
        raise UserError(f"--device {asked} cannot be used here: {str(error).splitlines()[0]}") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if options.deterministic:
        # cuBLAS reads this when it is first used.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(options.deterministic)
    return device


def prepare(
    network: torch.nn.Module, options: argparse.Namespace, device: torch.device, world: World
) -> torch.nn.Module:
    """The network as it is trained: compiled and distributed if asked for, with the same parameters."""
    if world.size > 1 and device.type == "cuda":
        network = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    model: torch.nn.Module = world.wrap(network, device)
    if options.compile:
        model = torch.compile(model)  # type: ignore[assignment]
    return model


def precision(amp: str, device: torch.device) -> tuple[Autocast, torch.amp.GradScaler]:
    """The context for a forward pass, and the scaler that keeps float16 gradients from vanishing."""
    autocast = partial(torch.autocast, device.type, dtype=AMP[amp], enabled=amp != "none")
    return autocast, torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def explain(error: RuntimeError) -> str | None:
    """What to say of an error that the machine, not the program, is the reason for; None if it is not known."""
    text = str(error)
    if isinstance(error, torch.cuda.OutOfMemoryError) or "can't allocate memory" in text:
        return f"not enough memory ({one_line(error)}): try a smaller --batch-size"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile cannot be used here ({one_line(error)})"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and any(word in text for word in ("gloo", "NCCL", "onnection", "peer")):
        return (
            f"another process of this run was lost ({one_line(error)}): continue from the last checkpoint by --resume"
        )
    return None
