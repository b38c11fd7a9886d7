"""LeNet-5: shapes, the two namespaces, and what it says to wrong arguments."""

import doctest

import pytest
import torch
from torch.testing import assert_close

import torchconv.nn
from torchconv import models
from torchconv.models import LeNet5

NAMESPACES = pytest.mark.parametrize("nn", [torchconv.nn, torch.nn], ids=["torchconv", "torch"])


@NAMESPACES
@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("image_size", [28, 32])
def test_shapes(nn, in_channels, image_size):
    model = LeNet5(in_channels, image_size, num_classes=7, nn=nn)
    images = torch.randn(3, in_channels, image_size, image_size)
    logits = model(images)
    assert logits.shape == (3, 7)
    assert model(images[:0]).shape == (0, 7)
    assert_close(model(images[1]), logits[1])


def test_has_the_size_of_the_paper():
    layers = dict(LeNet5().named_modules())
    assert {name: sum(p.numel() for p in layer.parameters()) for name, layer in layers.items() if "." in name} == {
        "features.conv1": 156, "features.relu1": 0, "features.pool1": 0,
        "features.conv2": 2_416, "features.relu2": 0, "features.pool2": 0,
        "classifier.flatten": 0, "classifier.fc1": 48_120, "classifier.relu1": 0,
        "classifier.fc2": 10_164, "classifier.relu2": 0, "classifier.fc3": 850,
    }  # fmt: skip


def test_default_layers_are_ours():
    features = LeNet5().features
    for name in ("conv1", "pool1", "conv2", "pool2"):
        assert type(getattr(features, name)).__module__.startswith("torchconv.nn")


def test_namespaces_agree():
    """One seed gives one model: same parameters, logits and gradients."""
    results = []
    for nn in (torchconv.nn, torch.nn):
        torch.manual_seed(0)
        model = LeNet5(in_channels=3, image_size=32, nn=nn)
        start = {name: value.clone() for name, value in model.state_dict().items()}
        logits = model(torch.randn(4, 3, 32, 32))
        torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        results.append((start, logits, {name: p.grad for name, p in model.named_parameters()}))
    (start, logits, grads), (torch_start, torch_logits, torch_grads) = results
    assert_close(start, torch_start, rtol=0, atol=0)
    assert_close(logits, torch_logits)
    assert_close(grads, torch_grads)


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        ("in_channels", 2, "expected 1 (grey) or 3 (colour)"),
        ("image_size", 30, "expected 28 or 32"),
        ("num_classes", 0, "expected a positive integer"),
        ("num_classes", 2.5, "expected a positive integer"),
    ],
)
def test_wrong_argument(argument, value, expected):
    with pytest.raises(ValueError, match=argument) as error:
        LeNet5(**{argument: value})
    assert str(error.value) == f"{argument} is {value!r}; {expected}"


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 28, 28), (28, 28), (1, 2, 1, 28, 28)])
def test_wrong_images(shape):
    with pytest.raises(ValueError, match="images has shape") as error:
        LeNet5()(torch.zeros(shape))
    assert str(error.value) == f"images has shape {shape}; expected (N, 1, 28, 28) or (1, 28, 28)"


def test_docstring_example():
    result = doctest.testmod(models)
    assert result.attempted > 0
    assert result.failed == 0
