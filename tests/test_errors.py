"""Every bad argument raises what torch.nn.functional raises, in words that name it, before any operator runs."""

import warnings
from typing import Any, NamedTuple

import pytest
import torch
from support import Recorder, ours, rank_of, torchs

from torchconv import functional


class Bad(NamedTuple):
    """A call that must fail: its arguments, the error's type, and what its message holds.

    `torchs` is the type that torch raises if it is more particular, or None where torch's CPU path accepts the call.
    """

    name: str
    reason: str
    error: type[Exception]
    words: tuple[str, ...]
    arguments: dict[str, Any]
    torchs: type[Exception] | None


UNSET: Any = object()


def zeros(*size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(size, dtype=torch.float32, device=device).to(dtype)


def convolutions(name: str) -> list[Bad]:
    rank, transposed = rank_of(name), "transpose" in name
    spatial, kernel, rows = (6,) * rank, (3,) * rank, []
    weight = zeros(4, 8, *kernel) if transposed else zeros(8, 4, *kernel)
    good = {"input": zeros(2, 4, *spatial), "weight": weight}

    def bad(reason: str, error: type[Exception], *words: str, torchs: Any = UNSET, **arguments: Any) -> None:
        rows.append(Bad(name, reason, error, words, good | arguments, error if torchs is UNSET else torchs))

    # Ranks
    dims = (f"{rank + 1}D (unbatched)", f"{rank + 2}D (batched)", name)
    bad("input of too few dimensions", RuntimeError, *dims, str([6] * rank), input=zeros(*spatial))
    bad("input of too many dimensions", RuntimeError, *dims, "[2, 4, 1,", input=zeros(2, 4, 1, *spatial))
    wrong = zeros(*weight.shape, 3)
    bad("weight of too many dimensions", RuntimeError, f"{rank + 2}D weight", str(list(wrong.shape)), weight=wrong)
    bad("weight of too few dimensions", RuntimeError, f"{rank + 2}D weight", "[8, 4]", weight=zeros(8, 4))

    # Channels and groups
    size = str([2, 5, *spatial])
    bad(
        "input channels",
        RuntimeError,
        f"input{size}",
        "4 channels",
        "5 channels",
        "weight",
        input=zeros(2, 5, *spatial),
    )
    bad("unbatched input channels", RuntimeError, "4 channels", "5 channels", input=zeros(5, *spatial))
    if transposed:
        bad("groups do not divide", RuntimeError, "groups=3", "weight", "[4, 8,", groups=3)
        bad("more groups than channels", RuntimeError, "groups=8", "weight", "[4, 8,", groups=8)
    else:
        bad("channels do not fit the groups", RuntimeError, "groups=2", "8 channels", "4 channels", groups=2)
        bad("groups do not divide", RuntimeError, "groups=2", "[9, 2,", groups=2, weight=zeros(9, 2, *kernel))
        bad("more groups than outputs", RuntimeError, "groups=2", "[1, 2,", groups=2, weight=zeros(1, 2, *kernel))
        bad("no outputs", RuntimeError, "weight", "[0, 4,", weight=zeros(0, 4, *kernel))
    for value in (0, -1):
        bad(f"groups={value}", RuntimeError, "non-positive groups", f"groups={value}", groups=value)

    # Sizes
    for key, words in (("stride", "non-positive"), ("dilation", "dilation"), ("padding", "negative")):
        for value in (0, -1):
            if (key, value) != ("padding", 0):
                bad(f"{key}={value}", RuntimeError, words, f"{key}={(value,) * rank}", **{key: value})
        many = (1,) * (rank + 1)
        bad(f"{key} of too many values", RuntimeError, key, f"{rank} ints", str(many), **{key: many})
        bad(f"{key} of no values", RuntimeError, key, f"{rank} ints", "()", **{key: ()})
        for value in (1.5, "1", None, (1.0,) * rank, zeros(2), True):
            if (key, value) == ("padding", "1"):
                continue  # a name, if a wrong one
            bad(f"{key}={value!r}", TypeError, key, repr(value), **{key: value})
    for value in (1.0, "1", (1,), None, True):
        bad(f"groups={value!r}", TypeError, "groups", repr(value), groups=value)
    if rank > 1:
        last = (1,) * (rank - 1) + (0,)
        bad("one stride of 0", RuntimeError, "non-positive stride", str(last), stride=last)
        bad("an empty dimension", RuntimeError, "input", "[2, 4, 0,", input=zeros(2, 4, 0, *spatial[1:]), padding=2)
    sparse = good["input"].to_sparse()
    bad("sparse input", RuntimeError, "dense input", "sparse_coo", input=sparse)
    bad("an empty kernel", RuntimeError, "kernel", "weight", ", 0", weight=zeros(*weight.shape[:-1], 0))
    if transposed:
        bad("no outputs", RuntimeError, "non-empty weight", "[4, 0,", weight=zeros(4, 0, *kernel))
        bad("padding swallows the output", RuntimeError, "output size is too small", "padding", padding=9)
        for extra, stride in ((1, 1), (2, 2), (5, 3)):
            words = (f"output_padding={(extra,) * rank}", f"stride={(stride,) * rank}", "dilation")
            bad(f"output_padding {extra} at stride {stride}", RuntimeError, *words, output_padding=extra, stride=stride)
        bad("output_padding=-1", RuntimeError, "negative output_padding", "-1", output_padding=-1)
        bad("output_padding=1.0", TypeError, "output_padding", "1.0", output_padding=1.0)
        many = (0,) * (rank + 1)
        bad("output_padding of too many values", RuntimeError, "output_padding", str(many), output_padding=many)
        bad("padding='same'", TypeError, "padding", "'same'", padding="same")
    else:
        by = " x ".join(["7"] * rank)
        words = ("kernel size", "input", f"({by})", "padding=0")
        bad("kernel > input", RuntimeError, *words, weight=zeros(8, 4, *(7,) * rank))
        bad("dilated kernel > input", RuntimeError, *words, "dilation", dilation=3)
        bad(
            "kernel > padded input",
            RuntimeError,
            "kernel size",
            "padding=1",
            padding=1,
            weight=zeros(8, 4, *(9,) * rank),
        )
        bad("kernel > input in one dimension", RuntimeError, "kernel size", weight=zeros(8, 4, *kernel[1:], 7))
        for value in ("full", "SAME", ""):
            bad(f"padding={value!r}", RuntimeError, "padding", repr(value), "'same'", "'valid'", padding=value)
        bad("'same' with stride", RuntimeError, "'same'", "stride", str((2,) * rank), padding="same", stride=2)

    # Tensors
    channels = "8"
    for size in ((7,), (8, 1), (1,), ()):
        bad(f"bias of size {list(size)}", RuntimeError, "bias", channels, str(list(size)), bias=zeros(*size))
    for key, value in (("input", [[1.0]]), ("input", None), ("weight", [[1.0]]), ("weight", None), ("bias", [1.0] * 8)):
        bad(f"{key} is a {type(value).__name__}", TypeError, key, "Tensor", type(value).__name__, **{key: value})
    bad("unknown argument", TypeError, "size", size=3)

    # Types and devices
    double = good["weight"].double()
    bad("weight of another type", RuntimeError, "input", "weight", "float32", "float64", weight=double)
    for dtype in (torch.float64, torch.float16):
        bad(f"bias of type {dtype}", RuntimeError, "input", "bias", "float32", str(dtype), bias=zeros(8, dtype=dtype))
    bad("integer input", RuntimeError, "input", "weight", "int64", "float32", input=good["input"].long())
    accepted = (torch.int64, torch.uint8)  # by torch's CPU path, if not by CUDA
    for dtype in (*accepted, torch.bool, torch.float8_e4m3fn):
        both = {key: t.to(dtype) for key, t in good.items()}
        torchs_too = dtype not in accepted or (transposed and dtype is torch.uint8)
        raised = NotImplementedError if torchs_too else None
        bad(f"{dtype}", NotImplementedError, name, "input", str(dtype), torchs=raised, **both)
    for key in ("input", "weight", "bias"):
        moved = {key: zeros(8, device="meta") if key == "bias" else good[key].to("meta")}
        bad(f"{key} on another device", RuntimeError, key, "meta", "cpu", "same device", torchs=None, **moved)
    return rows


def poolings(name: str) -> list[Bad]:
    rank, average, rows = rank_of(name), name.startswith("avg"), []
    spatial = (6,) * rank
    good = {"input": zeros(2, 4, *spatial), "kernel_size": 3}

    def bad(reason: str, error: type[Exception], *words: str, torchs: Any = UNSET, **arguments: Any) -> None:
        rows.append(Bad(name, reason, error, words, good | arguments, error if torchs is UNSET else torchs))

    # Ranks and input sizes
    dims = (f"{rank + 1}D (unbatched)", f"{rank + 2}D (batched)", name)
    quirk = IndexError if name == "avg_pool2d" else RuntimeError
    bad("input of too few dimensions", RuntimeError, *dims, str([6] * rank), input=zeros(*spatial), torchs=quirk)
    bad("input of too many dimensions", RuntimeError, *dims, "[2, 4, 1,", input=zeros(2, 4, 1, *spatial))
    bad("no channels", RuntimeError, "input", str([2, 0, *spatial]), input=zeros(2, 0, *spatial))
    bad("an empty dimension", RuntimeError, "input", "0]", input=zeros(2, 4, *spatial[1:], 0))

    # Sizes
    keys = ("kernel_size", "stride", "padding") + (() if average else ("dilation",))
    for key in keys:
        for value in (0, -1):
            if (key, value) != ("padding", 0):
                bad(f"{key}={value}", RuntimeError, key.split("_")[0][:3], f"{key}={(value,) * rank}", **{key: value})
        many = (1,) * (rank + 1)
        bad(f"{key} of too many values", RuntimeError, key, f"{rank} ints", str(many), **{key: many})
        if key != "stride":  # where nothing means the kernel's size
            bad(f"{key} of no values", RuntimeError, key, f"{rank} ints", "()", **{key: ()})
        for value in (1.5, "1", None, (1.0,) * rank, zeros(2), True):
            if (key, value) != ("stride", None):
                bad(f"{key}={value!r}", TypeError, key, repr(value), **{key: value})
    bad("kernel > input", RuntimeError, "output size is too small", "kernel_size", "7", kernel_size=7)
    words = ("at most half", "padding", "kernel_size=")
    bad("padding > half the kernel", RuntimeError, *words, f"padding={(2,) * rank}", padding=2)
    bad("padding > half an even kernel", RuntimeError, *words, kernel_size=2, padding=2)
    if not average:
        bad("dilated kernel > input", RuntimeError, "output size is too small", "dilation", dilation=3)
        bad("padding > half, dilated", RuntimeError, *words, kernel_size=2, dilation=3, padding=2)

    # Options
    for value in (None, 1, "yes"):
        bad(f"ceil_mode={value!r}", TypeError, "ceil_mode", type(value).__name__, ceil_mode=value)
        if average:
            words = ("count_include_pad", type(value).__name__)
            bad(f"count_include_pad={value!r}", TypeError, *words, count_include_pad=value)
    if name == "avg_pool3d":
        small = zeros(2, 4, 1, 6, 6)
        bad("padding alone fits", RuntimeError, "smaller than", "(1, 6, 6)", input=small, kernel_size=2, padding=1)
    if average and rank > 1:
        bad("divisor_override=0", RuntimeError, "divisor_override", "zero", divisor_override=0)
        for value in (1.5, "3", True):
            bad(f"divisor_override={value!r}", TypeError, "divisor_override", repr(value), divisor_override=value)

    # Tensors and types
    for value in ([[1.0]], None):
        bad(f"input is a {type(value).__name__}", TypeError, "input", "Tensor", type(value).__name__, input=value)
    bad("unknown argument", TypeError, "size", size=3)
    for dtype in (torch.bool, torch.complex64, torch.float8_e4m3fn) + ((torch.int32, torch.uint8) if average else ()):
        words = (name, "input", str(dtype))
        bad(f"{dtype}", NotImplementedError, *words, input=zeros(2, 4, *spatial, dtype=dtype))
    return rows


def other_poolings(name: str) -> list[Bad]:
    """Adaptive, power-average and fractional pooling, and unpooling: what they do not share with the others."""
    rank, rows = rank_of(name), []
    spatial = (6,) * rank
    x = zeros(2, 4, *spatial)
    good = {
        "adaptive": {"input": x, "output_size": 2},
        "lp": {"input": x, "norm_type": 2, "kernel_size": 3},
        "fractional": {"input": x, "kernel_size": 2, "output_size": 3},
        "max": {"input": zeros(2, 4, *(3,) * rank), "indices": zeros(2, 4, *(3,) * rank).long(), "kernel_size": 2},
    }[name.split("_")[0]]

    def bad(reason: str, error: type[Exception], *words: str, torchs: Any = UNSET, **arguments: Any) -> None:
        rows.append(Bad(name, reason, error, words, good | arguments, error if torchs is UNSET else torchs))

    many = (3,) * (rank + 1)
    for value in ([[1.0]], None):
        words = ("input", "Tensor", type(value).__name__)
        quirk = TypeError if name.startswith("adaptive") and rank == 1 else AttributeError
        bad(f"input is a {type(value).__name__}", TypeError, *words, input=value, torchs=quirk)
    dims = (f"{rank + 1}D (unbatched)", f"{rank + 2}D (batched)", name)
    flat, deep = zeros(*spatial), zeros(2, 4, 1, *spatial)
    if "unpool" in name:
        bad("input of too few dimensions", RuntimeError, *dims, str([6] * rank), input=flat, indices=flat.long())
        bad("input of too many dimensions", RuntimeError, *dims, "[2, 4, 1,", input=deep, indices=deep.long())
    else:
        quirk = IndexError if name in ("lp_pool2d", "fractional_max_pool2d", "fractional_max_pool3d") else RuntimeError
        bad("input of too few dimensions", RuntimeError, *dims, str([6] * rank), input=flat, torchs=quirk)
        bad("input of too many dimensions", RuntimeError, *dims, "[2, 4, 1,", input=deep)
    if "adaptive" in name:
        bad("an empty dimension", RuntimeError, "input", "0]", input=zeros(2, 4, *spatial[1:], 0))
        bad("negative output", RuntimeError, "output_size", "-1", output_size=-1)
        bad("output_size of too many values", RuntimeError, "output_size", str(many), output_size=many)
        for value in (1.5, "2", (1.5,) * rank):
            bad(f"output_size={value!r}", TypeError, "output_size", repr(value), output_size=value)
        bad("integers", NotImplementedError, name, "int64", input=x.long())
    elif "lp" in name:
        bad("norm_type=0", ValueError, "norm_type", norm_type=0)
        bad("integers whose power is none", NotImplementedError, name, "int32", input=x.int())
        bad("complex numbers", NotImplementedError, name, "complex64", input=x.to(torch.complex64))
        bad("kernel > input", RuntimeError, "output size is too small", "kernel_size", kernel_size=7)
        bad("kernel_size=1.5", TypeError, "kernel_size", "1.5", kernel_size=1.5)
    elif "fractional" in name:
        bad("neither size nor ratio", ValueError, "output_size", "output_ratio", output_size=None)
        bad("output > input", RuntimeError, "too large", "output", "kernel_size", output_size=6)
        bad("kernel > input", RuntimeError, "too large", "kernel_size", kernel_size=7, output_size=1)
        if rank == 3:
            bad("no room for chance", RuntimeError, "be less than the input", output_size=5)
        bad("kernel_size=1.5", TypeError, "kernel_size", "1.5", kernel_size=1.5)
        wrong = zeros(2, 4, rank + 1)
        bad("samples of another size", RuntimeError, "_random_samples", str(list(wrong.shape)), _random_samples=wrong)
    else:
        size = zeros(2, 4, *(2,) * rank).long()
        bad("indices of another shape", RuntimeError, "indices", str(list(size.shape)), indices=size)
        bad("indices of another type", RuntimeError, "indices", "int64", "int32", indices=good["indices"].int())
        words = ("output_size", "dim 0", "between 4 and 8")
        bad("output_size of another pooling", ValueError, *words, output_size=(9,) * rank)
        bad("output_size of too many values", ValueError, "output_size", output_size=(6,) * (rank + 3))
        bad("padding swallows the output", ValueError, "output", "not negative", str((-2,) * rank), padding=4)
        bad("kernel_size=1.5", TypeError, "kernel_size", "1.5", kernel_size=1.5)
        bad(
            "an empty dimension",
            RuntimeError,
            "input",
            input=zeros(2, 0, *(3,) * rank),
            indices=zeros(2, 0, *(3,) * rank).long(),
        )
    return rows


OTHERS = ("adaptive", "lp", "fractional", "max_unpool")
CALLS = [
    *(row for family in ("conv", "conv_transpose") for rank in (1, 2, 3) for row in convolutions(f"{family}{rank}d")),
    *(row for family in ("max_pool", "avg_pool") for rank in (1, 2, 3) for row in poolings(f"{family}{rank}d")),
    *(
        row
        for name in functional.__all__
        if name.startswith(OTHERS) and name[-1] == "d"
        for row in other_poolings(name)
    ),
]


@pytest.mark.parametrize("bad", CALLS, ids=[f"{row.name}: {row.reason}" for row in CALLS])
def test_error(bad):
    if bad.torchs is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(bad.torchs) as raised:
                torchs(bad.name)(**bad.arguments)
        assert raised.type is bad.torchs
    with Recorder() as recorder, pytest.raises(bad.error) as raised:
        ours(bad.name)(**bad.arguments)
    assert issubclass(raised.type, bad.torchs or bad.error)  # some are both, for torch's vary with the function
    message = str(raised.value)
    assert [word for word in bad.words if word not in message] == [], message
    assert set(recorder.names) <= {"aten::unsqueeze"}  # of an unbatched input
