"""The soaks of the library and of the server: ten seconds hold, and they see what is wrong."""

import multiprocessing
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

if not Path("/proc/self/statm").exists():
    pytest.skip("the soak measures memory as Linux has it", allow_module_level=True)

sys.path.insert(0, str(ROOT / "tools"))

import serving  # noqa: E402
import soak  # noqa: E402
import soak_serve  # noqa: E402

SHORT = ["--seconds", "10", "--threads", "4", "--every", "0.5"]


@pytest.mark.slow
def test_ten_seconds_hold(capsys):
    assert soak.main(SHORT) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ok: ")
    assert " 0 faults, " in last


@pytest.mark.slow
def test_a_wrong_answer_ends_it(monkeypatch, capsys):
    usual = soak.Faces.best

    def best(self, asked):
        return [("never said", *each[1:]) for each in usual(self, asked)]

    monkeypatch.setattr(soak.Faces, "best", best)  # of what this process takes to be right
    assert soak.main(["--seconds", "100"]) == 1
    out = capsys.readouterr().out
    assert "never said" in out
    assert out.splitlines()[-1].startswith("fault: ")


def test_answers_differ_by_words_places_and_scores():
    right = [("ada", 0, 3, 0, 1.5)]
    assert not soak.differ([("ada", 0, 3, 0, 1.50001)], right)
    for wrong in (("lee", 0, 3, 0, 1.5), ("ada", 1, 4, 0, 1.5), ("ada", 0, 3, 1, 1.5)):
        assert soak.differ([wrong], right)
    assert soak.differ([("ada", 0, 3, 0, 1.6)], right)
    assert soak.differ([("ada", 0, 3, 0, float("nan"))], right)
    assert soak.differ([], right)


def test_the_questions_depend_on_the_seed_alone():
    assert soak.questions(1) == soak.questions(1)
    assert soak.questions(1) != soak.questions(2)
    lengths = [len(context) for _, context in soak.questions(1)]
    assert max(lengths) > 50 * min(lengths)


@pytest.fixture
def life():
    """A process that has ended, and the other end of its connection."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    yield soak.Life(process, ours), theirs
    theirs.close()


@pytest.mark.parametrize(
    ("memory", "files", "held"),
    [
        (lambda t: 10**8 + 10**6 * (t % 2), lambda t: 9 + t % 2, True),
        (lambda t: 10**8 + (10**8 if t > 3 else 0), lambda t: 9, True),  # before it is warm
        (lambda t: 10**8 + 10**6 * t, lambda t: 9, False),
        (lambda t: 10**8, lambda t: 9 + t, False),
    ],
)
def test_what_grows_is_a_fault(life, memory, files, held):
    grown, _ = life
    grown.samples = [(float(t), memory(t), files(t)) for t in range(60)]
    totals = soak.Totals()
    soak.finish(grown, totals)
    assert (totals.faults == []) == held
    assert totals.verdict().startswith("ok" if held else "fault")


def test_a_process_that_has_ended_or_says_nothing_is_a_fault(life, monkeypatch):
    silent, theirs = life
    totals = soak.Totals()
    silent.samples = [(0.0, 0, 0)]
    assert soak.listen(silent, totals)
    monkeypatch.setattr(soak, "PATIENCE", 0.0)
    assert not soak.listen(silent, totals)
    monkeypatch.setattr(soak, "PATIENCE", 60.0)
    theirs.send((7, 1, 1, ["question 3: wrong"]))
    assert soak.listen(silent, totals)
    assert (silent.answered, totals.faults) == (7, ["question 3: wrong"])
    theirs.close()
    assert not soak.listen(silent, totals)


def test_a_forked_child_that_answers_wrongly_or_hangs_is_a_fault(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, best):
            self.best = best

    right = [([("ada", 0, 3, 0, 1.0)],)]
    assert soak.fork_and_answer(Fake(lambda asked: right[0][0]), ["who?"], right, 0) == []
    (fault,) = soak.fork_and_answer(Fake(lambda asked: []), ["who?"], right, 0)
    assert fault == "a forked child ended with 3"
    monkeypatch.setattr(soak, "PATIENCE", 0.5)
    (fault,) = soak.fork_and_answer(Fake(lambda asked: time.sleep(3600)), ["who?"], right, 0)
    assert fault == "a forked child has hung"


# ---------------------------------------------------------------- of the server


@pytest.mark.slow
def test_ten_seconds_of_the_server_hold(capsys):
    pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")
    assert soak_serve.main(["--seconds", "10", "--clients", "8"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("ok: ")
    assert " 0 faults, " in last
    assert "MB at the end" in last


PLANTED = """
import os, sys
from minibert.cli import main
from minibert.serve import contract
usual, held = contract.predict, []
def predict(request, model, settings):
    found = usual(request, model, settings)
    {fault}
    return found
contract.predict = predict
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("held.append(bytes(10**6).replace(b'\\0', b'a'))", "grew by "),
        ("held or held.append(os.open('/dev/null', os.O_RDONLY))", "1 files were left open"),
        ("'start' in found and found.update(start=found['start'] + 1)", "expected "),
        ("raise ZeroDivisionError", "500 for "),
        ("os.kill(os.getpid(), 9)", "the server ended with -9"),
    ],
    ids=["memory", "files", "answers", "failures", "death"],
)
def test_a_server_with_a_fault_does_not_pass(monkeypatch, capsys, fault, words):
    pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")
    monkeypatch.setattr(serving, "COMMAND", [sys.executable, "-c", PLANTED.format(fault=fault)])
    monkeypatch.setattr(serving, "MOMENT", 1.0)  # until a file that is left open is given up
    assert soak_serve.main(["--seconds", "5", "--clients", "4"]) == 1
    out = capsys.readouterr().out
    assert words in out
    assert out.splitlines()[-1].startswith("fault: ")


@pytest.mark.slow
def test_a_server_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(serving, "COMMAND", [sys.executable, "-c", "raise SystemExit('why')"])
    with pytest.raises(RuntimeError, match="did not start: why"):
        soak_serve.main(["--seconds", "5"])
