#!/usr/bin/env python
"""Train LeNet-5 on this package's convolution and pooling, or on torch.nn's."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from platform import platform
from typing import TypeVar

import torch
from torch import Tensor

from torchconv.models import LeNet5
from torchconv.training import UserError, require
from torchconv.training.data import DATASETS, Batches, load
from torchconv.training.pictures import draw_all
from torchconv.training.runs import Run, progress

DESCRIPTION = """\
Train LeNet-5 on torchconv's convolution and pooling, or on torch.nn's.

The loss is softmax cross-entropy. SGD with momentum follows a learning rate that rises
linearly over the first tenth of the steps, then falls to zero along half a cosine.

A tenth of the training images is set apart for validation. The weights of the epoch with
the best validation accuracy (of equals: the lower validation loss) are kept, and only they
are judged by the test images, once, at the end.

Initial weights and the order and shifts of the images depend on --seed alone: two runs with
one seed differ in nothing but --nn.
"""
EPILOG = """\
written to RUNS_DIR/NAME/:
  metrics.jsonl         one JSON object per line: the run, every step, every epoch, the test
  best.pt               weights, what LeNet5() was called with, class names, normalisation
  learning_curves.png   loss of every step and epoch, validation accuracy
  confusion_matrix.png  on the test images
  filters.png           the kernels of the first convolution

examples:
  python train.py                                   handwritten digits, nothing to download
  python train.py --dataset mnist --epochs 10       MNIST, downloaded into data/ if not there
  python train.py --dataset cifar10 --name photos   colour images, results in runs/photos/
  python train.py --nn torch                        the same on torch.nn, to compare

