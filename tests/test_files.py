"""How files are opened for reading: without waiting, and never what is none."""

import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import threading

import pytest
from programs import lines_of
from squad_files import EXAMPLE

from minibert import files
from minibert.checkpoints.hub import find_model, find_tokenizer
from minibert.checkpoints.splitters import from_merges
from minibert.commands.answer import open_input
from minibert.config import BertConfig
from minibert.errors import InputError, MinibertError
from minibert.files import json_value, open_file, read_file
from minibert.model import load_model
from minibert.squad.files import read_squad
from minibert.squad.predictions import read_predictions

unix = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
bash = pytest.mark.skipif(sys.platform != "linux", reason="needs bash and /dev/fd")


def refused(path, **options):
    """Why a file cannot be read."""
    with pytest.raises(OSError, match=r".") as caught:
        read_file(path, **options)
    assert caught.value.strerror
    return caught.value.strerror


class BytesPath(os.PathLike):
    """A path whose name is bytes, as some programs have them."""

    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path).encode("utf-8", "surrogatepass")


def test_a_file_is_read_whole_and_waits_as_files_do(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert read_file(tmp_path / "file") == read_file(BytesPath(tmp_path / "file")) == b"abc"
    with open_file(tmp_path / "file") as file:
        assert os.get_blocking(file.fileno())
        assert not os.get_inheritable(file.fileno())


def test_what_is_missing_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "missing", pipes=True)


def test_a_folder_is_no_file(tmp_path):
    assert "a folder" in refused(tmp_path) or os.name == "nt"


@unix
@pytest.mark.parametrize("pipes", [False, True])
def test_sockets_and_devices_are_no_files(tmp_path, monkeypatch, pipes):
    monkeypatch.chdir(tmp_path)  # a socket's name may only have a hundred letters
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        assert "socket" in refused("socket", pipes=pipes)
    assert "a device" in refused("/dev/zero", pipes=pipes, at_most=100)


@unix
def test_a_pipe_is_no_file_unless_one_will_do(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "a pipe" in refused(path)
    writer = threading.Thread(target=path.write_bytes, args=[b"abc" * 100_000], daemon=True)
    writer.start()
    assert read_file(path, pipes=True) == b"abc" * 100_000
    writer.join()


@unix
def test_a_pipe_that_nobody_writes_into_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    assert "a pipe that nobody writes into" in refused(path, pipes=True)
    silent = os.open(path, os.O_RDWR)  # somebody who has not written yet
    with open_file(path, pipes=True) as file:
        os.write(silent, b"abc")
        os.close(silent)
        assert file.read() == b"abc"


@unix
def test_a_terminal_is_as_good_as_a_pipe():
    leader, follower = os.openpty()
    name = os.ttyname(follower)
    assert "a device" in refused(name)
    with open_file(name, pipes=True) as file:
        assert stat.S_ISCHR(os.fstat(file.fileno()).st_mode)
    os.close(leader)
    os.close(follower)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000], ids=["NUL", "surrogate", "long"])
@pytest.mark.parametrize("pipes", [False, True])
def test_a_name_that_no_file_can_have_is_an_error(name, pipes):
    refused(name, pipes=pipes)


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "~\0", "~\ud800"])
@pytest.mark.parametrize(
    "read",
    [
        find_model,
        find_tokenizer,
        read_squad,
        read_predictions,
        open_input,
        lambda name: find_model(BytesPath(f"/missing/{name}")),
    ],
)
def test_whatever_is_named_by_a_user_fails_in_our_words(name, read):
    with pytest.raises(MinibertError):
        read(name)


def test_paths_whose_names_are_bytes_are_read(tmp_path):
    assert read_squad(BytesPath(EXAMPLE)).questions == read_squad(EXAMPLE).questions
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert find_model(BytesPath(tmp_path)).folder == find_tokenizer(BytesPath(tmp_path)) == tmp_path


def test_a_file_that_is_larger_than_it_may_be_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abcd")
    assert read_file(tmp_path / "file", at_most=4) == b"abcd"
    assert "more than 3 bytes" in refused(tmp_path / "file", at_most=3)


@unix
def test_predictions_are_read_twice_so_they_are_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe"):
        read_predictions(tmp_path / "pipe")


@unix
@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_pipe_in_the_place_of_a_vocabulary_is_not_waited_for(tmp_path, name):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(MinibertError, match="a pipe"):
        from_merges(tmp_path / "vocab.json", tmp_path / "merges.txt", {})


FILES_OF_MODELS = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)


@unix
@pytest.mark.parametrize("name", FILES_OF_MODELS)
@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_in_the_place_of_one_is_not_passed_over(tiny_folder, tmp_path, name, kind):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to("nowhere")
    words = {"pipe": "is a pipe", "folder": "is a folder", "link": "a link to what is not there"}
    with pytest.raises(MinibertError) as error:
        load_model(folder)
    assert name in str(error.value)
    assert words[kind] in str(error.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000])
def test_json_that_is_nested_deeply_is_a_value_error(text):
    with pytest.raises(ValueError, match="nested too deeply"):
        json_value(text)


def test_config_json_may_not_have_many_megabytes(tmp_path):
    (tmp_path / "config.json").write_bytes(b"[" + b"{}," * 2_000_000)
    with pytest.raises(MinibertError, match="more than 4000000 bytes"):
        BertConfig.from_json(tmp_path / "config.json")


@bash
@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "{m} answer Who? --file <(echo Ann wrote it.)",
        "echo Ann wrote it. | {m} answer Who? --file /dev/stdin",
        "{m} answer --jsonl <(cat {rows})",
        "{m} evaluate --data <(cat {data})",
    ],
)
def test_what_a_shell_pipes_in_is_read(tmp_path, tiny_folder, command):
    rows = lines_of(tmp_path / "rows", [{"question": "Who?", "context": "Ann wrote it."}])
    line = command.format(
        m=shlex.join([sys.executable, "-m", "minibert"]), rows=rows, data=shlex.quote(str(EXAMPLE))
    )
    line = line.replace(" --", f" --model {shlex.quote(str(tiny_folder))} --", 1)
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
