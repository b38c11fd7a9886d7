"""Modules: torch.nn's in every respect but for what computes, and the namespace that takes torch.nn's place."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from support import Recorder, formats

import torchconv
from torchconv import nn

# For every class: how it is made, and the size of an input.  Two lines of one class show two of its options.
LAYERS = [
    ("Conv1d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2}, (2, 4, 9)),
    ("Conv2d", (4, 6, (3, 2)), {"padding": "same", "bias": False}, (2, 4, 5, 6)),
    ("Conv2d", (4, 6, 3), {"dilation": 2, "stride": (1, 2)}, (4, 7, 8)),
    ("Conv3d", (2, 3, 2), {"padding": (1, 0, 1)}, (2, 2, 3, 4, 5)),
    ("ConvTranspose1d", (4, 6, 3), {"stride": 2, "output_padding": 1}, (2, 4, 5)),
    ("ConvTranspose2d", (4, 6, 3), {"stride": 2, "padding": 1, "groups": 2, "dilation": 2}, (2, 4, 5, 6)),
    ("ConvTranspose3d", (2, 3, 2), {"bias": False}, (2, 2, 3, 2, 3)),
    ("LazyConv1d", (6, 3), {"padding": 1}, (2, 4, 9)),
    ("LazyConv2d", (6, 3), {}, (2, 4, 5, 6)),
    ("LazyConv3d", (3, 2), {}, (2, 2, 3, 4, 5)),
    ("LazyConvTranspose1d", (6, 3), {"stride": 2}, (2, 4, 5)),
    ("LazyConvTranspose2d", (6, 3), {}, (2, 4, 5, 6)),
    ("LazyConvTranspose3d", (3, 2), {}, (2, 2, 3, 2, 3)),
    ("MaxPool1d", (3,), {"stride": 2, "padding": 1}, (2, 4, 9)),
    ("MaxPool2d", ((3, 2),), {"dilation": (1, 2), "ceil_mode": True}, (2, 4, 8, 7)),
    ("MaxPool2d", (3, 2), {"return_indices": True}, (2, 4, 8, 7)),
    ("MaxPool3d", (2,), {}, (2, 2, 4, 5, 6)),
    ("AvgPool1d", (3,), {"padding": 1, "count_include_pad": False}, (2, 4, 9)),
    ("AvgPool2d", (3,), {"stride": 2, "ceil_mode": True, "divisor_override": 5}, (2, 4, 8, 7)),
    ("AvgPool3d", (2,), {"padding": 1}, (2, 2, 4, 5, 6)),
    ("AdaptiveAvgPool1d", (4,), {}, (2, 3, 9)),
    ("AdaptiveAvgPool2d", ((None, 2),), {}, (2, 3, 5, 7)),
    ("AdaptiveAvgPool3d", (1,), {}, (2, 3, 2, 3, 4)),
    ("AdaptiveMaxPool1d", (4,), {}, (2, 3, 9)),
    ("AdaptiveMaxPool2d", (3,), {"return_indices": True}, (2, 3, 5, 7)),
    ("AdaptiveMaxPool3d", ((1, 2, 3),), {}, (2, 3, 2, 3, 4)),
    ("LPPool1d", (2, 3), {}, (2, 3, 9)),
    ("LPPool2d", (1.5, 3), {"stride": 2}, (2, 3, 8, 7)),
    ("LPPool3d", (2, 2), {"ceil_mode": True}, (2, 3, 4, 5, 6)),
    ("FractionalMaxPool2d", (2,), {"output_size": (3, 4)}, (2, 3, 7, 8)),
    ("FractionalMaxPool3d", (2,), {"output_ratio": 0.5, "return_indices": True}, (2, 3, 6, 7, 8)),
    ("MaxUnpool1d", (2,), {}, (2, 3, 4)),
    ("MaxUnpool2d", (2,), {}, (2, 3, 4, 3)),
    ("MaxUnpool3d", (2,), {}, (2, 3, 2, 3, 2)),
]
CASES = pytest.mark.parametrize(("name", "args", "options", "size"), LAYERS, ids=[layer[0] for layer in LAYERS])


def pair(name: str, args: tuple, options: dict, size: tuple) -> tuple[torch.nn.Module, torch.nn.Module, tuple]:
    """torch's module, this package's from the same seed, and arguments to call them with."""
    x = torch.rand(size, dtype=torch.float64)
    if "Fractional" in name:
        options = options | {"_random_samples": torch.rand(*size[:2], len(size) - 2, dtype=torch.float64)}
    modules = []
    for library in (torch.nn, nn):
        torch.manual_seed(1)
        module = getattr(library, name)(*args, **options).double()
        if "Lazy" in name:
            module(x)
        modules.append(module)
    if "Unpool" in name:
        pool = getattr(F, name.lower().replace("maxunpool", "max_pool"))
        return *modules, pool(torch.rand(*size[:2], *(2 * n for n in size[2:])).double(), 2, return_indices=True)
    return *modules, (x,)


@CASES
def test_is_torchs_module(name, args, options, size):
    """A subclass with the same arguments and words, which starts from the same parameters."""
    theirs, mine, _ = pair(name, args, options, size)
    assert isinstance(mine, getattr(torch.nn, name.removeprefix("Lazy")))
    assert type(mine).__module__.startswith("torchconv.")
    assert type(mine).__name__ == type(theirs).__name__
    assert inspect.signature(getattr(nn, name)) == inspect.signature(getattr(torch.nn, name))
    assert repr(mine) == repr(theirs)
    assert {key: type(value) for key, value in vars(mine).items()} == {k: type(v) for k, v in vars(theirs).items()}
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert all(map(torch.equal, mine.state_dict().values(), theirs.state_dict().values()))


@CASES
def test_computes_as_torchs(name, args, options, size):
    """Results and gradients, and nothing of aten's convolutions and poolings runs."""
    theirs, mine, inputs = pair(name, args, options, size)
    results = []
    for module in (theirs, mine):
        x = inputs[0].clone().requires_grad_()
        with Recorder() as recorder:
            output = module(x, *inputs[1:])
            y, *indices = output if isinstance(output, tuple) else (output,)
            y.sin().sum().backward()
        results.append((y, indices, x.grad, [p.grad for p in module.parameters()]))
    assert recorder.ours
    assert not recorder.forbidden
    torch.testing.assert_close(results[1], results[0])


