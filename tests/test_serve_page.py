import html.parser
import os
import re

import pytest

pytest.importorskip("starlette", reason="minibert's extra 'serve' is not installed")
pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")

from browser import MISSING, Browser, find_browser
from servers import Served

from minibert import QuestionAnswerer
from minibert.serve.page import security_policy, whole_page

QUESTION = "who wrote it 🦊"
TEXT = "🦊 <b>it</b> was ada lovelace & nobody\nelse , who wrote it in 1843 . " * 2
CHROMIUM = pytest.mark.skipif(find_browser() is None or os.name == "nt", reason=MISSING)


def test_every_field_has_a_label_and_every_tag_is_closed():
    open_tags, ids, labels, fields = [], [], set(), set()

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            ids.append(attributes.get("id"))
            if tag not in ("meta", "link", "input"):
                open_tags.append(tag)
            if tag == "label":
                labels.add(attributes["for"])
            if tag in ("input", "textarea"):
                fields.add(attributes["id"])
            assert not {"src", "style", "onclick", "onload"} & set(attributes)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Parser().feed(whole_page())
    assert open_tags == []
    assert fields == labels == {"question", "context", "key"}
    there = [each for each in ids if each]
    assert len(there) == len(set(there))
    assert set(re.findall(r'at\("(\w+)"\)', whole_page())) <= set(there)


def test_the_policy_lets_nothing_be_loaded_and_fits_both_pages():
    policy = dict(part.strip().split(" ", 1) for part in security_policy().split(";"))
    assert policy["default-src"] == "'none'"
    assert "unsafe" not in security_policy()
    strip = re.compile(r"<p id=key-row( hidden)?>")
    assert strip.sub("", whole_page(True)) == strip.sub("", whole_page(False))
    assert "<p id=key-row hidden>" in whole_page(False)
    assert "<p id=key-row>" in whole_page(True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(str(tmp_path_factory.mktemp("browser"))) as browser:
        yield browser


@CHROMIUM
@pytest.mark.slow
def test_a_browser_asks_and_marks_the_answer(tiny, browser):
    expected = QuestionAnswerer(tiny, null_score_diff_threshold=float("inf"))
    with Served(tiny) as served:
        browser.complaints.clear()
        browser.open(served.url + "/")
        # With the keyboard alone.
        browser.press("Tab")
        assert browser.run("document.activeElement.id") == "question"
        browser.type(QUESTION)
        browser.press("Tab")
        browser.type(TEXT)
        browser.press("Tab")
        assert browser.run("document.activeElement.textContent") == "Ask"
        browser.press("Enter")
        browser.until("!document.getElementById('result').hidden")
        assert browser.run("document.getElementById('text').textContent") == TEXT
        found = QuestionAnswerer(tiny).n_best(QUESTION, TEXT, 6)
        everything = QuestionAnswerer(tiny).n_best(QUESTION, TEXT, 10**6)
        best, none = found[0], next(each for each in everything if each.is_null)
        shown = "document.getElementById('{}').textContent".format
        assert browser.run(shown("answer")) == (best.text or "No answer")
        figures = browser.run(shown("figures"))
        assert f"Probability of “no answer”: {100 * none.probability:.1f} %" in figures
        assert browser.run("document.querySelectorAll('#others tr').length") == 5
        rows = browser.run(shown("others"))
        for other in found[1:]:
            assert (other.text or "(no answer)") in rows
        # The mark, in characters beyond 16 bits too.
        best = expected.answer(QUESTION, TEXT)
        answers = f"[{{text: 'x', start: {best.start}, end: {best.end}, probability: 1, score: 1}}]"
        browser.run(f"show(document.getElementById('context').value, {answers}, 0.5)")
        mark = "document.querySelector('#text mark')"
        assert browser.run(f"{mark}.textContent") == best.text
        assert browser.run(f"{mark}.previousSibling.textContent") == TEXT[: best.start]
        assert browser.run(f"{mark}.nextSibling.textContent") == TEXT[best.end :]
        # What a screen reader says.
        spoken = browser.spoken()
        for part in (
            ("textbox", "Question"),
            ("textbox", "Text"),
            ("button", "Ask"),
            ("heading", "Ask a text"),
            ("heading", "Runners-up"),
            ("region", "The text, the answer marked"),
            ("status", ""),
            ("columnheader", "Probability"),
        ):
            assert part in spoken
        assert browser.run(shown("status")) == "Answer: x"
        assert browser.complaints == []


@CHROMIUM
@pytest.mark.slow
def test_a_browser_says_what_is_wrong(tiny, browser):
    with Served(tiny, key="the-key", max_characters=200) as served:
        browser.open(served.url + "/")
        error = "document.getElementById('error')"
        ask = "document.getElementById('form').requestSubmit()"
        browser.run(ask)
        browser.until(f"!{error}.hidden")
        assert "needs its API key" in browser.run(f"{error}.textContent")
        assert ("alert", "") in browser.spoken()
        browser.run("document.getElementById('key').value = 'the-key'")
        browser.run(ask)
        browser.until("!document.getElementById('result').hidden")
        assert browser.run(f"{error}.hidden")
        browser.run("document.getElementById('context').value = 'ada '.repeat(100)")
        browser.run(ask)
        browser.until(f"!{error}.hidden")
        assert "the limit is 200" in browser.run(f"{error}.textContent")
        assert browser.run("document.getElementById('result').hidden")
    browser.run(ask)  # nobody serves any more
    browser.until(f"{error}.textContent === 'The server cannot be reached.'")


@CHROMIUM
@pytest.mark.slow
def test_the_page_fits_narrow_screens_and_dark_ones(tiny, browser):
    with Served(tiny) as served:
        browser.send(
            "Emulation.setDeviceMetricsOverride",
            width=320,
            height=600,
            deviceScaleFactor=1,
            mobile=True,
        )
        browser.open(served.url + "/")
        browser.run("document.getElementById('form').requestSubmit()")
        browser.until("!document.getElementById('result').hidden")
        assert browser.run("document.documentElement.scrollWidth <= 320")
        colours = {}
        for scheme in ("light", "dark"):
            media = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.send("Emulation.setEmulatedMedia", features=media)
            for name in ("background-color", "color"):
                colours[scheme, name] = browser.run(
                    f"getComputedStyle(document.body).getPropertyValue('{name}')"
                )
        assert colours["light", "background-color"] == "rgb(255, 255, 255)"
        assert colours["dark", "background-color"] == "rgb(20, 24, 29)"
        assert len(set(colours.values())) == 4


@CHROMIUM
@pytest.mark.slow
def test_the_browser_runs_no_script_that_the_policy_does_not_know(tiny, browser):
    with Served(tiny) as served:
        browser.open(served.url + "/")
        browser.complaints.clear()
        browser.run(
            "{ const planted = document.createElement('script');"
            "  planted.textContent = 'window.planted = 1'; document.body.append(planted); }"
        )
        assert browser.run("window.planted") is None
        browser.until("true")
        assert "Content Security Policy" in " ".join(browser.complaints)
