"""How the CPU's path computes: in chunks, channels that lie flat, memory that is kept, products by another library."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from convolutions import TYPICAL, check, conv, operands, result_of
from support import Recorder, assert_close, check_winners, laid_out, leaf, ours, reference, torchs

from torchconv import functional, ops
from torchconv.eager import conv as eager_conv
from torchconv.eager import depthwise, matmul, pool, windows
from torchconv.geometry import ConvGeometry

pytestmark = pytest.mark.usefixtures("nan_filled")


@pytest.mark.parametrize("chunk", [1, 300, 1000])
@pytest.mark.parametrize("name", TYPICAL)
def test_batch_in_chunks(name, chunk, monkeypatch):
    """The eager products take some samples at a time, or a part of one: fewer than the batch, and a short last few."""
    monkeypatch.setattr(windows, "CHUNK", chunk)
    windows.batches.cache_clear()
    case = TYPICAL[name]._replace(input=(5, *TYPICAL[name].input[1:]))
    check(name, case, operands(name, case), torch.device("cpu"), result_of(name, case))


def test_chunks_of_padding(monkeypatch):
    """A part of the outputs may see nothing but padding, below the input or above it."""
    monkeypatch.setattr(windows, "CHUNK", 1)
    monkeypatch.setattr(windows, "_COLUMNS", 1)
    windows.batches.cache_clear()
    case = conv((2, 3, 4, 5), (4, 3, 2, 3), padding=(6, 2))
    check("conv2d", case, operands("conv2d", case), torch.device("cpu"), result_of("conv2d", case))


@pytest.mark.parametrize("rows", [1, 24])
@pytest.mark.parametrize("outputs", [1, 3, 6, 24])
def test_windows_taken_together(outputs, rows, monkeypatch):
    """On Intel's CPUs the weight's gradient takes each window alone, on others several as one, and a remainder."""
    monkeypatch.setattr(eager_conv, "_ROWS", rows)
    case = conv((3, 4, 11, 9), (2 * outputs, 2, 5, 3), padding=1, groups=2)
    check("conv2d", case, operands("conv2d", case), torch.device("cpu"), result_of("conv2d", case))


DEPTHWISE = {
    "rows": ("conv2d", conv((5, 6, 7, 6), (6, 1, 3, 2), groups=6, padding=1)),
    "phases, two outputs each": (
        "conv2d",
        conv((3, 4, 9, 8), (8, 1, 3, 2), groups=4, stride=(2, 3), padding=(2, 1), dilation=(1, 2)),
    ),
    "phases without input": ("conv2d", conv((2, 3, 2, 2), (3, 1, 2, 2), groups=3, stride=5, padding=4)),
    "phases that no tap meets": ("conv2d", conv((2, 3, 9, 10), (3, 1, 2, 1), groups=3, stride=(5, 3), dilation=(2, 1))),
    "phases that no tap meets, transposed": (
        "conv_transpose2d",
        conv((2, 3, 3, 2), (3, 1, 2, 2), groups=3, stride=(5, 3), output_padding=2),
    ),
    "a remainder": ("conv1d", conv((3, 4, 12), (4, 1, 3), groups=4, stride=5)),
    "3d": ("conv3d", conv((2, 3, 4, 5, 4), (6, 1, 2, 3, 2), groups=3, stride=(1, 2, 1), padding=1)),
    "transposed": (
        "conv_transpose2d",
        conv((3, 4, 5, 4), (4, 2, 3, 3), groups=4, stride=2, padding=1, output_padding=1),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 200, 1 << 17])
@pytest.mark.parametrize("case", DEPTHWISE)
def test_flat_channels_in_chunks(case, chunk, dtype, monkeypatch):
    """One channel of a sample at a time, some of them with a short last few, or some samples."""
    monkeypatch.setattr(depthwise, "_CHUNK", chunk)
    name, shapes = DEPTHWISE[case]
    check(name, shapes, operands(name, shapes, dtype), torch.device("cpu"), result_of(name, shapes).to(dtype))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_flat_channels_padded_by_index(mode):
    """Also where the windows do not see all of the padding."""
    x, w = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(3, 1, 3, 2, dtype=torch.float64)

    def padded_before(x, w):
        return F.conv2d(F.pad(x, (3, 3, 2, 2), mode=mode), w, None, 4, groups=3)

    def padded(x, w):
        return functional.conv2d(x, w, None, 4, (2, 3), groups=3, padding_mode=mode)

    results = []
    for function in (padded_before, padded):
        leaves = leaf(x), leaf(w)
        y = function(*leaves)
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("column", [0, 3, 5])
def test_infinity_stays_in_its_windows(column):
    """Nothing multiplies it by the zeros between flat outputs, which would be NaN."""
    results = []
    for function in (F.conv2d, functional.conv2d):
        torch.manual_seed(0)
        x, w = leaf(torch.randn(2, 4, 6, 6)), leaf(torch.randn(4, 1, 3, 3))
        infinite_x, infinite_w = x.detach().clone(), w.detach().clone()
        infinite_x[1, 2, 2, column], infinite_w[1, 0, 0, column // 2] = float("inf"), float("inf")
        g = torch.randn(2, 4, 6, 6)
        of_w = torch.autograd.grad(function(infinite_x, w, None, 1, 1, 1, 4), w, g)
        of_x = torch.autograd.grad(function(x, infinite_w, None, 1, 1, 1, 4), x, g)
        results.append((*of_w, *of_x))
    assert all(t.isinf().any() for t in results[0])
    torch.testing.assert_close(results[1], results[0], equal_nan=True)


@pytest.mark.parametrize("name", TYPICAL)
def test_products_by_onednn(name, monkeypatch):
    """What CPUs with AVX-512 that are not Intel's multiply by; all others have this operator as well."""
    calls = []

    def onednn(*args):
        calls.append(args)
        return torch.ops.mkldnn._linear_pointwise(*args)

    monkeypatch.setattr(matmul, "_ONEDNN", onednn)
    monkeypatch.setattr(matmul, "_WORTHWHILE", 1)
    check(name, TYPICAL[name], operands(name, TYPICAL[name]), torch.device("cpu"), result_of(name, TYPICAL[name]))
    assert calls


