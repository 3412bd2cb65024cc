"""The steps of kernels/reference.py on a block of rows: loops around the kernels of this folder.

A step has the name that it has there, and takes what it takes there; then `out`, where its result
goes, and `thread`, whose scratch memory it uses.  No step allocates, and no number depends on which
thread does it, nor on what else is in the batch.

A product reads rows in the dtype in which it multiplies.  Rows that were just normalised are
float32: the norm writes them in bfloat16 besides, and for int8 they are quantised here.  What
attention and an activation leave is kept as products read it; only for int8 it is quantised, too.
"""

from __future__ import annotations

from collections import namedtuple
from functools import partial
from typing import Any, NamedTuple

from . import attention as heads
from . import gemm, rows
from .records import PLAIN, QKV, RESIDUAL
from .simd import function, jit
from .targets import SIZES, Target

FIRST_ACTIVATION = RESIDUAL + 1

# Some rows of a matrix: address of the first, bytes from row to row, how many.
Rows = namedtuple("Rows", "address stride count")


@jit
def rows_of(matrix, begin, count):
    """Some rows of a matrix, which is a records.ROWS."""
    return Rows(matrix.address + begin * matrix.stride, matrix.stride, count)


class Steps(NamedTuple):
    """The steps for one dtype and target, for Numba to compile."""

    embed: Any
    linear: Any
    linear_qkv: Any
    attention: Any
    linear_add_norm: Any
    linear_activation: Any
    span_logits: Any
    narrow: Any  # writes what a product reads of normalised rows, where no norm has written it


def write_steps(dtype: str, target: Target) -> Steps:
    """Write all steps for one dtype and target."""
    narrow, normalised, kept = write_operands(dtype, target)
    multiply = write_multiply(dtype, target)
    normalise = write_normalise(dtype, target)

    @jit
    def linear(x, dense, out, thread):
        """The product with normalised rows, and the bias."""
        multiply(normalised(x, dense, thread), dense, PLAIN, x, out, thread)

    @jit
    def linear_qkv(x, dense, out, thread):
        """The same, kept as attention reads it."""
        multiply(normalised(x, dense, thread), dense, QKV, x, out, thread)

    @jit
    def linear_activation(x, dense, activation, out, thread):
        """activation(linear(x)), kept as products read it; the activation is its number."""
        ending = FIRST_ACTIVATION + activation
        multiply(normalised(x, dense, thread), dense, ending, x, out, thread)

    @jit
    def linear_add_norm(x, dense, residual, norm, eps, out, thread):
        """layer_norm(linear(x) + residual), of rows that attention or an activation left."""
        multiply(kept(x, dense, thread), dense, RESIDUAL, residual, out, thread)
        normalise(out, dense.out, norm, eps, thread)

    return Steps(
        embed=write_embed(normalise, target),
        linear=linear,
        linear_qkv=linear_qkv,
        attention=write_attention(dtype, target),
        linear_add_norm=linear_add_norm,
        linear_activation=linear_activation,
        span_logits=write_span_logits(target),
        narrow=narrow,
    )


# ---------------------------------------------------------------- products


def write_operands(dtype: str, target: Target) -> tuple[Any, Any, Any]:
    """How products get the rows that they read: `narrow`, `normalised`, `kept`."""
    panel, is_int8, is_bfloat16 = target.panel, dtype == "int8", dtype == "bfloat16"
    quantise_rows = kernel("quantise", rows.quantise, target, to=target.operand(dtype))
    narrow_rows = kernel("narrow", rows.narrow, target, to=target.inner(dtype))

    @jit
    def narrow(x, dense, thread):
        """Write rows into the operand, as a norm does it for bfloat16."""
        if is_bfloat16:
            width, to = padded(dense.into, panel), thread.operand
            narrow_rows(x.address, x.stride, x.count, width, to.address, to.stride)

    @jit
    def quantise(x, dense, thread):
        """Rows in int8; their scales are in `thread.row_scales`."""
        width, to = padded(dense.into, panel), thread.operand
        quantise_rows(x.address, x.stride, x.count, width, to.address, to.stride, thread.row_scales)
        return rows_of(to, 0, x.count)

    @jit
    def normalised(x, dense, thread):
        """Rows that were just normalised, as a product reads them."""
        if is_int8:
            return quantise(x, dense, thread)
        if is_bfloat16:
            return rows_of(thread.operand, 0, x.count)
        return x

    @jit
    def kept(x, dense, thread):
        """Rows that attention or an activation left, as a product reads them."""
        if is_int8:
            return quantise(x, dense, thread)
        return x

    return narrow, normalised, kept


