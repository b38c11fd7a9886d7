"""torch.func's transforms of every function, against the same transforms of torch.nn.functional, in float64."""

import pytest
import torch
from support import AVG_POOL, CONV, CONV_TRANSPOSE, MAX_POOL, example, ours, rank_of, torchs
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import torchconv

CONVOLUTIONS = CONV + CONV_TRANSPOSE
PLAIN = CONVOLUTIONS + MAX_POOL + AVG_POOL
OTHERS = ("adaptive_avg_pool2d", "adaptive_max_pool2d", "lp_pool2d", "max_unpool2d", "fractional_max_pool2d")


def small(name: str) -> tuple[list[torch.Tensor], dict[str, object]]:
    """The tensors of a call so small that its Jacobian is, and the other arguments."""
    if "conv" not in name:
        tensors, arguments = example(name, torch.float64)
        return [t[:1, :2] for t in tensors.values()], {
            key: value[:1, :2] if isinstance(value, torch.Tensor) else value for key, value in arguments.items()
        }
    rank = rank_of(name)
    kernel = (2, 3, 1)[:rank]
    sizes = (1, 2, *(4, 3, 2)[:rank]), (2, 1, *kernel), (2,)
    return [torch.randn(size, dtype=torch.float64) for size in sizes], {
        "stride": 2,
        "padding": (1, 1, 0)[:rank],
        "groups": 2,
    }


def both(name: str, **arguments):
    """torch's function and this package's, of tensors alone."""
    return [lambda *tensors, f=f: f(*tensors, **arguments) for f in (torchs(name), ours(name))]


