"""SentencePiece models: what is read of them, and damaged ones."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vocabularies import CHARSMAP
from tokenizer_files import field, varint, write_sentencepiece
from tokenizers import normalizers

from minibert.checkpoints import sentencepiece
from minibert.checkpoints.components import MOST_GROWTH
from minibert.checkpoints.sentencepiece import Piece, longest_replacement, read_sentencepiece
from minibert.checkpoints.splitters import from_sentencepiece
from minibert.errors import ModelNotFoundError, TokenizerError

PIECES = [Piece("<unk>", 0.0, 2), Piece("▁the", -1.5, 1), Piece("é" * 200, -1e4, 4)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "spiece.model"
    write_sentencepiece(path, PIECES, b"rules", unknown=0, kind=1)
    return path


def problem(path):
    with pytest.raises(TokenizerError) as caught:
        read_sentencepiece(path)
    assert f"{path}: is not a SentencePiece model: " in str(caught.value)
    return str(caught.value)


def test_pieces_and_rules_are_read(file):
    found = read_sentencepiece(file)
    assert found.pieces == PIECES
    assert (found.unknown, found.kind, found.normalizer) == (0, 1, b"rules")


def test_fields_that_are_not_said_are_the_usual_ones(file):
    file.write_bytes(field(1, field(1, b"x")))
    found = read_sentencepiece(file)
    assert found.pieces == [Piece("x", 0.0, 1)]
    assert (found.unknown, found.kind, found.normalizer) == (0, 1, b"")


def test_fields_of_which_nothing_is_known_are_passed_over(file):
    more = field(9, 300) + field(200, b"x") + varint(11 << 3 | 1) + bytes(8) + field(12, 1.0)
    file.write_bytes(more + file.read_bytes() + more)
    assert read_sentencepiece(file).pieces == PIECES


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"spiece\.model: cannot be read"):
        read_sentencepiece(tmp_path / "spiece.model")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        b"\x0a",
        b"\x0a\x05abc",
        b"\x80",
        field(1, 5),
        field(1, field(1, 5)),
        field(1, field(1, b"\xff")),
        field(1, field(2, 1.0)),
        field(1, field(1, b"x") + field(2, b"12345")),
        field(1, field(1, b"x")) + field(2, field(40, 1)),
        field(1, field(1, b"x")) + field(2, field(40, b"1")),
        field(1, field(1, b"x")) + field(3, field(2, 10**9)),
        field(1, field(1, b"x")) + field(2, field(3, b"1")),
        field(1, field(1, b"x")) + varint(10 << 3) + b"\x80" * 10**5 + b"\x01",
        b"\x80" * 10**6,
    ],
)
def test_what_is_no_such_model_is_refused(file, content):
    file.write_bytes(content)
    problem(file)


def test_a_model_of_more_pieces_than_any_has_is_refused(file, monkeypatch):
    monkeypatch.setattr(sentencepiece, "MOST_PIECES", 2)
    assert "it has more than 2 pieces" in problem(file)


# --- the rules by which characters are replaced --------------------------------------------------


def rules(*units, texts=b"fi\0", size=None):
    """Rules as `Precompiled` follows them."""
    trie = np.array(units, "<u4").tobytes()
    return struct.pack("<I", len(trie) if size is None else size) + trie + texts


BLOCK = [1 << 10, *[0] * 255]  # a root, and a letter's 256 units


def test_the_longest_text_is_found():
    assert longest_replacement(rules(*BLOCK, texts="é\0éé\0\0".encode())) == 2
    assert longest_replacement(rules(*BLOCK, texts=b"\0")) == 1


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"\xff\xff\xff\xff",
        rules(),
        rules(*BLOCK, size=2**32 - 4),
        rules(*BLOCK, size=1023),
        rules(1 << 10),
        rules(*BLOCK[:100]),
        rules(256 << 10, *BLOCK[1:]),
        rules(2**31 | 256 << 10, *BLOCK[1:]),
        rules(1 << 10 | 1 << 9, *BLOCK[1:]),
        rules(*BLOCK, texts=b"\xff\0"),
        rules(1 << 10 | 1 << 8, 3, *BLOCK[2:]),
        rules(1 << 10 | 1 << 8, 2**31 - 1, *BLOCK[2:]),
        rules(1 << 10 | 1 << 8, 1, *BLOCK[2:], texts="é\0".encode()),
    ],
)
def test_rules_that_lead_out_of_themselves_are_refused(damaged):
    with pytest.raises(ValueError, match=r"trie|utf-8"):
        longest_replacement(damaged)


@given(data=st.data())
def test_damaged_rules_are_refused_or_do_no_harm(data):
    content = bytearray(CHARSMAP)
    for _ in range(data.draw(st.integers(1, 3))):
        at = 4 + 4 * data.draw(st.integers(0, 255))
        content[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
    try:
        longest_replacement(bytes(content))
    except ValueError:
        return
    text = data.draw(st.text()) + "ﬁ\u3000ﬀ"
    normalizers.Precompiled(bytes(content)).normalize_str(text)


@given(data=st.data())
def test_a_damaged_model_is_refused_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "spiece.model"
    write_sentencepiece(path, PIECES)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        assert read_sentencepiece(path).pieces
    except TokenizerError as error:
        assert str(path) in str(error)


def test_rules_that_lengthen_a_text_without_end_are_refused(tmp_path):
    path = tmp_path / "spiece.model"
    longest = b"x" * (MOST_GROWTH + 1) + b"\0"
    write_sentencepiece(path, PIECES, charsmap=rules(*BLOCK, texts=longest))
    with pytest.raises(TokenizerError, match="may make a text 1001 times as long"):
        from_sentencepiece(path, "albert", {})
