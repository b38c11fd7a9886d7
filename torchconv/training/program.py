"""The program around the loop of train.py: what is run, where its results go, and how it ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from torchconv.training import UserError, require, tensorboard
from torchconv.training.commands import COMMANDS
from torchconv.training.computing import explain
from torchconv.training.data import Dataset
from torchconv.training.distributed import World, join
from torchconv.training.options import FREE, parse, recorded
from torchconv.training.runs import Run, finished, refuse_existing, surroundings
from torchconv.training.stopping import Stopped

Train = Callable[[argparse.Namespace, World], None]


def run_program(arguments: Sequence[str], train: Train) -> int:
    """Do what the arguments say; returns the exit status."""
    stopped = ""
    try:
        if arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
            return 0
        options = parse(arguments)
        folder = options.runs_dir / options.name
        stopped = f"continue with: python train.py --resume {folder}"
        if not options.resume:
            refuse_existing(folder)
        elif finished(folder):
            print(f"{folder} is finished: nothing is left to do")
            return 0
        require(*_libraries(options))
        with join() as world:
            train(options, world)
    except Stopped as stop:
        print(f"\ntrain.py: stopped by {stop}, everything is saved; {stopped}", file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:
        print("\ntrain.py: interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError, RuntimeError) as error:
        message = _message(error)
        if message is None or "--debug" in arguments:
            raise
        print(f"train.py: error: {message}", file=sys.stderr)
        return 2
    return 0


def _message(error: Exception) -> str | None:
    """One line for the user, unless the error is one of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else None
    return explain(error) if isinstance(error, RuntimeError) else None


def _libraries(options: argparse.Namespace) -> list[str]:
    """What this run needs beside torch."""
    needs = ["tqdm", "matplotlib", "sklearn" if options.dataset == "digits" else "torchvision"]
    if options.model != "lenet5":
        needs.append("torchvision")
    if options.tensorboard:
        needs.append("tensorboard")
    return sorted(set(needs), key=needs.index)


def open_run(options: argparse.Namespace, device: torch.device, world: World) -> Run:
    """The folder of the run that was started, or is continued."""
    folder = options.runs_dir / world.gather(options.name)[0]  # a name made of the time may differ between processes
    writes = world.rank == 0
    with world.one_first():
        if options.resume:
            return Run.reopen(folder, writes)
        return Run.create(folder, {"options": recorded(options), **surroundings(device, world.size)}, writes)


def identity(options: argparse.Namespace, data: Dataset) -> dict[str, Any]:
    """What has to be the same when a run is continued."""
    place = ("runs_dir", "name")
    fixed = {name: value for name, value in recorded(options).items() if name not in (*FREE, *place)}
    return {**fixed, "number of training images": len(data.train), "classes": data.classes}


def announce(
    run: Run,
    options: argparse.Namespace,
    data: Dataset,
    network: torch.nn.Module,
    device: torch.device,
    world: World,
    steps_done: int,
) -> None:
    """Say, on the screen and in the metrics, what starts or goes on."""
    if options.tensorboard and run.writes:
        run.listeners.append(tensorboard.writer(run.folder / "tensorboard", steps_done))
    run.log({"event": "run", "step": steps_done, **recorded(options), **surroundings(device, world.size)})
    parameters = sum(p.numel() for p in network.parameters())
    world.print(data.summary())
    together = f", {world.size} processes" if world.size > 1 else ""
    world.print(f"{options.model} on {options.nn}.nn, {parameters:,} parameters, {device}{together}")
    if steps_done:
        world.print(f"continued after {steps_done:,} steps")
