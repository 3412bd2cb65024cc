"""Records: how Python speaks to the compiled program.

A record is a structured NumPy dtype.  Python fills its fields by name (`job["hidden"] = 384`), and
compiled code reads them by name (`job.hidden`).  A field is an int64, most often an address; or
`eps`, or a record in the record.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minibert.kernels import reference

Field = str | tuple[str, np.dtype]  # a name, or a name and what it holds

LINE = 64  # bytes of a cache line


def record(*fields: Field) -> np.dtype:
    """A record of these fields; those without a dtype are int64."""
    named: list[Any] = [(each, np.int64) if isinstance(each, str) else each for each in fields]
    return np.dtype(named)


def in_whole_lines(kind: np.dtype) -> np.dtype:
    """The same record, but records of this kind that lie side by side share no cache line."""
    size = -(-kind.itemsize // LINE) * LINE
    names = kind.names or ()
    offsets = [kind.fields[name][1] for name in names]  # type: ignore[index]
    formats = [kind[name] for name in names]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


# ---------------------------------------------------------------- rows, and the model

# Rows of a matrix: the address of the first, and bytes from row to row.
ROWS = record("address", "stride")

# A dense layer, [out, into], as so many panels of so many steps (packing.py): addresses of them, of
# what sums begin with, and of what int8 needs of each column.
DENSE = record("weights", "start", "columns", "out", "into", "panels", "steps")

# An encoder layer, in the order in which it is used.
LAYER = record(
    ("qkv", DENSE),
    ("attention_output", DENSE),
    "attention_norm",
    ("intermediate", DENSE),
    ("output", DENSE),
    "output_norm",
)

# An embedding table; there are no scales (0) if it is float32, not int8.
TABLE = record("values", "scales")
TABLES = record("hidden", ("words", TABLE), ("token_types", TABLE), ("positions", TABLE), "norm")

# What a product ends with: nothing more; the result as attention reads it; a residual that is
# added; or an activation, in the order of the reference.
ENDINGS = ("plain", "qkv", "residual", *reference.ACTIVATIONS)
PLAIN, QKV, RESIDUAL = range(3)

# ---------------------------------------------------------------- tasks and threads

# Some rows of the batch.
ROW_TASK = record("begin", "count")

# Some queries of one head in the window that begins at a row of the batch.
ATTENTION_TASK = record("begin", "length", "head", "first_query", "query_count")

# Some rows and panels of a product.
TILE_TASK = record("begin", "count", "first_panel", "panels")

# How many tasks threads have taken, and how many they have done.
COUNTER = in_whole_lines(record("count"))

# A thread's own: the number of its task, whether it has begun it, and the first tasks of its stage
# and of the next; and scratch memory: sums of a panel, scales of rows in int8, rows between two
# steps, attention's strips.
THREAD = in_whole_lines(
    record(
        "task",
        "begun",
        "stage_begin",
        "stage_end",
        "sums",
        "row_scales",
        ("operand", ROWS),
        ("y", ROWS),
        ("inner", ROWS),
        "keys",
        "values",
        "scores",
        "probs",
        "shifts",
        "inverses",
        # Of attention's gradient: what else is packed, a strip of gradients, the gradient of the
        # window's scores, rows are keys and then queries; and as many ones as a tile has rows.
        "packed_queries",
        "packed_gradient",
        "queries",
        "gradient",
        "d_probs",
        ("d_scores", ROWS),
        ("d_scores_across", ROWS),
        "ones",
        "deltas",
    )
)

# ---------------------------------------------------------------- jobs, one kind for each entry


def job(*fields: Field) -> np.dtype:
    """A job: what all have, and then fields of its own."""
    return record(
        ("taken", COUNTER),
        ("done", COUNTER),
        "yield_function",  # of the system, which gives the core to another thread
        "threads",
        "row_tasks",
        "row_task_count",
        "attention_tasks",
        "attention_task_count",
        *fields,
    )


EPS = ("eps", np.dtype(np.float32))
IDS: tuple[Field, ...] = ("input_ids", "token_type_ids", "position_ids")  # each [T] int32
X, QKV_ROWS, CONTEXT, RESIDUAL_ROWS, OUT = (
    (name, ROWS) for name in ("x", "qkv", "context", "residual", "out")
)

# Entry of the program -> its job.  All but the first are single steps, named as in the reference;
# `multiply` only multiplies, so that the peak can be measured.
JOBS = {
    "forward": job(
        *IDS, ("tables", TABLES), ("projection", DENSE), "layers", "layer_count", "head",
        "activation", "hidden", "head_size", EPS, X, QKV_ROWS, CONTEXT, "start_logits",
        "end_logits",
    ),
    "embed": job(*IDS, ("tables", TABLES), EPS, X),
    "linear": job(("dense", DENSE), X, OUT),
    "linear_activation": job(("dense", DENSE), "activation", X, OUT),
    "linear_add_norm": job(("dense", DENSE), "norm", EPS, X, RESIDUAL_ROWS, OUT),
    "attention": job("hidden", "head_size", QKV_ROWS, CONTEXT),
    "span_logits": job("head", "hidden", X, "start_logits", "end_logits"),
    "multiply": job("turns"),
}  # fmt: skip

# ---------------------------------------------------------------- jobs of training

CHUNK = 4096  # numbers whose squares are summed together

# What is dropped: whether anything is; the number of the batch's first token; H; the key; the bound
# below which a hash is dropped, minus 2^31; what the others are multiplied by.
DROPOUT = record("on", "first_token", "heads", "key", "bound", ("scale", np.dtype(np.float32)))
DROP: Field = ("dropout", DROPOUT)

# Half of a dense layer's gradient, that of the weights: rows of the output's gradient across, the
# input in panels; where sums of columns and the gradient go; and the tasks of both stages.
WEIGHT_GRADIENT = record(
    ("across", ROWS),
    "sums",
    "panels",
    "panel_bytes",
    "steps",
    ("gradient", ROWS),
    "out",
    "into",
    "column_tasks",
    "column_task_count",
    "input_tasks",
    "input_task_count",
    "tile_tasks",
    "tile_task_count",
)

DENSE_BACKWARD: tuple[Field, ...] = (
    "tokens",
    ("dense", DENSE),  # the weights the other way round
    "ending",
    ("d_out", ROWS),
    X,
    RESIDUAL_ROWS,
    OUT,
    ("weight", WEIGHT_GRADIENT),
)
NORMAL: tuple[Field, ...] = ("norm", ("normal", ROWS), "deviations")
OPERAND = ("operand", ROWS)

# Entry of the training program -> its job.
TRAINING_JOBS = {
    "embed": job(*IDS, ("tables", TABLES), EPS, *NORMAL, OUT, OPERAND, DROP),
    "project": job(("dense", DENSE), X, OUT, OPERAND),
    "narrow": job("width", X, OPERAND),
    "linear": job(("dense", DENSE), X, OUT),
    "linear_activation": job(("dense", DENSE), "activation", X, ("before", ROWS), OUT),
    "linear_add_norm": job(
        ("dense", DENSE), EPS, X, RESIDUAL_ROWS, *NORMAL, OUT, OPERAND, DROP
    ),
    "attention": job("hidden", "head_size", "tokens", QKV_ROWS, CONTEXT, "kept", DROP),
    "span_logits": job("head", "hidden", X, "start_logits", "end_logits"),
    "span_logits_backward": job("head", "hidden", X, OUT, "d_start", "d_end", "sums"),
    "linear_backward": job(*DENSE_BACKWARD),
    "linear_activation_backward": job(*DENSE_BACKWARD, "activation", ("before", ROWS)),
    "linear_add_norm_backward": job(*DENSE_BACKWARD, *NORMAL, ("d_sum", ROWS), "sums", DROP),
    "attention_backward": job(
        "hidden", "head_size", "tokens", QKV_ROWS, CONTEXT, "kept", ("d_context", ROWS), OUT,
        DROP,
    ),
    "embed_backward": job(*IDS, "tokens", "hidden", *NORMAL, ("d_sum", ROWS), "sums",
        "column_tasks", "column_task_count", "words", "token_types", "positions", DROP,
    ),
    "pack": job(
        ("weights", ROWS), ("narrow", ROWS), "out", "into", "forward", "forward_bytes", "backward",
        "backward_bytes", "forward_count", "backward_count",
    ),
    "adamw": job("weights", "gradient", "first", "second", "settings"),
    "sum_of_squares": job("x", "sums"),
}  # fmt: skip
