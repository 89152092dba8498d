"""The Triton kernels of `triton_tiles`: one program computes one small tile of logits, in registers.

R images are rows, C texts columns, D their width; `diagonal` is that of `PairLabels`. What is absent
according to a `HAS_` flag is not read.
"""

import triton
import triton.language as tl

from clipkit.losses.kernels.tiles import IGNORED_LOGIT, LOG2_E

_IGNORED_LOGIT = tl.constexpr(IGNORED_LOGIT)
_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit
def _products(
    image,
    text,
    image_stride,
    text_stride,
    rows,
    columns,
    R,
    C,
    D,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """(BLOCK_R, BLOCK_C) fp32: products of some images and texts; 0 outside of them."""
    products = tl.zeros((BLOCK_R, BLOCK_C), dtype=tl.float32)
    depth = tl.arange(0, BLOCK_D)
    image_rows = image + rows[:, None] * image_stride
    text_rows = text + columns[None, :] * text_stride
    for start in range(0, D, BLOCK_D):
        k = start + depth
        a = tl.load(image_rows + k[None, :], mask=(rows[:, None] < R) & (k[None, :] < D), other=0.0)
        b = tl.load(text_rows + k[:, None], mask=(columns[None, :] < C) & (k[:, None] < D), other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        products = tl.dot(a, b, products, input_precision=PRECISION)
    return products


@triton.jit
def _positive(row_keys, column_keys, diagonal, rows, columns, R, C, HAS_KEYS: tl.constexpr):
    """(BLOCK_R, BLOCK_C) bool: the positive pairs."""
    if HAS_KEYS:
        row_key = tl.load(row_keys + rows, mask=rows < R, other=0)
        column_key = tl.load(column_keys + columns, mask=columns < C, other=0)
        return row_key[:, None] == column_key[None, :]
    return (rows[:, None] + diagonal) == columns[None, :]


@triton.jit
def _kept(
    positive,
    row_ignored_keys,
    column_ignored_keys,
    ignored,
    ignored_stride,
    rows,
    columns,
    R,
    C,
    HAS_IGNORED_KEYS: tl.constexpr,
    HAS_IGNORED: tl.constexpr,
):
    """(BLOCK_R, BLOCK_C) bool: the pairs that exist and are not left out."""
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    kept = inside
    if HAS_IGNORED_KEYS:
        row_key = tl.load(row_ignored_keys + rows, mask=rows < R, other=0)
        column_key = tl.load(column_ignored_keys + columns, mask=columns < C, other=0)
        kept = kept & (row_key[:, None] != column_key[None, :])
    if HAS_IGNORED:
        places = ignored + rows[:, None].to(tl.int64) * ignored_stride + columns[None, :]
        kept = kept & (tl.load(places, mask=inside, other=0) == 0)
    return kept | (positive & inside)


@triton.jit
def _targets(
    positive,
    kept,
    row_positive,
    column_positive,
    row_uniform,
    column_uniform,
    rows,
    columns,
    R,
    C,
    HAS_UNIFORM: tl.constexpr,
):
    """(BLOCK_R, BLOCK_C) fp32: the targets, 0 outside."""
    of_row = tl.load(row_positive + rows, mask=rows < R, other=0.0)
    of_column = tl.load(column_positive + columns, mask=columns < C, other=0.0)
    targets = tl.where(positive & kept, of_row[:, None] + of_column[None, :], 0.0)
    if HAS_UNIFORM:
        of_row = tl.load(row_uniform + rows, mask=rows < R, other=0.0)
        of_column = tl.load(column_uniform + columns, mask=columns < C, other=0.0)
        targets += tl.where(kept, of_row[:, None] + of_column[None, :], 0.0)
    return targets


@triton.jit
def _tile_number(R, C, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Row and column of this program's tile: eight rows of tiles at a time share columns in the L2 cache."""
    GROUP: tl.constexpr = 8
    num_rows, num_columns = tl.cdiv(R, BLOCK_R), tl.cdiv(C, BLOCK_C)
    program = tl.program_id(0)
    first_row = program // (GROUP * num_columns) * GROUP
    height = min(num_rows - first_row, GROUP)
    place = program % (GROUP * num_columns)
    return first_row + place % height, place // height


@triton.jit
def _tile(
    image,
    text,
    image_stride,
    text_stride,
    R,
    C,
    D,
    row_keys,
    column_keys,
    diagonal,
    row_ignored_keys,
    column_ignored_keys,
    ignored,
    ignored_stride,
    HAS_KEYS: tl.constexpr,
    HAS_IGNORED_KEYS: tl.constexpr,
    HAS_IGNORED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """This program's tile: its rows and columns, products of features, positive and kept pairs."""
    tile_row, tile_column = _tile_number(R, C, BLOCK_R, BLOCK_C)
    rows = tile_row * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tile_column * BLOCK_C + tl.arange(0, BLOCK_C)
    products = _products(
        image,
        text,
        image_stride,
        text_stride,
        rows,
        columns,
        R,
        C,
        D,
        BLOCK_R,
        BLOCK_C,
        BLOCK_D,
        PRECISION,
        UPCAST,
    )
    positive = _positive(row_keys, column_keys, diagonal, rows, columns, R, C, HAS_KEYS)
    kept = _kept(
        positive,
        row_ignored_keys,
        column_ignored_keys,
        ignored,
        ignored_stride,
        rows,
        columns,
        R,
        C,
        HAS_IGNORED_KEYS,
        HAS_IGNORED,
    )
    return rows, columns, products, positive, kept


@triton.jit(do_not_specialize=["diagonal"])
def power_sums_kernel(
    image,
    text,
    image_stride,
    text_stride,
    log2_scale,
    R,
    C,
    D,
    row_keys,
    column_keys,
    diagonal,
    row_ignored_keys,
    column_ignored_keys,
    ignored,
    ignored_stride,
    row_positive,
    column_positive,
    row_uniform,
    column_uniform,
    row_largest,
    row_total,
    column_largest,
    column_total,
    on_target,
    HAS_KEYS: tl.constexpr,
    HAS_IGNORED_KEYS: tl.constexpr,
    HAS_IGNORED: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Of a tile: partial sums of its rows and columns, and the sum of target times logit."""
    rows, columns, products, positive, kept = _tile(
        image,
        text,
        image_stride,
        text_stride,
        R,
        C,
        D,
        row_keys,
        column_keys,
        diagonal,
        row_ignored_keys,
        column_ignored_keys,
        ignored,
        ignored_stride,
        HAS_KEYS,
        HAS_IGNORED_KEYS,
        HAS_IGNORED,
        BLOCK_R,
        BLOCK_C,
        BLOCK_D,
        PRECISION,
        UPCAST,
    )
    logits = tl.load(log2_scale) * products
    targets = _targets(
        positive,
        kept,
        row_positive,
        column_positive,
        row_uniform,
        column_uniform,
        rows,
        columns,
        R,
        C,
        HAS_UNIFORM,
    )
    tl.store(on_target + tl.program_id(0), tl.sum(tl.sum(targets * logits, 1), 0))
    logits = tl.where(kept, logits, _IGNORED_LOGIT)
    largest = tl.max(logits, 1)
    total = tl.sum(tl.exp2(logits - largest[:, None]), 1)
    tile_row, tile_column = _tile_number(R, C, BLOCK_R, BLOCK_C)
    tl.store(row_largest + tile_column * R + rows, largest, mask=rows < R)
    tl.store(row_total + tile_column * R + rows, total, mask=rows < R)
    largest = tl.max(logits, 0)
    total = tl.sum(tl.exp2(logits - largest[None, :]), 0)
    tl.store(column_largest + tile_row * C + columns, largest, mask=columns < C)
    tl.store(column_total + tile_row * C + columns, total, mask=columns < C)


@triton.jit(do_not_specialize=["diagonal"])
def softmax_gradient_kernel(
    image,
    text,
    image_stride,
    text_stride,
    log2_scale,
    R,
    C,
    D,
    row_keys,
    column_keys,
    diagonal,
    row_ignored_keys,
    column_ignored_keys,
    ignored,
    ignored_stride,
    row_positive,
    column_positive,
    row_uniform,
    column_uniform,
    row_largest,
    row_factor,
    column_largest,
    column_factor,
    target_grad,
    gradient,
    HAS_KEYS: tl.constexpr,
    HAS_IGNORED_KEYS: tl.constexpr,
    HAS_IGNORED: tl.constexpr,
    HAS_UNIFORM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Of a tile: the gradient of the logits."""
    rows, columns, products, positive, kept = _tile(
        image,
        text,
        image_stride,
        text_stride,
        R,
        C,
        D,
        row_keys,
        column_keys,
        diagonal,
        row_ignored_keys,
        column_ignored_keys,
        ignored,
        ignored_stride,
        HAS_KEYS,
        HAS_IGNORED_KEYS,
        HAS_IGNORED,
        BLOCK_R,
        BLOCK_C,
        BLOCK_D,
        PRECISION,
        UPCAST,
    )
    logits = tl.load(log2_scale) * products
    logits = tl.where(kept, logits, _IGNORED_LOGIT)
    largest = tl.load(row_largest + rows, mask=rows < R, other=0.0)
    factor = tl.load(row_factor + rows, mask=rows < R, other=0.0)
    result = tl.exp2(logits - largest[:, None]) * factor[:, None]
    largest = tl.load(column_largest + columns, mask=columns < C, other=0.0)
    factor = tl.load(column_factor + columns, mask=columns < C, other=0.0)
    result += tl.exp2(logits - largest[None, :]) * factor[None, :]
    targets = _targets(
        positive,
        kept,
        row_positive,
        column_positive,
        row_uniform,
        column_uniform,
        rows,
        columns,
        R,
        C,
        HAS_UNIFORM,
    )
    # Before rounding to the dtype of the features: where a pair is matched well, little is left of the sum.
    result += tl.load(target_grad) * targets
    places = gradient + rows[:, None] * C + columns[None, :]
    inside = (rows[:, None] < R) & (columns[None, :] < C)
    tl.store(places, result.to(gradient.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["diagonal"])
def sigmoid_kernel(
    image,
    text,
    image_stride,
    text_stride,
    scale,
    bias,
    R,
    C,
    D,
    row_keys,
    column_keys,
    diagonal,
    row_ignored_keys,
    column_ignored_keys,
    ignored,
    ignored_stride,
    row_weights,
    column_weights,
    smoothing,
    value,
    gradient_sum,
    gradient,
    HAS_KEYS: tl.constexpr,
    HAS_IGNORED_KEYS: tl.constexpr,
    HAS_IGNORED: tl.constexpr,
    WITH_GRADIENT: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Of a tile: the weighted sum of its losses, the gradient of the logits and its sum."""
    rows, columns, products, positive, kept = _tile(
        image,
        text,
        image_stride,
        text_stride,
        R,
        C,
        D,
        row_keys,
        column_keys,
        diagonal,
        row_ignored_keys,
        column_ignored_keys,
        ignored,
        ignored_stride,
        HAS_KEYS,
        HAS_IGNORED_KEYS,
        HAS_IGNORED,
        BLOCK_R,
        BLOCK_C,
        BLOCK_D,
        PRECISION,
        UPCAST,
    )
    logits = tl.load(bias) + tl.load(scale) * products
    # The logit of being wrong: that of a negative pair, minus that of a positive one.
    logits = tl.where(positive, -logits, logits)
    weight = tl.load(row_weights + rows, mask=rows < R, other=0.0)[:, None]
    weight = weight + tl.load(column_weights + columns, mask=columns < C, other=0.0)[None, :]
    weight = tl.where(kept, weight, 0.0)
    power = tl.exp2(-tl.abs(logits) * _LOG2_E)
    # As in `torch_tiles.softplus`: the second term makes up for digits of the power that the sum has lost.
    rounded = 1 + power
    softplus = tl.maximum(logits, 0.0) + tl.log(rounded) + (power - (rounded - 1)) / rounded
    losses = weight * (softplus - smoothing * logits)
    tl.store(value + tl.program_id(0), tl.sum(tl.sum(losses, 1), 0))
    if WITH_GRADIENT:
        probability = tl.where(logits >= 0, 1.0, power) / (1 + power)
        result = weight * (probability - smoothing)
        result = tl.where(positive, -result, result)
        tl.store(gradient_sum + tl.program_id(0), tl.sum(tl.sum(result, 1), 0))
        places = gradient + rows[:, None] * C + columns[None, :]
        inside = (rows[:, None] < R) & (columns[None, :] < C)
        tl.store(places, result.to(gradient.dtype.element_ty), mask=inside)