@pytest.mark.parametrize(("size", "kernel"), [(14, 9), (48, 36)])
def test_windows_side_by_side_do_not_fill_the_memory(size, kernel, monkeypatch):
    """Of windows that overlap much, no more are laid side by side at a time than fit into a chunk."""
    x = torch.randn(8, 2, size, size)
    monkeypatch.setattr(pool, "_CHUNK", x.numel())
    windows.per_thread.scratch.levels.clear()  # what other tests left is larger
    with Recorder() as recorder:
        functional.max_pool2d(x, kernel, 1)
    largest = max(a.numel() for _, args in recorder.calls for a in args if isinstance(a, torch.Tensor))
    assert largest <= x.numel()
    check_winners("max_pool2d", x, {"kernel_size": kernel, "stride": 1}, torch.device("cpu"))


@pytest.mark.parametrize("chunk", [1, 40, 300])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_maximum_in_chunks(chunk, layout, monkeypatch):
    """Some samples at a time, some channels of one, or some rows of outputs of one channel."""
    monkeypatch.setattr(pool, "_FEW", 0)
    monkeypatch.setattr(pool, "_CHUNK", chunk)
    x = laid_out(torch.randn(3, 2, 9, 8), layout)
    for arguments in ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": (5, 2), "dilation": (1, 3)}):
        check_winners("max_pool2d", x, arguments, torch.device("cpu"))
    check_winners("adaptive_max_pool2d", x, {"output_size": (5, 3)}, torch.device("cpu"))


@pytest.mark.parametrize("chunk", [1, 100])
@pytest.mark.parametrize("name", ["max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"])
def test_poolings_and_gradients_in_chunks(name, chunk, monkeypatch):
    """Some samples at a time, with a short last few."""
    monkeypatch.setattr(pool, "_FEW", 0)
    monkeypatch.setattr(pool, "_CHUNK", chunk)
    x, arguments = torch.randn(5, 1, 7, 6, dtype=torch.float64), (3,) if name.startswith("adaptive") else (3, 2, 1)
    results = []
    for function in (torchs(name), ours(name)):
        leaf_x = leaf(x)
        y = function(leaf_x, *arguments)
        results.append((y, *torch.autograd.grad(y.sin().sum(), leaf_x)))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("output", [(40, 3), (5, 50), (50, 50), (1, 7)], ids=str)
def test_maximum_of_many_irregular_windows(output, layout):
    """Windows of two lengths, whose last taps one or the other lacks; of nothing but -inf, and of NaN, too."""
    x = laid_out(torch.randn(2, 3, 43, 37).round(), layout)
    x[0, 0, :20], x[1, 1, 20:, 5:30] = -float("inf"), float("nan")
    check_winners("adaptive_max_pool2d", x, {"output_size": output}, torch.device("cpu"))


def test_winner_of_more_taps_than_float32_counts():
    x = torch.zeros(1, 1, 2**24 + 4)
    x[..., -1] = 1
    y, index = functional.max_pool1d(x, x.shape[-1], return_indices=True)
    assert (y.item(), index.item()) == (1, 2**24 + 3)


