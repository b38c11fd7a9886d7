"""Index arithmetic that the kernels share.  In every signature p, c, k are a pixel, a channel, a kernel tap."""

import triton
import triton.language as tl


@triton.jit
def program_block(BLOCK: tl.constexpr, WIDE: tl.constexpr, ADAPTIVE: tl.constexpr):
    """The elements first + lane that a program computes, and first as one number; see `split_off`."""
    first = tl.program_id(0).to(tl.int64 if WIDE else tl.int32) * BLOCK
    # Adaptive windows multiply positions by sizes, which can take more than 32 bits.
    return first, tl.arange(0, BLOCK).to(tl.int64 if WIDE and ADAPTIVE else tl.int32)


@triton.jit
def split_off(start, lane, SIZE):
    """Quotient and remainder of start + lane by SIZE: a start', a lane', and the index among SIZE.

    start is one number, of 64 bits if need be; the lanes are many, and divided in 32 bits if they are of that type:
    that takes a few instructions, where 64 bits take a subroutine and the registers that it wants.
    """
    quotient = start // SIZE
    # Not `start % SIZE`, of which the compiler would not know that 16 divides it if it divides both.
    index = (start - quotient * SIZE).to(lane.dtype) + lane
    return quotient, index // SIZE, index % SIZE


@triton.jit
def split_pixel(start, lane, D, H, W):
    """Sample and coordinates (n, d, h, w) of the flat pixels start + lane = ((n·D + d)·H + h)·W + w."""
    start, lane, w = split_off(start, lane, W)
    start, lane, h = split_off(start, lane, H)
    start, lane, d = split_off(start, lane, D)
    return start + lane, d, h, w


@triton.jit
def advance(n, d, h, w, step_n, step_d, step_h, step_w, D, H, W):
    """Coordinates of a pixel so many samples, planes, rows and columns further on, each less than its size."""
    w += step_w
    carry = (w >= W).to(tl.int32)
    w -= carry * W
    h += step_h + carry
    carry = (h >= H).to(tl.int32)
    h -= carry * H
    d += step_d + carry
    carry = (d >= D).to(tl.int32)
    return n + step_n + carry, d - carry * D, h, w


@triton.jit
def split_element(start, lane, C, D, H, W, CHANNELS_LAST: tl.constexpr):
    """Coordinates (n, c, d, h, w) of elements start + lane of a dense tensor of either memory format."""
    if CHANNELS_LAST:
        start, lane, c = split_off(start, lane, C)
    start, lane, w = split_off(start, lane, W)
    start, lane, h = split_off(start, lane, H)
    start, lane, d = split_off(start, lane, D)
    if not CHANNELS_LAST:
        start, lane, c = split_off(start, lane, C)
    return start + lane, c, d, h, w


@triton.jit
def split_tap(tap, KERNEL: tl.constexpr):
    """Coordinates (kd, kh, kw) of a flat tap of the window."""
    return tap // (KERNEL[1] * KERNEL[2]), tap // KERNEL[2] % KERNEL[1], tap % KERNEL[2]


@triton.jit
def flat_tap(kd, kh, kw, KERNEL: tl.constexpr):
    """Back from `split_tap`."""
    return (kd * KERNEL[1] + kh) * KERNEL[2] + kw