The exit status is 0, or 2 with one line that says what to change.
"""


def train(args: argparse.Namespace) -> None:
    """Everything between the arguments and the final test accuracy."""
    require("tqdm", "matplotlib", "sklearn" if args.dataset == "digits" else "torchvision")
    device = usable(args.device)
    data = load(args.dataset, args.data_dir, args.limit_train)
    training, validation, test = (
        Batches(split, data, args.batch_size, device) for split in (data.train, data.validation, data.test)
    )

    nn = import_module(f"{args.nn}.nn")
    torch.manual_seed(args.seed)
    shape = {"in_channels": data.channels, "image_size": data.image_size, "num_classes": len(data.classes)}
    model = LeNet5(**shape, nn=nn).to(device)  # initialised on the CPU, so that every device starts from one point
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    steps = args.epochs * len(training)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))

    run = Run(args.runs_dir / args.name)
    run.log({"event": "run", **vars(args), "device": str(device), "torch": torch.__version__, "on": platform()})
    print(data.summary())
    print(f"LeNet-5 on {args.nn}.nn, {sum(p.numel() for p in model.parameters()):,} parameters, {device}")

    best = (-1.0, 0.0)
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        batches = training.shuffled(args.seed, epoch, args.shift)
        batches = progress(batches, len(training), f"epoch {epoch}/{args.epochs}")
        losses = train_epoch(model, batches, criterion, optimizer, scheduler)
        speed = len(data.train) / (time.perf_counter() - start)
        if not all(map(math.isfinite, losses)):
            raise UserError(f"the loss grew beyond all bounds in epoch {epoch}: try an --lr below {args.lr:g}")

        validation_loss, predictions = evaluate(model, validation.in_order(), criterion)
        accuracy = share_equal(predictions, data.validation.labels)
        is_best = (accuracy, -validation_loss) > best
        if is_best:
            best = (accuracy, -validation_loss)
            state = {"state_dict": model.state_dict(), "model": shape, "epoch": epoch, "validation_accuracy": accuracy}
            run.save("best.pt", {**state, "classes": data.classes, "mean": data.mean, "std": data.std})

        loss = sum(losses) / len(losses)
        first = (epoch - 1) * len(training) + 1
        run.log(*({"event": "step", "step": step, "loss": value} for step, value in enumerate(losses, start=first)))
        run.log({
            "event": "epoch", "epoch": epoch, "loss": loss, "validation_loss": validation_loss,
            "validation_accuracy": accuracy, "best": is_best, "images_per_second": speed,
            "next_lr": scheduler.get_last_lr()[0],
        })  # fmt: skip
        print(
            f"epoch {epoch:>{len(str(args.epochs))}}/{args.epochs}   loss {loss:.4f}   "
            f"validation: loss {validation_loss:.4f}, accuracy {100 * accuracy:6.2f} %   {speed:,.0f} images/s",
            flush=True,
        )

    kept = run.load("best.pt", device)
    model.load_state_dict(kept["state_dict"])
    test_loss, predictions = evaluate(model, test.in_order(), criterion)
    accuracy = share_equal(predictions, data.test.labels)
    run.log({"event": "test", "epoch": kept["epoch"], "loss": test_loss, "accuracy": accuracy})
    draw_all(run, predictions, data.test.labels, data.classes, model.features.conv1.weight)
    print(f"best weights: epoch {kept['epoch']}; results in {run.folder}")
    print(f"test accuracy: {100 * accuracy:.2f} %")


def train_epoch(
    model: torch.nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    criterion: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> list[float]:
    """One pass over the training images; returns the loss of every step."""
    model.train()
    losses = []
    for images, labels in batches:
        loss = criterion(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())  # read at the end of the epoch, as reading makes a GPU wait for its host
    values: list[float] = torch.stack(losses).tolist()
    return values


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, batches: Iterable[tuple[Tensor, Tensor]], criterion: torch.nn.Module
) -> tuple[float, Tensor]:
    """Mean loss over the images, and the class predicted for each of them."""
    model.eval()
    total, predictions = 0.0, []
    for images, labels in batches:
        logits = model(images)
        total += criterion(logits, labels).item() * len(labels)
        predictions.append(logits.argmax(1).cpu())
    joined = torch.cat(predictions)
    return total / len(joined), joined


def share_equal(predictions: Tensor, labels: Tensor) -> float:
    """Accuracy, between 0 and 1."""
    return float((predictions == labels).float().mean())


def rate_factor(step: int, steps: int) -> float:
    """What --lr is multiplied by: a linear rise over the first tenth of the steps, then half a cosine down to zero."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def usable(name: str) -> torch.device:
    """The device of that name, if tensors can be put there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    # Each backend has its own exception for a device that is unknown, not compiled in, or not there.
    except Exception as error:
        raise UserError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from error


Number = TypeVar("Number", int, float)


def number(kind: Callable[[str], Number], least: float, below: float = math.inf) -> Callable[[str], Number]:
    """An argparse type: a number that is at least `least` and less than `below`."""

    def convert(text: str) -> Number:
        value: Number = kind(text)
        if not least <= value < below:
            raise argparse.ArgumentTypeError(f"{text} is out of range: {least:g} <= value < {below:g}")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # argparse says: invalid whole number value: 'x'
    return convert


def folder_name(text: str) -> str:
    """An argparse type: the name of one folder, not a path."""
    if text in ("", "..") or text != Path(text).name:
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a folder")
    return text


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [options]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=100),
        allow_abbrev=False,
    )
    count, rate = number(int, least=1), number(float, least=0)

    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, default="digits", metavar="NAME", help=f"{', '.join(DATASETS)} [%(default)s]")
    add(
        "--data-dir", type=Path, default="data", metavar="DIR", help="its folder, or where to download it [%(default)s]"
    )
    add("--limit-train", type=count, metavar="N", help="train on no more than N images [all]")
    add("--shift", type=number(int, 0, 16), default=2, metavar="N",
        help="move each training image by up to N pixels at random [%(default)s]")  # fmt: skip

    add = parser.add_argument_group("training").add_argument
    add(
        "--nn",
        choices=("torchconv", "torch"),
        default="torchconv",
        metavar="WHOSE",
        help="whose layers: torchconv or torch [%(default)s]",
    )
    add("--epochs", type=count, default=30, metavar="N", help="passes over the training images [%(default)s]")
    add("--batch-size", type=count, default=32, metavar="N", help="images per step [%(default)s]")
    add("--lr", type=rate, default=0.02, metavar="X", help="the highest learning rate [%(default)s]")
    add("--momentum", type=number(float, 0, 1), default=0.9, metavar="X", help="momentum of SGD [%(default)s]")
    add("--weight-decay", type=rate, default=5e-4, metavar="X", help="weight decay of SGD [%(default)s]")
    add("--seed", type=number(int, 0, 2**32), default=0, metavar="N", help="all that chance depends on [%(default)s]")
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... [auto: a GPU if there is one]")

    add = parser.add_argument_group("results").add_argument
    add("--runs-dir", type=Path, default="runs", metavar="DIR", help="where runs have their folders [%(default)s]")
    add("--name", type=folder_name, default=f"{datetime.now():%Y-%m-%d_%H-%M-%S}",
        help="the folder of this run, a new one [the time]")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = parse_arguments(arguments)
    try:
        train(args)
    except UserError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
