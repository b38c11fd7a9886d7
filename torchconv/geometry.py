"""The shape arithmetic of convolution and pooling, and every error message about shapes.

One convention serves all layers and every rank.  Along each spatial dimension, output position `o` and kernel tap `k`
meet input position

    i = o · stride − padding + k · dilation                        (Dumoulin & Visin 2016, chapters 2 and 3)

and whatever lies outside the input counts as padding.  A geometry stores both the input and the output size, so
`padding` is the *lower* padding alone: the upper padding is whatever the output size implies.  That covers padding
'same' with even kernels (one more element above than below), `output_padding` and `ceil_mode` without special cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from typing import Any, NamedTuple, TypeVar

from torchconv.integers import as_int, as_tuple, is_integer, remembered

Ints = tuple[int, ...]
Geometry = TypeVar("Geometry")
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def fields_of(geometry: object) -> tuple[Any, ...]:
    """The values of a geometry's fields (or, of its class, their names), in order."""
    names = tuple(geometry.__dataclass_fields__)  # type: ignore[attr-defined]
    return names if isinstance(geometry, type) else tuple(getattr(geometry, name) for name in names)


def extended(cls: type[Geometry], geometry: object, *more: object) -> Geometry:
    """A geometry of a class that adds these fields to those of another's."""
    return cls(*fields_of(geometry), *more)


def to_numbers(geometry: object) -> Ints:
    """A geometry as an operator takes it: its fields one after the other, a padding mode as its place in the list."""
    numbers: list[Any] = []
    for value in fields_of(geometry):
        if isinstance(value, str):
            value = PADDING_MODES.index(value)
        numbers += value if isinstance(value, tuple) else (int(value) if isinstance(value, bool) else value,)
    return tuple(numbers)


def of_numbers(cls: type[Geometry], numbers: Sequence[int]) -> Geometry:
    """The inverse of `to_numbers`; the number of spatial dimensions follows from how many numbers there are."""
    kinds = [field.type for field in fields(cls)]  # type: ignore[arg-type]
    rank = (len(numbers) - len(kinds)) // kinds.count("Ints") + 1
    rest = iter(numbers)

    def read(kind: Any) -> Any:
        if kind == "Ints":
            return tuple(islice(rest, rank))
        number = next(rest)
        return PADDING_MODES[number] if kind == "str" else bool(number) if kind == "bool" else number

    return cls(*map(read, kinds))


@dataclass(frozen=True)
class _Windows:
    """The sizes that a convolution's and a pooling's geometry have in common, and what follows from them."""

    input: Ints
    output: Ints
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def axes(self) -> list[Axis]:
        return self._axes(adaptive=False)

    def _axes(self, adaptive: bool) -> list[Axis]:
        sizes = zip(self.input, self.output, self.kernel, self.stride, self.padding, self.dilation)
        return [Axis(i, o, k, s, p, d, adaptive) for i, o, k, s, p, d in sizes]

    @property
    def padded(self) -> Ints:
        """The span of the lower padding, the input and all windows, which may reach beyond the input."""
        return tuple(axis.padded for axis in self.axes)


