"""Small tokenizers in each of their forms, and what they make of a text."""

import json
import struct

import tokenizers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
UNCASED = [*SPECIAL, "a", "b", "e", "the", "##s", "ship", "船", "é", "."]
CASED = [*UNCASED, "A", "The"]


def write_vocab(folder, words=UNCASED, settings=None, end="\n"):
    """A tokenizer as old checkpoints have it."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_bytes("".join(word + end for word in words).encode())
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_json(folder, words=UNCASED, change=None, settings=None, **options):
    """A tokenizer as new checkpoints have it; `change` gets its JSON and may alter it."""
    folder.mkdir(exist_ok=True)
    backend = tokenizers.BertWordPieceTokenizer(
        {word: i for i, word in enumerate(words)}, **options
    )
    backend.add_special_tokens(SPECIAL)
    raw = json.loads(backend.to_str())
    if change is not None:
        change(raw)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def pieces(tokenizer, text):
    """The tokens of a text, as words of the vocabulary."""
    return [tokenizer.backend.id_to_token(i) for i in tokenizer.encode(text).ids.tolist()]


def slices(tokenizer, text):
    """What the tokens stand for in the text."""
    return [text[begin:end] for begin, end in tokenizer.encode(text).offsets.tolist()]


def write_sentencepiece(path, pieces, charsmap=b"", unknown=0, kind=1):
    """A SentencePiece model of pieces, each a text, a score and a kind."""
    lines = [
        field(1, field(1, text.encode()) + field(2, float(score)) + field(3, its_kind))
        for text, score, its_kind in pieces
    ]
    trainer = field(2, field(3, kind) + field(40, unknown))
    path.write_bytes(b"".join(lines) + trainer + field(3, field(2, charsmap)))


def field(number, value):
    """A field of a message of Protocol Buffers."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def varint(number):
    """A number in groups of 7 bits, the lowest first."""
    return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])
