"""Families of models that are BERT but for names, sizes, positions and how pairs are joined.

What sets a family apart is data: one `Family` each.  config.py reads it to understand config.json,
weights.py to find a checkpoint's arrays.  Windows, kernels and spans know nothing of families.
Of models that are too far from BERT stands here why, and what to use in their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minibert.reprs import shown


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
    # Whether the tables may be narrower or wider than the layers, with a projection between them.
    own_embedding_size: bool = False
    always_projects: bool = False  # whether that projection is there though both are as wide
    shares_layers: bool = False  # whether the layers are groups of which each runs several times
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
        defaults={
            "embedding_size": 128,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "intermediate_size": 1024,
        },
        own_embedding_size=True,
    ),
    "albert": Family(
        "albert",
        defaults={
            "vocab_size": 30000,
            "embedding_size": 128,
            "hidden_size": 4096,
            "num_attention_heads": 64,
            "intermediate_size": 16384,
            "hidden_act": "gelu_new",
        },
        names=(
            ("embeddings_project.", "encoder.embedding_hidden_mapping_in."),
            ("encoder.layer.", "encoder.albert_layer_groups."),
            (".inner.", ".albert_layers."),
            (".attention.self.query.", ".attention.query."),
            (".attention.self.key.", ".attention.key."),
            (".attention.self.value.", ".attention.value."),
            (".attention.output.dense.", ".attention.dense."),
            (".attention.output.LayerNorm.", ".attention.LayerNorm."),
            (".intermediate.dense.", ".ffn."),
            (".output.dense.", ".ffn_output."),
            (".output.LayerNorm.", ".full_layer_layer_norm."),
        ),
        own_embedding_size=True,
        always_projects=True,
        shares_layers=True,
    ),
}


# ---------------------------------------------------------------- models that minibert does not run

# Models for question answering that run, and to which the reasons below point.
ENGLISH = "deepset/roberta-base-squad2 (RoBERTa)"
LARGE = "deepset/roberta-large-squad2 (RoBERTa)"
SMALL = "distilbert/distilbert-base-cased-distilled-squad (DistilBERT)"
MANY_LANGUAGES = "deepset/xlm-roberta-base-squad2 (XLM-R)"
LONG_TEXTS = f"{ENGLISH}; a text may be of any length, as it is read in windows that overlap"
FRENCH = "etalab-ia/camembert-base-squadFR-fquad-piaf (CamemBERT)"
SAME_LANGUAGE = "a BERT or RoBERTa for the same language"

RELATIVE = "its attention looks at how far tokens are apart, with weights of its own for that"
SPARSE = "its attention looks at parts of a long text only"
ROTARY = "its positions are rotations of queries and keys, not a table"
NORM_FIRST = "its layers normalise their input, BERT's their output"
DECODER = "it is or has a decoder, which writes texts token by token; BERT only reads"
OWN_HEAD = "its head is of another kind, which searches for the end of an answer with a beam"

# model_type in config.json -> what sets it apart from BERT, and the nearest model that runs.
OTHERS = {
    "big_bird": (SPARSE, LONG_TEXTS),
    "bart": (DECODER, LARGE),
    "canine": ("it reads characters, not tokens", MANY_LANGUAGES),
    "convbert": ("part of its attention is a convolution", "deepset/electra-base-squad2 (ELECTRA)"),
    "deberta": (RELATIVE, LARGE),
    "deberta-v2": (RELATIVE, f"{LARGE}, or for other languages {MANY_LANGUAGES}"),
    "ernie": ("it may have a table of task types", SAME_LANGUAGE),
    "flaubert": (OWN_HEAD, FRENCH),
    "fnet": ("it mixes tokens by Fourier transforms, not by attention", SMALL),
    "funnel": ("its layers shorten the text step by step", ENGLISH),
    "gpt2": (DECODER, ENGLISH),
    "ibert": ("its activations and norms are approximated in integers", ENGLISH),
    "layoutlm": ("it reads where words stand on a page", ENGLISH),
    "layoutlmv2": ("it reads pictures and where words stand on a page", ENGLISH),
    "layoutlmv3": ("it reads pictures and where words stand on a page", ENGLISH),
    "led": (DECODER, LONG_TEXTS),
    "longformer": (SPARSE, LONG_TEXTS),
    "luke": ("it reads entities besides tokens", LARGE),
    "mbart": (DECODER, MANY_LANGUAGES),
    "megatron-bert": (NORM_FIRST, LARGE),
    "mobilebert": ("its layers are bottlenecks with several feed-forward parts each", SMALL),
    "modernbert": (ROTARY, LONG_TEXTS),
    "mpnet": (RELATIVE, ENGLISH),
    "mt5": (DECODER, MANY_LANGUAGES),
    "nezha": (RELATIVE, SAME_LANGUAGE),
    "nomic_bert": (ROTARY, LONG_TEXTS),
    "nystromformer": ("its attention is approximated by landmarks", LONG_TEXTS),
    "reformer": (SPARSE, LONG_TEXTS),
    "roberta-prelayernorm": (NORM_FIRST, ENGLISH),
    "roformer": (ROTARY, SAME_LANGUAGE),
    "splinter": ("its head compares every token with a token for the question", ENGLISH),
    "squeezebert": ("its layers are grouped convolutions", SMALL),
    "t5": (DECODER, LARGE),
    "xlm": (OWN_HEAD, MANY_LANGUAGES),
    "xlm-roberta-xl": (NORM_FIRST, "deepset/xlm-roberta-large-squad2 (XLM-R)"),
    "xlnet": (f"{RELATIVE}; {OWN_HEAD}", LARGE),
    "xmod": ("its layers have adapters, one for each language", MANY_LANGUAGES),
}


def why_not(model_type: object) -> str:
    """Why a model cannot be run whose model_type is none of `FAMILIES`, and what to use instead.

    Example:
        >>> why_not("squeezebert")
        "model_type is 'squeezebert': its layers are grouped convolutions. The nearest that runs: \
distilbert/distilbert-base-cased-distilled-squad (DistilBERT)"
    """
    if isinstance(model_type, str) and model_type in OTHERS:
        reason, instead = OTHERS[model_type]
        return f"model_type is {model_type!r}: {reason}. The nearest that runs: {instead}"
    return f"model_type is {shown(model_type)}, and minibert runs {', '.join(FAMILIES)}"


# ---------------------------------------------------------------- names in checkpoints


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
