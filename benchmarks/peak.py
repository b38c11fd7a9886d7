"""Memory at the peak of a layer's forward and backward pass on the CPU, beside torch.nn's.

    python -m benchmarks.peak [--batch N] [--only WORD] [--json FILE]

Each layer runs in a process of its own, on one thread: once on one sample, which loads what has to be loaded, and then,
after the peak has been reset, `layer(x).sum().backward()` once.  Shown is by how much the resident memory rose above
what it was with the input in place.  Linux only, where a process can reset its peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import torchconv.nn
from benchmarks import tables
from benchmarks.layers import LAYERS

NAMESPACES = {"ours": torchconv.nn, "torch": torch.nn}
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Row:
    """MiB at the peak, beside the input."""

    layer: str
    batch: int
    ours: float
    torchs: float


def peak(number: int, namespace: str, batch: int) -> float:
    """MiB that a layer of the list takes at most, in this process."""
    torch.set_num_threads(1)
    layer = LAYERS[number]
    module = layer.build(NAMESPACES[namespace])
    for samples in (1, batch):
        x = torch.randn(samples, *layer.size[1:], requires_grad=layer.input_gradient)
        _RESET.write_text("5")  # the peak starts again from what is resident now
        before = _resident("VmRSS")
        module(x).sum().backward()
        after = _resident("VmHWM")
    return (after - before) / 1024


def _resident(name: str) -> int:
    """A line of the process's status, in KiB."""
    return int(_STATUS.read_text().split(f"{name}:")[1].split()[0])


def measured(number: int, batch: int) -> Row:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        ours, torchs = (processes.submit(peak, number, name, batch).result() for name in NAMESPACES)
    return Row(LAYERS[number].name, batch, ours, torchs)


def table(rows: list[Row]) -> str:
    columns = ("layer", "batch", "ours, MiB", "torch.nn, MiB")
    return tables.markdown(columns, [(row.layer, row.batch, row.ours, row.torchs) for row in rows])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--batch", type=int, help="samples (default: 4 times those of benchmarks/layers.py)")
    parser.add_argument("--only", default="", metavar="WORD", help="only layers whose name holds this")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to a file")
    options = parser.parse_args(arguments)
    if not _RESET.exists():
        sys.exit("benchmarks.peak needs Linux, where a process can reset its peak")
    chosen = [number for number, layer in enumerate(LAYERS) if options.only in layer.name]
    rows = [measured(number, options.batch or 4 * LAYERS[number].size[0]) for number in tqdm(chosen, unit="layer")]
    print(table(rows))
    if options.json:
        tables.save(options.json, [asdict(row) for row in rows])


if __name__ == "__main__":
    main()
