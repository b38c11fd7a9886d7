"""The pictures of a run: learning curves, confusion matrix and the filters of the first layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchconv.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"


def draw_all(run: Run, predictions: Tensor, labels: Tensor, classes: Sequence[str], filters: Tensor) -> None:
    """Draw the three pictures into the run's folder."""
    pictures = {
        "learning_curves.png": learning_curves(run.events("step"), run.events("epoch")),
        "confusion_matrix.png": confusion_matrix(predictions, labels, classes),
        "filters.png": first_layer_filters(filters),
    }
    for name, figure in pictures.items():
        with run.replacing(name) as path:
            figure.savefig(path, format="png", dpi=150)


def _figure(width: float, height: float) -> Figure:
    # A Figure of its own, not pyplot's: no window system is looked for, and nothing is kept alive after saving.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def learning_curves(steps: Sequence[dict[str, Any]], epochs: Sequence[dict[str, Any]]) -> Figure:
    """Loss of every step and of every epoch, and validation accuracy with the epoch whose weights were kept."""
    from matplotlib.ticker import LogLocator

    figure = _figure(10, 4)
    loss, accuracy = figure.subplots(1, 2)
    ends = [event["epoch"] for event in epochs]
    steps_per_epoch = len(steps) / len(epochs)
    loss.plot(
        [event["step"] / steps_per_epoch for event in steps],
        [event["loss"] for event in steps],
        color=BLUE, alpha=0.25, linewidth=0.8, label="training, each step",
    )  # fmt: skip
    loss.plot(ends, [event["loss"] for event in epochs], color=BLUE, marker=".", label="training, mean of the epoch")
    loss.plot(ends, [event["validation_loss"] for event in epochs], color=ORANGE, marker=".", label="validation")
    loss.set(xlabel="epoch", ylabel="cross-entropy", title="Loss", yscale="log")
    loss.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # a short run may span less than a decade
    loss.yaxis.set_major_formatter("{x:g}")
    loss.minorticks_off()
    loss.legend(frameon=False)

    best = [event for event in epochs if event["best"]][-1]
    accuracy.plot(ends, [100 * event["validation_accuracy"] for event in epochs], color=ORANGE, marker=".")
    accuracy.plot(best["epoch"], 100 * best["validation_accuracy"], "o", color=ORANGE, markersize=9, fillstyle="none")
    title = f"Validation accuracy: {100 * best['validation_accuracy']:.2f} % kept, of epoch {best['epoch']}"
    accuracy.set(xlabel="epoch", ylabel="%", title=title)
    for axes in (loss, accuracy):
        axes.set_xlim(0, 1.02 * ends[-1])
        axes.grid(color=GREY, alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def confusion_matrix(predictions: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """Rows are the true classes, columns the predicted ones; every row adds up to the images of its class."""
    count = len(classes)
    matrix = torch.bincount(labels * count + predictions, minlength=count**2).view(count, count)
    share = matrix / matrix.sum(1, keepdim=True).clamp_min(1)
    figure = _figure(7.2, 6.4)
    axes = figure.subplots()
    # A few errors among many hits would be invisible on a linear scale.
    image = axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
    if count <= 20:
        for row in range(count):
            for column in range(count):
                number = int(matrix[row, column])
                if number:
                    colour = "white" if share[row, column] > 0.35 else "black"
                    axes.text(column, row, f"{number:,}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(count), classes)
        if max(map(len, classes)) > 2:
            axes.tick_params(axis="x", rotation=45)
        axes.set_yticks(range(count), classes)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, label="share of the true class")
    ticks = (0, 0.01, 0.1, 0.25, 0.5, 1)
    bar.set_ticks([math.sqrt(tick) for tick in ticks], labels=[f"{tick:.0%}" for tick in ticks])
    wrong = int((predictions != labels).sum())
    axes.set(xlabel="predicted", ylabel="true", title=f"Test images: {wrong:,} of {len(labels):,} wrong")
    return figure


def first_layer_filters(weight: Tensor) -> Figure:
    """The first convolution's filters, shape `(O, C, kH, kW)`: grey or colour, one scale for all."""
    filters = weight.detach().float().cpu().movedim(1, -1)  # (O, kH, kW, C)
    limit = max(filters.abs().max().item(), 1e-12)
    count = len(filters)
    columns = min(count, 6)
    rows = math.ceil(count / columns)
    figure = _figure(1.5 * columns + 0.9, 1.8 * rows + 0.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for number, (axes, kernel) in enumerate(zip(grid.flat, filters, strict=False), start=1):
        axes.set_title(f"{number}", fontsize=9, color=GREY)
        if kernel.shape[-1] == 3:
            axes.imshow((kernel / (2 * limit) + 0.5).numpy())
        else:
            image = axes.imshow(kernel[..., 0].numpy(), cmap="RdBu", vmin=-limit, vmax=limit)
    if filters.shape[-1] != 3:
        figure.colorbar(image, ax=grid, shrink=0.8)
    return figure
