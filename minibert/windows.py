"""Step 2 of 6: tokens -> windows.

BERT reads at most 512 tokens at once, so a long text is read through overlapping windows:

    [CLS] question [SEP] part of the text [SEP]

In: the tokens of a question and of a text.  Out: `Window`s.  Next: minibert/batches.py
(reading.py decides which windows share a batch, model.py holds the steps together).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minibert.arrays import Ints
from minibert.errors import InputError
from minibert.reprs import short_repr
from minibert.tokenizer import Pair, Tokens


@dataclass(frozen=True, eq=False)
class Window:
    """One packed input: a question and the part of a text that fits beside it.

    S is the number of tokens of the window.
    """

    input_ids: Ints  # [S]
    token_type_ids: Ints  # [S] 0 up to the first [SEP], then `Pair.text_type`
    context: Tokens  # the whole text, of which this window shows a part
    begin: int  # first token of the text that the window shows
    end: int  # one past the last
    offset: int  # where in the window the text begins: its token t stands at offset + t - begin
    document: int = 0  # which of several texts, if the question is asked of several

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.input_ids)


def text_parts(length: int, room: int, step: int) -> list[tuple[int, int]]:
    """Cut `length` tokens into parts of at most `room`, one beginning every `step` tokens.

    The last part is the first one that reaches the end; it is short, not shifted back.

    Example:
        >>> text_parts(10, room=4, step=3)
        [(0, 4), (3, 7), (6, 10)]
        >>> text_parts(0, room=4, step=3)
        [(0, 0)]
    """
    if length <= room:
        return [(0, length)]
    last = -(-(length - room) // step)  # number of the part that reaches the end
    return [(i * step, min(i * step + room, length)) for i in range(last + 1)]


def make_windows(
    question: Tokens,
    context: Tokens,
    *,
    pair: Pair,
    max_seq_length: int,
    doc_stride: int,
    document: int = 0,
) -> list[Window]:
    """Lay a question beside every part of a text.

    Args:
        question: its tokens.
        context: the text's tokens.
        pair: how the model joins them.
        max_seq_length: longest window, in tokens, special tokens included.
        doc_stride: how many tokens two neighbouring windows share, as in transformers.  (In
            Google's run_squad.py the word means the step from one window to the next.)
        document: number of the text, noted in each window.

    Returns:
        At least one window, in the order of the text.

    Raises:
        InputError: the question leaves no room for the text, or the overlap is as long as the
            part of the text in a window, so that the windows would not advance.
    """
    room = pair.text_room(question, max_seq_length)
    if len(context) > room and room < 1:
        raise InputError(
            f"the question has {len(question)} tokens and leaves no room for the text in a window "
            f"of max_seq_length {max_seq_length}. Shorten the question, let it be cut to fewer "
            "tokens, or raise max_seq_length."
        )
    # transformers refuses the second case too, whether or not the text fits in one window.
    if (len(context) > room and doc_stride >= room) or doc_stride >= max_seq_length - 2:
        raise InputError(
            f"doc_stride {doc_stride} cannot advance: a window of max_seq_length {max_seq_length} "
            f"holds {max(room, 0)} tokens of the text beside this question, and neighbours must "
            "share fewer than that. Lower doc_stride or raise max_seq_length."
        )
    windows = []
    for begin, end in text_parts(len(context), room, room - doc_stride):
        input_ids, types, offset = join(question.ids, context.ids[begin:end], pair)
        windows.append(Window(input_ids, types, context, begin, end, offset, document))
    return windows


def join(question: Ints, text: Ints, pair: Pair) -> tuple[Ints, Ints, int]:
    """Lay the tokens of a question and of a part of a text end to end, with those between them.

    Returns:
        input_ids [S], token_type_ids [S], and where in them the text begins.

    Example:
        >>> join(np.array([5, 6]), np.array([7]), Pair(cls_id=1, sep_id=2))[0].tolist()
        [1, 5, 6, 2, 7, 2]
    """
    between = [pair.sep_id] * pair.separators
    head = np.concatenate(([pair.cls_id], question, between)).astype(np.int32)
    tail = np.append(text, np.int32(pair.sep_id)).astype(np.int32)
    types = np.zeros(len(head) + len(tail), np.int32)
    types[len(head) :] = pair.text_type
    return np.concatenate((head, tail)), types, len(head)