def write_multiply(dtype: str, target: Target) -> Any:
    """The product with a dense layer, and how it ends."""
    panel, block, operand = target.panel, gemm.BLOCK, target.operand(dtype)
    product = kernel(
        "product", gemm.product, target, name="tile", operand=operand, lines=gemm.LINES
    )
    panel_end = kernel(
        "panel_end", rows.panel_end, target,
        dtype=dtype, qkv=target.attention(dtype), inner=target.inner(dtype),
    )  # fmt: skip

    @jit
    def multiply(x, dense, ending, residual, out, thread):
        """What `ending` makes of x @ weights + bias, panel by panel."""
        for p in range(dense.panels):
            # A block of steps at a time, whose weights stay in L1 while all rows pass by.
            start, start_stride, done = dense.start + p * panel * 4, 0, 0
            while done < dense.steps:
                steps = min(block, dense.steps - done)
                weights = dense.weights + (p * dense.steps + done) * panel * 4
                product(
                    x.address + done * 4, x.stride, x.count, weights, thread.sums, panel * 4,
                    steps, start, start_stride, weights + steps * panel * 4,
                )  # fmt: skip
                start, start_stride = thread.sums, panel * 4
                done += steps
            panel_end(
                ending, p, thread.sums, x.count, thread.row_scales, dense.columns,
                residual.address, residual.stride, out.address, out.stride,
            )  # fmt: skip

    return multiply


# ---------------------------------------------------------------- norms, and both ends of the model


def write_normalise(dtype: str, target: Target) -> Any:
    """Layer norm."""
    layer_norm = kernel("layer_norm", rows.layer_norm, target, to=target.inner(dtype))

    @jit
    def normalise(x, width, norm, eps, thread):
        """Normalise rows where they are; for bfloat16 write them into the operand, too."""
        to = thread.operand
        layer_norm(x.address, x.stride, x.count, width, norm, eps, to.address, to.stride)

    return normalise


def write_embed_sum(target: Target) -> Any:
    """The sum of the embeddings, before the norm."""
    panel = target.panel
    clear = kernel("clear", rows.clear, target)
    add_float32 = kernel("add_float32", rows.add_table_row, target, int8=False)
    add_int8 = kernel("add_int8", rows.add_table_row, target, int8=True)

    @jit
    def add_rows(table, ids, x, width):
        """Add the rows of one table."""
        if table.scales:
            add_int8(table.values, table.scales, ids, x.count, width, x.address, x.stride)
        else:
            add_float32(table.values, 0, ids, x.count, width, x.address, x.stride)

    @jit
    def embed_sum(input_ids, token_type_ids, position_ids, tables, out):
        """Rows of all three tables for some tokens, added; ids are addresses of int32."""
        clear(out.address, out.stride, out.count, padded(tables.hidden, panel))
        add_rows(tables.words, input_ids, out, tables.hidden)
        add_rows(tables.token_types, token_type_ids, out, tables.hidden)
        add_rows(tables.positions, position_ids, out, tables.hidden)

    return embed_sum


def write_embed(normalise: Any, target: Target) -> Any:
    """Embeddings."""
    embed_sum = write_embed_sum(target)

    @jit
    def embed(input_ids, token_type_ids, position_ids, tables, eps, out, thread):
        """Embeddings of some tokens, normalised."""
        embed_sum(input_ids, token_type_ids, position_ids, tables, out)
        normalise(out, tables.hidden, tables.norm, eps, thread)

    return embed


def write_span_logits(target: Target) -> Any:
    """The question-answering head."""
    panel = target.panel
    score = kernel("span_logits", rows.span_logits, target)

    @jit
    def span_logits(x, width, head, start_logits, end_logits):
        """Start and end logits of some rows."""
        columns = padded(width, panel)
        score(x.address, x.stride, x.count, columns, head, start_logits, end_logits)

    return span_logits


