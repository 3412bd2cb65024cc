"""minibert completion: scripts that a shell understands and that know the commands."""

import shutil
import subprocess
import sys

import pytest

from minibert.cli import COMMANDS, main
from minibert.commands.completion import SHELLS

NAMES = [command.__name__.split(".")[-1] for command in COMMANDS]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_command_is_in_the_script(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in NAMES)
    assert "--null-threshold" in script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_has_no_error_that_the_shell_finds(shell, capsys, tmp_path):
    pytest.importorskip("shtab")
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    command = [shell, "-n", str(tmp_path / "script")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def completed(script, *words):
    """What bash offers for the last of the words."""
    lines = f"""source {script}
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _shtab_minibert
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_bash_completes_commands_options_choices_and_files(capsys, tmp_path, monkeypatch):
    pytest.importorskip("shtab")
    monkeypatch.chdir(tmp_path)
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    (tmp_path / "play.txt").touch()
    (tmp_path / "plays").mkdir()
    script = tmp_path / "script"
    assert completed(script, "minibert", "ev") == ["evaluate"]
    assert completed(script, "minibert", "answer", "--max-o") == ["--max-overlap"]
    assert "int8" in completed(script, "minibert", "answer", "--dtype", "i")
    assert "play.txt" in completed(script, "minibert", "answer", "--file", "pl")
    assert completed(script, "minibert", "train", "--output-dir", "pl") == ["plays"]


def test_without_shtab_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'minibert-qa[cli]'" in capsys.readouterr().err
