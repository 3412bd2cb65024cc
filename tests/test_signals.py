"""Ctrl-C, SIGTERM and SIGHUP end the program in order, whenever they come."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import command

from minibert.signals import ENDINGS, HungUp, Terminated, heed, heeding, let_go, unbroken

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
QUESTION = ["answer", "Who wrote it?", "Ada Lee wrote it.", "--device", "reference"]

# Sends this process a signal when it begins to load the N-th module after it is ready for signals.
STRUCK = """
import os, runpy, signal, sys

number, count = int(sys.argv[1]), int(sys.argv[2])

def strike(event, arguments):
    global count
    if event == "import" and signal.getsignal(number) not in usual:
        count -= 1
        if count == 0:
            os.kill(os.getpid(), number)

usual = signal.SIG_DFL, signal.default_int_handler
sys.addaudithook(strike)
del sys.argv[1:3]
runpy.run_module("minibert", run_name="__main__", alter_sys=True)
"""


def usual_signals():
    """What a shell gives to a program; nohup, for instance, gives something else."""
    for number in STATUS:
        signal.signal(number, signal.SIG_DFL)


def start(words):
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=usual_signals,
    )


def struck(number, module):
    """The status and what was said of a run that got a signal when it began to load a module."""
    words = [sys.executable, "-c", STRUCK, str(int(number)), str(module), *QUESTION]
    process = start(words)
    out, err = process.communicate()
    return process.returncode, out, err


# ---------------------------------------------------------------- while modules are loaded


@pytest.mark.parametrize(
    ("number", "module"),
    [
        (signal.SIGINT, 1),
        (signal.SIGINT, 50),  # while argparse is at work
        (signal.SIGTERM, 40),
        (signal.SIGHUP, 200),
    ],
)
def test_a_signal_while_a_module_is_loaded_ends_the_program_without_a_traceback(number, module):
    assert struck(number, module) == (STATUS[number], "", "minibert: interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(random.Random(0).sample(range(1, 260), 30)))
def test_ctrl_c_while_any_module_is_loaded_ends_the_program_without_a_traceback(module):
    code, out, err = struck(signal.SIGINT, module)
    if code == 0:  # there are not so many
        assert module > 200
        assert (bool(out), err) == (True, "")
    else:
        assert (code, out, err) == (130, "", "minibert: interrupted\n")


def ready(process):
    """Wait until a process is ready for SIGTERM; false if it has ended before."""
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = next((line.split()[1] for line in lines if line.startswith("SigCgt")), "0")
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return True
        time.sleep(0.001)
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process waits for")
def test_ctrl_c_at_any_moment_of_the_first_second_is_no_traceback():
    moments = random.Random(1)
    for _ in range(30):
        process = start(command(*QUESTION))
        assert ready(process)
        time.sleep(moments.random())
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        if process.returncode == 130:
            assert err == "minibert: interrupted\n"
        else:  # it had finished, or was about to end
            assert process.returncode in (0, -signal.SIGINT)
            assert out
            assert err == ""


# ---------------------------------------------------------------- in a command


def test_signals_are_cleaned_up_after_alike(tmp_path):
    script = """
import sys
from pathlib import Path
from minibert import cli
from minibert.commands import doctor
from minibert.drafts import draft_folder, whole_file

def wait(_):
    with whole_file(Path("a")), draft_folder(Path(".")):
        print("there", flush=True)
        sys.stdin.readline()

