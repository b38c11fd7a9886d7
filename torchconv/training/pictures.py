"""The pictures of a run: learning curves, confusion matrix, mistakes, filters and feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchconv.training.data import Dataset, Split
from torchconv.training.evaluation import confusion
from torchconv.training.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2563eb", "#ea580c", "#6b7280"


def draw_all(run: Run, network: torch.nn.Module, data: Dataset, predictions: Tensor, filters: Tensor) -> None:
    """Draw all pictures into the run's folder; `predictions` are of the test images."""
    if not run.writes:
        return
    labels = data.test.labels
    shown = int((predictions == labels).float().argmax())  # the first image that the network knows
    pictures = {
        "learning_curves.png": learning_curves(run.events("step"), run.events("epoch")),
        "confusion_matrix.png": confusion_matrix(predictions, labels, data.classes),
        "misclassified.png": misclassified(data.test, predictions, data.classes),
        "filters.png": first_layer_filters(filters),
        "feature_maps.png": feature_maps(layer_outputs(network, data, data.test.images[shown])),
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
    matrix = confusion(predictions, labels, count)
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


def misclassified(split: Split, predictions: Tensor, classes: Sequence[str], most: int = 40) -> Figure:
    """Images whose class was not recognised, from first to last: what they are, and what they were taken for."""
    wrong = (predictions != split.labels).nonzero()[:, 0].tolist()
    shown = wrong if len(wrong) <= most else [wrong[n * len(wrong) // most] for n in range(most)]
    columns, rows = 8, max(1, math.ceil(len(shown) / 8))
    figure = _figure(1.25 * columns, 1.6 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, index in zip(grid.flat, shown, strict=False):
        _show(axes, split.images[index])
        true, predicted = classes[int(split.labels[index])], classes[int(predictions[index])]
        axes.set_title(f"{true}, not\n{predicted}", fontsize=8)
    some = f", {most} of them" if len(wrong) > most else ""
    figure.suptitle(f"Misclassified test images: {len(wrong):,} of {len(predictions):,}{some}", fontsize=10)
    return figure


def _show(axes: Axes, image: Tensor) -> None:
    """A uint8 image `(C, H, W)`, grey or colour."""
    pixels = image.cpu().movedim(0, -1)
    axes.imshow((pixels if len(image) == 3 else pixels[..., 0]).numpy(), cmap="gray", vmin=0, vmax=255)


@torch.no_grad()
def layer_outputs(network: torch.nn.Module, data: Dataset, image: Tensor) -> list[tuple[str, Tensor]]:
    """What every layer makes of one image, in the order of computation; the first is the image itself."""
    found: list[tuple[str, Tensor]] = [("image", image.float().cpu())]

    def keep(name: str) -> Any:
        def hook(_: torch.nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found.append((name, output[0].float().cpu().clone()))  # a ReLU behind it may work in place

        return hook

    leaves = [(name, layer) for name, layer in network.named_modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(keep(name)) for name, layer in leaves]
    try:
        parameter = next(network.parameters())
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
        network.eval()
        network(((image.cpu() - mean) / std)[None].to(parameter))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def feature_maps(outputs: Sequence[tuple[str, Tensor]], most: int = 16) -> Figure:
    """A row for each layer: its first maps, each on its own scale, or its values where it has no maps."""
    height = 0.75
    figure = _figure(1.9 + most * 0.62, height * len(outputs))
    rows = figure.subplots(len(outputs), 1, squeeze=False)[:, 0]
    for axes, (name, output) in zip(rows, outputs, strict=True):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        size = "x".join(map(str, output.shape))
        axes.set_ylabel(f"{name}\n{size}", rotation=0, ha="right", va="center", fontsize=8)
        if name == "image":
            _show(axes, output.to(torch.uint8))
            axes.set_anchor("W")
        elif output.dim() == 3 and output[0].numel() > 1:
            axes.imshow(_strip(output[:most], most).numpy(), cmap="viridis", interpolation="nearest")
            axes.set_anchor("W")
        elif output.dim() in (1, 3):  # numbers without a place
            axes.imshow(output.reshape(1, -1).numpy(), cmap="viridis", interpolation="nearest", aspect="auto")
    return figure


def _strip(maps: Tensor, places: int) -> Tensor:
    """Maps `(C, H, W)` side by side, each stretched to 0 to 1, with gaps and empty places that stay blank."""
    height, width = maps.shape[1:]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    scaled = (maps - low) / (high - low).clamp_min(1e-12)
    gap = max(1, width // 14)
    strip = torch.full((height, places * (width + gap)), float("nan"))
    for index, one in enumerate(scaled):
        strip[:, index * (width + gap) : index * (width + gap) + width] = one
    return strip
