"""What batches cost: loading and augmenting beside the step of LeNet-5 that they feed.

    python benchmarks/loading.py --dataset mnist --data-dir data

prints, for each augmentation, the time to get a batch, the time of the step alone (forward, backward and update on one
batch held ready), and their ratio. Medians of alternating rounds, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from torchconv.training.batches import AUGMENTATIONS, Batches
from torchconv.training.data import DATASETS, load
from torchconv.training.network import build


def endless(batches: Batches, augment: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch."""
    return chain.from_iterable(batches.shuffled(0, epoch, shift=2, augment=augment) for epoch in count(1))


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="mnist")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--nn", choices=("torchconv", "torch"), default="torchconv")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    data = load(args.dataset, args.data_dir)
    batches = Batches(data.train, data, args.batch_size, torch.device("cpu"))
    network = build("lenet5", data.channels, data.image_size, len(data.classes), args.nn)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    images, labels = next(batches.in_order())

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    print(f"{data.summary()}; batches of {args.batch_size}, {torch.get_num_threads()} threads, LeNet-5 on {args.nn}.nn")
    print(f"{'augmentation':<28}  batch [ms]  step [ms]  ratio")
    per_round = len(batches)  # a whole epoch, so that its shuffling is counted
    for augment in ((), *((name,) for name in AUGMENTATIONS), AUGMENTATIONS):
        source = endless(batches, augment)
        for _ in range(3):
            step()
        loading, stepping = [], []
        for _ in range(args.rounds):
            loading.append(seconds(lambda: [None for _ in islice(source, per_round)]) / per_round)  # noqa: B023
            stepping.append(seconds(lambda: [step() for _ in range(20)]) / 20)
        load_time, step_time = median(loading), median(stepping)
        name = ", ".join(("shift", *augment))
        print(f"{name:<28}  {1e3 * load_time:10.3f}  {1e3 * step_time:9.3f}  {load_time / step_time:5.1%}", flush=True)


if __name__ == "__main__":
    main()
