"""Files and folders are written whole, whenever somebody is killed, and what is left is swept."""

import errno
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from random_models import write_model

from minibert import drafts
from minibert.drafts import (
    ASIDE,
    DAY,
    draft_folder,
    exchange,
    put_back,
    sweep,
    whole_file,
    whole_folder,
)

POSIX = pytest.mark.skipif(os.name == "nt", reason="needs locks and forks")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def age(path, seconds):
    before = time.time() - seconds
    os.utime(path, (before, before))


# ---------------------------------------------------------------- whole or not at all


def test_a_file_appears_when_it_is_complete(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    with whole_file(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_bytes() == b"old"
        assert len(names(tmp_path)) == 2
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_when_it_is_complete(tmp_path):
    for content in ("first", "second"):
        with whole_folder(tmp_path / "a") as draft:
            (draft / content).touch()
        assert names(tmp_path / "a") == [content]
        assert names(tmp_path) == ["a"]


def test_what_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "old").touch()

    def stop(content, target):
        with content(target):
            raise KeyboardInterrupt

    for content, name in ((whole_file, "a"), (whole_folder, "b")):
        with pytest.raises(KeyboardInterrupt):
            stop(content, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path / "b") == ["old"]
    assert names(tmp_path) == ["a", "b"]


@POSIX
def test_others_may_read_what_is_written_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        with whole_file(tmp_path / "a"):
            pass
        with whole_folder(tmp_path / "b") as draft:
            (draft / "c").touch()
    finally:
        os.umask(before)
    for name, mode in (("a", 0o644), ("b", 0o755), ("b/c", 0o644)):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    name = "x" * 255
    with whole_file(tmp_path / name) as file:
        file.write(b"content")
    with whole_folder(tmp_path / f"y{name[1:]}"):
        pass
    assert names(tmp_path) == [name, f"y{name[1:]}"]
    with pytest.raises(OSError, match="too long"), whole_file(tmp_path / f"{name}x"):
        pass
    assert len(names(tmp_path)) == 2


@POSIX
def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    done = []

    def record(function):
        real = getattr(os, function)

        def recorded(*args):
            at = os.readlink(f"/proc/self/fd/{args[0]}") if function == "fsync" else args[0]
            done.append((function, Path(at).name.partition("-")[0]))
            return real(*args)

        monkeypatch.setattr(os, function, recorded)

    if not os.path.exists("/proc/self/fd"):
        pytest.skip("only Linux tells which file is open")
    record("fsync")
    record("replace")
    with whole_file(tmp_path / "a"):
        pass
    around = tmp_path.name.partition("-")[0]
    assert done == [("fsync", ".minibert"), ("replace", ".minibert"), ("fsync", around)]
    done.clear()
    with whole_folder(tmp_path / "b") as draft:
        (draft / "c").touch()
    assert done == [
        ("fsync", "c"),
        ("fsync", ".minibert"),
        ("replace", ".minibert"),
        ("fsync", around),
    ]


def test_a_folder_that_cannot_be_brought_to_the_disk_is_no_error(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(tmp_path / "a") as file:
        file.write(b"content")
    assert (tmp_path / "a").read_bytes() == b"content"


# ---------------------------------------------------------------- one takes another's place


def test_two_folders_change_their_names(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot do that")
    assert (names(tmp_path / "a"), names(tmp_path / "b")) == (["b"], ["a"])
    assert not exchange(tmp_path / "a", tmp_path / "missing")
    assert names(tmp_path) == ["a", "b"]


@pytest.fixture
def no_exchange(monkeypatch):
    monkeypatch.setattr(drafts, "exchange", lambda *_: False)


def test_without_an_exchange_a_folder_is_replaced_too(tmp_path, no_exchange):
    test_a_folder_appears_when_it_is_complete(tmp_path)


@pytest.mark.parametrize("failing", [1, 2])
def test_without_an_exchange_the_old_folder_is_put_back(
    tmp_path, monkeypatch, no_exchange, failing
):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    real, calls = os.replace, []

    def replace(*args):
        calls.append(args)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(*args)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), whole_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["old"]


def test_what_was_put_aside_comes_back_unless_the_new_one_is_there(tmp_path):
    aside = tmp_path / f"a{ASIDE}"
    aside.mkdir()
    (aside / "old").touch()
    put_back(tmp_path / "a")
    assert names(tmp_path / "a") == ["old"]
    aside.mkdir()
    put_back(tmp_path / "a")
    assert names(tmp_path) == ["a", aside.name]  # who only asks removes nothing
    with whole_folder(tmp_path / "a") as draft:
        (draft / "new").touch()
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["new"]


# ---------------------------------------------------------------- killed at any moment

# Ends this process at the N-th thing that it asks of the file system, by way of Python's audit.
KILLED = """
import os, sys
from minibert import drafts
from minibert.checkpoints.conversion import convert

source, target, can_exchange = sys.argv[1], sys.argv[2], sys.argv[3] == "True"
if not can_exchange:
    drafts.exchange = lambda *_: False
convert(source, target + "-before", bits=8)  # all that is imported late is imported

counted = -1
EVENTS = ("open", "os.", "shutil.", "tempfile.", "ctypes.dlsym")

def count(event, _):
    global counted
    if counted > 0 and event.startswith(EVENTS):
        counted -= 1
        if not counted:
            os._exit(9)

sys.addaudithook(count)
number = 0
while True:
    number += 1
    child = os.fork()
    if not child:
        counted = number
        convert(source, target, bits=8, overwrite=True)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    what = [name for name in (target, target + ".minibert-old") if os.path.isdir(name)]
    print(status, *(sorted(os.listdir(name)) for name in what), sep=";", flush=True)
    if status == 0:
        break
"""


@POSIX
@pytest.mark.slow
@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_conversion_killed_at_any_moment_leaves_the_old_model_or_the_new(tmp_path, can_exchange):
    source, target = write_model(tmp_path / "source"), write_model(tmp_path / "target")
    (target / "README.md").touch()  # tells the old model from the new one
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(source), str(target), str(can_exchange)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *killed, last = done.stdout.splitlines()
    assert len(killed) > 20
    assert last.startswith("0;")
    old, new = (str(names(each)) for each in (source, target))
    old = str(sorted([*names(source), "README.md"]))
    for line in killed:
        status, *found = line.split(";")
        assert status == "9"
        assert found
        assert found[0] in (old, new)  # whole, and under its name or, in between, beside it
        assert can_exchange <= (len(found) == 1)
    assert names(tmp_path) == ["source", "target", "target-before"]


# ---------------------------------------------------------------- what others left

LEAVES = """
import os, sys
from pathlib import Path
from minibert.drafts import draft_folder, whole_file

folder = Path(sys.argv[1])
with whole_file(folder / "a") as file, draft_folder(folder) as draft:
    file.write(b"half")
    file.flush()
    (draft / "part").touch()
    print("there", flush=True)
    sys.stdin.readline()
    os._exit(9)
"""


@POSIX
def test_drafts_are_swept_when_and_not_before_their_process_has_gone(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "there\n"
        before = names(tmp_path)
        for name in before:
            age(tmp_path / name, 2 * DAY)
        with whole_file(tmp_path / "b"):
            pass
        assert names(tmp_path) == [*before, "b"]
        process.stdin.write("\n")
    assert len(before) == 2
    assert names(tmp_path) == [*before, "b"]
    with whole_file(tmp_path / "b"):
        pass
    assert names(tmp_path) == ["b"]


@POSIX
def test_what_another_machine_left_is_swept_after_a_day(tmp_path):
    theirs = tmp_path / ".minibert-00000000-abcdefgh.draft"
    theirs.touch()
    sweep(tmp_path)
    assert theirs.exists()
    age(theirs, 2 * DAY)
    sweep(tmp_path)
    assert not theirs.exists()


@pytest.mark.parametrize("folder", [True, False])
def test_without_locks_drafts_are_swept_after_a_day(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(drafts, "try_lock", lambda _: None)
    draft, handle = drafts._begin(tmp_path, folder)
    if handle is not None:
        os.close(handle)
    sweep(tmp_path)
    assert draft.exists()
    age(draft, 2 * DAY)
    sweep(tmp_path)
    assert not draft.exists()


def test_nothing_that_is_not_a_draft_of_ours_is_swept(tmp_path):
    ours = ".minibert-00000000-abcdefgh.draft"
    for name in (".minibert", "minibert-00000000-abcdefgh.draft", f"{ours}2", "a.draft", ".a.tmp"):
        (tmp_path / name).touch()
        age(tmp_path / name, 2 * DAY)
    before = names(tmp_path)
    if os.name != "nt":
        (tmp_path / "precious").touch()
        age(tmp_path / "precious", 2 * DAY)
        (tmp_path / ours).symlink_to("precious")
        before = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == before
    sweep(tmp_path / "missing")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)
def test_drafts_of_another_user_are_not_swept(tmp_path):
    theirs = tmp_path / ".minibert-00000000-abcdefgh.draft"
    theirs.touch()
    age(theirs, 2 * DAY)
    os.chown(theirs, 12345, 12345)
    sweep(tmp_path)
    assert theirs.exists()


@POSIX
def test_a_draft_that_is_swept_while_it_is_made_is_made_again(tmp_path, monkeypatch):
    real, swept = drafts.try_lock, []

    def late(handle):
        if not swept:
            swept.extend(names(tmp_path))
            (tmp_path / swept[0]).rmdir()
        return real(handle)

    monkeypatch.setattr(drafts, "try_lock", late)
    with draft_folder(tmp_path) as draft:
        assert draft.is_dir()
        assert draft.name not in swept
