"""The attack on the server: nothing gets through, and it sees what does."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")

ROOT = Path(__file__).resolve().parents[1]

if not Path("/proc/self/clear_refs").exists():
    pytest.skip("the attack measures memory as Linux has it", allow_module_level=True)

sys.path.insert(0, str(ROOT / "tools"))

import attack_serve  # noqa: E402
import serving  # noqa: E402
from attacking import bodies, ends, heads, wire  # noqa: E402
from random_models import write_model  # noqa: E402
from servers import Served  # noqa: E402


@pytest.mark.slow
def test_the_quick_attacks_come_to_nothing(capsys):
    assert attack_serve.main(["--quick"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| What was sent | What came back |"
    assert len(lines) == 3 + len(attack_serve.quick_attacks())
    assert lines[-1].endswith("0 requests got 500 |")


@pytest.mark.slow
def test_servers_end_well_and_keys_are_needed(tmp_path):
    folder = str(write_model(tmp_path / "model"))
    found, note = ends.told_to_stop(folder, [], clients=4)
    assert found == {"200": 4}
    assert note.endswith("it ends with status 0")
    assert ends.told_twice(folder, [])[0] == {"503": 1}
    found, note = ends.wrong_keys(folder, [])
    assert set(found) == {"401"}
    assert note == "with the right one: 200"


PLANTED = """
import sys
from minibert.cli import main
from minibert.serve import contract
def predict(request, model, settings):
    raise ZeroDivisionError
contract.predict = predict
sys.exit(main())
"""


@pytest.mark.slow
def test_a_server_that_fails_is_found(monkeypatch, capsys):
    monkeypatch.setattr(serving, "COMMAND", [sys.executable, "-c", PLANTED])
    attacks = attack_serve.quick_attacks()[-3:]
    monkeypatch.setattr(attack_serve, "quick_attacks", lambda: attacks)
    assert attack_serve.main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "an honest question got 500" in out
    assert "requests got 500" in out.splitlines()[-1]


def test_requests_one_after_another_are_answered_in_order(tiny):
    with Served(tiny) as served:
        assert heads.pipelined(served.port) == {"200": 50, "400": 50, "404": 1}
        assert wire.asked(served.port) == "200"
        assert wire.exchange(served.port, b"GET / HTTP/1.1\r\n\r\n") == "400"


def test_what_comes_back_is_looked_at():
    assert wire.is_error(b'{"error": "why"}')
    for body in (b"", b"why", b'{"error": ""}', b'{"error": "why", "more": 1}', b'{"error": NaN}'):
        assert not wire.is_error(body)
    pair = {"question": "who", "context": "ada lee"}
    assert bodies.right_span(pair, {"answer": "lee", "start": 4, "end": 7})
    assert not bodies.right_span(pair, {"answer": "lee", "start": 3, "end": 6})


def test_an_outcome_that_may_not_be_is_a_fault():
    report = attack_serve.Report()
    report.add("a", wire.Outcomes({"400": 2}), ("400",), 0.1, "")
    assert not report.faults
    report.add("b", wire.Outcomes({"400": 2, wire.HUNG: 1}), ("400",), 0.1, "")
    assert report.faults == ["b: hung, expected 400"]
