"""Records: the rows of int64 through which Python and the compiled program speak.

A record is an array; a field is a place in it.  Most fields are addresses.
"""

from __future__ import annotations


def numbered(names: str) -> dict[str, int]:
    """Name -> place in a record of int64."""
    return {name: i for i, name in enumerate(names.split())}


# One dense layer.  `start` is what sums begin with, `columns` is for int8 (see rows.panel_end).
DENSE = numbered("panels start columns steps count")
DENSE_SIZE = len(DENSE)

# One encoder layer: four dense layers, at these bytes of the record, and two norms.
QKV_LAYER, ATTENTION_OUTPUT, INTERMEDIATE, OUTPUT = (8 * DENSE_SIZE * i for i in range(4))
LAYER = {"attention_norm": 4 * DENSE_SIZE, "output_norm": 4 * DENSE_SIZE + 1}
LAYER_SIZE = 4 * DENSE_SIZE + 2

# One job.  The two counters that threads share have cache lines of their own.
TICKET, DONE, FIRST = 0, 8, 16
FIELDS = {
    name: FIRST + i
    for i, name in enumerate(
        # what to do, for how many tasks of each kind
        "op row_tasks row_starts attention_tasks attention_places layers "
        # the model
        "hidden head_size layer_records activation eps zeros "
        "words words_scales positions positions_scales types types_scales norm head "
        # the batch, and buffers of all rows: address and bytes from row to row
        "input_ids token_type_ids position_ids start_logits end_logits "
        "x x_stride qkv qkv_stride context context_stride out out_stride "
        # a single dense layer, for the operation LINEAR
        "dense ending width repeats "
        # scratch memory of each thread: address, size of one thread's, offsets of its parts
        "scratch scratch_size sums quantised y y_stride operand operand_stride inner inner_stride "
        "inner_operand inner_operand_stride keys values scores probs inverses "
        # address of the system's function that gives the core to another thread
        "yield_function".split()
    )
}
JOB_SIZE = FIRST + len(FIELDS)
PLACES = DENSE | LAYER | FIELDS

# Operations.  All but FORWARD are single steps, for tests, traces and teaching; PEAK only
# multiplies, and it and LINEAR are done `repeats` times, so that they can be timed.
FORWARD, EMBED, LINEAR, ATTENTION, SPAN, PEAK = range(6)

# What follows a product.
PLAIN, QKV, RESIDUAL, FIRST_ACTIVATION = range(4)
