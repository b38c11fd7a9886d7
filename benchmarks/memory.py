"""Bytes that a model keeps for its backward pass, beside those of the same model on torch.nn.

    python -m benchmarks.memory [--batch 32] [--json FILE]

Every tensor that autograd saves in the forward pass (`torch.autograd.graph.saved_tensors_hooks`), each storage once.
Left out are parameters, buffers and the input itself, which are there anyway, and what the loss would keep.  Measured
on the tensor algebra of the CPU, and with the launchers of the Triton kernels, which save what they would on a GPU:
none of their programs is run, for only sizes count.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported

import torchconv
from benchmarks import tables
from benchmarks.models import MODELS
from benchmarks.trace import Watcher, watch


@dataclass(frozen=True)
class Row:
    """Bytes per sample; `aim` is the greatest ratio that is aimed at."""

    model: str
    path: str
    ours: float
    torchs: float
    ratio: float
    aim: float

    @property
    def met(self) -> bool:
        return self.ratio <= self.aim


# The greatest ratio that is aimed at.
AIMS = {"LeNet-5, fused": 0.25}


def kept(model: torch.nn.Module, x: Tensor) -> int:
    """Bytes of the storages that are saved while `model` runs on `x`, beside those of the model and of `x`."""
    there = {t.untyped_storage().data_ptr() for t in (x, *model.parameters(), *model.buffers())}
    saved: list[Tensor] = []  # held, so that no storage makes room for another

    def pack(t: Tensor) -> Tensor:
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(size for address, size in storages.items() if address not in there)


@contextlib.contextmanager
def kernels() -> Iterator[None]:
    """CPU tensors take the launchers of the Triton kernels, whose programs are not run."""
    with torchconv.backend("triton"), watch(Watcher(), programs=lambda grid: ()):
        yield


def rows(batch: int) -> Iterator[Row]:
    for model in MODELS:
        x = torch.randn(batch, *model.size)
        theirs = kept(model.torchs(), x) / batch
        for path, within in (("tensor algebra", contextlib.nullcontext), ("Triton", kernels)):
            with within():
                mine = kept(model.ours(), x) / batch
            yield Row(model.name, path, mine, theirs, mine / theirs, AIMS.get(model.name, 1.0))


def table(found: list[Row]) -> str:
    columns = ("model", "path", "ours, bytes per sample", "torch.nn", "ours ÷ torch.nn", "aim")
    return tables.markdown(
        columns,
        [
            (r.model, r.path, round(r.ours), round(r.torchs), r.ratio, f"≤ {r.aim}: {'met' if r.met else 'MISSED'}")
            for r in found
        ],
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, default=32, help="samples (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    found = list(rows(options.batch))
    print(table(found))
    if options.json:
        tables.save(options.json, [asdict(row) for row in found])


if __name__ == "__main__":
    main()
