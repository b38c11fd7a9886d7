#!/usr/bin/env python
"""Train a network on this package's convolution and pooling, or on torch.nn's: `python train.py --help`."""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from torchconv.training.batches import Batches
from torchconv.training.checkpoint import State
from torchconv.training.computing import precision, prepare, usable
from torchconv.training.data import load
from torchconv.training.distributed import MeanCrossEntropy, World
from torchconv.training.evaluation import evaluate, share_equal
from torchconv.training.network import build, first_convolution
from torchconv.training.pictures import draw_all
from torchconv.training.program import announce, identity, open_run, run_program
from torchconv.training.progress import progress
from torchconv.training.runs import Run
from torchconv.training.stopping import Guard
from torchconv.training.weights import load_best, save_best


def train(options: argparse.Namespace, world: World) -> None:
    """Everything between the options and the final test accuracy."""
    device = usable(options, world)
    with world.one_first():  # it downloads what is missing
        data = load(options.dataset, options.data_dir, options.limit_train, options.image_size, options.workers)
    layout = torch.channels_last if options.channels_last else torch.contiguous_format
    training, validation, test = (
        Batches(part, data, options.batch_size, device, world, layout)
        for part in (data.train, data.validation, data.test)
    )

    torch.manual_seed(options.seed)
    shape = {"in_channels": data.channels, "image_size": data.image_size, "num_classes": len(data.classes)}
    # On the CPU, so that every device starts from one point.
    network = build(options.model, **shape, layers=options.nn, fused=options.fused)
    network.to(device).to(memory_format=layout)
    model = prepare(network, options, device, world)
    criterion = MeanCrossEntropy(world)
    optimizer = OPTIMIZERS[options.optimizer](network.parameters(), options)
    steps = options.epochs * len(training)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    autocast, scaler = precision(options.amp, device)

    run = open_run(options, device, world)
    state = State(
        run, world, identity(options, data), options.checkpoint_every,
        model=network, optimizer=optimizer, scheduler=scheduler, scaler=scaler,
    )  # fmt: skip
    state.restore()
    announce(run, options, data, network, device, world, steps_done=state.epoch * len(training) + state.batch)

    with Guard(world, state.save) as guard:
        for epoch in range(state.epoch + 1, options.epochs + 1):
            start, first = time.perf_counter(), state.batch
            batches = training.shuffled(options.seed, epoch, first, options.shift, options.augment)
            model.train()
            for images, labels in guard(progress(batches, len(training), f"epoch {epoch}/{options.epochs}", first)):
                with autocast():
                    loss = criterion(model(images), labels)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                state.record(loss)
            losses = state.read_losses()
            speed = len(data.train) * (1 - first / len(training)) / (time.perf_counter() - start)

            validation_loss, predictions = evaluate(network, validation, autocast, guard)
            accuracy = share_equal(predictions, data.validation.labels)
            if is_best := state.is_best(accuracy, validation_loss):
                save_best(run, network, {"name": options.model, **shape}, data, epoch, accuracy)
            log_epoch(run, epoch, losses, {
                "validation_loss": validation_loss, "validation_accuracy": accuracy, "best": is_best,
                "images_per_second": speed, "next_lr": scheduler.get_last_lr()[0],
            })  # fmt: skip
            world.print(
                f"epoch {epoch:>{len(str(options.epochs))}}/{options.epochs}   loss {sum(losses) / len(losses):.4f}   "
                f"validation: loss {validation_loss:.4f}, accuracy {100 * accuracy:6.2f} %   {speed:,.0f} images/s"
            )
            state.end_epoch()

        best = copy.deepcopy(network)  # a signal now would save the last weights, not the best
        best_epoch = load_best(run.folder, best)["epoch"]
        loss_of_test, predictions = evaluate(best, test, autocast, guard)
        accuracy = share_equal(predictions, data.test.labels)
        draw_all(run, best, data, predictions, first_convolution(best).weight)
        # The last of all: a run with a test result is finished.
        run.log({"event": "test", "epoch": best_epoch, "step": steps, "loss": loss_of_test, "accuracy": accuracy})
    world.print(f"best weights: epoch {best_epoch}; results in {run.folder}")
    world.print(f"test accuracy: {100 * accuracy:.2f} %")


OPTIMIZERS = {
    "sgd": lambda parameters, options: torch.optim.SGD(
        parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    ),
    "adamw": lambda parameters, options: torch.optim.AdamW(
        parameters, lr=options.lr, weight_decay=options.weight_decay
    ),
}


def rate_factor(step: int, steps: int) -> float:
    """What --lr is multiplied by: a linear rise over the first tenth of the steps, then half a cosine down to zero."""
    rise = max(1, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def log_epoch(run: Run, epoch: int, losses: Sequence[float], results: dict[str, Any]) -> None:
    """The loss of every step, then the epoch."""
    before = (epoch - 1) * len(losses)
    run.log(*({"event": "step", "step": step, "loss": loss} for step, loss in enumerate(losses, before + 1)))
    mean = sum(losses) / len(losses)
    run.log({"event": "epoch", "epoch": epoch, "step": before + len(losses), "loss": mean, **results})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return run_program(sys.argv[1:] if arguments is None else arguments, train)


if __name__ == "__main__":
    sys.exit(main())
