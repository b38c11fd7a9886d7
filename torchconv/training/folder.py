"""A folder of one's own images as a data set: `DIR/train/CLASS/IMAGE` and `DIR/test/CLASS/IMAGE`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from torchconv.training import UserError
from torchconv.training.runs import one_line

LAYOUT = "expected DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE, with the same classes in both"


def folder_splits(folder: Path, image_size: int, workers: int) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """Training and test part, each as uint8 images `(N, 3, H, W)` and int64 labels, and the names of the classes.

    The images are decoded once, by `workers` threads (Pillow's decoders let other threads run), and then held in
    memory like every other data set.
    """
    from torchvision.datasets import ImageFolder

    parts = []
    for name in ("train", "test"):
        try:
            parts.append(ImageFolder(folder / name))
        except FileNotFoundError as error:  # no such folder, no class, or a class without an image
            raise UserError(f"{folder / name} cannot be used ({one_line(error)}): {LAYOUT}") from error
    if parts[0].classes != parts[1].classes:
        different = sorted(set(parts[0].classes) ^ set(parts[1].classes))
        raise UserError(f"{folder} has different classes in train and test ({', '.join(different)}): {LAYOUT}")
    splits = []
    for part in parts:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            decode = partial(read_image, channels=3, image_size=image_size)
            images = torch.stack(list(pool.map(decode, [path for path, _ in part.samples])))
        splits.append((images, torch.tensor(part.targets)))
    return splits, tuple(parts[0].classes)


def read_image(path: str | Path, channels: int, image_size: int) -> Tensor:
    """One image file as uint8 `(C, H, W)`: its middle square, resized."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("L" if channels == 1 else "RGB")
    except OSError as error:  # PIL's errors for damaged and unknown files are OSErrors, too
        raise UserError(f"{path} cannot be read as an image ({error.strerror or one_line(error)})") from error
    except (SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image ({one_line(error)})") from error
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).view(image_size, image_size, channels).movedim(-1, 0).contiguous()
