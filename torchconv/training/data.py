"""The data sets, each held whole as one uint8 tensor from which batches are indexed.

All of them are small, so a batch costs a handful of tensor operations on the training device: no worker processes, no
image objects, and nothing to wait for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.training import UserError
from torchconv.training.download import TORCHVISION_CLASSES, torchvision_splits

DATASETS = ("digits", *TORCHVISION_CLASSES)
VALIDATION_FRACTION = 0.1
TEST_FRACTION = 0.2  # of scikit-learn's digits, which come without a split


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: `(N, C, H, W)`, uint8.
        labels: `(N,)`, int64.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    def divide(self, fraction: float) -> tuple[Split, Split]:
        """A random part of the given size and the rest, always the same two."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))
        size = max(1, round(fraction * len(self)))
        return self[order[:size]], self[order[size:]]


@dataclass(frozen=True)
class Dataset:
    """A data set in three parts: train on one, choose by the second, judge by the third.

    The parts do not depend on a run's seed, so runs with different seeds can be compared. `mean` and `std` are the
    training part's, one per channel, on the scale 0 to 255.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def channels(self) -> int:
        return self.test.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.test.images.shape[2]

    def summary(self) -> str:
        """One line that says what there is."""
        parts = f"{len(self.train):,} training, {len(self.validation):,} validation and {len(self.test):,} test images"
        shape = f"{self.channels}x{self.image_size}x{self.image_size}"
        return f"{self.name}: {parts} of {shape}, {len(self.classes)} classes"


def load(name: str, data_dir: Path, limit_train: int | None = None) -> Dataset:
    """Read a data set, downloading into `data_dir` what is not there; a tenth of its training part is validation."""
    if name == "digits":
        learn, test, classes = _digits()
    else:
        parts, classes = torchvision_splits(name, data_dir)
        learn, test = (_checked(Split(*part), name, classes) for part in parts)
    validation, train = learn.divide(VALIDATION_FRACTION)
    train = train[:limit_train]
    if not len(train):
        raise UserError(f"{name} has {len(learn)} training images: too few for a training and a validation part")
    # Channel by channel, as the whole of CIFAR-10 in float32 would be 600 MB; an image set of one colour has no spread.
    channels = [train.images[:, channel].float() for channel in range(train.images.shape[1])]
    mean = tuple(channel.mean().item() for channel in channels)
    std = tuple(max(channel.std().item(), 1.0) for channel in channels)
    return Dataset(name, classes, train, validation, test, mean, std)


def _digits() -> tuple[Split, Split, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 with values 0 to 16, enlarged to 28 × 28."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = F.interpolate(small, size=(28, 28), mode="bilinear", align_corners=False).round().to(torch.uint8)
    test, learn = Split(images, torch.from_numpy(digits.target).long()).divide(TEST_FRACTION)
    return learn, test, tuple(map(str, digits.target_names))


def _checked(split: Split, name: str, classes: tuple[str, ...]) -> Split:
    """Files are used as they are found, so their contents are checked before training starts."""
    images, labels = split.images, split.labels
    if len(images) != len(labels):
        raise UserError(f"{name} has {len(images)} images but {len(labels)} labels")
    if images.shape[2:] not in ((28, 28), (32, 32)):
        raise UserError(f"{name} has images of {images.shape[2]} by {images.shape[3]} pixels; expected 28 or 32")
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise UserError(f"{name} has the label {int(labels.max())}; expected 0 to {len(classes) - 1}")
    return split


class Batches:
    """A split on a device, handed out as normalised batches.

    Example::

        >>> batches = Batches(data.train, data, batch_size=32, device=torch.device("cpu"))
        >>> for images, labels in batches.shuffled(seed=0, epoch=1, shift=2):
        ...     loss = criterion(model(images), labels)
    """

    def __init__(self, split: Split, data: Dataset, batch_size: int, device: torch.device) -> None:
        self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self.mean = torch.tensor(data.mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(data.std, device=device).view(-1, 1, 1)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """The number of batches; the last one may be smaller than the others."""
        return -(-len(self.labels) // self.batch_size)

    def in_order(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, as stored."""
        return self._batches(self.images, self.labels)

    def shuffled(self, seed: int, epoch: int, shift: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, in random order, each moved by up to `shift` pixels along both axes.

        Order and moves depend on `seed` and `epoch` alone, whatever the device and whatever else drew random
        numbers: an epoch can be repeated without those before it.
        """
        # torch's CPU generator keeps 32 bits of its seed, so the epoch cannot simply go into the upper half.
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        count, device = len(self.labels), self.images.device
        order = torch.randperm(count, generator=generator).to(device)
        moves = torch.randint(2 * shift + 1, (count, 2), generator=generator).to(device)
        # For the whole epoch at once: as bytes this is small, and a step waits for no more than its normalisation.
        images, labels = _moved(self.images[order], moves, shift), self.labels[order]
        yield from self._batches(images, labels)

    def _batches(self, images: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(labels), self.batch_size):
            chosen = slice(start, start + self.batch_size)
            yield (images[chosen] - self.mean) / self.std, labels[chosen]


def _moved(images: Tensor, move: Tensor, shift: int) -> Tensor:
    """Cut each image out of its own padded by `shift` black pixels, from row and column `move` on.

    Shape: `images` and the result `(N, C, H, W)`; `move` `(N, 2)`, values 0 to `2 * shift`.
    """
    count, channels, height, width = images.shape
    rows = (move[:, 0, None] + torch.arange(height, device=images.device)).view(count, 1, height, 1)
    columns = (move[:, 1, None] + torch.arange(width, device=images.device)).view(count, 1, 1, width)
    padded = F.pad(images, (shift, shift, shift, shift))
    padded = padded.gather(2, rows.expand(-1, channels, -1, padded.shape[3]))
    return padded.gather(3, columns.expand(-1, channels, height, -1))