doctor.command_doctor = wait
sys.exit(cli.main(["doctor"]))
"""
    for number, status in STATUS.items():
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=usual_signals,
        ) as process:
            assert process.stdout.readline() == "there\n"
            assert len(list(tmp_path.iterdir())) == 2
            process.send_signal(number)
            assert process.wait() == status
            assert process.stderr.read() == "minibert: interrupted\n"
        assert list(tmp_path.iterdir()) == []


@pytest.fixture
def plain():
    """The usual handlers, before and after."""
    before = {number: signal.getsignal(number) for number in ENDINGS}
    for number in ENDINGS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, usual)
    yield {number: signal.getsignal(number) for number in ENDINGS}
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_second_signal_does_not_break_the_cleaning_up_off(plain):
    with heeding():
        with pytest.raises(HungUp):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_still_waits_when_all_is_done_is_no_alarm(plain):
    heed()
    signal.setitimer(signal.ITIMER_REAL, 60)
    let_go()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_signals_are_heeded_for_a_while_and_then_as_they_were(plain, monkeypatch):
    monkeypatch.setattr("minibert.signals.CLEANING", 0.0)
    with heeding():
        for number, kind in (
            (signal.SIGINT, KeyboardInterrupt),
            (signal.SIGTERM, Terminated),
            (signal.SIGHUP, HungUp),
        ):
            with pytest.raises(kind):
                signal.raise_signal(number)
    assert {number: signal.getsignal(number) for number in ENDINGS} == plain


def test_signals_that_somebody_has_other_plans_for_stay_so(plain):
    def mine(*_):
        pass

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does it
    signal.signal(signal.SIGTERM, mine)
    assert heed() == []
    let_go()
    assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with heeding():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        with pytest.raises(Terminated):
            signal.raise_signal(signal.SIGTERM)


def test_a_frame_in_which_a_module_is_loaded_is_known(tmp_path, monkeypatch):
    (tmp_path / "module_that_looks.py").write_text(
        "import sys\nfrom minibert.signals import unbroken\nfound = unbroken(sys._getframe())\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import module_that_looks

    assert module_that_looks.found
    assert not unbroken(sys._getframe())
    assert not unbroken(None)


def test_a_module_that_takes_for_ever_does_not_hold_a_signal_up(tmp_path, monkeypatch, plain):
    (tmp_path / "module_that_waits.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("minibert.signals.PATIENCE", 0.05)
    with heeding(), pytest.raises(KeyboardInterrupt):
        import module_that_waits  # noqa: F401


# ---------------------------------------------------------------- closed and full streams

CLOSED = [
    (">&-", "standard output is closed; give --output FILE"),
    ("> /dev/full", "standard output: cannot be written: No space left on device"),
]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("variables", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize(("redirection", "said"), CLOSED)
def test_standard_output_that_takes_nothing_is_one_line(tiny_folder, redirection, said, variables):
    line = f'"{sys.executable}" -m minibert answer who text --model "{tiny_folder}" '
    line += f"--device reference {redirection}"
    done = subprocess.run(
        line, shell=True, capture_output=True, text=True, env=os.environ | variables
    )
    assert (done.returncode, done.stderr) == (1, f"minibert: error: {said}\n")


@pytest.mark.parametrize("redirection", ["2>&-", "2> /dev/full"])
def test_without_standard_error_the_answer_is_the_same(tiny_folder, tmp_path, redirection):
    line = f'"{sys.executable}" -m minibert answer who text --model "{tiny_folder}" '
    line += f'--device reference --output "{tmp_path / "out"}"'
    expected = None
    for ending in ("", redirection):
        done = subprocess.run(f"{line} {ending}", shell=True, capture_output=True)
        assert (done.returncode, done.stdout) == (0, b"")
        written = (tmp_path / "out").read_bytes()
        expected = expected or written
        assert written == expected


def test_no_file_takes_the_number_of_a_stream_that_is_closed(tmp_path):
    script = """
import sys
from minibert import __main__, cli

def show(argv):
    with open("a", "w") as file:
        print(file.fileno(), file=file)
    return 0

cli.main = lambda: show(None)
sys.exit(__main__.run())
"""
    (tmp_path / "script.py").write_text(script)
    line = f'"{sys.executable}" script.py <&- >&- 2>&-'
    assert subprocess.run(line, shell=True, cwd=tmp_path).returncode == 0
    assert int((tmp_path / "a").read_text()) > 2


def test_an_error_without_a_name_is_not_blamed_on_standard_output(capsys, monkeypatch):
    from minibert.cli import main
    from minibert.commands import doctor

    def failing(_):
        raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(doctor, "command_doctor", failing)
    assert main(["doctor"]) == 1
    assert capsys.readouterr() == ("", "minibert: error: Connection reset by peer\n")


def test_a_broken_pipe_that_is_not_standard_output_is_an_error(capsys, monkeypatch):
    from minibert.cli import main
    from minibert.commands import doctor

    def failing(_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(doctor, "command_doctor", failing)
    assert main(["doctor"]) == 1
    assert capsys.readouterr() == ("", "minibert: error: Broken pipe\n")


def test_words_of_python_are_not_said_with_an_interruption(capsys, monkeypatch):
    from minibert.cli import main
    from minibert.commands import doctor

    def stopped(_):
        raise KeyboardInterrupt("decoding failed") from KeyboardInterrupt()

    monkeypatch.setattr(doctor, "command_doctor", stopped)
    assert main(["doctor"]) == 130
    assert capsys.readouterr() == ("", "minibert: interrupted\n")


def test_a_second_signal_ends_what_takes_long_to_end(plain):
    let_go()
    assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
