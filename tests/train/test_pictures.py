"""Pictures show what was measured."""

import pytest
import torch
from torch.testing import assert_close

from torchconv.training import pictures


def test_confusion_matrix_counts():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predictions = torch.tensor([0, 0, 1, 1, 1, 0])
    axes = pictures.confusion_matrix(predictions, labels, ["ant", "bee", "cat"]).axes[0]
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "2", (0, 1): "1", (1, 1): "2", (2, 0): "1"}  # (true, predicted)
    assert_close(torch.tensor(axes.images[0].get_array()) ** 2, torch.tensor([[2 / 3, 1 / 3, 0], [0, 1, 0], [1, 0, 0]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat"]
    assert axes.get_title() == "Test images: 2 of 6 wrong"


def test_learning_curves_show_what_was_logged():
    steps = [{"step": n, "loss": 1 / n} for n in range(1, 7)]
    epochs = [
        {"epoch": 1, "loss": 0.6, "validation_loss": 0.5, "validation_accuracy": 0.8, "best": True},
        {"epoch": 2, "loss": 0.2, "validation_loss": 0.4, "validation_accuracy": 0.7, "best": False},
    ]
    loss, accuracy = pictures.learning_curves(steps, epochs).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[1 / n for n in range(1, 7)], [0.6, 0.2], [0.5, 0.4]]
    assert loss.lines[0].get_xdata()[-1] == 2
    assert list(accuracy.lines[0].get_ydata()) == [80, 70]
    assert list(accuracy.lines[1].get_xdata()) == [1]  # the weights that were kept


@pytest.mark.parametrize("channels", [1, 3])
def test_filters(channels):
    weight = torch.randn(8, channels, 5, 5)
    figure = pictures.first_layer_filters(weight)
    drawn = torch.stack([torch.tensor(axes.images[0].get_array()) for axes in figure.axes if axes.images])[:8]
    if channels == 1:
        assert_close(drawn, weight[:, 0])
    else:
        assert_close(drawn, (weight / weight.abs().max() / 2 + 0.5).movedim(1, -1))
