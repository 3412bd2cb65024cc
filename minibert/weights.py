"""A checkpoint's names and shapes for the arrays of a BERT, and the reading of them.

In: an open checkpoint and its config.  Out: `Weights` (minibert/parameters.py), checked.

A matrix may be stored in integers of 4 to 8 bits, which become an `Int8`: layouts.py in
minibert/checkpoints says how, conversion.py there writes it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from minibert.checkpoints.layouts import (
    INT8,
    LAYOUT_KEY,
    LAYOUTS,
    PACKED_BITS,
    ROWS,
    packed_shape,
    unpack_integers,
)
from minibert.checkpoints.safetensors import FLOAT_DTYPES, Checkpoint
from minibert.config import BertConfig
from minibert.errors import CheckpointError
from minibert.families import FAMILIES, bert_name, family_name, wrapping
from minibert.parameters import (
    Dense,
    Int8,
    Layer,
    Matrix,
    Norm,
    Parameters,
    Table,
    Tables,
    Weights,
    full,
)

HEAD = ("qa_outputs.weight", "qa_outputs.bias")


def expected_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every array that the config calls for: BERT's name for it, without a prefix -> its shape."""
    d, e, f = config.hidden_size, config.table_width, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, e),
        "embeddings.position_embeddings.weight": (config.max_position_embeddings, e),
    }
    if FAMILIES[config.family].token_types:
        shapes["embeddings.token_type_embeddings.weight"] = (config.type_vocab_size, e)
    shapes |= {
        "embeddings.LayerNorm.weight": (e,),
        "embeddings.LayerNorm.bias": (e,),
    }
    if config.projects:
        shapes |= {"embeddings_project.weight": (d, e), "embeddings_project.bias": (d,)}
    for layer in dict.fromkeys(layer_names(config)):
        for name, out, into in (
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", f, d),
            ("output.dense", d, f),
        ):
            shapes[f"{layer}{name}.weight"] = (out, into)
            shapes[f"{layer}{name}.bias"] = (out,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{name}.weight"] = (d,)
            shapes[f"{layer}{name}.bias"] = (d,)
    return shapes | {"qa_outputs.weight": (2, d), "qa_outputs.bias": (2,)}


def layer_names(config: BertConfig) -> list[str]:
    """What BERT's names of a layer's arrays begin with, for each layer in the order they run in.

    A layer that is shared comes several times; layer j of group g is called so:

    Example:
        >>> layer_names(BertConfig(num_hidden_layers=2))
        ['encoder.layer.0.', 'encoder.layer.1.']
        >>> layer_names(BertConfig(family="albert", num_hidden_layers=3, num_hidden_groups=2))
        ['encoder.layer.0.inner.0.', 'encoder.layer.0.inner.0.', 'encoder.layer.1.inner.0.']

    Source: `AlbertTransformer` in transformers 4.57.6.
    """
    layers = config.num_hidden_layers
    if not FAMILIES[config.family].shares_layers:
        return [f"encoder.layer.{i}." for i in range(layers)]
    groups = [int(i / (layers / config.num_hidden_groups)) for i in range(layers)]
    return [f"encoder.layer.{g}.inner.{j}." for g in groups for j in range(config.inner_group_num)]


def check_weights(
    checkpoint: Checkpoint, config: BertConfig, needs_head: bool = True
) -> dict[str, str]:
    """Compare a weights file with its config; report every difference at once.

    Args:
        checkpoint: the file.
        config: what it should hold.
        needs_head: whether the question-answering head must be there too.

    Returns:
        BERT's name -> the file's name, for every expected array.  What else is in the file (a
        pooler, a pre-training head) is left out.

    Raises:
        CheckpointError: an array is missing, doubled, or has another shape or dtype; or the layout
            is of a later minibert.
    """
    if (layout := checkpoint.metadata.get(LAYOUT_KEY, INT8)) not in LAYOUTS:
        raise CheckpointError(
            f"{checkpoint.path}: the weights are stored in layout {layout!r:.80}, and this "
            f"minibert reads {' and '.join(map(repr, LAYOUTS))}. Install a newer minibert."
        )
    family = FAMILIES[config.family]
    expected = expected_shapes(config)
    before = wrapping(checkpoint.names(), family)
    plain_names = {
        name: bert_name(name.removeprefix(before), family)
        for name in checkpoint.names()
        if name.startswith(before)
    }
    names: dict[str, str] = {}
    problems = []
    for name, plain in plain_names.items():
        if plain not in expected:
            # A pooler or another head may be there; a layer too many means another config.
            if plain.startswith("encoder.") and plain.removesuffix(".scale") not in expected:
                problems.append(f"unexpected: {name} {list(checkpoint.shape(name))}")
            continue
        if plain in names:
            problems.append(f"twice: {names[plain]} and {name} are the same array")
        names[plain] = name
    headless = bool(names) and not any(name in names for name in HEAD)
    if headless and needs_head:
        raise CheckpointError(
            f"{checkpoint.path}: this BERT has no question-answering head ('qa_outputs.weight' is "
            "missing). Use a model that was fine-tuned on SQuAD or a similar data set, or give "
            "this one a head with minibert train."
        )
    scales = {plain: name for name, plain in plain_names.items() if plain.endswith(".scale")}
    for name, shape in expected.items():
        if headless and name in HEAD:
            continue
        if name not in names:
            problems.append(f"missing: {family_name(name, family)} {list(shape)}")
            continue
        found, dtype = checkpoint.shape(names[name]), checkpoint.dtype(names[name])
        packed = dtype == "U8" and len(shape) == 2 and layout == ROWS
        integers = packed or (dtype == "I8" and len(shape) == 2)
        if dtype not in FLOAT_DTYPES and not integers:
            problems.append(
                f"wrong dtype: {names[name]} is {dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
            )
        elif packed and found not in [packed_shape(shape, bits) for bits in PACKED_BITS]:
            problems.append(
                f"wrong shape: {names[name]} is {list(found)}, and {list(shape)} in 4 to 7 bits is "
                f"[bits, {', '.join(map(str, packed_shape(shape, 0)[1:]))}]"
            )
        elif not packed and found != shape:
            problems.append(
                f"wrong shape: {names[name]} is {list(found)}, the config says {list(shape)}"
            )
        elif integers:
            scale = scales.get(f"{name}.scale")
            if scale is None:
                problems.append(
                    f"missing: {names[name]}.scale [{shape[0]}], which a matrix of integers needs"
                )
            elif checkpoint.shape(scale) != shape[:1] or checkpoint.dtype(scale) != "F32":
                problems.append(
                    f"wrong scale: {scale} is {checkpoint.dtype(scale)} "
                    f"{list(checkpoint.shape(scale))}, expected F32 [{shape[0]}]"
                )
    if problems:
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        shown = [f"  {problem}" for problem in problems[:10]] + ["  ..."] * (len(problems) > 10)
        raise CheckpointError(
            "\n".join(
                [
                    f"{checkpoint.path}: the weights do not fit the config ({count}):",
                    *shown,
                    "Are config.json and the weights from the same model?",
                ]
            )
        )
    return names


def read_matrix(checkpoint: Checkpoint, name: str) -> Matrix:
    """Read one matrix, by the file's name for it."""
    array = checkpoint.read(name)
    if array.dtype.kind == "f":
        return array
    scales = checkpoint.read(f"{name}.scale")
    if array.dtype == np.uint8:
        array = unpack_integers(array, len(scales))
    return Int8(array, scales)


def rows_from(matrix: Matrix, first: int) -> Matrix:
    """A matrix without the rows before `first`."""
    if isinstance(matrix, Int8):
        return Int8(matrix.values[first:], matrix.scales[first:])
    return matrix[first:]


def stack(parts: list[Dense]) -> Dense:
    """Stack dense layers that read the same input: 3 x [D, D] -> [3D, D]."""
    bias = np.concatenate([part.bias for part in parts])
    weights = [part.weight for part in parts]
    int8 = [weight for weight in weights if isinstance(weight, Int8)]
    if len(int8) == len(weights):
        values = np.concatenate([weight.values for weight in int8])
        return Dense(Int8(values, np.concatenate([weight.scales for weight in int8])), bias)
    return Dense(np.concatenate([full(weight) for weight in weights]), bias)


class StoredLayer(Layer[Dense, Norm]):
    """A layer in a checkpoint, of which each part is read whenever it is asked for.

    So a model is nowhere in memory as a whole beside what a backend makes of it.

    Args:
        parts: what reads each field of a layer.
    """

    def __init__(self, **parts: Callable[[], Dense | Norm]) -> None:
        object.__setattr__(self, "_parts", parts)  # a layer is frozen

    def __getattr__(self, name: str) -> Dense | Norm:
        read = self.__dict__.get("_parts", {}).get(name)
        if read is None:
            raise AttributeError(name)
        part: Dense | Norm = read()
        return part


def load_weights(
    checkpoint: Checkpoint, config: BertConfig, new_head: Dense | None = None
) -> Weights:
    """The arrays of a model.

    Args:
        checkpoint: the file.
        config: of the model.
        new_head: the question-answering head of a model that has none; None: it must have one.

    Returns:
        The arrays; those of the layers are read whenever they are asked for.

    Raises:
        CheckpointError: the file does not fit the config, has changed since it was opened, or holds
            NaN or infinite numbers; of a layer, when it is read.
    """
    names = check_weights(checkpoint, config, needs_head=new_head is None)

    def matrix(name: str) -> Matrix:
        return read_matrix(checkpoint, names[name])

    def dense(name: str) -> Dense:
        return Dense(matrix(f"{name}.weight"), checkpoint.read(names[f"{name}.bias"]))

    def norm(name: str) -> Norm:
        return Norm(
            checkpoint.read(names[f"{name}.weight"]), checkpoint.read(names[f"{name}.bias"])
        )

    def layer(prefix: str) -> Layer[Dense, Norm]:
        own = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
        return StoredLayer(
            qkv=lambda: stack([dense(name) for name in own]),
            attention_output=partial(dense, prefix + "attention.output.dense"),
            attention_norm=partial(norm, prefix + "attention.output.LayerNorm"),
            intermediate=partial(dense, prefix + "intermediate.dense"),
            output=partial(dense, prefix + "output.dense"),
            output_norm=partial(norm, prefix + "output.LayerNorm"),
        )

    types = "embeddings.token_type_embeddings.weight"
    order = layer_names(config)
    layers = {prefix: layer(prefix) for prefix in dict.fromkeys(order)}
    return Parameters(
        tables=Tables(
            words=Table(matrix("embeddings.word_embeddings.weight")),
            positions=Table(
                rows_from(matrix("embeddings.position_embeddings.weight"), config.first_position)
            ),
            token_types=Table(
                matrix(types)
                if types in names
                else np.zeros((config.type_vocab_size, config.table_width), np.float32)
            ),
            norm=norm("embeddings.LayerNorm"),
        ),
        projection=dense("embeddings_project") if config.projects else None,
        layers=tuple(layers[prefix] for prefix in order),
        qa_outputs=new_head if new_head and HEAD[0] not in names else dense("qa_outputs"),
    )
