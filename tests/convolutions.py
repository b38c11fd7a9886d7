"""Convolutions to test: their operands, how many products a result sums, and the comparison with torch's."""

from typing import Any, NamedTuple

import torch
from support import assert_close, leaf, ours, rank_of, reference, torchs
from torch import Tensor


class Case(NamedTuple):
    """Shapes of input and weight, and the other arguments."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    arguments: dict[str, Any]


def conv(input: tuple[int, ...], weight: tuple[int, ...], **arguments: Any) -> Case:
    return Case(input, weight, arguments)


# For each function, the case that stands for it where something other than the shape varies.
TYPICAL = {
    "conv1d": conv((2, 4, 9), (6, 2, 3), stride=2, padding=1, groups=2),
    "conv2d": conv((2, 4, 7, 6), (6, 2, 3, 2), stride=(2, 1), padding=1, dilation=(1, 2), groups=2),
    "conv3d": conv((2, 2, 4, 3, 5), (4, 2, 2, 3, 2), stride=(1, 2, 1), padding=1),
    "conv_transpose1d": conv((2, 4, 5), (4, 3, 3), stride=2, padding=1, output_padding=1, groups=2),
    "conv_transpose2d": conv((2, 4, 4, 3), (4, 3, 3, 2), stride=(2, 1), dilation=(1, 2), padding=1, groups=2),
    "conv_transpose3d": conv((2, 2, 3, 2, 3), (2, 4, 2, 3, 2), stride=(1, 2, 1), padding=1),
}


def outputs(name: str, case: Case) -> int:
    """Number of output channels."""
    transposed = name.startswith("conv_transpose")
    return case.weight[1] * case.arguments.get("groups", 1) if transposed else case.weight[0]


def operands(name: str, case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    sizes = {"input": case.input, "weight": case.weight, "bias": (outputs(name, case),)}
    return {key: torch.randn(size).to(dtype) for key, size in sizes.items()}


def terms(name: str, case: Case, y: Tensor) -> dict[str, int]:
    """How many products each element of the result and of the gradients sums."""
    rank, groups = rank_of(name), case.arguments.get("groups", 1)
    taps = torch.Size(case.weight[2:]).numel()
    first, second = case.weight[0] // groups, case.weight[1]
    if name.startswith("conv_transpose"):
        pixels = torch.Size(case.input).numel() // case.input[-rank - 1]
        return {"y": first * taps, "input": second * taps, "weight": pixels, "bias": y.numel() // y.shape[-rank - 1]}
    pixels = y.numel() // y.shape[-rank - 1]
    return {"y": second * taps, "input": first * taps, "weight": pixels, "bias": pixels}


def check(name: str, case: Case, tensors: dict[str, Tensor | None], device: torch.device, g: Tensor | None) -> None:
    """Values and gradients for the gradient `g` of the result (None: `y.sum().backward()`) are torch's in float64."""
    expected, expected_gradients = reference(name, tensors, g, **case.arguments)
    leaves = {key: None if t is None else leaf(t, device) for key, t in tensors.items()}
    y = ours(name)(**leaves, **case.arguments)
    if g is None:
        y.sum().backward()
    else:
        y.backward(g.to(device))
    count = terms(name, case, expected)
    assert y.dtype is tensors["input"].dtype
    assert y.device.type == device.type
    assert_close(y, expected, count["y"], "output")
    for key, gradient in expected_gradients.items():
        assert leaves[key].grad.dtype is tensors[key].dtype
        assert_close(leaves[key].grad, gradient, count[key], f"gradient of {key}")


def result_of(name: str, case: Case) -> Tensor:
    """A random gradient of the result."""
    meta = {key: t.to("meta") for key, t in operands(name, case).items()}
    return torch.randn(torchs(name)(**meta, **case.arguments).shape)
