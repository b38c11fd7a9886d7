"""Events of a run, for TensorBoard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def writer(folder: Path, steps: int) -> Callable[[dict[str, Any]], None]:
    """A listener for `Run.listeners`.

    Args:
        folder: where TensorBoard's own files go.
        steps: how many are done already; what earlier files hold of later ones is hidden.
    """
    from torch.utils.tensorboard import SummaryWriter

    board = SummaryWriter(str(folder), purge_step=steps + 1)

    def listen(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind not in ("step", "epoch", "test"):
            return
        for name, value in event.items():
            if isinstance(value, float):
                board.add_scalar(f"{kind}/{name}", value, event["step"])
        if kind != "step":
            board.flush()

    return listen
