"""Small data sets in the layouts of torchvision: image n of either part is filled with noise."""

import hashlib
import pickle
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
TINY = ["--epochs", "1", "--limit-train", "64"]
MNISTS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
CIFARS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}


def tree(folder):
    """Every file and folder with its contents, to see that nothing came, went or changed."""
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def idx(values):
    """The IDX format: a magic number with type and dimensions, the sizes, the bytes."""
    head = b"\0\0\x08" + bytes([values.dim()]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return head + values.numpy().tobytes()


def mnist_files(train_images=200, test_images=50):
    generator = torch.Generator().manual_seed(1)
    for part, count in (("train", train_images), ("t10k", test_images)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        yield f"{part}-images-idx3-ubyte", idx(images)
        yield f"{part}-labels-idx1-ubyte", idx((torch.arange(count) % 10).to(torch.uint8))


def write_mnist(folder, name="mnist", **sizes):
    raw = folder / MNISTS[name] / "raw"
    raw.mkdir(parents=True)
    for file, content in mnist_files(**sizes):
        (raw / file).write_bytes(content)
    return raw


def cifar_files(name):
    """File names, contents and, for the class attributes, which of them are for training."""
    fine = name == "cifar100"
    generator = torch.Generator().manual_seed(1)
    for file, count in (("train" if fine else "data_batch_1", 100), ("test" if fine else "test_batch", 20)):
        pixels = torch.randint(256, (count, 3072), dtype=torch.uint8, generator=generator).numpy()
        labels = [n % (100 if fine else 10) for n in range(count)]
        yield file, pickle.dumps({"data": pixels, "fine_labels" if fine else "labels": labels})
    names = [f"class {n}" for n in range(100 if fine else 10)]
    yield ("meta", pickle.dumps({"fine_label_names": names})) if fine else (
        "batches.meta", pickle.dumps({"label_names": names})
    )  # fmt: skip


def md5(content):
    return hashlib.md5(content).hexdigest()


def write_images(folder, classes=("ant", "bee", "cat"), train=20, test=4, size=(40, 30)):
    """A folder of images: each class has a colour of its own."""
    for part, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for image in range(count):
                colour = [20 + image, 20, 20]
                colour[number % 3] = 220 - image
                Image.new("RGB", size, tuple(colour)).save(folder / part / name / f"{image:03}.png")
    return folder
