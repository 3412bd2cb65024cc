"""Compiled code on disk: what is kept comes back, and nobody else's code is run."""

import os
import stat
import warnings
from pathlib import Path

import pytest
from builders import elf

from minibert.kernels import cache
from minibert.kernels.cache import read_cache, sound_elf, write_cache

POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has other owners and modes")


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "folders" / "a.o"
    assert write_cache(path, b"code")
    assert read_cache(path) == b"code"
    assert write_cache(path, b"other")
    assert read_cache(path) == b"other"
    assert [each.name for each in path.parent.iterdir()] == ["a.o"]
    assert path.stat().st_mode & 0o444 == 0o444  # other users may read it


def damage(kind, path):
    good = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(good[:-1])
    elif kind == "one bit of the code":
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    elif kind == "one bit of the hash":
        path.write_bytes(bytes([good[0] ^ 1]) + good[1:])
    elif kind == "longer":
        path.write_bytes(good + b"\0")
    else:
        path.unlink()
        path.mkdir()


KINDS = ("missing", "empty", "truncated", "one bit of the code", "one bit of the hash", "longer")


@pytest.mark.parametrize("kind", [*KINDS, "a folder"])
def test_a_damaged_file_counts_as_none(tmp_path, kind):
    path = tmp_path / "a.o"
    write_cache(path, bytes(range(100)))
    damage(kind, path)
    assert read_cache(path) is None


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert not write_cache(file / "a.o", b"code")
    assert not write_cache(file / "folder" / "a.o", b"code")
    (tmp_path / "a.o").mkdir()  # in the place of the file
    assert not write_cache(tmp_path / "a.o", b"code")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.o", "file"]


def test_code_under_another_name_counts_as_none(tmp_path):
    write_cache(tmp_path / "a.o", b"code")
    (tmp_path / "a.o").rename(tmp_path / "b.o")
    assert read_cache(tmp_path / "b.o") is None


# ---------------------------------------------------------------- other users


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(cache, "_warned", set())


def give_away(path, monkeypatch):
    """Let a file or folder belong to another user; who is not root becomes another one instead."""
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


def refused(path):
    """The one warning with which a kept file is not used."""
    with pytest.warns(UserWarning, match="kernels in it are not used") as caught:
        assert read_cache(path) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        assert read_cache(path) is None
    (warning,) = caught
    return str(warning.message)


@POSIX
def test_a_folder_that_is_made_is_for_its_user_alone(tmp_path):
    assert write_cache(tmp_path / "new" / "folder" / "a.o", b"code")
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700


@POSIX
def test_the_folder_of_another_user_is_neither_read_nor_written(tmp_path, monkeypatch):
    path = tmp_path / "kernels" / "a.o"
    write_cache(path, b"code")
    give_away(path.parent, monkeypatch)
    message = refused(path)
    assert message.startswith(f"{path.parent}: belongs to another user (number ")
    assert "MINIBERT_CACHE_DIR" in message
    assert not write_cache(path, b"other")
    assert [each.name for each in path.parent.iterdir()] == ["a.o"]


@POSIX
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_may_write_is_neither_read_nor_written(tmp_path, mode):
    path = tmp_path / "kernels" / "a.o"
    write_cache(path, b"code")
    path.parent.chmod(mode)
    assert refused(path).startswith(f"{path.parent}: others may write it (mode {mode:o})")
    assert not write_cache(path, b"other")
    path.parent.chmod(0o755)
    assert read_cache(path) == b"code"


@POSIX
def test_a_link_to_a_folder_counts_as_what_it_leads_to(tmp_path):
    path = tmp_path / "kernels" / "a.o"
    write_cache(path, b"code")
    (tmp_path / "link").symlink_to(path.parent)
    assert read_cache(tmp_path / "link" / "a.o") == b"code"
    path.parent.chmod(0o777)
    assert "others may write it" in refused(tmp_path / "link" / "a.o")


@POSIX
@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_not_read_but_replaced(tmp_path, mode):
    path = tmp_path / "a.o"
    write_cache(path, b"code")
    path.chmod(mode)
    assert refused(path).startswith(f"{path}: others may write it (mode {mode:o})")
    assert write_cache(path, b"code")
    assert read_cache(path) == b"code"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
def test_a_file_of_another_user_is_not_read_but_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.o"
    write_cache(path, b"code")
    give_away(path, monkeypatch)
    assert refused(path).startswith(f"{path}: belongs to another user (number 12345)")
    assert write_cache(path, b"code")
    assert read_cache(path) == b"code"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs files that belong to root"
)
def test_what_root_has_compiled_is_used_by_others(tmp_path, monkeypatch):
    path = tmp_path / "a.o"
    write_cache(path, b"code")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert read_cache(path) == b"code"


@POSIX
def test_a_link_to_a_file_counts_as_what_it_leads_to_and_is_replaced(tmp_path):
    path = tmp_path / "real" / "a.o"
    write_cache(path, b"code")
    (tmp_path / "a.o").symlink_to(path)
    assert read_cache(tmp_path / "a.o") == b"code"
    path.chmod(0o666)
    assert "others may write it" in refused(tmp_path / "a.o")
    assert write_cache(tmp_path / "a.o", b"other")
    assert read_cache(tmp_path / "a.o") == b"other"
    assert path.read_bytes()[32:] == b"code"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.o", 0o600)
    assert read_cache(tmp_path / "a.o") is None
    assert write_cache(tmp_path / "a.o", b"code")
    assert read_cache(tmp_path / "a.o") == b"code"


def test_names_that_no_file_can_have_are_no_error(tmp_path):
    for path in (Path("a\0b", "c"), tmp_path / "a\0b", tmp_path / ("x" * 5000)):
        assert read_cache(path) is None
        assert not write_cache(path, b"code")


# ---------------------------------------------------------------- the format of machine code


def test_a_whole_file_is_told_from_what_is_none():
    good = elf(62)
    assert sound_elf(good, "x86_64")
    assert not sound_elf(good, "aarch64")
    for end in range(len(good)):
        assert not sound_elf(good[:end], "x86_64")
    for at, value in ((0, 0), (4, 1), (5, 2), (40, 65), (58, 40), (60, 0), (60, 2), (112, 3)):
        damaged = bytearray(good)
        damaged[at] = value
        assert not sound_elf(bytes(damaged), "x86_64")
    damaged = bytearray(good)
    damaged[64 + 32] = 200  # bytes of the section
    assert not sound_elf(bytes(damaged), "x86_64")
    damaged[64 + 4] = 8  # which takes no room in the file
    assert sound_elf(bytes(damaged), "x86_64")
