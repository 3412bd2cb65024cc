"""Tests hold whoever starts them: signals ignored, no terminal, odd variables, no home."""

import os
import subprocess
import sys
from pathlib import Path

import launcher
import pytest

from minibert.kernels.cache import cache_folder

ROOT = Path(__file__).resolve().parents[1]
ODD = {
    "COLUMNS": "20",
    "FORCE_COLOR": "1",
    "HF_HUB_OFFLINE": "0",
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "MINIBERT_CACHE_DIR": str(cache_folder()),  # compiling anew would take long
    "NO_COLOR": "1",
    "NUMBA_DISABLE_JIT": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUNBUFFERED": "",
    "PYTHONUTF8": "0",
}
# A shell in the background, as a runner without a terminal starts it.
BACKGROUND = "trap '' INT TERM; umask 077; {command} & wait $!"

STATE = """
import codecs, os, signal, launcher
launcher.settle()
print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
with open(os.devnull) as file:
    print(codecs.lookup(file.encoding).name)
print(oct(os.umask(0)), sorted(set(os.environ) & {'COLUMNS', 'NO_COLOR', 'NUMBA_DISABLE_JIT'}))
"""

needs_a_shell = pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")


def in_background(tmp_path, *arguments):
    """Run Python with these arguments under an odd launcher."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    command = subprocess.list2cmdline([sys.executable, *map(str, arguments)])
    return subprocess.run(
        ["sh", "-c", BACKGROUND.format(command=command)],
        env=os.environ | ODD | {"TMPDIR": str(folder)},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@needs_a_shell
def test_signals_variables_encoding_and_umask_are_set_right(tmp_path):
    script = tmp_path / "state.py"
    paths = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
    script.write_text(paths + STATE, encoding="utf-8")
    done = in_background(tmp_path, script)
    assert done.stdout.splitlines() == ["True", "True", "utf-8", "0o22 []"], done.stderr


@pytest.mark.slow
@needs_a_shell
def test_tests_pass_under_an_odd_launcher(tmp_path):
    files = [ROOT / "tests" / f"test_{name}.py" for name in ("tiny", "cli", "evaluate_command")]
    chosen = "test_tiny or ctrl_c or standard_input or on_a_terminal"
    done = in_background(tmp_path, "-m", "pytest", "-q", "-k", chosen, *files)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_compiled_kernels_are_kept_for_the_run_where_they_cannot_be_for_good(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIBERT_CACHE_DIR", str(tmp_path / "kernels"))
    launcher.keep_compiled(cache_folder())
    assert cache_folder() == tmp_path / "kernels"
    (tmp_path / "file").touch()
    launcher.keep_compiled(tmp_path / "file" / "kernels")
    assert cache_folder().is_dir()
    assert tmp_path not in cache_folder().parents