# ---------------------------------------------------------------- attention


def write_attention(dtype: str, target: Target, drop: Any = None) -> Any:
    """Attention of one head, window and some queries; see attention.py.

    In training `drop` sets some of the probabilities to 0: drop(probs, queries, their first row,
    task, dropout).
    """
    drops = drop is not None
    panel, high = target.panel, target.tile_rows[0]
    kind, inner = target.attention(dtype), target.inner(dtype)
    size, inner_size = SIZES[kind], SIZES[inner]
    per, lanes = 4 // size, target.lanes  # numbers of a step
    product = kernel("read", gemm.product, target, name="read_tile", operand=kind, from_zero=True)
    pack_keys = kernel("pack_keys", heads.pack_keys, target, dtype=kind)
    pack_values = kernel("pack_values", heads.pack_values, target, dtype=kind)
    softmax = kernel("softmax", heads.softmax, target, dtype=kind)
    store_context = kernel("store_context", heads.store_context, target, to=inner)
    clear_columns = kernel("clear_columns", rows.clear_columns, target)

    @jit
    def score(query, width, length, thread):
        """Scores [queries, S] of some queries against all keys of the window."""
        deep = padded(width, per * lanes) // per  # steps of a packed key
        steps = padded(width, per * 4) // per  # those that are not all zero
        step = padded(length, panel) * 4
        for p in range(step // (panel * 4)):
            product(
                query.address, query.stride, query.count, thread.keys + p * deep * panel * 4,
                thread.scores + p * panel * 4, step, steps, 0, 0, 0,
            )  # fmt: skip

    @jit
    def read(width, length, out, inverses, thread):
        """Context of some queries: probabilities times values, over the probabilities' sums."""
        step = padded(length, panel) * size
        d = 0
        while d < width:
            product(
                thread.probs, step, out.count, thread.values + d * step,
                thread.sums, panel * 4, step // 4, 0, 0, 0,
            )  # fmt: skip
            store_context(
                thread.sums, out.count, inverses, min(panel, width - d),
                out.address + d * inner_size, out.stride,
            )  # fmt: skip
            d += panel

    @jit
    def attention(qkv, task, hidden, width, out, kept, tokens, dropout, thread):
        """What some queries of a head read from their window; heads are `width` wide.

        Training keeps what the rows of the softmax were shifted and multiplied by, at the address
        `kept`, [H, 2, tokens] float32, and drops some of the probabilities; else these are 0.
        """
        first = rows_of(qkv, task.begin, task.length)
        query = first.address + task.head * width * size
        pack_keys(query + hidden * size, first.stride, task.length, width, thread.keys)
        pack_values(query + 2 * hidden * size, first.stride, task.length, width, thread.values)
        done = 0
        while done < task.query_count:
            count, i = min(high, task.query_count - done), task.first_query + done
            score(Rows(query + i * first.stride, first.stride, count), width, task.length, thread)
            shifts, inverses = thread.shifts, thread.inverses
            if kept:
                shifts = kept + (2 * task.head * tokens + task.begin + i) * 4
                inverses = shifts + tokens * 4
            softmax(thread.scores, count, task.length, width, thread.probs, shifts, inverses)
            if drops:
                drop(thread.probs, count, i, task, dropout)
            to = rows_of(out, task.begin + i, count)
            of_head = Rows(to.address + task.head * width * inner_size, to.stride, count)
            read(width, task.length, of_head, inverses, thread)
            if (task.head + 1) * width == hidden:  # what products read, and no head writes
                end = padded(hidden, panel) * inner_size
                clear_columns(to.address, to.stride, count, hidden * inner_size, end)
            done += high

    return attention


# ---------------------------------------------------------------- what all of them use


def kernel(name: str, body: Any, target: Target, /, **constants: Any) -> Any:
    """A kernel with its constants, for compiled code to call."""
    return function(name, partial(body, **constants))


@jit
def padded(width, multiple):
    """The next multiple of a number, or the number itself."""
    return (width + multiple - 1) // multiple * multiple
