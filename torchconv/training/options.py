"""The command line of train.py, and the configuration file behind it."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from torchconv.training import UserError
from torchconv.training.batches import AUGMENTATIONS
from torchconv.training.data import DATASETS, FOLDER_SIZE
from torchconv.training.runs import read_about

DESCRIPTION = """\
Train LeNet-5, or a network of torchvision, on torchconv's convolution and pooling or torch.nn's.

The loss is softmax cross-entropy. The learning rate rises linearly over the first tenth of the
steps, then falls to zero along half a cosine.

A tenth of the training images is set apart for validation. The weights of the epoch with
the best validation accuracy (of equals: the lower validation loss) are kept, and only they
are judged by the test images, once, at the end.

Initial weights and the order and changes of the images depend on --seed alone: two runs with
one seed differ in nothing but --nn.
"""
EPILOG = """\
written to RUNS_DIR/NAME/:
  run.json              how it was made: options, versions, commit, device
  metrics.jsonl         one JSON object per line: every step, every epoch, the test
  checkpoint.pt         what --resume continues from
  best.pt               weights, the network they belong to, class names, normalisation
  *.png                 learning curves, confusion matrix, misclassified images, filters of the
                        first convolution, and the feature maps of one image through every layer

examples:
  python train.py                                   handwritten digits, nothing to download
  python train.py --dataset mnist --epochs 10       MNIST, downloaded into data/ if not there
  python train.py --dataset cifar10 --name photos   colour images, results in runs/photos/
  python train.py --resume runs/photos              go on with a run that was interrupted
  python train.py --nn torch                        the same on torch.nn, to compare
  torchrun --nproc-per-node 2 train.py              two processes, two GPUs if there are
  python train.py evaluate runs/photos              accuracy of each class, confusion matrix
  python train.py predict runs/photos cat.jpg       the most likely classes of images
  python train.py export runs/photos model.pt2      the network as a torch.export program

The exit status is 0; 2 with one line that says what to change; or, when SIGINT or SIGTERM ended
the run after a checkpoint, 130 or 143.
"""
LEARNING_RATES = {"sgd": 0.02, "adamw": 0.001}
# What --resume can be combined with: nothing that the weights depend on.
FREE = ("checkpoint_every", "data_dir", "debug", "device", "resume", "workers")
# Not a property of the run, so neither recorded nor taken from a configuration file.
OF_THE_CALL = ("config", "debug", "resume")
UNSET: Any = object()
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


def augmentations(text: str) -> tuple[str, ...]:
    """An argparse type: names separated by commas, or "none"."""
    names = () if text == "none" else tuple(text.split(","))
    for name in names:
        if name not in AUGMENTATIONS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(AUGMENTATIONS)}")
    return names


def parser() -> argparse.ArgumentParser:
    """All options of training."""
    made = argparse.ArgumentParser(
        prog="train.py",
        usage="python train.py [options]\n       python train.py {evaluate,predict,export} RUN [--help]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=100),
        allow_abbrev=False,
    )
    count, rate = number(int, least=1), number(float, least=0)
    switch: Any = {"action": argparse.BooleanOptionalAction, "default": False}

    add = made.add_argument_group("data").add_argument
    add("--dataset", choices=DATASETS, default="digits", metavar="NAME", help=f"{', '.join(DATASETS)} [%(default)s]")
    add(
        "--data-dir",
        type=Path,
        default="data",
        metavar="DIR",
        help="its folder, or where to download it; for 'folder', DIR/{train,test}/CLASS/IMAGE [%(default)s]",
    )
    add("--limit-train", type=count, metavar="N", help="train on no more than N images [all]")
    add("--image-size", type=count, metavar="N", help=f"resize the images of 'folder' to N by N [{FOLDER_SIZE}]")
    add(
        "--workers",
        type=count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="threads that decode the images of 'folder', once, at the start; the other data sets are held in memory "
        "and need none [%(default)s]",
    )
    add(
        "--shift",
        type=number(int, 0, 16),
        default=2,
        metavar="N",
        help="move each training image by up to N pixels at random [%(default)s]",
    )
    add(
        "--augment",
        type=augmentations,
        default="none",
        metavar="LIST",
        help=f"change training images at random: some of {','.join(AUGMENTATIONS)} [%(default)s]",
    )

    add = made.add_argument_group("training").add_argument
    add("--model", default="lenet5", metavar="NAME", help="lenet5, or torchvision's: resnet18, ... [%(default)s]")
    add(
        "--nn",
        choices=("torchconv", "torch"),
        default="torchconv",
        metavar="WHOSE",
        help="whose layers: torchconv or torch [%(default)s]",
    )
    add("--fused", **switch, help="run convolution, ReLU and max pooling as one where they follow each other [no]")
    add("--epochs", type=count, default=30, metavar="N", help="passes over the training images [%(default)s]")
    add("--batch-size", type=count, default=32, metavar="N", help="images per step, of all processes [%(default)s]")
    add("--optimizer", choices=LEARNING_RATES, default="sgd", metavar="NAME", help="sgd or adamw [%(default)s]")
    add(
        "--lr",
        type=rate,
        metavar="X",
        help=f"the highest learning rate [{', '.join(f'{name}: {lr:g}' for name, lr in LEARNING_RATES.items())}]",
    )
    add("--momentum", type=number(float, 0, 1), default=0.9, metavar="X", help="momentum of SGD [%(default)s]")
    add("--weight-decay", type=rate, default=5e-4, metavar="X", help="weight decay [%(default)s]")
    add("--seed", type=number(int, 0, 2**32), default=0, metavar="N", help="all that chance depends on [%(default)s]")

    add = made.add_argument_group("computing").add_argument
    add("--device", default="auto", help="cpu, cuda, cuda:1, ... [auto: a GPU if there is one]")
    add(
        "--amp",
        choices=("none", "bf16", "fp16"),
        default="none",
        metavar="TYPE",
        help="mixed precision: bf16 or fp16 [%(default)s]",
    )
    add("--compile", **switch, help="train with torch.compile [no]")
    add("--channels-last", **switch, help="keep images with their channels innermost [no]")
    add("--deterministic", **switch, help="refuse operations whose result can differ from run to run [no]")

    add = made.add_argument_group("results").add_argument
    add("--runs-dir", type=Path, default="runs", metavar="DIR", help="where runs have their folders [%(default)s]")
    add(
        "--name",
        type=folder_name,
        default=f"{datetime.now():%Y-%m-%d_%H-%M-%S}",
        help="the folder of this run, a new one [the time]",
    )
    add("--resume", type=Path, metavar="RUN", help="continue the run in this folder, with the options it was given")
    add("--checkpoint-every", type=count, metavar="N", help="also save every N steps of an epoch [only at its end]")
    add("--tensorboard", **switch, help="also write the metrics for TensorBoard [no]")
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="options from a TOML file: lr = 0.1, channels-last = true, ...; the command line wins",
    )
    add("--debug", **switch, help="show where an error comes from [no]")
    return made  # fmt: skip


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a run: defaults, under the configuration file, under the command line.

    A run that is continued has the options that it was started with.
    """
    known = parser()
    options = vars(known.parse_args([]))
    given = _given(known, arguments)
    if "resume" in given:
        fixed = sorted(set(given) - set(FREE))
        if fixed:
            raise UserError(f"--resume continues a run with its own options: leave out {_option(fixed[0])}")
        options.update(_recorded(known, given["resume"]))
    elif "config" in given:
        options.update(_from_file(given["config"]))
    options.update(given)
    if options["lr"] is None:
        options["lr"] = LEARNING_RATES[options["optimizer"]]
    if options["image_size"] is not None and options["dataset"] != "folder":
        raise UserError(f"--image-size is for --dataset folder: the images of {options['dataset']} have their size")
    return argparse.Namespace(**options)