@dataclass(frozen=True)
class ConvGeometry(_Windows):
    """How a convolution's sizes fit together; shared by fprop, dgrad and wgrad.

    Attributes:
        input: spatial size of the convolution's input, `rank` integers.
        output: spatial size of its output.
        kernel: spatial size of the weight.
        stride, padding, dilation: per spatial dimension; `padding` is the padding below index 0.
        groups: number of independent channel groups.
        padding_mode: what lies outside the input: 'zeros', or the input itself by another index ('reflect' at its
            edges, 'replicate' them, 'circular').
    """

    groups: int
    padding_mode: str = "zeros"

    def of_padded(self) -> ConvGeometry:
        """The same convolution of an input that has been padded already."""
        return replace(self, input=self.padded, padding=(0,) * self.rank, padding_mode="zeros")

    def with_groups(self, groups: int) -> ConvGeometry:
        return replace(self, groups=groups)

    @staticmethod
    @remembered
    def of_conv(
        input: Sequence[int],
        weight: Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        padding_mode: str = "zeros",
    ) -> ConvGeometry:
        """Geometry of `conv(input, weight)` from the shapes [N, C, *] and [O, C/groups, *kernel].

            output = ⌊(input + 2·padding − dilation·(kernel − 1) − 1) / stride⌋ + 1

        Raises:
            RuntimeError: a value is out of range, or the shapes do not fit together.
        """
        rank = len(weight) - 2
        strides, dilations, groups = _steps(rank, stride, dilation, groups)
        kernel, size = tuple(weight[2:]), tuple(input[2:])
        _check_channels(input, weight, groups, input_channels=weight[1] * groups, transposed=False)
        extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations))

        if isinstance(padding, str):
            lower, output = _named_padding(padding, size, extent, strides)
        else:
            lower = as_tuple(padding, rank, "padding")
            if min(lower) < 0:
                raise RuntimeError(f"negative padding is not supported, but got padding={lower}")
            padded = tuple(i + 2 * p for i, p in zip(size, lower))
            output = tuple((i - e) // s + 1 for i, e, s in zip(padded, extent, strides))
        if min(output) <= 0:
            raise RuntimeError(
                f"kernel size can't be greater than the padded input size: input {_by(size)} with padding={padding!r} "
                f"is too small for kernel {_by(kernel)} with dilation={dilations}, which spans {_by(extent)}; "
                f"the output size would be {_by(output)}"
            )
        geometry = ConvGeometry(size, output, kernel, strides, lower, dilations, groups, padding_mode)
        if padding_mode != "zeros":
            _check_padding_mode(geometry)
        return geometry

    @staticmethod
    @remembered
    def of_conv_transpose(
        input: Sequence[int],
        weight: Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int],
        output_padding: int | Sequence[int],
        groups: int,
        dilation: int | Sequence[int],
    ) -> ConvGeometry:
        """Geometry of the convolution whose dgrad is `conv_transpose(input, weight)`: [N, O, *], [O, C/groups, *].

        The transposed convolution's input is that convolution's *output*, and the other way round:

            input = (output − 1)·stride − 2·padding + dilation·(kernel − 1) + output_padding + 1

        Raises:
            RuntimeError: a value is out of range, or the shapes do not fit together.
        """
        rank = len(weight) - 2
        strides, dilations, groups = _steps(rank, stride, dilation, groups)
        lower = as_tuple(padding, rank, "padding")
        extra = as_tuple(output_padding, rank, "output_padding")
        kernel, size = tuple(weight[2:]), tuple(input[2:])
        if min(lower) < 0:
            raise RuntimeError(f"negative padding is not supported, but got padding={lower}")
        if min(extra) < 0:
            raise RuntimeError(f"negative output_padding is not supported, but got output_padding={extra}")
        _check_channels(input, weight, groups, input_channels=weight[0], transposed=True)
        if any(a >= s and a >= d for a, s, d in zip(extra, strides, dilations)):
            raise RuntimeError(
                f"output padding must be smaller than either stride or dilation, "
                f"but got output_padding={extra}, stride={strides} and dilation={dilations}"
            )
        result = tuple(
            (i - 1) * s - 2 * p + d * (k - 1) + a + 1
            for i, s, p, d, k, a in zip(size, strides, lower, dilations, kernel, extra)
        )
        if min(result) <= 0:
            raise RuntimeError(
                f"output size is too small: input {_by(size)}, kernel {_by(kernel)}, stride={strides}, "
                f"padding={lower}, dilation={dilations} and output_padding={extra} give {_by(result)}"
            )
        return ConvGeometry(result, size, kernel, strides, lower, dilations, groups)


