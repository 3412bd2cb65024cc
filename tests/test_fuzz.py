"""The fuzzer: nothing fails that it tries, and it finds what is planted."""

import json
import math
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minibert import answering
from minibert.commands import stream
from minibert.errors import InputError
from minibert.model import Model

ROOT = Path(__file__).resolve().parents[1]

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the fuzzer measures memory as Linux has it", allow_module_level=True)

sys.path.insert(0, str(ROOT / "tools"))

import fuzz  # noqa: E402
from fuzzing import running, workers  # noqa: E402
from fuzzing.kinds import KINDS, Case, make_case  # noqa: E402
from fuzzing.saving import load_case  # noqa: E402
from fuzzing.shrinking import shrink, shrink_items, shrink_value  # noqa: E402
from fuzzing.verdicts import BAD, GOOD, Broken  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def models(tmp_path_factory):
    """Every family's model is loaded once."""
    running.load_all(tmp_path_factory.mktemp("models"))


@pytest.fixture
def planted(monkeypatch):
    """planted(run) -> the verdict on a case that does that."""

    def planted(run, files=None, call=None):
        monkeypatch.setitem(running.RUNS, "weights", lambda case, folder: run())
        worker = workers.Worker(fuzz.as_it_is)
        try:
            return worker.ask(Case("weights", files or {}, call or {}))
        finally:
            worker.end()

    return planted


def verdicts(orders, seed):
    return dict(workers.run_all(orders, lambda order: make_case(seed, *order), 2))


@pytest.mark.slow
def test_of_two_thousand_cases_none_fails(monkeypatch):
    monkeypatch.setattr(workers, "HANGS", 900.0)  # other programs may have the machine
    monkeypatch.setattr(workers, "SECONDS", 30.0)
    kinds = list(KINDS)
    orders = [(kinds[k % len(kinds)], k) for k in range(2000)]
    found = verdicts(orders, seed=0)
    failed = {order: verdict.cause for order, verdict in found.items() if not verdict.good}
    assert failed == {}  # python tools/fuzz.py --kinds KIND --only NUMBER shows one
    assert len(found) == 2000
    for kind in KINDS:  # of each, some are refused and some are not
        assert {found[order].outcome for order in orders if order[0] == kind} == {*GOOD}, kind


@pytest.mark.slow
def test_a_seed_gives_the_same_cases_and_verdicts_and_another_seed_gives_others():
    orders = [(kind, k) for kind in KINDS for k in range(3)]
    assert [make_case(7, *order) for order in orders] == [make_case(7, *order) for order in orders]
    assert [make_case(7, *order) for order in orders] != [make_case(8, *order) for order in orders]
    first, again = (verdicts(orders, 7) for _ in range(2))
    assert {order: verdict.cause for order, verdict in first.items()} == {
        order: verdict.cause for order, verdict in again.items()
    }


def test_what_a_case_may_take_is_what_the_promise_says():
    promise = (ROOT / ".github" / "SECURITY.md").read_text(encoding="utf-8")
    assert f"up to {workers.TIMES} times" in " ".join(promise.split())


def busy():
    while True:
        pass


def breaks(outcome):
    def run():
        raise Broken(outcome, "planted")

    return run


def refuses(message):
    def run():
        raise InputError(message)

    return run


class LongError(InputError):
    """Its message is longer than any screen, which those of minibert are not."""

    def __str__(self):
        return "a" * 10**6


def refuses_at_length():
    raise LongError


PLANTED = {
    "ok": lambda: None,
    "refused": refuses("it says why"),
    "exception": lambda: [][0],
    "slow": busy,
    "memory": lambda: bytearray(600 << 20).clear(),
    "hang": lambda: time.sleep(3600),
    "crash": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "nan": breaks("nan"),
    "escape": lambda: Path(__file__).with_name("squad_example.json").read_bytes() and None,
    "wrong": breaks("wrong"),
}


