"""What can be done with a trained network: evaluate, predict, export."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchconv.training import UserError, require
from torchconv.training.batches import Batches
from torchconv.training.data import load
from torchconv.training.evaluation import confusion, evaluate, share_equal
from torchconv.training.folder import read_image
from torchconv.training.options import options_of
from torchconv.training.runs import one_line, read_about, replacing
from torchconv.training.weights import rebuild


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"train.py {command}", description=description, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, such as runs/NAME")
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    return parser


def _network(run: Path) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The kept network of a run, on the CPU."""
    layers = read_about(run)["options"].get("nn", "torchconv")
    return rebuild(run, layers)


def evaluate_run(arguments: Sequence[str]) -> None:
    """`train.py evaluate RUN`: accuracy of each class and confusion matrix on the test images."""
    parser = _parser("evaluate", "Accuracy of each class, and the confusion matrix, on the test images.")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data set is [where it was]")
    args = parser.parse_args(arguments)
    options = options_of(args.run)
    require("sklearn" if options.dataset == "digits" else "torchvision")
    network, kept = _network(args.run)
    data_dir = args.data_dir or options.data_dir
    data = load(options.dataset, data_dir, None, options.image_size, options.workers)
    if data.classes != tuple(kept["classes"]):
        raise UserError(
            f"{options.dataset} has {len(data.classes)} classes ({_some(data.classes)}), but {args.run} was trained on "
            f"{len(kept['classes'])} ({_some(kept['classes'])})"
        )
    batches = Batches(data.test, data, 256, torch.device("cpu"), normalisation=(kept["mean"], kept["std"]))
    loss, predictions = evaluate(network, batches)
    print_report(predictions, data.test.labels, data.classes)
    print(f"test loss {loss:.4f}, accuracy {100 * share_equal(predictions, data.test.labels):.2f} %")


def print_report(predictions: Tensor, labels: Tensor, classes: Sequence[str]) -> None:
    """A row for each class: how many images, what share was right, and what each of the others was taken for."""
    matrix = confusion(predictions, labels, len(classes)).tolist()
    name_width = max(map(len, (*classes, "class")))
    show_matrix = len(classes) <= 20
    width = max(len(str(max(map(max, matrix)))), *(len(str(n)) for n in range(1, len(classes) + 1))) + 1
    columns = "".join(f"{number:>{width}}" for number in range(1, len(classes) + 1)) if show_matrix else ""
    print(f"    {'class':<{name_width}}  images  accuracy " + (f"  taken for class{columns}" if show_matrix else ""))
    for number, (name, row) in enumerate(zip(classes, matrix, strict=True), 1):
        images = sum(row)
        share = f"{100 * row[number - 1] / images:6.2f} %" if images else "       -"
        cells = " " * 17 + "".join(f"{cell or '.':>{width}}" for cell in row) if show_matrix else ""
        print(f"{number:>3} {name:<{name_width}}  {images:>6}  {share} {cells}")


def predict(arguments: Sequence[str]) -> None:
    """`train.py predict RUN IMAGE...`: the most likely classes of images."""
    parser = _parser("predict", "The most likely classes of images, which should look like those of the training.")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="an image file")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="how many classes [%(default)s]")
    args = parser.parse_args(arguments)
    require("PIL")
    network, kept = _network(args.run)
    channels, size = kept["model"]["in_channels"], kept["model"]["image_size"]
    images = torch.stack([read_image(path, channels, size) for path in args.images])
    with torch.no_grad():
        probabilities = Program(network, kept["mean"], kept["std"])(images.float()).softmax(1)
    most, classes = probabilities.topk(max(1, min(args.top, len(kept["classes"]))))
    for path, shares, indices in zip(args.images, most.tolist(), classes.tolist(), strict=True):
        found = ", ".join(f"{kept['classes'][i]} {100 * share:.1f} %" for i, share in zip(indices, shares, strict=True))
        print(f"{path}: {found}")


class Program(torch.nn.Module):
    """A network with its normalisation: images with values 0 to 255 in, logits out."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: torch.nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of float images `(N, C, H, W)`."""
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def export(arguments: Sequence[str]) -> None:
    """`train.py export RUN FILE`: the network as a `torch.export` program."""
    parser = _parser(
        "export",
        "Write the network as a torch.export program: float32 images (N, C, H, W) with values 0 to 255 in, logits out.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a new file, such as model.pt2")
    args = parser.parse_args(arguments)
    if args.file.exists():
        raise UserError(f"{args.file} exists already: give another name")
    network, kept = _network(args.run)
    size = kept["model"]["image_size"]
    images = torch.zeros(2, kept["model"]["in_channels"], size, size)
    try:
        program = torch.export.export(
            Program(network, kept["mean"], kept["std"]).eval(), (images,), dynamic_shapes=({0: torch.export.Dim("N")},)
        )
    # torch.export has an exception for each part of it that finds something missing, and says what.
    except Exception as error:
        raise UserError(f"torch.export cannot trace this network: {one_line(error)}") from error
    with replacing(args.file) as unfinished, open(unfinished, "wb") as file:
        torch.export.save(program, file)
    print(f"{args.file}: float32 images (N, {', '.join(map(str, images.shape[1:]))}) with values 0 to 255 in,")
    print(f"logits of {len(kept['classes'])} classes out: {_some(kept['classes'])}")
    print(f"to use it: import torch, torchconv; torch.export.load({str(args.file)!r}).module()")


def _some(classes: Sequence[str]) -> str:
    return ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "evaluate": evaluate_run,
    "predict": predict,
    "export": export,
}
