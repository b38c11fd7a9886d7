"""The data sets, each held whole as one uint8 tensor from which batches are indexed.

All of them are small, so a batch costs a handful of tensor operations on the training device: no worker processes, no
image objects, and nothing to wait for. Images in files are decoded once, when the program starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from torchconv.training import UserError
from torchconv.training.download import TORCHVISION_CLASSES, torchvision_splits
from torchconv.training.folder import folder_splits

DATASETS = ("digits", *TORCHVISION_CLASSES, "folder")
VALIDATION_FRACTION = 0.1
FOLDER_SIZE = 32  # height and width, unless asked for others
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


def load(
    name: str, data_dir: Path, limit_train: int | None = None, image_size: int | None = None, workers: int = 1
) -> Dataset:
    """Read a data set, downloading into `data_dir` what is not there; a tenth of its training part is validation.

    Args:
        name: one of `DATASETS`.
        data_dir: where its files are.
        limit_train: the most images to train on.
        image_size: height and width that the images of a folder get; the others have theirs.
        workers: threads that decode the images of a folder.
    """
    if name == "digits":
        learn, test, classes = _digits()
    else:
        if name == "folder":
            parts, classes = folder_splits(data_dir, image_size or FOLDER_SIZE, workers)
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
    if name != "folder" and images.shape[2:] not in ((28, 28), (32, 32)):
        raise UserError(f"{name} has images of {images.shape[2]} by {images.shape[3]} pixels; expected 28 or 32")
    if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise UserError(f"{name} has the label {int(labels.max())}; expected 0 to {len(classes) - 1}")
    return split