@pytest.mark.parametrize("outcome", [*GOOD, *BAD])
def test_every_outcome_is_told_from_the_others(planted, monkeypatch, outcome):
    monkeypatch.setattr(workers, "HANGS", 3.0 if outcome == "hang" else 120.0)
    monkeypatch.setattr(workers, "SECONDS", 0.5 if outcome == "slow" else 60.0)
    verdict = planted(PLANTED[outcome])
    assert verdict.outcome == outcome
    assert verdict.good == (outcome in GOOD)


@pytest.mark.parametrize(
    ("outcome", "run"),
    [
        ("exception", lambda: sys.exit(0)),
        ("crash", lambda: os._exit(3)),
        ("memory", lambda: bytearray(1 << 42)),  # more than there is
        ("escape", lambda: os.system("true") and None),
        ("escape", lambda: socket.socket().connect(("127.0.0.1", 9)) and None),
        ("escape", lambda: Path("ran").touch()),
        ("wrong", refuses("")),
        ("wrong", refuses_at_length),
    ],
)
def test_other_ways_to_fail_are_seen_too(planted, outcome, run):
    assert planted(run).outcome == outcome


def test_nothing_is_written_outside_of_the_folder_of_a_case(planted, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    for change in (
        lambda: (tmp_path / "new").mkdir(),
        lambda: (tmp_path / "new").write_text("") and None,
        kept.unlink,
        lambda: kept.rename("here") and None,
        lambda: shutil.rmtree(tmp_path),
    ):
        assert planted(change).outcome in ("exception", "escape")
        assert os.listdir(tmp_path) == ["kept"]
        assert kept.read_text() == "mine"


def test_after_a_crash_the_next_case_runs_in_another_process(monkeypatch):
    monkeypatch.setitem(running.RUNS, "weights", lambda *_: os.kill(os.getpid(), signal.SIGABRT))
    monkeypatch.setitem(running.RUNS, "config", lambda *_: None)
    cases = [Case(kind, {}, {}) for kind in ("weights", "config", "weights", "config")]
    found = workers.run_all(cases, fuzz.as_it_is, 1)
    assert [verdict.cause[0] for _, verdict in found] == ["crash", "ok", "crash", "ok"]


@pytest.fixture(scope="module")
def answered():
    """A case of texts that is answered, and one of JSON lines."""

    def first(kind):
        found = verdicts([(kind, k) for k in range(12)], 0)
        return min(order for order, verdict in found.items() if verdict.outcome == "ok")

    return {kind: first(kind) for kind in ("texts", "lines")}


@pytest.mark.parametrize(
    ("kind", "changes", "outcome"),
    [
        ("texts", {}, "ok"),
        ("texts", {"score": math.nan}, "nan"),
        ("texts", {"text": "never said"}, "wrong"),
        ("texts", {"probability": 1.5}, "wrong"),
        ("lines", {}, "ok"),
        ("lines", {"score": math.nan}, "nan"),
    ],
)
def test_answers_that_are_not_so_are_seen(answered, monkeypatch, kind, changes, outcome):
    usual = answering.decode_answers

    def decode(*args, **options):
        return [replace(answer, **changes) for answer in usual(*args, **options)]

    monkeypatch.setattr(answering, "decode_answers", decode)
    monkeypatch.setattr(stream, "dump", json.dumps)  # which writes NaN as it is
    order = answered[kind]
    assert verdicts([order], 0)[order].outcome == outcome


@pytest.mark.parametrize("which", ["one device", "each time"])
def test_logits_that_are_not_the_same_are_seen(answered, monkeypatch, which):
    usual = Model.checked
    times = iter(range(1000))

    def checked(self, logits):
        more = next(times) if which == "each time" else 0.1 * (self.device == "cpu")
        return usual(self, [part + np.float32(more) for part in logits])

    monkeypatch.setattr(Model, "checked", checked)
    order = answered["texts"]
    verdict = verdicts([order], 0)[order]
    assert verdict.outcome == "wrong"
    assert ("devices differ" if which == "one device" else "same twice") in verdict.detail


def test_items_are_left_out_as_long_as_it_fails():
    assert shrink_items(b"a stone in a heap of hay", lambda text: b"one" in text) == b"one"
    assert shrink_items(list(range(100)), lambda kept: {3, 71} <= {*kept}) == [3, 71]
    assert shrink_items("all of it goes", lambda text: True) == ""


def test_values_of_json_are_left_out_as_long_as_it_fails():
    value = {"a": [1, {"b": "look here", "c": 2}], "d": {"e": None}}

    def fails(value):
        return isinstance(value, dict) and "here" in json.dumps(value)

    assert shrink_value(value, fails) == {"a": [{"b": "here"}]}


def test_a_case_shrinks_in_its_call_and_its_files():
    header = json.dumps({"t": {"shape": [0, 7], "dtype": "F32"}, "u": {"shape": [1]}}).encode()
    files = {
        "a.json": json.dumps({"keep": [1, 2, 3], "other": "x" * 500}).encode(),
        "b.bin": b"0123456789" * 50 + b"fault" + b"0123456789" * 50,
        "c.txt": b"not needed",
        "d.safetensors": len(header).to_bytes(8, "little") + header + b"1234",
    }

    def fails(case):
        return (
            b"keep" in case.files.get("a.json", b"")
            and b"fault" in case.files.get("b.bin", b"")
            and b"[0, 7]" in case.files.get("d.safetensors", b"")
            and case.call.get("n", 0) == 3
        )

    smallest = shrink(Case("weights", files, {"n": 3, "question": "who?"}), fails, 5000)
    header = b'{"t": {"shape": [0, 7]}}'
    assert smallest.call == {"n": 3, "question": ""}
    assert smallest.files == {
        "a.json": b'{"keep": []}',
        "b.bin": b"fault",
        "d.safetensors": len(header).to_bytes(8, "little") + header + b"1234",
    }


def test_no_more_cases_are_tried_than_may_be():
    asked = []

    def fails(case):
        asked.append(case)
        return False

    shrink(Case("weights", {"a": bytes(range(256))}, {"question": "who?"}), fails, 7)
    assert len(asked) == 7


def test_a_failure_is_saved_small_and_runs_again(tmp_path, monkeypatch, capsys):
    def find(case, folder):
        if b"hidden_size" in case.files.get("config.json", b""):
            raise KeyError("planted")

    monkeypatch.setitem(running.RUNS, "config", find)
    save = tmp_path / "failures"
    orders = [("config", k) for k in range(4)]
    assert fuzz.run_many(orders, seed=0, jobs=1, save=save) == 1
    said = capsys.readouterr()
    assert "| config | 0 | 0 | 4 |" in said.out
    assert "4 of 4 cases" in said.err
    (folder,) = save.iterdir()
    assert load_case(folder).files == {"config.json": b'{"hidden_size": 16}'}
    text = (folder / "verdict.txt").read_text()
    assert "KeyError: 'planted'" in text
    assert f"--case {folder}" in text
    assert "--seed 0 --kinds config --only " in text
    assert fuzz.run_one(load_case(folder)) == 1
    monkeypatch.delitem(running.RUNS, "config")
    assert fuzz.run_one(load_case(folder)) == 0


def test_the_command_line_of_the_fuzzer(tmp_path, capsys):
    arguments = ["--save", str(tmp_path / "failures"), "--jobs", "2"]
    assert fuzz.main(["--cases", "6", "--kinds", "config,squad", "--seed", "5", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("| kind | ok | refused |\n")
    assert "6 cases of seed 5" in out
    assert fuzz.main(["--kinds", "texts", "--only", "3"]) == 0
    assert capsys.readouterr().out.startswith("texts: ")
    with pytest.raises(SystemExit) as end:
        fuzz.main(["--kinds", "nothing"])
    assert end.value.code == 2
