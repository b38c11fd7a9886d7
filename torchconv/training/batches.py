"""A split of a data set, handed out as batches: shuffled, augmented, normalised, shared out between processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.training.data import Dataset, Split
from torchconv.training.distributed import World

AUGMENTATIONS = ("flip", "contrast", "erase")
# Bytes of images that are augmented at a time: enough that the calls cost nothing, few enough for the cache.
CHUNK = 2**20


class Batches:
    """A split on a device, as normalised batches of almost equal size: no last batch of one image.

    Example::

        >>> batches = Batches(data.train, data, batch_size=32, device=torch.device("cpu"))
        >>> for images, labels in batches.shuffled(seed=0, epoch=1, shift=2):
        ...     loss = criterion(model(images), labels)

    Args:
        split: the images and labels.
        data: the data set that it belongs to, for the normalisation.
        batch_size: the most images that all processes together get at a time.
        device: where the images are held, whole, and where the batches are made.
        world: the processes; each gets its share of every batch.
        memory_format: of the batches' images.
        normalisation: mean and deviation of each channel, if they are not those of `data`.
    """

    def __init__(
        self,
        split: Split,
        data: Dataset,
        batch_size: int,
        device: torch.device,
        world: World | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
        normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        # (image - mean) / std, as one multiplication and one addition
        mean, std = normalisation or (data.mean, data.std)
        self.scale = 1 / torch.tensor(std, device=device).view(-1, 1, 1)
        self.offset = -torch.tensor(mean, device=device).view(-1, 1, 1) * self.scale
        self.batch_size = batch_size
        self.world = world or World()
        self.memory_format = memory_format

    def __len__(self) -> int:
        """The number of batches."""
        return -(-len(self.labels) // self.batch_size)

    def shares(self, order: Tensor) -> list[Tensor]:
        """Which images this process gets, batch by batch."""
        return [self.world.share(part) for part in order.tensor_split(len(self))]

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as stored."""
        for chosen in self.shares(torch.arange(len(self.labels), device=self.images.device)):
            yield self._normalised(self.images[chosen]), self.labels[chosen]

    def assemble(self, values: Tensor) -> Tensor:
        """One integer for each image, as stored, from the processes' shares in the order of `in_order`."""
        whole = torch.zeros(len(self.labels), dtype=values.dtype)
        whole[torch.cat(self.shares(torch.arange(len(self.labels))))] = values.cpu()
        return self.world.sum(whole)

    def shuffled(
        self, seed: int, epoch: int, first: int = 0, shift: int = 0, augment: Collection[str] = ()
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in random order, each one changed at random; from batch `first` on.

        Order and changes depend on `seed` and `epoch` alone, whatever the device, the number of processes and whatever
        else drew random numbers: an epoch can be repeated, or entered half-way, without what was before.
        """
        # torch's CPU generator keeps 32 bits of its seed, so the epoch cannot simply go into the upper half.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        count, device = len(self.labels), self.images.device
        order = torch.randperm(count, generator=generator)
        moves = torch.randint(2 * shift + 1, (count, 2), generator=generator).to(device)
        chances = torch.rand(count, 5, generator=generator).to(device)

        bytes_per_image = max(1, self.images[0].numel())
        per_chunk = max(1, CHUNK // (bytes_per_image * self.batch_size))
        batches = self.shares(order.to(device))[first:]
        for start in range(0, len(batches), per_chunk):
            parts = batches[start : start + per_chunk]
            chosen = torch.cat(parts)
            images, labels = self.images[chosen], self.labels[chosen]
            if shift:
                images = moved(images, moves[chosen], shift)
            images = augmented(images, chances[chosen], augment)
            sizes = [len(part) for part in parts]
            for some_images, some_labels in zip(images.split(sizes), labels.split(sizes), strict=True):
                yield self._normalised(some_images), some_labels

    def _normalised(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.offset, images, self.scale).contiguous(memory_format=self.memory_format)


def moved(images: Tensor, move: Tensor, shift: int) -> Tensor:
    """Cut each image out of its own padded by `shift` black pixels, from row and column `move` on.

    Shape: `images` and the result `(N, C, H, W)`; `move` `(N, 2)`, values 0 to `2 * shift`.
    """
    count, channels, height, width = images.shape
    rows = (move[:, 0, None] + torch.arange(height, device=images.device)).view(count, 1, height, 1)
    columns = (move[:, 1, None] + torch.arange(width, device=images.device)).view(count, 1, 1, width)
    padded = F.pad(images, (shift, shift, shift, shift))
    padded = padded.gather(2, rows.expand(-1, channels, -1, padded.shape[3]))
    return padded.gather(3, columns.expand(-1, channels, height, -1))


def augmented(images: Tensor, chances: Tensor, names: Collection[str]) -> Tensor:
    """Change each image as its own five numbers between 0 and 1 say.

    - flip: every second image is mirrored left to right.
    - contrast: brightness and contrast are multiplied by 0.7 to 1.3.
    - erase: a square of half the image's height and width, or the part of it that lies inside, becomes grey.

    Shape: `images` and the result `(N, C, H, W)`, uint8; `chances` `(N, 5)`.
    """
    height, width = images.shape[2:]
    flip, brightness, contrast, down, right = chances.view(-1, 5, 1, 1, 1).unbind(1)
    if "flip" in names:
        images = torch.where(flip < 0.5, images.flip(3), images)
    if "contrast" in names:
        mean = images.float().mean((1, 2, 3), keepdim=True)
        changed = (images - mean) * (0.7 + 0.6 * contrast) + mean * (0.7 + 0.6 * brightness)
        images = changed.round().clamp(0, 255).to(torch.uint8)
    if "erase" in names:
        rows = torch.arange(height, device=images.device).view(-1, 1) / height - down
        columns = torch.arange(width, device=images.device) / width - right
        images = images.masked_fill((rows.abs() < 0.25) & (columns.abs() < 0.25), 128)
    return images
