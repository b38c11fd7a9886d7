"""What `benchmarks.traffic` counts: figures that can be worked out by hand, samples of a launch, and the aims."""

import json
import math

import pytest
import torch
from launches import Conv
from torch import nn

from benchmarks import traffic
from benchmarks.counters import counted, sample
from benchmarks.layers import BLOCKS, LAYERS, Layer
from triton_kernels import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are compiled in this process")


def named(name: str) -> Layer:
    return next(layer for layer in (*LAYERS, *BLOCKS) if layer.name.startswith(name))


def passes(layer: Layer, dtype: str = "float16", format: str = "NHWC") -> dict[str, traffic.Pass]:
    return {one.name: one for one in traffic.passes_of(layer, traffic.Maker(getattr(torch, dtype), format))}


# Samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(1, 1, 1), (7, 1, 1), (100, 1, 1), (13, 3, 11), (24, 1, 1), (25, 1, 1), (3136, 1, 1)])
def test_a_sample_stands_for_the_whole_grid(grid):
    weights = sample(grid, 24)
    assert sum(weights.values()) == math.prod(grid)
    assert len(weights) == min(math.prod(grid), 24) or len(weights) == 25
    assert (0, 0, 0) in weights
    assert tuple(n - 1 for n in grid) in weights
    assert all(i < n for program in weights for i, n in zip(program, grid))


@pytest.mark.parametrize("name", ["forward", "dgrad", "wgrad"])
def test_a_sample_counts_what_the_whole_launch_does(name):
    """Dot products exactly, also of residue classes that differ; what moves, within a tenth."""
    layer = Layer("strided", lambda nn: nn.Conv2d(16, 16, 3, 2, 1), (2, 16, 33, 33))
    one = passes(layer)[name]
    whole, part = traffic.figures(one), traffic.figures(one, programs=8)
    assert (part.useful, part.launches, part.compulsory, part.once) == (
        whole.useful, whole.launches, whole.compulsory, whole.once
    )  # fmt: skip
    for column in ("asked", "access", "program"):
        assert getattr(part, column) == pytest.approx(getattr(whole, column), rel=0.1), column


# By hand -------------------------------------------------------------------------------------------------------------


def test_nothing_is_wasted_on_a_pointwise_convolution():
    """64 pixels, 16 channels in and 8 out, float32: one tile, no padding, everything moved once."""
    found = traffic.figures(passes(Layer("", lambda nn: nn.Conv2d(16, 8, 1), (1, 16, 8, 8)), "float32")["forward"])
    assert found.compulsory == 4 * (1024 + 128 + 8 + 512)
    assert (found.launches, found.useful, found.asked, found.access, found.program, found.once) == (1, 1, 1, 1, 1, 1)


def test_repeated_accesses_count_as_each_column_says():
    """A pooling of 3×3 windows at stride 1: each pixel is asked for nine times, less at the edges, and held once."""
    layer = Layer("", lambda nn: nn.MaxPool2d(3, 1, 1), (1, 16, 8, 8))
    found = traffic.figures(passes(layer)["forward"])
    x, y = 2 * 16 * 64, (2 + 1) * 16 * 64  # the byte is the winner's
    assert found.compulsory == x + y
    assert found.useful is None
    assert found.asked == pytest.approx((x * 22 * 22 / 64 + y) / (x + y))  # 22 = 6 · 3 + 2 · 2 taps per row
    assert found.access == pytest.approx(found.asked)  # 16 channels are one sector
    assert (found.program, found.once) == (1, 1)


def test_partial_sums_are_moved_twice():
    """wgrad's second pass reads what its first wrote; both are counted, and neither is compulsory."""
    found = traffic.figures(passes(Layer("", lambda nn: nn.Conv2d(16, 16, 1), (1, 16, 8, 8)), "float32")["wgrad"])
    results = 4 * (256 + 16)
    assert found.launches == 2
    assert found.compulsory == 4 * (1024 + 1024) + results
    assert found.once == (found.compulsory + 2 * results) / found.compulsory  # one split


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_every_tensor_is_touched_as_a_whole(layer):
    """So that `once` is the least that a launch can move: no element of an operand goes unread, none unwritten."""
    module = layer.build(nn)
    channels = getattr(module, "groups", 1) if isinstance(module, nn.Conv2d) else 1
    if isinstance(module, nn.MaxPool2d):
        small = layer._replace(size=(1, 2, *(min(size, 10) for size in layer.size[2:])))
        found = list(passes(small).values())
    else:
        # The layer's window over few channels and pixels.
        few, size = min(channels, 4), tuple(6 if len(layer.size) == 5 else 9 for _ in layer.size[2:])
        groups = few if channels > 1 else 1
        conv = type(module)(few, few, module.kernel_size, module.stride, module.padding, groups=groups)
        found = list(passes(Layer("", lambda nn: conv, (1, few, *size))).values())
    for one in found:
        with counted() as counts:
            one.run()
        for count in counts:
            for name, argument in count.traffic.items():
                assert argument.touched.all(), f"{count.kernel} {name}"