@pytest.mark.parametrize("batched", ["input", "weight", "bias", "input and weight", "input and bias", "all"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_vmap_of_convolutions(name, batched):
    tensors, arguments = example(name, torch.float64)
    stacks = {"input": 0, "weight": 2, "bias": 1}  # where each one's batch is
    in_dims = tuple(stacks[key] if key in batched or batched == "all" else None for key in tensors)
    values = [
        t if dim is None else torch.randn(*t.shape[:dim], 5, *t.shape[dim:], dtype=torch.float64)
        for t, dim in zip(tensors.values(), in_dims)
    ]
    expected, actual = (vmap(f, in_dims=in_dims, out_dims=1)(*values) for f in both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", [*MAX_POOL, *AVG_POOL, *OTHERS])
def test_vmap_of_poolings(name):
    tensors, arguments = example(name, torch.float64)
    expected, actual = (
        vmap(f, in_dims=2, out_dims=1)(torch.stack([tensors["input"], -tensors["input"]], dim=2))
        for f in both(name, **arguments)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose1d", "max_pool2d", "avg_pool3d"])
def test_vmap_of_vmap(name):
    tensors, arguments = example(name, torch.float64)
    values = [torch.stack([torch.stack([t, 2 * t]), torch.stack([-t, t + 1])]) for t in tensors.values()]
    in_dims = (None, 0, 0)[: len(values)] if "conv" in name else (0,)
    if "conv" in name:
        values[0] = values[0][0, 0]
    expected, actual = (vmap(vmap(f, in_dims), in_dims)(*values) for f in both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", MAX_POOL)
def test_vmap_of_indices(name):
    x = torch.randn(4, 2, 3, *(6,) * rank_of(name))
    expected, actual = (vmap(lambda x, f=f: f(x, 2, return_indices=True))(x) for f in (torchs(name), ours(name)))
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("name", PLAIN)
def test_gradients_per_sample(name):
    """vmap over a gradient: the weight shared, the samples not."""
    tensors, arguments = example(name, torch.float64)
    x, *shared = tensors.values()

    def gradients(f):
        def loss(x, *shared):
            return f(x[None], *shared).sin().sum()

        everything = tuple(range(1 + len(shared)))
        return vmap(grad(loss, argnums=everything), in_dims=(0, *(None for _ in shared)))(x, *shared)

    expected, actual = map(gradients, both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
@pytest.mark.parametrize("name", [*PLAIN, *OTHERS[:3]])
def test_jacobian(name, jacobian):
    tensors, arguments = small(name)
    everything = tuple(range(len(tensors)))
    expected, actual = (jacobian(f, argnums=everything)(*tensors) for f in both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", ["max_unpool2d", "fractional_max_pool2d"])
def test_forward_mode_is_backward_mode(name):
    """torch has no forward mode of these."""
    (x,), arguments = small(name)
    f = both(name, **arguments)[1]
    torch.testing.assert_close(jacfwd(f)(x), jacrev(f)(x))


@pytest.mark.parametrize("name", [*PLAIN, *OTHERS[:2]])
def test_hessian(name):
    """Forward over backward, of all pairs of arguments."""
    tensors, arguments = small(name)
    everything = tuple(range(len(tensors)))

    def losses(f):
        return lambda *tensors: f(*tensors).sin().sum()

    expected, actual = (hessian(losses(f), argnums=everything)(*tensors) for f in both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("order", ["backward over forward", "forward over forward", "backward over backward"])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose1d", "max_pool2d", "avg_pool2d"])
def test_second_derivatives(name, order):
    inner, outer = (
        {"forward": jacfwd, "backward": jacrev}[order.split()[-1]],
        {"forward": jacfwd, "backward": jacrev}[order.split()[0]],
    )
    tensors, arguments = small(name)

    def second(f):
        return outer(inner(lambda *tensors: f(*tensors).sin()))(*tensors)

    expected, actual = map(second, both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", PLAIN)
def test_jvp_and_vjp(name):
    tensors, arguments = example(name, torch.float64)
    values, tangents = tuple(tensors.values()), tuple(torch.randn_like(t) for t in tensors.values())
    (expected_y, expected), (y, actual) = (jvp(f, values, tangents) for f in both(name, **arguments))
    torch.testing.assert_close(y, expected_y)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(y)
    expected, actual = (vjp(f, *values)[1](cotangent) for f in both(name, **arguments))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("known", range(3))
def test_jvp_of_one_argument(known):
    """The tangents of the others are absent, not zero."""
    tensors, arguments = example("conv2d", torch.float64)
    values = list(tensors.values())
    tangent = torch.randn_like(values[known])

    def derivative(f):
        return jvp(lambda t: f(*values[:known], t, *values[known + 1 :]), (values[known],), (tangent,))[1]

    expected, actual = map(derivative, both("conv2d", **arguments))
    torch.testing.assert_close(actual, expected)


def test_ensemble_of_modules():
    """Models stacked into one, as torch.func's tutorial does it."""
    models = [
        torch.nn.Sequential(torchconv.nn.Conv2d(2, 3, 3), torchconv.nn.MaxPool2d(2), torchconv.nn.AvgPool2d(2)).double()
        for _ in range(4)
    ]
    x = torch.randn(5, 2, 10, 10, dtype=torch.float64)
    parameters, buffers = stack_module_state(models)

    def call(parameters, buffers, x):
        return functional_call(models[0], (parameters, buffers), (x,))

    together = vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(together, torch.stack([model(x) for model in models]))


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "conv_relu_max_pool2d"])
def test_forward_mode_at_every_level(name):
    """Where both factors move, the product rule's terms have derivatives of their own."""

    def loss(x):
        w = x[:, :, :3, :3].tanh()
        return getattr(torchconv.functional, name)(x, w.transpose(0, 1) if "transpose" in name else w).square().sum()

    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    expected = jacrev(jacrev(jacrev(loss)))(x)
    for outer, middle, inner in ((jacfwd, jacfwd, jacfwd), (jacrev, jacfwd, jacfwd), (jacfwd, jacrev, jacfwd)):
        torch.testing.assert_close(outer(middle(inner(loss)))(x), expected)


def test_vmap_of_no_poolings():
    x = torch.empty(0, 2, 3, 8, 8)
    for pool in (torchconv.functional.max_pool2d, torchconv.functional.avg_pool2d):
        assert vmap(lambda t, pool=pool: pool(t, 2))(x).shape == (0, 2, 3, 4, 4)


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None), (0, 0, None), (0, 0, 0), (None, None, 0)], ids=str)
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d", "conv_relu_max_pool2d"])
def test_vmap_of_no_convolutions(name, dims):
    """Its shape is that of some, without the batch; so is that of the gradients."""
    function, sizes = ours(name), ((2, 4, 6, 6), (4, 4, 3, 3), (4,))

    def run(batch):
        return vmap(function, dims)(*arguments(batch))

    def gradients(batch):
        return vmap(grad(lambda *tensors: function(*tensors).sum(), (0, 1, 2)), dims)(*arguments(batch))

    def arguments(batch):
        return [torch.zeros(size if dim is None else (batch, *size)) for size, dim in zip(sizes, dims)]

    assert run(0).shape == (0, *run(2).shape[1:])
    assert [g.shape for g in gradients(0)] == [(0, *g.shape[1:]) for g in gradients(2)]
