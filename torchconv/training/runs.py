"""The folder of a run: metrics, weights and pictures, none of them ever half-written; and the progress bar."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from torchconv.training import UserError

T = TypeVar("T")


class Run:
    """A new folder for one run's results.

    Args:
        folder: must not exist yet, as nothing is ever written over the results of another run.
    """

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").touch()
        except FileExistsError as error:
            raise UserError(f"{error.filename} exists already: give this run another --name") from error
        except OSError as error:
            raise UserError(f"cannot write the results to {folder}: {error.strerror}") from error
        self.folder = folder

    def log(self, *events: dict[str, Any]) -> None:
        """Append to the metrics, one JSON object per line."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(event, default=str) + "\n" for event in events)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What was logged with `"event": kind`."""
        with open(self.folder / "metrics.jsonl") as file:
            return [event for event in map(json.loads, file) if event["event"] == kind]

    def save(self, name: str, contents: dict[str, Any]) -> None:
        """Write a file of tensors and plain values that `torch.load(..., weights_only=True)` reads."""
        with self.replacing(name) as path:
            torch.save(contents, path)

    def load(self, name: str, device: torch.device) -> Any:
        """Read what `save` wrote."""
        return torch.load(self.folder / name, map_location=device, weights_only=True)

    @contextlib.contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A path to write to; the file gets its name when it is whole, and is gone if writing it failed."""
        unfinished = self.folder / f".{name}.unfinished"
        try:
            yield unfinished
            os.replace(unfinished, self.folder / name)
        finally:
            unfinished.unlink(missing_ok=True)


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items, with a bar on the terminal while they last; nothing where the output is a file or a pipe."""
    from tqdm import tqdm

    yield from tqdm(items, total=total, desc=label, unit="batch", leave=False, disable=None, dynamic_ncols=True)
