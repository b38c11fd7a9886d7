"""Several processes that train one model together, started by torchrun; one process is the same with nobody else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of this run.

    Every method is called by all processes at the same point, and does nothing where there is only one. What they
    exchange lies on the CPU, so that no GPU has to be waited for.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        if self.size > 1:
            values = values.cpu().clone()
            dist.all_reduce(values)
        return values

    def largest(self, number: int) -> int:
        """The largest of all processes' numbers."""
        if self.size == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of all processes' tensors."""
        return self.sum(values) / self.size if self.size > 1 else values

    def gather(self, value: T) -> list[T]:
        """All processes' values, by rank."""
        values: list[T | None] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]  # every None has been filled in

    def share(self, items: Tensor) -> Tensor:
        """This process's part of what all of them share out: nothing is lost, nothing comes twice."""
        return items[self.rank :: self.size]

    @contextlib.contextmanager
    def one_first(self) -> Iterator[None]:
        """Process 0 goes first, the others follow when it is done: for what it leaves behind on the disk."""
        if self.rank > 0:
            dist.barrier()
        yield
        if self.rank == 0 and self.size > 1:
            dist.barrier()

    def print(self, line: str) -> None:
        """Say something once."""
        if self.rank == 0:
            print(line, flush=True)

    def wrap(self, network: torch.nn.Module, device: torch.device) -> torch.nn.Module:
        """The network with gradients that are means over all processes."""
        if self.size == 1:
            return network
        return torch.nn.parallel.DistributedDataParallel(
            network, device_ids=[device.index] if device.type == "cuda" else None
        )

    def agree(self, network: torch.nn.Module) -> None:
        """Give every process the buffers of process 0; batch normalisation lets them drift apart."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


class MeanCrossEntropy(torch.nn.Module):
    """Softmax cross-entropy, so that the mean over the processes is the mean over all images of the step.

    The processes' parts of a batch may differ by one image: the mean of their means would weigh the images unequally.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        images = self.world.sum(torch.tensor(len(labels)))
        return F.cross_entropy(logits, labels, reduction="sum") * (self.world.size / int(images))


@contextlib.contextmanager
def join() -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield World()
        return
    # Two backends: gradients go from GPU to GPU, all else by way of the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield World(dist.get_rank(), int(os.environ["LOCAL_RANK"]), dist.get_world_size())
    finally:
        dist.destroy_process_group()
