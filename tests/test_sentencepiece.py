"""SentencePiece models: what is read of them, and damaged ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_files import field, varint, write_sentencepiece

from minibert.checkpoints.sentencepiece import Piece, read_sentencepiece
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
    ],
)
def test_what_is_no_such_model_is_refused(file, content):
    file.write_bytes(content)
    problem(file)


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
