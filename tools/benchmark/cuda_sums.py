"""Sums of `bench.py cuda`: shapes of models, operations of kernels, bytes that they move."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmark.squad import operations
from benchmark.workload import VOCABULARY, Shape, window_lengths

if TYPE_CHECKING:
    from minibert.config import BertConfig

NAMES = {  # layers/hidden/heads
    "tiny": "2/128/2",
    "tiny-5": "12/128/2",
    "mini": "4/256/4",
    "mini-5": "12/256/4",
    "small": "4/512/8",
    "medium": "8/512/8",
    "minilm": "6/384/12",
    "base": "12/768/12",
}


def shape_of(name: str) -> Shape:
    """The shape with a name of `NAMES`, or written layers/hidden/heads.

    Example:
        >>> shape_of("minilm") == shape_of("6/384/12")
        True
    """
    return Shape.parse(NAMES.get(name, name))


def config_of(shape: Shape) -> BertConfig:
    """The config of the benchmark's model with that shape."""
    from minibert.config import BertConfig

    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.hidden,
    )


def useful_operations(shape: str, work: str) -> int:
    """Operations of a piece of work, two for a multiply-add: real tokens only, no padding."""
    return sum(operations(config_of(shape_of(shape)), window_lengths(work)))


def product_operations(tokens: int, into: int, out: int) -> int:
    """Operations of a matrix product [tokens, into] x [into, out].

    Example:
        >>> product_operations(2, 3, 5)
        60
    """
    return 2 * tokens * into * out


def attention_operations(lengths: Sequence[int], width: int) -> int:
    """Operations of attention over windows: scores, and weights times values.

    Args:
        lengths: tokens of each window.
        width: of all heads together.

    Example:
        >>> attention_operations([2], 3)  # 2 x 2 scores of 3 numbers; 2 rows of 2 times 3 numbers
        48
    """
    return 4 * width * sum(length * length for length in lengths)


def row_bytes(name: str, tokens: int, width: int, size: int, splits: int = 1) -> int:
    """Bytes that a kernel of rows.py must at least read and write; what all rows share is left out.

    Args:
        name: 'embed', 'norm', 'add_norm' or 'span_logits'.
        tokens: rows.
        width: numbers of a row.
        size: bytes of a number.
        splits: parts that add_norm adds up, in float32.

    Example:
        >>> row_bytes("norm", 10, 8, 2), row_bytes("add_norm", 10, 8, 2, splits=3)
        (320, 1280)
    """
    row = width * size
    each = {
        "embed": 3 * 4 + 2 * row,  # three ids; the word's row, and the sum
        "norm": 2 * row,
        "add_norm": splits * 4 * width + 2 * row,
        "span_logits": row + 2 * 4,
    }
    return tokens * each[name]


def window_split(tokens: int, length: int) -> list[int]:
    """Windows of one length, and the rest in a shorter one.

    Example:
        >>> window_split(10, 4), window_split(8, 4)
        ([4, 4, 2], [4, 4])
    """
    return [length] * (tokens // length) + ([tokens % length] if tokens % length else [])
