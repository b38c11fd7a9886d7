"""Trained weights in a file, with all that it takes to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from torchconv.training import UserError
from torchconv.training.data import Dataset
from torchconv.training.network import build
from torchconv.training.runs import Run, one_line, read_tensors

FILE = "best.pt"


def save_best(
    run: Run, network: torch.nn.Module, model: dict[str, Any], data: Dataset, epoch: int, accuracy: float
) -> None:
    """Replace the weights that the run keeps; `model` is what `build` was called with."""
    run.save(FILE, {
        "kind": "weights", "state_dict": network.state_dict(), "model": model, "classes": data.classes,
        "mean": data.mean, "std": data.std, "epoch": epoch, "validation_accuracy": accuracy,
    })  # fmt: skip


def load_best(folder: Path, network: torch.nn.Module) -> dict[str, Any]:
    """Put the kept weights into the network that they were taken from; returns all that the file holds."""
    kept = read_tensors(folder / FILE, "weights")
    _put(kept, network, folder / FILE)
    return kept


def rebuild(folder: Path, layers: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network of a run with its kept weights, ready to be used, and all that the file holds."""
    kept = read_tensors(folder / FILE, "weights")
    try:
        network = build(**kept["model"], layers=layers)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / FILE} does not say what network it is of ({one_line(error)})") from error
    _put(kept, network, folder / FILE)
    return network.eval(), kept


def _put(kept: dict[str, Any], network: torch.nn.Module, path: Path) -> None:
    try:
        network.load_state_dict(kept["state_dict"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} does not fit the network ({one_line(error)})") from error