def test_every_class_is_here():
    assert {layer[0] for layer in LAYERS} == {name for name in nn.__all__ if hasattr(torch.nn, name)} - {"functional"}


@CASES
def test_copies_and_states(name, args, options, size):
    """deepcopy, pickle, and state_dicts in both directions."""
    theirs, mine, inputs = pair(name, args, options, size)
    for parameter in mine.parameters():
        torch.nn.init.normal_(parameter)
    expected = mine(*inputs)
    for twin in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert type(twin) is type(mine)
        torch.testing.assert_close(twin(*inputs), expected, rtol=0, atol=0)
    file = io.BytesIO()
    torch.save(mine.state_dict(), file)
    file.seek(0)
    theirs.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(theirs(*inputs), expected)
    fresh = pair(name, args, options, size)[1]
    fresh.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(fresh(*inputs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("padding", [2, 1, "same", "valid"])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_padding_mode(rank, mode, padding):
    """Also of an even kernel, whose padding 'same' is not symmetric."""
    results = []
    x = torch.randn(2, 3, *(5, 6, 4)[:rank], dtype=torch.float64)
    for library in (torch.nn, nn):
        torch.manual_seed(1)
        module = getattr(library, f"Conv{rank}d")(3, 4, (3, 2, 2)[:rank], padding=padding, padding_mode=mode).double()
        leaf = x.clone().requires_grad_()
        with Recorder() as recorder:
            y = module(leaf)
            y.sin().sum().backward()
        results.append((y, leaf.grad, module.weight.grad, module.bias.grad))
    assert not recorder.forbidden
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_output_size_of_transposed_convolution(rank):
    x = torch.randn(2, 3, *(4, 5, 3)[:rank])
    sizes = []
    for library in (torch.nn, nn):
        torch.manual_seed(1)
        module = getattr(library, f"ConvTranspose{rank}d")(3, 4, 3, stride=2, padding=1)
        sizes.append([module(x, output_size=[n * 2 - 1 + extra for n in x.shape[2:]]) for extra in (0, 1)])
        with pytest.raises(ValueError, match="requested an output size"):
            module(x, output_size=[n * 2 + 1 for n in x.shape[2:]])
    torch.testing.assert_close(sizes[1], sizes[0])


def test_transposed_convolution_pads_with_zeros_alone():
    for library in (torch.nn, nn):
        with pytest.raises(ValueError, match='Only "zeros" padding mode is supported'):
            library.ConvTranspose2d(1, 1, 2, padding_mode="circular")


def test_moves_with_its_model():
    """`to` with a type, a memory format or a device without data."""
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2)).to(memory_format=torch.channels_last)
    assert formats(model[0].weight) == (False, True)
    assert formats(model(x)) == (False, True)
    assert model.to(torch.bfloat16)(x.bfloat16()).dtype is torch.bfloat16
    assert model.to("meta")(x.bfloat16().to("meta")).shape == (2, 4, 3, 3)


