"""A browser that loads a page, where there is one."""

import os
import shutil
import subprocess

import pytest


def browser():
    """Chromium or Chrome: on PATH, or named by MINIBERT_CHROMIUM; None if there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("MINIBERT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


needs_browser = pytest.mark.skipif(
    browser() is None, reason="no Chromium or Chrome on PATH, nor named by MINIBERT_CHROMIUM"
)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --enable-logging=stderr"
)


def load(path, tmp_path):
    """What a browser makes of a page, and what it has to say about it."""
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [browser(), *OPTIONS.split(), "--dump-dom", profile, path.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
