"""What a tokenizer.json may consist of: the parts that tokenizers of the known families have.

The `tokenizers` package trusts the file.  Odd values end in a panic of its Rust, which is no
`Exception`, or abort the process; some replacements and regular expressions take memory or time
without end.  So each part is compared with the tables below before the package sees it.

Source: how tokenizers 0.20.3 to 0.23.3 store each part, and what convert_slow_tokenizer.py in
transformers 4.57.6 makes of the families.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from minibert.checkpoints.sentencepiece import longest_replacement
from minibert.files import SHOWN
from minibert.reprs import shown

MOST_STEPS = 100  # of a sequence; families have up to eight
DEEPEST = 5  # sequences inside each other
MOST_GROWTH = 1000  # times that all steps together may lengthen a text
LONGEST_TEXT = 100  # characters of an option
LONGEST_TOKEN = 1000  # characters of a token that is looked for before a text is split
MOST_SPLIT_FROM = 1000  # letters of a word that word pieces are looked for in; BERT's are 100
# Times that a step may lengthen a text; those that the table lacks do not, or once for all.
GROWTH = {"BertNormalizer": 3, "ByteLevel": 4, "Metaspace": 2}


class Rule(NamedTuple):
    """What an option may be."""

    expected: str
    fits: Callable[[Any], bool]


# ---------------------------------------------------------------- regular expressions

ESCAPE = r"\\(?:[dDsSwWnrtfv]|[pP]\{\^?\w+\}|u[0-9A-Fa-f]{4}|x[0-9A-Fa-f]{2}|[^\w])"
LETTER = rf"(?:{ESCAPE}|\[\^?(?:{ESCAPE}|[^\[\]\\])+\]|[^\\^$|?*+()\[\]{{}}])"
PIECE = re.compile(
    rf"{LETTER}(?P<times>[?+*]|\{{[1-9]\d?(?:,\d{{0,2}})?\}})?|(?P<bar>\|)", re.DOTALL
)
MOST_OPTIONAL = 3  # letters with "?" in one alternative: each doubles what is tried
# Those of GPT-2, GPT-4 and Qwen: of other forms, and known to take time in proportion to the text.
KNOWN_REGEXES = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        + digits
        + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        for digits in ("", "{1,3}")
    ),
}


def is_simple(regex: str) -> bool:
    r"""Whether a regular expression takes time in proportion to a text, and matches something.

    It does if each alternative is a row of letters, classes of them among these, of which the last
    one must be there and it alone may stand there any number of times.

    Example:
        >>> [is_simple(regex) for regex in (" {2,}", r" ?\p{L}+|[^\s\w]", "(a+)+$", "a*", "")]
        [True, True, False, False, False]
    """
    at = optional = 0
    ended = needed = False  # what the last letter of the alternative was
    while at < len(regex):
        piece = PIECE.match(regex, at)
        if piece is None or (ended and not piece["bar"]) or (piece["bar"] and not needed):
            return False
        at = piece.end()
        times = piece["times"] or ""
        ended = times in ("+", "*") or "," in times
        needed = not piece["bar"] and times not in ("?", "*")
        optional = 0 if piece["bar"] else optional + (times == "?")
        if optional > MOST_OPTIONAL:
            return False
    return needed


def _is_pattern(said: Any) -> bool:
    """Whether this is a text or a regular expression to look for."""
    if not isinstance(said, dict) or len(said) != 1:
        return False
    ((kind, pattern),) = said.items()
    if not isinstance(pattern, str) or not 0 < len(pattern) <= 10 * LONGEST_TEXT:
        return False
    return kind == "String" or (
        kind == "Regex" and (pattern in KNOWN_REGEXES or is_simple(pattern))
    )


# ---------------------------------------------------------------- the rules


def _is_text(said: Any) -> bool:
    return isinstance(said, str) and len(said) <= LONGEST_TEXT


def _is_charsmap(said: Any) -> bool:
    return isinstance(said, str) and charsmap_growth(said) > 0


def charsmap_growth(said: str) -> int:
    """Characters of the longest replacement that a `precompiled_charsmap` has; 0: it is none."""
    try:
        return longest_replacement(base64.b64decode(said, validate=True))
    except ValueError:
        return 0


def count(highest: int, lowest: int = 0) -> Rule:
    """A whole number within bounds."""
    return Rule(
        f"a whole number from {lowest} to {highest}" if lowest < highest else str(lowest),
        lambda said: type(said) is int and lowest <= said <= highest,
    )


def one_of(*values: str) -> Rule:
    """One of a few texts."""
    return Rule(
        f"one of {', '.join(values)}", lambda said: isinstance(said, str) and said in values
    )


FLAG = Rule("true or false", lambda said: isinstance(said, bool))
FLAG_OR_NULL = Rule("true, false or null", lambda said: isinstance(said, bool | None))
TEXT = Rule(f"a text of at most {LONGEST_TEXT} characters", _is_text)
SOME_TEXT = Rule(
    f"a text of 1 to {LONGEST_TEXT} characters", lambda said: said != "" and _is_text(said)
)
TEXT_OR_NULL = Rule(f"null or {TEXT.expected}", lambda said: said is None or _is_text(said))
CHARACTER = Rule("one character", lambda said: isinstance(said, str) and len(said) == 1)
PATTERN = Rule(
    "a text to look for, or a regular expression that is a row of letters or classes of them, of "
    "which only the last may be repeated without end and must be there at least once",
    _is_pattern,
)
CHARSMAP = Rule("the rules of a SentencePiece model in base 64", _is_charsmap)
BEHAVIOR = one_of("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
TOKEN = Rule(
    "a token and its id",
    lambda said: (
        isinstance(said, list) and [type(each) for each in said] == [str, int] and _is_text(said[0])
    ),
)
TEMPLATE = Rule(
    "a short list of special tokens and sequences",
    lambda said: (
        isinstance(said, list)
        and len(said) <= LONGEST_TEXT
        and all(isinstance(each, dict) for each in said)
    ),
)
NAMES = Rule("special tokens by their names", lambda said: isinstance(said, dict))
# Not needed for its own sake: without it, answers would change from one call to the next.
NO_DROPOUT = Rule(
    "null: with it, a text would not always become the same tokens",
    lambda said: said is None or (type(said) in (int, float) and said == 0),
)

BYTE_LEVEL = {"add_prefix_space": FLAG, "trim_offsets": FLAG, "use_regex": FLAG}
METASPACE = {
    "replacement": CHARACTER,
    "str_rep": CHARACTER,
    "add_prefix_space": FLAG,
    "prepend_scheme": one_of("always", "first", "never"),
    "split": FLAG,
}
REPLACE = {"pattern": PATTERN, "content": TEXT}
ENDS = {"sep": TOKEN, "cls": TOKEN}

# Part of tokenizer.json -> what it may be -> the options that this has.
PARTS: dict[str, dict[str, dict[str, Rule]]] = {
    "normalizer": {
        "BertNormalizer": {
            "clean_text": FLAG,
            "handle_chinese_chars": FLAG,
            "strip_accents": FLAG_OR_NULL,
            "lowercase": FLAG,
        },
        **{kind: {} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents")},
        "Strip": {"strip_left": FLAG, "strip_right": FLAG},
        "Replace": REPLACE,
        "Prepend": {"prepend": SOME_TEXT},
        "Precompiled": {"precompiled_charsmap": CHARSMAP},
        "ByteLevel": {},
    },
    "pre_tokenizer": {
        **{kind: {} for kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")},
        "UnicodeScripts": {},
        "ByteLevel": BYTE_LEVEL,
        "Metaspace": METASPACE,
        "Punctuation": {"behavior": BEHAVIOR},
        "Digits": {"individual_digits": FLAG},
        "Split": {"pattern": PATTERN, "behavior": BEHAVIOR, "invert": FLAG},
        "CharDelimiterSplit": {"delimiter": CHARACTER},
        "FixedLength": {"length": count(1000, lowest=1)},
    },
    "post_processor": {
        "BertProcessing": ENDS,
        "RobertaProcessing": {**ENDS, "trim_offsets": FLAG, "add_prefix_space": FLAG},
        "TemplateProcessing": {"single": TEMPLATE, "pair": TEMPLATE, "special_tokens": NAMES},
        "ByteLevel": BYTE_LEVEL,
    },
    "decoder": {
        "WordPiece": {"prefix": TEXT, "cleanup": FLAG},
        "ByteLevel": BYTE_LEVEL,
        "Metaspace": METASPACE,
        "BPEDecoder": {"suffix": TEXT},
        "CTC": {"pad_token": TEXT, "word_delimiter_token": TEXT, "cleanup": FLAG},
        "Replace": REPLACE,
        # Where it may cut at the end, it may cut more than there is.
        "Strip": {"content": CHARACTER, "start": count(100), "stop": count(0)},
        "Fuse": {},
        "ByteFallback": {},
    },
}
# Name of a sequence's steps, by the part.
STEPS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
# Options of the models beside their vocabulary.
MODELS = {
    "WordPiece": {
        "unk_token": TEXT,
        "continuing_subword_prefix": TEXT,
        "max_input_chars_per_word": count(MOST_SPLIT_FROM),
    },
    "BPE": {
        "dropout": NO_DROPOUT,
        "unk_token": TEXT_OR_NULL,
        "continuing_subword_prefix": TEXT_OR_NULL,
        "end_of_word_suffix": TEXT_OR_NULL,
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), FLAG_OR_NULL),
    },
    "Unigram": {"byte_fallback": FLAG_OR_NULL},
}

# What `added_tokens` of tokenizer.json say of each token.
ADDED = {
    "id": count(2**32 - 1),
    "content": Rule(
        f"a text of at most {LONGEST_TOKEN} characters",
        lambda said: isinstance(said, str) and len(said) <= LONGEST_TOKEN,
    ),
    **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), FLAG),
}


# ---------------------------------------------------------------- comparing with them


def problems(raw: Mapping[str, Any]) -> list[str]:
    """What of a tokenizer.json, beside its model, no tokenizer of the known families has.

    Args:
        raw: the file's content.
    """
    found = []
    for part, kinds in PARTS.items():
        steps = list(_steps(raw.get(part), STEPS[part]))
        if len(steps) > MOST_STEPS:
            found.append(f"{part} has {len(steps)} steps, more than {MOST_STEPS}")
            continue
        wrong = [problem for step in steps for problem in _step_problems(part, step, kinds)]
        found += wrong
        if not wrong and (growth := _growth(steps)) > MOST_GROWTH:
            found.append(
                f"{part} may make a text {growth} times as long, more than {MOST_GROWTH} times"
            )
    return found


def added_problems(added: Any) -> list[str]:
    """What is wrong with the added tokens of a tokenizer.json."""
    if not isinstance(added, list):
        return [f"added_tokens must be a list, got {shown(added)}"]
    wrong: list[str] = []
    for token in added:
        if len(wrong) >= SHOWN:
            break
        if not isinstance(token, dict) or not {"id", "content"} <= token.keys():
            wrong.append(f"added_tokens must be objects with id and content, got {shown(token)}")
        else:
            of = f"the added token {shown(token['content'])}"
            wrong += option_problems(of, token, ADDED)
    return wrong


def option_problems(of: str, said: Mapping[str, Any], rules: Mapping[str, Rule]) -> Iterator[str]:
    """The options that are not as they may be.

    Args:
        of: what has them, for messages.
        said: options and their values.
        rules: what each may be.
    """
    for option, value in said.items():
        if (rule := rules.get(option)) is None:
            # Later versions of the package may store more options than are known here.
            if value is not None and value is not False:
                yield f"{of} has an option {shown(option)}, which is not known and not off"
        elif not rule.fits(value):
            yield f"{option} of {of} must be {rule.expected}, got {shown(value)}"


def _steps(said: Any, inside: str, depth: int = 0) -> Iterator[Any]:
    """The steps of a part, without the sequences around them."""
    if isinstance(said, dict) and said.get("type") == "Sequence" and depth < DEEPEST:
        steps = said.get(inside)
        if isinstance(steps, list):
            for step in steps:
                yield from _steps(step, inside, depth + 1)
            return
    if said is not None or depth:
        yield said


def _step_problems(part: str, step: Any, kinds: Mapping[str, Mapping[str, Rule]]) -> Iterator[str]:
    """What is wrong with a step."""
    kind = step.get("type") if isinstance(step, dict) else step
    if kind == "Sequence":
        yield f"{part} has a Sequence without {STEPS[part]}, or inside {DEEPEST} others"
        return
    if not isinstance(kind, str) or kind not in kinds:
        yield f"{part} is {shown(kind)}, expected one of {', '.join(kinds)}"
        return
    options = {option: value for option, value in step.items() if option != "type"}
    wrong = list(option_problems(f"the {part} {kind}", options, kinds[kind]))
    for option in NEEDED.get(kind, ()):
        if option not in options:
            wrong.append(f"the {part} {kind} has no {option}")
    yield from wrong
    if kind == "TemplateProcessing" and not wrong:
        pieces = [*step.get("single", []), *step.get("pair", [])]
        special = [piece["SpecialToken"] for piece in pieces if "SpecialToken" in piece]
        for token in special:
            name = token.get("id") if isinstance(token, dict) else None
            if not isinstance(name, str) or name not in step.get("special_tokens", {}):
                yield f"special_tokens of the {part} {kind} lack {shown(name)}, which it names"


# Options without which a step is none.
NEEDED = {
    "Replace": ("pattern", "content"),
    "Prepend": ("prepend",),
    "Precompiled": ("precompiled_charsmap",),
}


def _growth(steps: list[dict[str, Any]]) -> int:
    """How many times longer steps may make a text, all together."""
    growth = 1
    for step in steps:
        if step["type"] == "Replace":
            pattern = step["pattern"].get("String", " ")
            growth *= max(1, -(-len(step["content"]) // len(pattern)))
        elif step["type"] == "Prepend":
            growth *= 1 + len(step["prepend"])
        elif step["type"] == "Precompiled":
            growth *= charsmap_growth(step["precompiled_charsmap"])
        else:
            growth *= GROWTH.get(step["type"], 1)
    return growth
