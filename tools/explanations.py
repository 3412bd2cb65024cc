"""Five pages of minibert explain, and what they are in a browser: bytes, elements, shapes, seconds.

One question of each kind: answered, without an answer, answered wrongly, of a text in three
windows, and of another family.  Prints the table of minibert/explaining/README.md, and leaves the
pages in a folder, each with pictures of it to look at: light, dark, narrow, and printed.

    python tools/explanations.py FOLDER      # needs Chromium; see tests/browser.py
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the command has it; see there

from safetensors.numpy import save_file

from minibert import QuestionAnswerer
from minibert.config import BertConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import Browser  # noqa: E402
from random_models import random_tensors  # noqa: E402

PLAY = (
    "The play was written by Ann Lee in 1990. Her brother Tom Lee painted the stage, and Mary Hill "
    "composed the songs. It was first shown in Oslo in March 1991, and half a year later in Rome."
)
DIARY = " ".join(
    f"Day {day}: the ship went north with {day % 7 + 9} men, and nobody wrote to the captain."
    for day in range(1, 21)
)
LOVELACE = (
    "Ada Lovelace wrote the first program in 1843, in London. It was never run! Sa mère, Anne, "
    "l'éleva près de Londres; 東京 is far. The ship sailed from Berlin to Paris, 3,000 km away"
)
SIZE = {  # of the embedded model
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
}
PAPER = {"paperWidth": 8.27, "paperHeight": 11.69}  # inches: A4


class Case(NamedTuple):
    """A question of some kind."""

    kind: str
    question: str
    text: str
    family: str = ""  # whose tokenizer of tests/goldens/families; '': the embedded model


CASES = (
    Case("answered", "Who wrote the play?", PLAY),
    Case("no answer", "Who directed the play?", PLAY),
    Case("wrong", "Where was the play written?", PLAY),
    Case("three windows", "Who wrote the play?", f"{DIARY} {PLAY} {DIARY}"),
    Case("another family", "Qui a écrit le programme?", LOVELACE, "xlm-roberta"),
)


def answerer(family: str, folder: Path) -> QuestionAnswerer:
    """The embedded model; or one as large with a family's tokenizer, and random weights."""
    if not family:
        return QuestionAnswerer()
    shutil.copytree(ROOT / "tests" / "goldens" / "families" / family, folder)
    (folder / "golden.safetensors").unlink()
    said = folder / "config.json"
    said.write_text(json.dumps(json.loads(said.read_text("utf-8")) | SIZE), encoding="utf-8")
    save_file(random_tensors(BertConfig.from_json(said), 1), folder / "model.safetensors")
    return QuestionAnswerer(folder)


def count(browser: Browser, page: Path) -> tuple[int, int]:
    """Elements of a page when it has been loaded, and shapes in the figure that has most."""
    browser.open(page.as_uri())
    nodes = browser.run("document.querySelectorAll('*').length")
    figures = (
        "[...document.querySelectorAll('svg')].map((each) => each.querySelectorAll('*').length)"
    )
    return nodes, browser.run(f"Math.max(0, ...{figures})")


def picture(browser: Browser, page: Path) -> None:
    """Photograph the page that is open: light, dark and narrow, and as it is printed."""
    for name, scheme, width in (
        ("light", "light", 1000),
        ("dark", "dark", 1000),
        ("narrow", "light", 400),
    ):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.send("Emulation.setDeviceMetricsOverride", **size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.send("Emulation.setEmulatedMedia", features=media)
        taken = browser.send("Page.captureScreenshot", captureBeyondViewport=True)
        page.with_name(f"{page.stem}-{name}.png").write_bytes(base64.b64decode(taken["data"]))
    printed = browser.send("Page.printToPDF", printBackground=False, **PAPER)
    page.with_suffix(".pdf").write_bytes(base64.b64decode(printed["data"]))


def row(case: Case, folder: Path, scratch: Path) -> list[Any]:
    """Make one page and look at it."""
    qa = answerer(case.family, scratch / "model")
    qa.answer(case.question, case.text)  # kernels are there
    began, busy = time.perf_counter(), time.process_time()
    found = qa.explain(case.question, case.text)
    page = folder / f"{case.kind.replace(' ', '-')}.html"
    found.save(str(page))
    seconds, worked = time.perf_counter() - began, time.process_time() - busy
    (scratch / "browser").mkdir()
    with Browser(scratch / "browser") as browser:
        nodes, shapes = count(browser, page)
        picture(browser, page)
        if browser.complaints:
            raise SystemExit(f"{page}: {browser.complaints}")
    return [
        case.kind,
        case.question,
        str(found.answers[0]) or "(no answer)",
        f"{len(found.seen)}, {len(found.names)}",
        f"{page.stat().st_size:,}",
        f"{nodes:,}",
        shapes,
        f"{seconds:.1f}",
        f"{worked:.1f}",
    ]


def main() -> None:
    """Make the pages, and print the table."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    head = (
        *("", "question", "answer", "windows, tokens of the one shown"),
        *("bytes", "elements", "shapes", "seconds", "of a core"),
    )
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            print(f"| {' | '.join(map(str, row(case, folder, Path(scratch))))} |", flush=True)


if __name__ == "__main__":
    main()