def recorded(options: argparse.Namespace) -> dict[str, Any]:
    """The options to write down, as JSON can hold them."""
    values = {name: value for name, value in vars(options).items() if name not in OF_THE_CALL}
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def options_of(folder: Path) -> argparse.Namespace:
    """The options that a run was given."""
    return parse(["--resume", str(folder)])


def _recorded(known: argparse.ArgumentParser, folder: Path) -> dict[str, Any]:
    """What `recorded` wrote, read as if it were typed again."""
    folder = folder.resolve()
    options = read_about(folder)["options"]
    given = _given(known, _as_arguments(options, folder / "run.json"), source=str(folder / "run.json"))
    return {**given, "runs_dir": folder.parent, "name": folder.name}  # wherever the folder was moved to


def _given(known: argparse.ArgumentParser, arguments: Sequence[str], source: str = "") -> dict[str, Any]:
    """Those options that the arguments name."""
    blank = argparse.Namespace(**dict.fromkeys(vars(known.parse_args([])), UNSET))
    if source:

        def refuse(message: str) -> NoReturn:
            raise UserError(f"{source}: {message}")

        known.error = refuse  # type: ignore[method-assign]
    given = vars(known.parse_args(arguments, blank))
    return {name: value for name, value in given.items() if value is not UNSET}


def _from_file(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # no TOML, or no text
        raise UserError(f"{path} is no TOML file: {error}") from error
    for name in OF_THE_CALL:
        if name in values:
            raise UserError(f"{path}: {name} belongs on the command line")
    return _given(parser(), _as_arguments(values, path), source=str(path))


def _as_arguments(values: dict[str, Any], path: Path) -> list[str]:
    """Options from a file as they would be typed, so that one parser checks them all."""
    arguments = []
    for name, value in values.items():
        option = _option(name)
        if value is True:
            arguments.append(option)
        elif value is False:
            arguments.append(option.replace("--", "--no-", 1))
        elif isinstance(value, list):
            arguments.append(f"{option}={','.join(map(str, value)) or 'none'}")
        elif isinstance(value, (str, int, float)):
            arguments.append(f"{option}={value}")
        elif value is not None:
            raise UserError(f"{path}: {name} is not an option")
    return arguments


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
