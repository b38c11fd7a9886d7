"""Pictures show what was measured."""

import pytest
import torch
from torch.testing import assert_close

from torchconv.training import data, pictures
from torchconv.training.network import build


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


@pytest.fixture
def images():
    labels = torch.arange(100) % 4
    return data.Split(torch.randint(256, (100, 3, 28, 28), dtype=torch.uint8), labels)


def test_misclassified(images):
    predictions = images.labels.clone()
    predictions[[3, 17]] = 0
    figure = pictures.misclassified(images, predictions, ["ant", "bee", "cat", "dog"])
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["dog, not\nant", "bee, not\nant"]
    assert_close(torch.tensor(shown[1].images[0].get_array()), images.images[17].movedim(0, -1))
    assert figure.get_suptitle() == "Misclassified test images: 2 of 100"


@pytest.mark.parametrize(("wrong", "shown"), [(0, 0), (40, 40), (100, 40)])
def test_misclassified_are_not_too_many(wrong, shown, images):
    predictions = images.labels.clone()
    predictions[:wrong] = (predictions[:wrong] + 1) % 4
    figure = pictures.misclassified(images, predictions, ["ant", "bee", "cat", "dog"])
    assert sum(bool(axes.images) for axes in figure.axes) == shown


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_feature_maps_of_every_layer(name, images):
    network = build(name, 3, 28, 4)
    whole = data.Dataset("random", tuple("abcd"), images, images, images, (100.0, 120.0, 140.0), (50.0, 60.0, 70.0))
    outputs = pictures.layer_outputs(network, whole, images.images[0])
    names = [name for name, _ in outputs]
    assert names[0] == "image"
    leaves = {name for name, layer in network.named_modules() if not list(layer.children())}
    assert leaves == set(names[1:])
    (mean, std), image = ((torch.tensor(v).view(-1, 1, 1) for v in (whole.mean, whole.std)), images.images[0])
    assert_close(outputs[-1][1], network.eval()(((image - mean) / std)[None])[0])
    if name == "lenet5":
        figure = pictures.feature_maps(outputs)
        assert len(figure.axes) == len(outputs) == 13
        drawn = torch.tensor(figure.axes[1].images[0].get_array())[:28, :28]  # the first map, between 0 and 1
        first = outputs[1][1][0]
        assert_close(drawn, (first - first.min()) / (first.max() - first.min()))
    assert not any(layer._forward_hooks for layer in network.modules())
