"""Runs a learner's code in a process of its own, which may be lost."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from minibert.lessons.reading import Unusable

# Seconds for one file.  The slowest right one takes two; a busy computer takes its time.
SECONDS = 30.0
MEMORY = 2 * 2**30  # bytes that a learner's code may take beside what Python and NumPy have
LONGEST_START = 120  # seconds until a process has imported what it needs, on a very busy computer


def run_apart(module: str, folder: Path, what: str, seconds: float = SECONDS) -> dict[str, Any]:
    """Run `python -m module` on a folder, and read the result that it writes.

    Args:
        module: whose `main` calls `report`.
        folder: of lessons.
        what: of them it is about.
        seconds: how long the learner's code may take.

    Returns:
        What it reported.

    Raises:
        Unusable: it ended without a result; the text says how.
    """
    with tempfile.TemporaryDirectory(prefix="minibert-lessons-") as place:
        result = Path(place) / "result"
        # Products here are small, and threads would wait for each other on a busy computer.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-m", module, str(folder), what, str(result), str(seconds)]
        # Not a pipe, which a process that a learner's code has started would keep open.
        with open(f"{result}.errors", "wb") as errors:
            code = _run(command, environment, errors, seconds)
        if result.exists():
            reported: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            return reported
        stack = Path(f"{result}.stack")
        stopped = stack.read_text(encoding="utf-8", errors="replace") if stack.exists() else ""
        said = Path(f"{result}.errors").read_text(encoding="utf-8", errors="replace")
    place = _place(stopped, folder)
    if code is None or "Timeout" in stopped:
        raise Unusable(
            "broken", f"{place}it does not come to an end: stopped after {seconds:g} seconds"
        )
    if "MemoryError" in said:
        raise Unusable("broken", "it asks for more memory than there is for it")
    how = f"signal {-code}" if code < 0 else f"status {code}"
    last = said.strip().splitlines()[-1:]
    raise Unusable(
        "broken", f"{place}{': '.join([f'it ends Python itself ({how}), without a result', *last])}"
    )


def _run(
    command: list[str], environment: dict[str, str], errors: BinaryIO, seconds: float
) -> int | None:
    """Run a command; its status, or None if it had to be killed.

    What it has forked ends with it: without that, a fork in a function that is called many times
    doubles the processes at each call, and nothing would stop them.
    """
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        env=environment,
        start_new_session=True,  # a group of its own
    ) as process:
        try:
            return process.wait(LONGEST_START + 2 * seconds)
        except subprocess.TimeoutExpired:  # it has switched off what should have stopped it
            return None
        finally:
            process.kill()
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)


def _place(stack: str, folder: Path) -> str:
    """Where in a learner's file the process was; the innermost place comes first."""
    for name, line in re.findall(r'File "([^"]+)", line (\d+)', stack):
        if Path(name).parent == folder:
            return f"line {line}: "
    return ""


def report(main: Callable[[Path, str], dict[str, Any]]) -> None:
    """Be the program that `run_apart` starts: run `main` under limits, and write its result."""
    folder, what, result, seconds = sys.argv[1:]
    limit_memory()
    with open(f"{result}.stack", "w", encoding="utf-8") as stack:
        faulthandler.enable(stack)
        faulthandler.dump_traceback_later(float(seconds), exit=True, file=stack)
        found = main(Path(folder), what)
        faulthandler.cancel_dump_traceback_later()
        faulthandler.disable()
    draft = Path(f"{result}.part")
    draft.write_text(json.dumps(found), encoding="utf-8")
    draft.replace(result)
    os._exit(0)  # whatever threads a learner's code has left


def limit_memory() -> None:
    """Let what asks for too much memory fail, where the system can do so."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = size + MEMORY if most == resource.RLIM_INFINITY else min(size + MEMORY, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, OSError, ValueError):
        return