def test_meta_tensors_count_as_real_ones():
    conv = Conv(1, 4, 4, (6, 6), (3, 3), padding=1)
    x, w, g = conv.operands(torch.float32)
    with counted() as real:
        conv.launch("conv_fprop", x, w, g, None, torch.contiguous_format)
    with counted() as without:
        conv.launch("conv_fprop", x.to("meta"), w.to("meta"), g, None, torch.contiguous_format)
    for name in ("lanes", "active", "bytes"):
        assert getattr(real[0].traffic["p_x"], name) == getattr(without[0].traffic["p_x"], name)
    assert real[0].dots == without[0].dots


# The aims that are met -----------------------------------------------------------------------------------------------


MET = {
    ("lenet conv2", "NCHW"): ("forward", "wgrad"),
    ("stem", "NHWC"): ("forward", "wgrad"),
    ("3x3 64", "NHWC"): ("forward", "dgrad", "wgrad"),
    ("1x1", "NHWC"): ("forward", "dgrad", "wgrad"),
    ("3x3 256", "NHWC"): ("forward", "dgrad", "wgrad"),
    ("3x3 /2", "NHWC"): ("forward", "dgrad", "wgrad"),
    ("3x3x3", "NHWC"): ("forward", "dgrad", "wgrad"),
    ("lenet pool1", "NCHW"): ("forward", "backward"),
    ("lenet pool1", "NHWC"): ("forward", "backward"),
    ("lenet pool2", "NCHW"): ("forward", "backward"),
    ("lenet pool2", "NHWC"): ("forward", "backward"),
    ("depthwise", "NCHW"): ("forward", "dgrad", "wgrad"),
    ("depthwise", "NHWC"): ("forward", "dgrad", "wgrad"),
}


def few_samples(name: str) -> Layer:
    layer = named(name)
    return layer._replace(size=(min(layer.size[0], 8), *layer.size[1:]))


@pytest.mark.parametrize(("name", "format"), MET)
def test_aims(name, format):
    """As the table has them, of four programs and a smaller batch, but where that would shorten the programs' walks."""
    layer = named(name) if name == "depthwise" else few_samples(name)
    for operation in MET[name, format]:
        one = passes(layer, "float16", format)[operation]
        aim = traffic.aim_of(layer, operation, traffic.figures(one, programs=4))
        assert aim is not None
        assert aim[2], (operation, aim)


# What a tile of 8 columns, 32 deep, can make useful of six channels; and of a gradient whose rim meets zeros.
CEILINGS = {
    ("lenet conv1", "forward"): 25 / 32 * 6 / 8,
    ("lenet conv1", "wgrad"): 25 / 32 * 6 / 8,
    ("lenet conv2", "dgrad"): 400 / 416 * 6 / 8 * 100 / 196,
}


@pytest.mark.parametrize("format", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("name", "operation"), CEILINGS)
def test_useful_of_few_channels(name, operation, format):
    found = traffic.figures(passes(few_samples(name), "float16", format)[operation], programs=2)
    assert found.useful == pytest.approx(CEILINGS[name, operation], rel=0.03)


@pytest.mark.parametrize(
    ("format", "operation", "column", "most"),
    [
        # Of x, three rows of pixels for each 128 × 64 results.
        ("NHWC", "forward", "program", 4),
        ("NHWC", "dgrad", "program", 4),
        ("NHWC", "wgrad", "program", 8),
        # Weights in runs of channels: one by one they took a sector each, 46 in all.
        ("NCHW", "forward", "access", 12),
        ("NCHW", "dgrad", "access", 12),
    ],
)
def test_what_large_tiles_read_again(format, operation, column, most):
    found = traffic.figures(passes(few_samples("3x3 64"), "float16", format)[operation], programs=4)
    assert getattr(found, column) <= most


@pytest.mark.parametrize("layer", BLOCKS, ids=lambda layer: layer.name)
def test_the_fused_block_moves_a_third(layer):
    assert traffic.fused(layer, "float16", "NHWC", programs=1).once <= traffic.FUSED


def test_command(tmp_path, capsys):
    file = tmp_path / "traffic.json"
    traffic.main(["--only", "lenet pool2", "--programs", "2", "--json", str(file)])
    written = json.loads(file.read_text())
    assert [(row["format"], row["operation"]) for row in written["rows"]] == [
        ("NCHW", "forward"), ("NCHW", "backward"), ("NHWC", "forward"), ("NHWC", "backward")
    ]  # fmt: skip
    assert written["fused"] == []
    assert {"useful", "asked", "access", "program", "once", "compulsory", "launches"} == set(
        written["rows"][0]["figures"]
    )
    assert [path.name for path in tmp_path.iterdir()] == ["traffic.json"]
    assert "nothing is timed" in capsys.readouterr().out
