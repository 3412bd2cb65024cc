"""Chromium: what it makes of a page; and, through its debugging pipe, pages as people use them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds; only a fault takes so long
MISSING = "no Chromium or Chrome on PATH, nor named by MINIBERT_CHROMIUM"
KEYS = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}


def find_browser():
    """The program, or None."""
    return os.environ.get("MINIBERT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


needs_browser = pytest.mark.skipif(find_browser() is None, reason=MISSING)
QUIETLY = "--headless --no-sandbox --disable-gpu --disable-background-networking"


def load(path, tmp_path):
    """What the browser makes of a page, and what it has to say about it."""
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    options = [*QUIETLY.split(), "--enable-logging=stderr", "--dump-dom", profile]
    done = subprocess.run(
        [find_browser(), *options, path.as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class Browser:
    """One tab.

    Args:
        folder: where the browser may write.
    """

    def __init__(self, folder):
        options = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --no-first-run"
        theirs_in, self.write = os.pipe()
        self.read, theirs_out = os.pipe()

        def place():  # the numbers that Chromium expects
            for number, end in ((3, os.dup(theirs_in)), (4, os.dup(theirs_out))):
                os.dup2(end, number)

        # Above 4, so that putting one in its place does not hide the other.
        theirs_in, theirs_out = above(theirs_in), above(theirs_out)
        with open(os.path.join(folder, "stderr"), "wb") as errors:
            self.process = subprocess.Popen(
                [find_browser(), *options.split(), f"--user-data-dir={folder}", "about:blank"],
                stderr=errors,
                pass_fds=(3, 4),
                preexec_fn=place,
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self.guard = threading.Timer(PATIENCE, self.process.kill)
        self.guard.start()
        self.number, self.buffer, self.session = 0, b"", None
        self.complaints = []  # what the console says
        found = self.send("Target.getTargets")["targetInfos"]
        target = next(each["targetId"] for each in found if each["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Runtime", "Log", "Page", "Accessibility"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.guard.cancel()
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)

    def send(self, method, **params):
        """One command, and its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            got = self._receive()
            if got.get("id") == self.number:
                assert "error" not in got, got
                return got["result"]

    def _receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.read, 65536)
            assert part, "the browser has ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        if message.get("method") in ("Log.entryAdded", "Runtime.consoleAPICalled"):
            self.complaints.append(json.dumps(message["params"]))
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(message["params"]))
        return message

    def run(self, script):
        """The value of an expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script):
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def open(self, url):
        """Go to a page."""
        self.send("Page.navigate", url=url)
        self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def press(self, key):
        """Press a key of the keyboard."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text):
        """Type into what has the focus, in place of what it holds."""
        self.run("document.activeElement.select()")
        self.send("Input.insertText", text=text)

    def spoken(self):
        """What a screen reader is told: (role, name) of each part of the page."""
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]


def above(descriptor):
    """The same file under a number above 4."""
    taken = []
    while descriptor <= 4:
        taken.append(descriptor)
        descriptor = os.dup(descriptor)
    for each in taken:
        os.close(each)
    return descriptor