# Memory that is kept between calls ------------------------------------------------------------------------------------


def test_inference_before_training():
    """What an inference call leaves behind, a training call uses."""
    x, w = torch.randn(2, 3, 7, 7, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    windows.per_thread.scratch.levels.clear()
    with torch.inference_mode():
        functional.conv2d(x, w)
    leaf_w = leaf(w)
    y = functional.conv2d(x, leaf_w)
    [gradient] = torch.autograd.grad(y.sum(), leaf_w)
    expected, gradients = reference("conv2d", {"input": x, "weight": w})
    assert_close(y, expected, 27)
    assert_close(gradient, gradients["weight"], 50)


@pytest.mark.parametrize("operator", ["conv_fprop", "depthwise conv_wgrad", "max_pool"])
def test_operators_inside_an_operator_do_not_share_it(operator, monkeypatch):
    """Python may run anything between two lines, such as a signal's handler: here, between any two pieces of memory."""
    monkeypatch.setattr(pool, "_FEW", 0)
    x, other = torch.randn(2, 2, 3, 9, 9)
    geometry = ConvGeometry.of_conv(x.shape, (3, 1, 3, 3), 1, 1, 1, 3)
    call, *rest = {
        "conv_fprop": (functional.conv2d, torch.randn(4, 3, 3, 3)),
        "depthwise conv_wgrad": (ops.conv_wgrad, torch.randn(2, 3, 9, 9), True, geometry),
        "max_pool": (functional.max_pool2d, 3, 2, 1),
    }[operator]
    plain, depth = windows.scratch, []

    def results(x):
        return [t.clone() for t in call(x, *rest)]

    def interrupted(*args):
        memory = plain(*args)
        if not depth:
            depth.append(memory)
            results(other)
            assert torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.ADInplaceOrView)  # still below
            depth.clear()
        return memory

    expected = results(x)
    for module in (windows, pool, depthwise):
        monkeypatch.setattr(module, "scratch", interrupted)
    assert all(map(torch.equal, results(x), expected))


def test_operator_while_memory_is_prepared(monkeypatch):
    """The first operator of a thread may be interrupted by another one before it has its memory."""

    class Levels(list):
        def append(self, memory):
            if not results:
                results.append(None)
                results[0] = functional.conv2d(other, w)
            super().append(memory)

    results = []
    x, other, w = torch.randn(1, 2, 6, 6), torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    expected = functional.conv2d(other, w), functional.conv2d(x, w)
    monkeypatch.setattr(windows.per_thread.scratch, "levels", Levels())
    results.append(functional.conv2d(x, w))
    assert all(map(torch.equal, results, expected))


def test_operators_inside_an_operator_keep_it():
    """The block of many channels is a convolution and a pooling inside an operator: they use the same memory again."""
    x, w = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
    levels = windows.per_thread.scratch.levels
    levels.clear()
    used = []
    for _ in range(2):
        functional.conv_relu_max_pool2d(x, w)
        used.append([{kind: pieces[None].data_ptr() for kind, pieces in memory.items()} for memory in levels])
    assert len(levels) == 2
    assert levels[1]
    assert used[0] == used[1]


def test_there_is_none_outside_of_an_operator():
    """Before there was one, and after one that failed."""
    geometry = ConvGeometry.of_conv((1, 2, 5), (2, 2, 3), 1, 0, 1, 1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="scratch memory"):
            windows.scratch((2,), "product", torch.float32)
        with pytest.raises(RuntimeError, match="Expected size"):
            eager_conv.fprop(torch.randn(1, 2, 5), torch.randn(2, 9), None, geometry, torch.contiguous_format)


def test_one_memory_is_kept_whatever_the_sizes():
    """Of each kind, the largest asked for: the others are parts of it."""
    windows.per_thread.scratch.levels.clear()
    w = torch.randn(2, 1, 3, 3)
    for size in (*range(5, 90), 200, 6):
        functional.conv2d(torch.randn(1, 1, size, size), w, padding=1)
    [memory] = windows.per_thread.scratch.levels
    for pieces in memory.values():
        assert len(pieces) <= windows._SIZES + 1
        assert len({t.untyped_storage().data_ptr() for t in pieces.values()}) == 1
        assert pieces[None].numel() == max(t.numel() for t in pieces.values())
    assert memory


def test_threads_do_not_share_it():
    """Each of four threads gets its own results, over and over."""
    xs = torch.randn(4, 2, 3, 9, 9, dtype=torch.float64)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    expected = [F.conv2d(x, w) for x in xs]

    def work(number):
        return all(torch.allclose(functional.conv2d(xs[number], w), expected[number]) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
