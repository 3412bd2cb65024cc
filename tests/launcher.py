"""Undoes what whoever started the tests may have set.

A runner in the background ignores Ctrl-C, a cluster sets numbers of threads, a container has a
home that cannot be written, a shell hides or forces colours.  The tests and the programs that they
start inherit all of it, so it is put right here once, before anything else is imported.  What a
test is about, it sets itself.
"""

from __future__ import annotations

import atexit
import locale
import os
import shutil
import signal
import tempfile
from contextlib import suppress

# Variables that change what is computed, printed or looked up ...
BEGINNINGS = ("MINIBERT_", "HF_", "NUMBA_", "OMP_", "CLICOLOR")
OTHERS = (
    "COLUMNS LINES NO_COLOR FORCE_COLOR LANG LANGUAGE LC_ALL LC_CTYPE PYTHONCOERCECLOCALE "
    "PYTHONIOENCODING PYTHONINSPECT PYTHONOPTIMIZE PYTHONSAFEPATH PYTHONUNBUFFERED PYTHONUTF8 "
    "PYTHONWARNINGS PYTHON_COLORS"
).split()
# ... but for those that say where something lies, and which of the processor's kernels to test.
KEPT = ("MINIBERT_SQUAD", "MINIBERT_CHROMIUM", "MINIBERT_CACHE_DIR", "MINIBERT_CPU")


def settle() -> None:
    """Set signals, variables, the encoding and the umask as most people's shells have them."""
    for name in ("SIGINT", "SIGTERM", "SIGALRM", "SIGCHLD"):  # not SIGHUP: nohup means it
        if number := getattr(signal, name, None):
            usual = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, usual)
            if hasattr(signal, "pthread_sigmask"):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.umask(0o022)
    with suppress(locale.Error):  # not every system has it
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    for name in list(os.environ):
        if (name.startswith(BEGINNINGS) and name not in KEPT) or name in OTHERS:
            del os.environ[name]
    os.environ["TERM"] = "dumb"
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
    # NumPy's products are small here, and its threads wait for each other where cores are shared.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"


def keep_compiled(folder: os.PathLike[str]) -> None:
    """Let kernels be kept for this run where the usual folder for them cannot be written."""
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        os.environ["MINIBERT_CACHE_DIR"] = made = tempfile.mkdtemp(prefix="minibert-kernels-")
        atexit.register(shutil.rmtree, made, ignore_errors=True)
