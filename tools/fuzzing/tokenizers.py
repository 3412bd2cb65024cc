"""What is done to a tokenizer's files."""

from __future__ import annotations

import json
from random import Random

from fuzzing import mutations
from fuzzing.values import odd_text

# Components of other kinds, or with odd options.
COMPONENTS = {
    "normalizer": (
        *({"type": "Precompiled", "precompiled_charsmap": text} for text in ("", "AAAA", "/w==")),
        *({"type": "Replace", "pattern": {"Regex": p}, "content": "xyz"} for p in ("", "(", "a*")),
        *({"type": kind} for kind in ("NFD", "NFKC", "StripAccents", "Nmt", "ByteLevel", "No")),
        {"type": "Prepend", "prepend": "▁" * 100},
        {"type": "Sequence", "normalizers": []},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": True,
         "strip_accents": None, "lowercase": False},
    ),
    "pre_tokenizer": (
        *({"type": "FixedLength", "length": n} for n in (0, 1, 10**9)),
        *({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
          for p in ("", "(a+)+$", "(\\w+\\s?)+!", ".", "(?=)")),
        {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": True},
        {"type": "CharDelimiterSplit", "delimiter": " "},
        {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": False},
        *({"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer",
                                      "UnicodeScripts", "Punctuation")),
        {"type": "Sequence", "pretokenizers": []},
        {"type": "Digits", "individual_digits": True},
    ),
    "truncation": (
        {"direction": "Left", "max_length": 1, "strategy": "LongestFirst", "stride": 9},
    ),
    "padding": ({"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": 0,
                 "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},),
    "post_processor": (
        {"type": "BertProcessing", "sep": ["[SEP]", 99999], "cls": ["[CLS]", 2]},
        {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0],
         "trim_offsets": False, "add_prefix_space": True},
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ),
}  # fmt: skip


def mutate_tokenizer(random: Random, content: bytes) -> bytes:
    """Change a tokenizer.json."""
    if random.random() < 0.5:
        return mutations.mutate_json(random, content)
    raw = json.loads(content)
    match random.randrange(6):
        case 0:
            raw["model"]["unk_token"] = random.choice(["nowhere", "", None, 3, "\ud800"])
        case 1:
            raw["model"]["max_input_chars_per_word"] = random.choice([0, 1, 10**9, -1, 2**64])
        case 2:
            vocab = raw["model"]["vocab"]
            if isinstance(vocab, dict):
                word = random.choice(list(vocab))
                vocab[word] = random.choice([*mutations.LIMITS, -1])
            else:
                vocab[random.randrange(len(vocab))] = ["x", random.choice([1e308, -1e308, 0.0])]
        case 3:
            token = {"id": random.choice([0, 5, 10**6, 2**32 - 1]), "content": odd_text(random)}
            token |= dict.fromkeys(
                ("single_word", "lstrip", "rstrip", "normalized", "special"), True
            )
            raw["added_tokens"].append(token)
        case _:
            component = random.choice(list(COMPONENTS))
            raw[component] = random.choice([*COMPONENTS[component], None])
    return mutations.written(raw)


SETTINGS = (
    "model_max_length do_lower_case tokenizer_class cls_token sep_token unk_token pad_token lang "
    "mask_token additional_special_tokens strip_accents added_tokens_decoder auto_map "
    "add_prefix_space sp_model_kwargs"
).split()


def mutate_settings(random: Random, content: bytes) -> bytes:
    """Change the settings of a tokenizer."""
    if random.random() < 0.5:
        return mutations.mutate_json(random, content)
    raw = json.loads(content)
    key = random.choice(SETTINGS)
    raw[key] = random.choice(mutations.ODD_VALUES)(random)
    return mutations.written(raw)