@dataclass(frozen=True)
class BlockGeometry(ConvGeometry):
    """A convolution whose output is pooled by windows that tile it.

    Attributes:
        pool: size of the windows, and the step between them; what is left over at the upper ends is dropped.
    """

    pool: Ints = ()

    @property
    def pooled(self) -> Ints:
        return tuple(o // p for o, p in zip(self.output, self.pool))

    def of_conv_alone(self) -> ConvGeometry:
        return ConvGeometry(*(getattr(self, name) for name in fields_of(ConvGeometry)))

    def of_patches(self) -> ConvGeometry:
        """The convolution whose windows are all that a pooling window sees, and whose output is the pooled one."""
        steps = list(zip(self.stride, self.pool))
        sizes = zip(steps, self.kernel, self.dilation)
        kernel = tuple((k - 1) * d + 1 + (p - 1) * s for (s, p), k, d in sizes)
        stride, ones = tuple(s * p for s, p in steps), (1,) * self.rank
        return ConvGeometry(self.input, self.pooled, kernel, stride, self.padding, ones, self.groups, self.padding_mode)

    def of_pool_alone(self) -> PoolGeometry:
        ones, zeros = (1,) * self.rank, (0,) * self.rank
        return PoolGeometry(self.output, self.pooled, self.pool, self.pool, zeros, ones, False)


class Axis(NamedTuple):
    """One spatial dimension: window `o` holds the positions start(o) + k·dilation for k = 0, 1, …, kernel − 1.

    Adaptive windows divide the input evenly, and are of different lengths: window `o` holds the positions from
    ⌊o·input/output⌋ up to ⌈(o + 1)·input/output⌉; none is longer than `kernel`.
    """

    input: int
    output: int
    kernel: int
    stride: int
    padding: int
    dilation: int
    adaptive: bool

    @property
    def padded(self) -> int:
        """The span of the lower padding, the input and all windows, if they stand at regular steps."""
        return max((self.output - 1) * self.stride + (self.kernel - 1) * self.dilation + 1, self.padding + self.input)

    def start(self, o: int) -> int:
        return o * self.input // self.output if self.adaptive else o * self.stride - self.padding

    def first_tap(self, o: int) -> int:
        """The first tap of window `o` that does not lie below index 0."""
        return max(0, -(self.start(o) // self.dilation))

    def taps_between(self, o: int, low: int, high: int) -> int:
        """How many taps of window `o` lie in low ≤ position < high."""
        start = self.start(o)
        stop = min(high, -(-(o + 1) * self.input // self.output)) if self.adaptive else high
        first, last = max(0, -((start - low) // self.dilation)), min(self.kernel, -((start - stop) // self.dilation))
        return max(0, last - first)


@dataclass(frozen=True)
class PoolGeometry(_Windows):
    """How a pooling's sizes fit together.

    Attributes:
        input, output: spatial sizes, `rank` integers each.
        kernel, stride, padding, dilation: per spatial dimension; `padding` is the padding on either side.
        adaptive: whether the windows divide the input evenly (see `Axis`) instead of standing at regular steps.
    """

    adaptive: bool

    @property
    def axes(self) -> list[Axis]:
        return self._axes(self.adaptive)

    @property
    def taps(self) -> int:
        """Number of elements of a window, of the largest if they differ."""
        return math.prod(self.kernel)

    @staticmethod
    def of_adaptive(input: Sequence[int], rank: int, output_size: int | Sequence[int | None] | None) -> PoolGeometry:
        """Geometry of adaptive pooling an input of shape [N, C, *] to `output_size`; None keeps a size.

        Windows of one length at regular steps are those of ordinary pooling, and described as such: where o windows
        divide q·o elements or, overlapping by one, q·o + 1.

        Raises:
            RuntimeError: a size is negative or empty, or there are too many.
        """
        size = tuple(input[2:])
        if isinstance(output_size, Sequence) and not isinstance(output_size, str):
            wanted = tuple(output_size)
        else:
            wanted = (output_size,) * rank
        if len(wanted) != rank:
            raise RuntimeError(f"output_size must be a single int or {rank} ints, but got output_size={output_size}")
        if not all(o is None or is_integer(o) for o in wanted):
            raise TypeError(
                f"output_size must be an int, None, or a tuple of them, but got output_size={output_size!r}"
            )
        output = tuple(i if o is None else as_int(o) for i, o in zip(size, wanted))
        if min(output) < 0:
            raise RuntimeError(f"elements of output_size must be greater than or equal to 0, but got {output_size}")
        if any(n <= 0 for n in size):
            raise RuntimeError(
                f"expected input to have non-zero size for non-batch dimensions, but got input of size {list(input)}"
            )
        ones, zeros = (1,) * rank, (0,) * rank
        kernel = tuple(_longest(i, o) if o else 1 for i, o in zip(size, output))
        if all(0 < o <= i and i % o <= 1 for i, o in zip(size, output)):
            step = tuple(i // o for i, o in zip(size, output))
            return PoolGeometry(size, output, kernel, step, zeros, ones, False)
        return PoolGeometry(size, output, kernel, ones, zeros, ones, True)

    @staticmethod
    def of_pool(
        input: Sequence[int],
        rank: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] | None,
        padding: int | Sequence[int],
        dilation: int | Sequence[int],
        ceil_mode: bool,
    ) -> PoolGeometry:
        """Geometry of pooling an input of shape [N, C, *]; `stride=None` (or empty) means `kernel_size`.

            output = ⌊(input + 2·padding − dilation·(kernel − 1) − 1) / stride⌋ + 1

        With `ceil_mode` the quotient is rounded up, but no window starts beyond the input and its lower padding.

        Raises:
            RuntimeError: a value is out of range, or no window fits.
        """
        kernel = as_tuple(kernel_size, rank, "kernel_size")
        no_stride = stride is None or (isinstance(stride, Sequence) and len(stride) == 0)
        strides = kernel if no_stride else as_tuple(stride, rank, "stride")  # type: ignore[arg-type]
        lower = as_tuple(padding, rank, "padding")
        dilations = as_tuple(dilation, rank, "dilation")
        size = tuple(input[2:])
        if min(kernel) <= 0:
            raise RuntimeError(f"kernel size should be greater than zero, but got kernel_size={kernel}")
        if min(strides) <= 0:
            raise RuntimeError(f"stride should be greater than zero, but got stride={strides}")
        if min(dilations) <= 0:
            raise RuntimeError(f"dilation should be greater than zero, but got dilation={dilations}")
        if min(lower) < 0:
            raise RuntimeError(f"pad must be non-negative, but got padding={lower}")
        extent = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations))
        if any(p > k // 2 for p, k in zip(lower, kernel)):
            raise RuntimeError(
                f"pad should be at most half of kernel size, but got padding={lower} and kernel_size={kernel}"
            )
        if any(n <= 0 for n in input[1:]):
            raise RuntimeError(
                f"expected an input whose sizes are all positive but for the batch, but got input of size {list(input)}"
            )
        output = tuple(_pooled(i, e, s, p, ceil_mode) for i, e, s, p in zip(size, extent, strides, lower))
        if min(output) <= 0:
            raise RuntimeError(
                f"output size is too small: input {_by(size)} with kernel_size={kernel}, stride={strides}, "
                f"padding={lower} and dilation={dilations} would give {_by(output)}"
            )
        return PoolGeometry(size, output, kernel, strides, lower, dilations, False)


@dataclass(frozen=True)
class AvgGeometry(PoolGeometry):
    """A pooling that averages, and what it divides by.

    Attributes:
        count_include_pad: whether the padding counts as elements of a window.
        divisor: what every window's sum is divided by; 0 to divide by the number of its elements.
    """

    count_include_pad: bool
    divisor: int

    def counts(self) -> list[list[int]]:
        """For each dimension, how many taps of each window count; a window's divisor is the product of its counts.

        With `count_include_pad` all taps up to the end of the upper padding count (under `ceil_mode` the last window
        can reach beyond it), else only those inside the input.  At least 1, so that an empty window averages to 0.
        """

        def count(axis: Axis, o: int) -> int:
            pad = axis.padding if self.count_include_pad else 0
            return max(1, axis.taps_between(o, -pad, axis.input + pad))

        return [[count(axis, o) for o in range(axis.output)] for axis in self.axes]


@dataclass(frozen=True)
class FractionalGeometry:
    """A pooling whose windows of size `kernel` stand at positions of their own in every sample and channel."""

    input: Ints
    output: Ints
    kernel: Ints


@dataclass(frozen=True)
class IndexGeometry:
    """A spatial size that flat positions point into."""

    input: Ints


def _longest(size: int, output: int) -> int:
    """No window ⌊o·size/output⌋ … ⌈(o + 1)·size/output⌉ is longer: a whole step and an overhang on either side."""
    return size // output + min(2, size % output)


def _pooled(size: int, extent: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Output length of one pooled dimension."""
    room = size + 2 * padding - extent
    if not ceil_mode:
        return room // stride + 1
    output = (room + stride - 1) // stride + 1
    # The last window must start inside the input or its lower padding, else it would hold nothing but padding.
    return output - 1 if (output - 1) * stride >= size + padding else output


def _steps(
    rank: int, stride: int | Sequence[int], dilation: int | Sequence[int], groups: int
) -> tuple[Ints, Ints, int]:
    strides = as_tuple(stride, rank, "stride")
    dilations = as_tuple(dilation, rank, "dilation")
    if min(strides) <= 0:
        raise RuntimeError(f"non-positive stride is not supported, but got stride={strides}")
    if min(dilations) <= 0:
        raise RuntimeError(f"dilation should be greater than zero, but got dilation={dilations}")
    if not is_integer(groups):
        raise TypeError(f"groups must be an int, but got groups={groups!r}")
    if groups <= 0:
        raise RuntimeError(f"non-positive groups is not supported, but got groups={groups}")
    return strides, dilations, as_int(groups)


def _check_channels(
    input: Sequence[int], weight: Sequence[int], groups: int, input_channels: int, transposed: bool
) -> None:
    kind = "transposed convolution" if transposed else "convolution"
    if weight[0] < groups or weight[0] % groups != 0:
        raise RuntimeError(
            f"expected weight of a {kind} with groups={groups} to have a positive multiple of {groups} as first size, "
            f"but got weight of size {list(weight)}"
        )
    if min(input[2:]) <= 0:
        raise RuntimeError(
            f"expected input of a {kind} whose sizes are all positive but for batch and channels, "
            f"but got input of size {list(input)}"
        )
    if min(weight[2:]) <= 0:
        raise RuntimeError(f"kernel size should be greater than zero, but got weight of size {list(weight)}")
    if transposed and weight[1] == 0:
        raise RuntimeError(f"expected a non-empty weight of a {kind}, but got weight of size {list(weight)}")
    if input[1] != input_channels:
        raise RuntimeError(
            f"given groups={groups} and weight of size {list(weight)}, expected input{list(input)} of a {kind} "
            f"to have {input_channels} channels, but got {input[1]} channels instead"
        )


def _check_padding_mode(geometry: ConvGeometry) -> None:
    mode = geometry.padding_mode
    if mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {PADDING_MODES}, but got padding_mode={mode!r}")
    # Reflection leaves out the edge itself; a circle goes round once.
    spare = {"reflect": 1, "circular": 0}.get(mode)
    for size, lower, padded in zip(geometry.input, geometry.padding, geometry.padded):
        upper = padded - lower - size
        if spare is not None and max(lower, upper) > size - spare:
            raise RuntimeError(
                f"padding should be {'less than' if spare else 'at most'} the input size for padding_mode={mode!r}, "
                f"but got padding ({lower}, {upper}) of a dimension of size {size} in input {_by(geometry.input)}"
            )


def _named_padding(name: str, size: Ints, extent: Ints, stride: Ints) -> tuple[Ints, Ints]:
    """Lower padding and output size for padding='valid' or 'same'."""
    if name == "valid":
        return (0,) * len(size), tuple((i - e) // s + 1 for i, e, s in zip(size, extent, stride))
    if name == "same":
        if any(s != 1 for s in stride):
            raise RuntimeError(f"padding='same' is not supported for strided convolutions, got stride={stride}")
        return tuple((e - 1) // 2 for e in extent), size
    raise RuntimeError(f"invalid padding string: {name!r}; expected 'same' or 'valid'")


def _by(size: Sequence[int]) -> str:
    return "(" + " x ".join(str(n) for n in size) + ")"
