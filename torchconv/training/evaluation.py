"""How good a network is on images that it was not trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.training.batches import Batches

Images = Iterable[tuple[Tensor, Tensor]]


@torch.no_grad()
def evaluate(
    network: torch.nn.Module,
    batches: Batches,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    guard: Callable[[Images], Iterator[tuple[Tensor, Tensor]]] = iter,
) -> tuple[float, Tensor]:
    """Mean loss over the images, and the class predicted for each of them, from all processes' shares."""
    batches.world.agree(network)
    network.eval()
    total, predictions = torch.zeros((), dtype=torch.float64), []
    for images, labels in guard(batches.in_order()):
        with autocast():
            logits = network(images)
        total += F.cross_entropy(logits.float(), labels, reduction="sum").cpu()
        predictions.append(logits.argmax(1).cpu())
    loss = float(batches.world.sum(total)) / len(batches.labels)
    return loss, batches.assemble(torch.cat(predictions))


def share_equal(predictions: Tensor, labels: Tensor) -> float:
    """Accuracy, between 0 and 1."""
    return float((predictions == labels).float().mean())


def confusion(predictions: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often each class (row) was taken for each class (column)."""
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)