@triton.jit
def channel_offset(n, c, pixel, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Offset of element [n, c, pixel] in a dense tensor of either memory format."""
    if CHANNELS_LAST:
        return (n * pixels + pixel) * channels + c
    else:  # noqa: RET505 - the compiler drops one branch only if there are two
        return (n * channels + c) * pixels + pixel


@triton.jit
def store_pixels(p, value, n, c, pixel, m_m, m_n, channels, pixels, CHANNELS_LAST: tl.constexpr):
    """Store the tile value [BM, BN] of pixels (n, pixel) [BM] and channels c [BN], in the type of `p`."""
    value = value.to(p.dtype.element_ty)
    if CHANNELS_LAST:
        o = channel_offset(n[:, None], c[None, :], pixel[:, None], channels, pixels, CHANNELS_LAST)
        tl.store(p + o, value, mask=m_m[:, None] & m_n[None, :])
    else:
        # Turned round, for the lanes of a warp lie along the last dimension, and pixels are neighbours in memory.
        o = channel_offset(n[None, :], c[:, None], pixel[None, :], channels, pixels, CHANNELS_LAST)
        tl.store(p + o, tl.trans(value), mask=m_n[:, None] & m_m[None, :])


@triton.jit
def window_offset(c, tap, CHANNELS: tl.constexpr, TAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Offset of element [c, tap] within one output channel of a weight of either memory format."""
    if CHANNELS_LAST:
        return tap * CHANNELS + c
    else:  # noqa: RET505
        return c * TAPS + tap


@triton.jit
def split_window(k, CHANNELS: tl.constexpr, TAPS: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Channel and tap of element k of one output channel of a weight of either memory format."""
    if CHANNELS_LAST:
        return k % CHANNELS, k // CHANNELS
    else:  # noqa: RET505
        return k // TAPS, k % TAPS


@triton.jit
def zeros4():
    """Four counters, for `advance`."""
    zero = tl.full([], 0, tl.int32)
    return zero, zero, zero, zero


@triton.jit
def grouped(pid, ROWS, COLUMNS: tl.constexpr):
    """Row and column tile of a program, such that those that run at a time share what they load.

    Up to 16 column tiles, columns are fastest: the two programs for each of an H100's 132 multiprocessors are then some
    whole rows of tiles.  More columns would make these rows fewer than a square has, so 16 rows walk them together.
    """
    GROUP: tl.constexpr = 16 if COLUMNS > 16 else 1
    first = pid // (GROUP * COLUMNS) * GROUP
    height = tl.minimum(ROWS - first, GROUP)
    pid = pid % (GROUP * COLUMNS)
    return first + pid % height, pid // height


@triton.jit
def padded_position(i, SIZE, MODE: tl.constexpr):
    """The position in the input that position i of the padded input repeats; with zeros for padding, i itself."""
    if MODE == "reflect":
        i = tl.where(i < 0, -i, i)
        i = tl.where(i >= SIZE, 2 * (SIZE - 1) - i, i)
    elif MODE == "replicate":
        i = tl.minimum(tl.maximum(i, 0), SIZE - 1)
    elif MODE == "circular":
        i = tl.where(i < 0, i + SIZE, tl.where(i >= SIZE, i - SIZE, i))
    return i


@triton.jit
def input_pixel(
    d,
    h,
    w,
    kd,
    kh,
    kw,
    D,
    H,
    W,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
):
    """Flat input pixel that tap (kd, kh, kw) of output (d, h, w)'s window meets, and whether it lies in the input."""
    i_d = padded_position(d * STRIDE[0] - PADDING[0] + kd * DILATION[0], D, MODE)
    i_h = padded_position(h * STRIDE[1] - PADDING[1] + kh * DILATION[1], H, MODE)
    i_w = padded_position(w * STRIDE[2] - PADDING[2] + kw * DILATION[2], W, MODE)
    inside = (i_d >= 0) & (i_d < D) & (i_h >= 0) & (i_h < H) & (i_w >= 0) & (i_w < W)
    return (i_d * H + i_h) * W + i_w, inside


@triton.jit
def within(i, SIZE, SURE: tl.constexpr):
    """Whether 0 ≤ i < SIZE, by one comparison: a negative number is a large one without a sign; or SURE."""
    if SURE:
        return tl.full([], True, tl.int1)
    else:  # noqa: RET505
        return i.to(tl.uint32, bitcast=True) < SIZE


@triton.jit
def input_offset(
    n,
    c,
    d,
    h,
    w,
    kd,
    kh,
    kw,
    channels,
    D,
    H,
    W,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    MODE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Offset of the element of sample n and channel c at `input_pixel`, and whether it lies in the input."""
    if MODE == "zeros":
        # The offset is the sum of the window's and the tap's, one of which does not change in a loop.
        i_d, i_h, i_w = d * STRIDE[0] - PADDING[0], h * STRIDE[1] - PADDING[1], w * STRIDE[2] - PADDING[2]
        k_d, k_h, k_w = kd * DILATION[0], kh * DILATION[1], kw * DILATION[2]
        window = channel_offset(n, 0, (i_d * H + i_h) * W + i_w, channels, D * H * W, CHANNELS_LAST)
        tap = channel_offset(0, c, (k_d * H + k_h) * W + k_w, channels, D * H * W, CHANNELS_LAST)
        # Without padding, a window of one tap lies in the input.
        inside = within(i_d + k_d, D, KERNEL[0] == 1 and PADDING[0] == 0)
        inside = inside & within(i_h + k_h, H, KERNEL[1] == 1 and PADDING[1] == 0)
        return window + tap, inside & within(i_w + k_w, W, KERNEL[2] == 1 and PADDING[2] == 0)
    else:  # noqa: RET505
        pixel, inside = input_pixel(d, h, w, kd, kh, kw, D, H, W, STRIDE, PADDING, DILATION, MODE)
        return channel_offset(n, c, pixel, channels, D * H * W, CHANNELS_LAST), inside


@triton.jit
def load_gradient(
    p_g,
    p_winner,
    n,
    o,
    d,
    h,
    w,
    channels,
    D,
    H,
    W,
    mask,
    POOL: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """The gradient g[n, o, (d, h, w)] of a convolution's output.

    With `p_winner`, p_g holds the gradient of that output's pooling by windows of POOL: an element has its window's
    gradient if it is the winner there, else 0, so the gradient of the convolution's output need not exist in memory.
    """
    if p_winner is None:
        pixel = (d * H + h) * W + w
        return tl.load(p_g + channel_offset(n, o, pixel, channels, D * H * W, CHANNELS_LAST), mask=mask, other=0.0)
    else:  # noqa: RET505
        PD, PH, PW = D // POOL[0], H // POOL[1], W // POOL[2]
        pd, ph, pw = d // POOL[0], h // POOL[1], w // POOL[2]
        inside = mask & (pd < PD) & (ph < PH) & (pw < PW)
        offset = channel_offset(n, o, (pd * PH + ph) * PW + pw, channels, PD * PH * PW, CHANNELS_LAST)
        tap = (d % POOL[0] * POOL[1] + h % POOL[1]) * POOL[2] + w % POOL[2]
        winner = tl.load(p_winner + offset, mask=inside, other=0).to(tl.int32)
        # Losers are loaded too: neighbours that the mask tells apart would be loaded one by one, after the winners.
        return tl.where(winner == tap, tl.load(p_g + offset, mask=inside, other=0.0), 0.0)


@triton.jit
def scaled(o, numerator, denominator):
    """⌊o · numerator / denominator⌋ without the product, which can pass 2^31 where the result does not."""
    return o * (numerator // denominator) + o * (numerator % denominator) // denominator


@triton.jit
def scaled_up(o, numerator, denominator):
    """⌈o · numerator / denominator⌉, likewise."""
    return o * (numerator // denominator) + tl.cdiv(o * (numerator % denominator), denominator)


@triton.jit
def axis_position(
    o,
    k,
    SIZE,
    OUTPUTS,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """Input position of tap k of window o of one dimension, and whether it lies in the input and in the window.

    ADAPTIVE windows divide the SIZE inputs evenly: window o of OUTPUTS is ⌊o·SIZE/OUTPUTS⌋ … ⌈(o + 1)·SIZE/OUTPUTS⌉.
    """
    if ADAPTIVE:
        i = scaled(o, SIZE, OUTPUTS) + k
        inside = i < scaled_up(o + 1, SIZE, OUTPUTS)
    else:
        i = o * S - P + k * D
        inside = (i >= 0) & (i < SIZE)
    return i, inside


@triton.jit
def pool_pixel(
    od,
    oh,
    ow,
    kd,
    kh,
    kw,
    ID,
    IH,
    IW,
    OD,
    OH,
    OW,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """`input_pixel` for the windows of a pooling."""
    i_d, inside_d = axis_position(od, kd, ID, OD, STRIDE[0], PADDING[0], DILATION[0], ADAPTIVE)
    i_h, inside_h = axis_position(oh, kh, IH, OH, STRIDE[1], PADDING[1], DILATION[1], ADAPTIVE)
    i_w, inside_w = axis_position(ow, kw, IW, OW, STRIDE[2], PADDING[2], DILATION[2], ADAPTIVE)
    return (i_d * IH + i_h) * IW + i_w, inside_d & inside_h & inside_w


@triton.jit
def window_over(
    i,
    j,
    SIZE,
    OUTPUTS,
    K: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    D: tl.constexpr,
    ADAPTIVE: tl.constexpr,
):
    """The j-th last of the windows over position i of one dimension, its tap there, and whether there is such a one."""
    if ADAPTIVE:
        o = scaled_up(i + 1, OUTPUTS, SIZE) - 1 - j
        k = i - scaled(o, SIZE, OUTPUTS)
        holds = (o >= 0) & (i < scaled_up(o + 1, SIZE, OUTPUTS))
    else:
        o = (i + P) // S - j
        reach = i + P - o * S
        k = reach // D
        holds = (o >= 0) & (o < OUTPUTS) & (reach % D == 0) & (k < K)
    return o, k, holds
