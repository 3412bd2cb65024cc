"""Families of models that are BERT but for names, positions, token types and how pairs are joined.

What sets a family apart is data: one `Family` each.  config.py reads it to understand config.json,
weights.py to find a checkpoint's arrays.  Windows, kernels and spans know nothing of families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Family:
    """What differs from BERT.

    Source: the configuration and modeling files of transformers 4.57.6.
    """

    prefix: str  # before the encoder's names in a checkpoint
    # Key of config.json for a field of BertConfig, where it has another name.
    keys: Mapping[str, str] = field(default_factory=dict)
    # Values of fields of which config.json says nothing, where they are not BERT's.
    defaults: Mapping[str, Any] = field(default_factory=dict)
    # Parts of BERT's names of arrays, and what they are called here.
    names: tuple[tuple[str, str], ...] = ()
    token_types: int = 2  # rows that the table of token types has at least; 0: there is no table
    # Whether positions begin behind that of padding, which is a row of the table of its own.
    positions_after_padding: bool = False
    cls_token: str = "[CLS]"
    sep_token: str = "[SEP]"


ROBERTA = Family(
    "roberta", token_types=1, positions_after_padding=True, cls_token="<s>", sep_token="</s>"
)

# model_type in config.json -> family.
FAMILIES = {
    "bert": Family("bert"),
    "distilbert": Family(
        "distilbert",
        keys={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
        },
        defaults={"num_hidden_layers": 6},
        # The longer name first where one is the end of another.
        names=(
            ("encoder.layer.", "transformer.layer."),
            (".attention.self.query.", ".attention.q_lin."),
            (".attention.self.key.", ".attention.k_lin."),
            (".attention.self.value.", ".attention.v_lin."),
            (".attention.output.dense.", ".attention.out_lin."),
            (".attention.output.LayerNorm.", ".sa_layer_norm."),
            (".intermediate.dense.", ".ffn.lin1."),
            (".output.dense.", ".ffn.lin2."),
            (".output.LayerNorm.", ".output_layer_norm."),
        ),
        token_types=0,
    ),
    "roberta": replace(ROBERTA, defaults={"vocab_size": 50265}),
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "electra": Family(
        "electra",
        defaults={"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    ),
}


def wrapping(names: Iterable[str], family: Family) -> str:
    """What stands before a model's names in a checkpoint, put there by a training program; or ''.

    DataParallel puts `module.` there, torch.compile `_orig_mod.`, and a module that holds the model
    the name that it has there.  What is without it (a metric, a loss) is no part of the model.

    Example:
        >>> wrapping(["module.model.qa_outputs.bias", "loss.weight"], FAMILIES["bert"])
        'module.model.'
        >>> wrapping(["model.bert.embeddings.word_embeddings.weight"], FAMILIES["bert"])
        'model.'
    """
    names = list(names)
    # The head is there in what can be run; without it, an encoder is to be told as such.
    for known in ("qa_outputs.", f"{family.prefix}.embeddings.word_embeddings."):
        found = {name[: name.rindex(known)] for name in names if known in name}
        found = {before for before in found if not before or before.endswith(".")}
        if found:
            return min(found, key=len) if len(found) == 1 else ""
    return ""


def bert_name(name: str, family: Family) -> str:
    """A checkpoint's name for an array -> BERT's, without a prefix.

    Example:
        >>> bert_name("distilbert.transformer.layer.0.ffn.lin1.bias", FAMILIES["distilbert"])
        'encoder.layer.0.intermediate.dense.bias'
    """
    name = name.removeprefix(f"{family.prefix}.")
    for ours, theirs in family.names:
        name = name.replace(theirs, ours)
    # The gamma and beta of old checkpoints.
    for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
        if name.endswith("LayerNorm" + old):
            name = name.removesuffix(old) + new
    return name


def family_name(name: str, family: Family) -> str:
    """BERT's name for an array -> the one that checkpoints of a family have.

    Example:
        >>> family_name("encoder.layer.0.attention.output.dense.bias", FAMILIES["distilbert"])
        'distilbert.transformer.layer.0.attention.out_lin.bias'
        >>> family_name("qa_outputs.bias", FAMILIES["roberta"])
        'qa_outputs.bias'
    """
    if name.startswith("qa_outputs."):
        return name
    for ours, theirs in family.names:
        name = name.replace(ours, theirs)
    return f"{family.prefix}.{name}"
