"""First and second derivatives of every Function against finite differences, in float64."""

from collections.abc import Callable

import pytest
import torch
from support import on_paths
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torchconv import autograd, ops
from torchconv.geometry import AvgGeometry, ConvGeometry, FractionalGeometry, IndexGeometry, PoolGeometry

FUNCTIONS = (
    "conv",
    "conv_input_grad",
    "conv_weight_grad",
    "max_pool",
    "max_pool_gather",
    "max_pool_scatter",
    "avg_pool",
    "avg_pool_grad",
    "adaptive max_pool",
    "adaptive avg_pool",
    "index_gather",
    "index_scatter",
    "max_unpool",
    "fractional_max_pool",
)


def problem(
    function: str, rank: int, tiny: bool, device: torch.device | str = "cpu"
) -> tuple[Callable[..., object], list[Tensor]]:
    """A Function as a function of its differentiable arguments, and those: every size and step differs where it can."""

    def randn(*size: int) -> Tensor:
        return torch.randn(size, dtype=torch.float64, device=device, requires_grad=True)

    if function.startswith("conv"):
        groups = 1 if tiny else 2
        x, w = (1 if tiny else 2, groups, *(4, 3, 2)[:rank]), (2 * groups, 1, *(2, 3, 1)[:rank])
        geometry = ConvGeometry.of_conv(x, w, (2, 1, 1)[:rank], (1, 1, 0)[:rank], (2, 1, 2)[:rank], groups)
        y = (x[0], w[0], *geometry.output)
        apply = getattr(autograd, function)
        if function == "conv":
            return lambda x, w, bias: apply(x, w, bias, geometry), [randn(*x), randn(*w), randn(w[0])]
        if function == "conv_input_grad":
            return lambda g, w, bias: apply(g, w, bias, geometry), [randn(*y), randn(*w), randn(x[1])]
        return lambda x, g: apply(x, g, True, geometry), [randn(*x), randn(*y)]

    size = (1, 1 if tiny else 2, *(4, 3, 2)[:rank])
    dilation = 1 if "avg" in function else (2, 1, 1)[:rank]
    pool = PoolGeometry.of_pool(size, rank, (2, 3, 2)[:rank], (1, 2, 1)[:rank], (1, 1, 0)[:rank], dilation, True)
    if "adaptive" in function:
        pool = PoolGeometry.of_adaptive(size, rank, (3, 2, 3)[:rank])
    average = AvgGeometry(**vars(pool), count_include_pad=False, divisor=0)
    y = (*size[:2], *pool.output)
    # Distinct values far apart: no step of a finite difference changes a winner.
    distinct = torch.randperm(torch.Size(size).numel()).double().view(size).to(device).requires_grad_()
    offset = ops.max_pool(distinct.detach(), pool)[1]
    places, indexed = torch.randint(torch.Size(size[2:]).numel(), y, device=device), IndexGeometry(size[2:])
    # Unpooling is linear where no two windows name one place; else the last one's value is what it keeps.
    apart = torch.randperm(torch.Size(size[2:]).numel(), device=device)[:2].expand(*size[:2], 2)
    starts = torch.tensor([n - 2 if o else 0 for n in size[2:] for o in (0, 1)], device=device)
    fractional = FractionalGeometry(size[2:], (2,) * rank, (2,) * rank)
    return {
        "max_pool": (lambda x: autograd.max_pool(x, pool)[0], [distinct]),
        "max_pool_gather": (lambda x: autograd.max_pool_gather(x, offset, pool), [randn(*size)]),
        "max_pool_scatter": (lambda g: autograd.max_pool_scatter(g, offset, pool), [randn(*y)]),
        "avg_pool": (lambda x: autograd.avg_pool(x, average), [randn(*size)]),
        "avg_pool_grad": (lambda g: autograd.avg_pool_grad(g, average), [randn(*y)]),
        "index_gather": (lambda x: autograd.index_gather(x, places, indexed), [randn(*size)]),
        "index_scatter": (lambda g: autograd.index_scatter(g, places, indexed), [randn(*y)]),
        "max_unpool": (
            lambda x: autograd.max_unpool(x, apart.view(*size[:2], 2, *(1,) * (rank - 1)), indexed),
            [randn(*size[:2], 2, *(1,) * (rank - 1))],
        ),
        "fractional_max_pool": (
            lambda x: autograd.fractional_max_pool(x, starts.expand(*size[:2], -1), fractional)[0],
            [distinct],
        ),
    }[function.removeprefix("adaptive ")]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_first_derivatives(function, rank):
    """Backward and forward mode, one vector at a time and batched."""
    run, inputs = problem(function, rank, tiny=False)
    assert gradcheck(run, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_second_derivatives(function, rank):
    """Backward over backward, and forward over backward."""
    run, inputs = problem(function, rank, tiny=rank == 3)
    assert gradgradcheck(run, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("function", FUNCTIONS[:3])
def test_third_derivatives(function):
    run, inputs = problem(function, 1, tiny=True)

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        results = run(*inputs)
        loss = sum(t.pow(3).sum() for t in (results if isinstance(results, tuple) else (results,)))
        return torch.autograd.grad(loss, inputs, create_graph=True)

    assert gradgradcheck(gradients, inputs)


@pytest.mark.parametrize(("device", "function"), on_paths(FUNCTIONS), indirect=["device"])
def test_derivatives_by_random_projection(device, function):
    """The same along one random direction each: cheap enough for interpreted kernels."""
    run, inputs = problem(function, 2, tiny=True, device=device)
    assert gradcheck(run, inputs, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(run, inputs, fast_mode=True)