def test_trains_as_torchs_does():
    """One model, moved by nothing but its import, makes the same steps."""

    def train(nn) -> list[float]:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3),
            nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8 * 9, 10),
        ).double()  # fmt: skip
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        x, target = torch.randn(16, 1, 16, 16).double(), torch.randint(10, (16,))
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    expected, actual = train(torch.nn), train(nn)
    assert expected[-1] < 0.9 * expected[0]
    assert actual == pytest.approx(expected, rel=1e-9)


# The namespace -------------------------------------------------------------------------------------------------------


def is_subject(name: str) -> bool:
    return "conv" in name.lower() or "pool" in name.lower()


@pytest.mark.parametrize(("mine", "theirs"), [(nn, torch.nn), (nn.functional, F)], ids=["nn", "nn.functional"])
def test_names(mine, theirs):
    """Ours are ours; a convolution or pooling that is not there is not torch's either; everything else is torch's."""
    names = [name for name in dir(theirs) if not name.startswith("_")]
    assert len(names) > 100
    for name in names:
        if name in mine.__all__ or name == "functional":
            assert getattr(mine, name) is not getattr(theirs, name)
            assert name in dir(mine)
        elif is_subject(name):
            with pytest.raises(AttributeError, match=name):
                getattr(mine, name)
            assert name not in dir(mine)
        else:
            assert getattr(mine, name) is getattr(theirs, name)
            assert name in dir(mine)
    assert not any(is_subject(name) for name in dir(mine) if name not in mine.__all__ and not name.startswith("_"))


def test_no_convolution_or_pooling_of_torchs_is_missing():
    """But for the convolution of a [time, batch, channel] sequence, which has no module and no other rank."""
    classes = {name for name in dir(torch.nn) if is_subject(name) and isinstance(getattr(torch.nn, name), type)}
    assert classes - set(nn.__all__) == set()
    functions = {
        name for name in dir(F) if is_subject(name) and not name.startswith("_") and callable(getattr(F, name))
    }
    assert functions - set(torchconv.functional.__all__) == {"conv_tbc"}


def test_functional_is_one():
    assert all(getattr(nn.functional, name) is getattr(torchconv.functional, name) for name in nn.functional.__all__)
    assert nn.functional.__all__ == torchconv.functional.__all__


def test_star_import():
    namespace = {}
    exec("from torchconv.nn import *", namespace)
    assert namespace["Conv2d"] is nn.Conv2d
    exec("from torchconv.nn.functional import *", namespace)
    assert namespace["conv2d"] is torchconv.functional.conv2d


def test_unknown_names():
    for module in (nn, nn.functional):
        with pytest.raises(AttributeError, match="no_such_thing"):
            _ = module.no_such_thing


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_pad_with_zeros(rank):
    """The constructor says so, and so does the call if the attribute is changed behind it."""
    for namespace in (torch.nn, nn):
        module = getattr(namespace, f"ConvTranspose{rank}d")(2, 3, 3)
        module.padding_mode = "reflect"
        with pytest.raises(ValueError, match="zeros"):
            module(torch.randn(1, 2, *(4,) * rank))
