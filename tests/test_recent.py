"""Recent: what is kept of the last texts is bounded by tokens, and shared by threads."""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from minibert import recent
from minibert.errors import InputError
from minibert.recent import Recent


def counting(made):
    """Notes in `made` each text that is made; a text has as many tokens as letters."""

    def make(text):
        made.append(text)
        return text

    return Recent(make, len)


def test_the_last_texts_are_kept_and_the_least_recently_used_go_first(monkeypatch):
    monkeypatch.setattr(recent, "KEPT_TOKENS", 2 * (100 + recent.ENTRY_TOKENS))
    made = []
    keep = counting(made)
    one, two, three = (letter * 100 for letter in "abc")
    for text in (one, two, one, three, one):  # two goes, for it was not used as long
        assert keep(text) == text
    assert made == [one, two, three]
    keep(two)
    assert made == [one, two, three, two]
    keep.clear()
    keep(two)
    assert made == [one, two, three, two, two]


def test_a_text_beyond_the_bound_is_not_kept_and_displaces_nothing():
    made = []
    keep = counting(made)
    long = "x" * (recent.KEPT_TOKENS + 1)
    for text in ("short", long, "short", long):
        keep(text)
    assert made == ["short", long, long]
    assert list(keep.kept) == ["short"]


def test_many_large_texts_and_many_small_ones_stay_within_the_bound():
    for texts in (
        (f"{n} " * 10_000 for n in range(70)),
        (str(n) for n in range(10_000)),
        (" " * (1_000_000 + n) for n in range(20)),  # without a single token
    ):
        keep = Recent(str.split, len)
        for text in texts:
            keep(text)
            assert keep.size <= recent.KEPT_TOKENS
        assert keep.size == sum(size for _, size in keep.kept.values())
        assert sum(map(len, keep.kept)) <= recent.KEPT_TOKENS * recent.TOKEN_CHARACTERS
        assert 1 <= len(keep.kept) <= recent.KEPT_TOKENS // recent.ENTRY_TOKENS


def test_an_error_is_not_kept(tiny):
    for _ in range(2):
        with pytest.raises(InputError, match="lone surrogate"):
            tiny.tokenizer.encode("a\ud800")


def test_several_threads_may_share_what_is_kept(monkeypatch):
    monkeypatch.setattr(recent, "KEPT_TOKENS", 20 * recent.ENTRY_TOKENS)
    keep = Recent(str.upper, len)

    def work(seed):
        rng = random.Random(seed)
        texts = [f"text {rng.randrange(40)}" for _ in range(3000)]
        return all(keep(text) == text.upper() for text in texts)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert keep.size == sum(size for _, size in keep.kept.values()) <= recent.KEPT_TOKENS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_is_not_left_waiting():
    program = (
        "import os, threading, sys\n"
        "from minibert.recent import Recent\n"
        "keep = Recent(str.upper, len)\n"
        "def work():\n"
        "    while True: keep('a')\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "for _ in range(50):\n"
        "    if not (child := os.fork()): os._exit(keep('a') != 'A')\n"
        "    if os.waitpid(child, 0)[1]: sys.exit('a child failed')\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (run.returncode, run.stderr) == (0, "")
