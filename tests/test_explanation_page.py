"""The page of an explanation, and what its script decides in a browser."""

import base64
import hashlib
import html
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, load, needs_browser
from random_models import random_tensors
from safetensors.numpy import save_file

from minibert import QuestionAnswerer
from minibert.cli import main
from minibert.config import BertConfig
from minibert.pages.explanation import SECTIONS
from minibert.probabilities import decode_probabilities

QUESTION = "Who wrote the play?"
TEXT = (
    "It rained. The play was written by Ann Lee in 1990. Nobody came to see it. 𝒜nn Łee wrote "
    "another one later, <script>alert(1)</script> & more."
)
NODES = 1500  # elements of a page, at most
VOID = {"meta", "link", "input", "br"}


class Elements(HTMLParser):
    """Counts elements, and checks that each is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.ids, self.texts = [], 0, [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.count += 1
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts[self.open[-1]] = self.texts.get(self.open[-1], "") + data


@pytest.fixture(scope="module")
def qa(tiny_folder):
    return QuestionAnswerer(tiny_folder, device="reference")


@pytest.fixture(scope="module")
def shown(qa):
    return qa.explain(QUESTION, TEXT, max_seq_length=40, doc_stride=10)


def test_the_page_has_every_section_and_runs_its_own_script_only(shown):
    page = shown.html()
    elements = Elements(page)
    assert elements.texts["h1"] == f"How minibert answers: {QUESTION}"
    for number in range(1, len(SECTIONS) + 1):
        assert f"<h2>{number}. " in page
    [allowed] = re.findall(r"script-src 'sha256-([^']+)'", page)
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts] == [
        allowed
    ]
    assert "default-src 'none'" in page
    assert "alert(1)</script>" not in page
    assert len(set(elements.ids)) == len(elements.ids)
    assert elements.count < NODES


def test_every_canvas_has_a_sentence(shown):
    canvases = re.findall(r"<canvas ([^>]*)>", shown.html())
    assert len(canvases) == 1 + len(shown.maps)
    for attributes in canvases:
        assert 'role="img"' in attributes
        assert re.search(r'aria-label="[^"]{20,}"', attributes)


def test_the_code_of_the_steps_is_in_the_page(shown):
    page = html.unescape(shown.html())
    for name in (
        "embed",
        "layer_norm",
        "pack",
        "encoder_layer",
        "linear_add_norm",
        "gelu",
        "attention",
        "flow",
        "span_logits",
        "make_windows",
    ):
        assert f"def {name}(" in page
    assert "P = softmax(Q K^T / sqrt(Dh))" in page  # and its formula


def test_a_notebook_gets_the_page_in_a_frame(shown):
    frame = shown._repr_html_()
    assert frame.startswith('<iframe srcdoc="')
    assert html.unescape(frame.split('srcdoc="')[1].split('" sandbox')[0]) == shown.html()


def test_a_text_without_an_answer_and_one_without_words_have_a_page(qa):
    for text in ("?", "It rained."):
        for threshold in (-1e9, float("inf")):
            found = qa.explain(QUESTION, text, null_score_diff_threshold=threshold)
            assert Elements(found.html()).count < NODES


def test_the_command_writes_a_page(tiny_folder, tmp_path, capsys):
    target = tmp_path / "page.html"
    arguments = ["--model", str(tiny_folder), "--output", str(target), "--compare", "When?"]
    assert main(["explain", QUESTION, TEXT, *arguments]) == 0
    page = target.read_text(encoding="utf-8")
    assert "Side by side" in page
    assert Elements(page).count < NODES
    assert main(["explain", QUESTION, "", "--model", str(tiny_folder), "--output", "x.html"]) == 1
    assert "cannot be empty" in capsys.readouterr().err


@pytest.mark.slow
def test_a_page_of_384_tokens_is_small_and_has_few_elements(embedded):
    words = ["Ann Lee wrote the play in 1990, and nobody came to see it that winter."] * 40
    found = QuestionAnswerer(embedded).explain(QUESTION, " ".join(words), window=0)
    assert len(found.names) == 384
    page = found.html()
    assert len(page.encode()) < 3e6
    assert Elements(page).count < NODES


FAMILIES = sorted((Path(__file__).parent / "goldens" / "families").iterdir())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda path: path.name)
def test_every_family_has_a_page(family, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(family, folder)
    (folder / "golden.safetensors").unlink()
    config = BertConfig.from_json(folder / "config.json")
    save_file(random_tensors(config, 1), folder / "model.safetensors")
    qa = QuestionAnswerer(folder, device="reference")
    found = qa.explain(QUESTION, TEXT, max_seq_length=40, doc_stride=10)
    np.testing.assert_allclose(found.kept.start_logits, found.window.start, atol=2e-5)
    words = [word.text for word in found.words]
    assert "".join(QUESTION.split()) in "".join(words)
    assert Elements(found.html()).count < NODES


# ---------------------------------------------------------------- in a browser

MOVES = [
    {"longest": longest, "threshold": threshold, "align": align, "decoder": decoder}
    for decoder in ("sums", "products")
    for longest in (1, 4, 30)
    for threshold in (-20, 0, 1.25)
    for align in (True, False)
]
# Moves the sliders as a person would, and writes down what the page then says.
DRIVER = """
const results = [];
for (const move of %s) {
  for (const [id, value] of Object.entries(move)) {
    const control = document.getElementById(id);
    if (control.type === "checkbox") control.checked = value; else control.value = value;
    control.dispatchEvent(new Event("input"));
  }
  const best = document.getElementById("decision").textContent;
  results.push([best, JSON.parse(document.getElementById("decided").dataset.answers)]);
}
const note = document.createElement("pre");
note.id = "results";
note.textContent = JSON.stringify(results);
document.body.append(note);
"""


@needs_browser
@pytest.mark.slow
def test_sliders_move_the_answer_as_the_library_does(qa, shown, tmp_path):
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", shown.html())
    driver = f"<script>{DRIVER % json.dumps(MOVES)}</script>"
    path = tmp_path / "page.html"
    path.write_text(page.replace("</body>", f"{driver}</body>"), encoding="utf-8")
    dom, complaints = load(path, tmp_path)
    assert complaints == []
    results = json.loads(html.unescape(re.search(r'<pre id="results">(.*?)</pre>', dom)[1]))
    windows = [seen.window for seen in shown.seen]
    logits = [(seen.start, seen.end) for seen in shown.seen]
    for move, (best, found) in zip(MOVES, results, strict=True):
        if move["decoder"] == "sums":
            options = qa.options.__class__(
                max_answer_length=move["longest"],
                null_score_diff_threshold=move["threshold"],
                align_to_words=move["align"],
            )
            expected = [a.to_dict() for a in qa.decode(windows, logits, 12, options)]
        else:
            expected = decode_probabilities(
                windows,
                logits,
                cls_id=qa.model.tokenizer.cls_id,
                top_k=12,
                max_answer_len=move["longest"],
                handle_impossible_answer=True,
                align_to_words=move["align"],
            )
            expected = [a | {"text": a["answer"]} for a in expected]
        assert len(found) == len(expected) > 0
        for mine, theirs in zip(found, expected, strict=True):
            for name in ("text", "start", "end", "score"):
                assert mine[name] == theirs[name], (move, name)
            if "probability" in theirs:
                assert mine["probability"] == pytest.approx(theirs["probability"], rel=1e-12)
        assert best.endswith(found[0]["text"] or "no answer")


@needs_browser
@pytest.mark.slow
def test_a_browser_draws_the_page_without_a_complaint(shown, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(shown.html(), encoding="utf-8")
    dom, complaints = load(path, tmp_path)
    assert complaints == []
    assert re.search(r'<svg class="chart" id="lines"[^>]*>.*?<line ', dom, re.DOTALL)
    assert re.search(r'<p id="matrix-note">\d+ x \d+ pairs: ', dom)
    assert "The answer is now: " in dom
    assert re.search(r"4 strongest of each token are \d+% of what it reads here", dom)


@pytest.fixture
def browser(tmp_path):
    """A browser."""
    (tmp_path / "browser").mkdir()
    with Browser(tmp_path / "browser") as made:
        yield made


def written(found, tmp_path):
    """The address of the page of an explanation."""
    path = tmp_path / "page.html"
    found.save(str(path))
    return path.as_uri()


@needs_browser
@pytest.mark.slow
def test_what_a_model_says_of_itself_decides_until_a_slider_is_moved(tiny, browser, tmp_path):
    own = replace(tiny.config, null_threshold=-0.37, temperature=1.7)
    qa = QuestionAnswerer(replace(tiny, config=own))
    found = qa.explain(QUESTION, [TEXT, "It rained. " * 9], max_seq_length=40, doc_stride=10)
    browser.open(written(found, tmp_path))
    shown = json.loads(browser.run("document.getElementById('decided').dataset.answers"))
    for mine, theirs in zip(shown, found.answers, strict=True):
        assert (mine["text"], mine["start"], mine["score"]) == (
            theirs.text,
            theirs.start,
            theirs.score,
        )
        assert mine["probability"] == pytest.approx(theirs.probability, rel=1e-12)
    assert browser.run("document.getElementById('threshold-value').textContent") == "-0.37"
    assert browser.complaints == []


@needs_browser
@pytest.mark.slow
def test_the_grid_of_heads_is_one_stop_that_arrows_move_in(qa, browser, tmp_path):
    browser.open(written(qa.explain(QUESTION, TEXT), tmp_path))
    stops = "document.querySelectorAll('#heads td[tabindex=\"0\"]').length"
    place = (
        "[...document.querySelectorAll('#heads tbody td')]"
        ".findIndex((cell) => cell.getAttribute('aria-selected') === 'true')"
    )
    assert browser.run(stops) == 1
    note = browser.run("document.getElementById('lines-note').textContent")
    assert "The strongest: " in note
    browser.run("document.querySelector('#heads td[tabindex=\"0\"]').focus()")
    heads = qa.model.config.num_attention_heads
    before = browser.run(place)
    browser.press("ArrowDown" if before < heads else "ArrowUp")
    assert abs(browser.run(place) - before) == heads
    browser.press("ArrowLeft" if before % heads else "ArrowRight")
    assert browser.run(place) % heads != before % heads
    assert browser.run(stops) == 1
    assert browser.run("document.activeElement.getAttribute('aria-selected')") == "true"
    assert browser.run("document.getElementById('lines-note').textContent") != note
    browser.run("document.getElementById('no-specials').click()")
    assert browser.complaints == []


@needs_browser
@pytest.mark.slow
def test_a_full_page_fits_narrow_and_dark_screens_and_has_few_shapes(embedded, browser, tmp_path):
    words = ["Ann Lee wrote the play in 1990, and nobody came to see it that winter."] * 40
    found = QuestionAnswerer(embedded).explain(
        QUESTION, " ".join(words), window=0, compare="When did Ann Lee write it?"
    )
    browser.send(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=600,
        deviceScaleFactor=3,
        mobile=True,
    )
    browser.open(written(found, tmp_path))
    assert browser.run("document.documentElement.scrollWidth <= 360")
    assert browser.run("document.querySelectorAll('*').length") < NODES
    shapes = "Math.max(...[...document.querySelectorAll('svg')].map((e) => %s.length))"
    assert browser.run(shapes % "e.querySelectorAll('*')") <= 500
    pixels = "Math.max(...[...document.querySelectorAll('canvas')].map((c) => c.width * c.height))"
    assert browser.run(pixels) < 16.7e6
    ground = "getComputedStyle(document.body).backgroundColor"
    colours = set()
    for scheme in ("light", "dark"):
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.send("Emulation.setEmulatedMedia", features=media)
        colours.add(browser.run(ground))
    assert len(colours) == 2
    assert len(browser.send("Page.printToPDF", printBackground=False)["data"]) > 100_000
    images = [name for role, name in browser.spoken() if role == "image"]
    assert len(images) >= 1 + len(found.maps)
    assert all(images)
    assert browser.complaints == []
