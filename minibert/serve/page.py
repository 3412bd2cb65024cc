"""The page at `/`, where a model can be tried: page.html in the frame of minibert's other pages.

It loads nothing: a browser may run its one script, which it knows by its hash, and that may ask
this server and no other.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib.resources import files

from minibert.pages.page import STYLE


@functools.cache
def whole_page(with_key: bool = False) -> str:
    """The page as HTML.

    Args:
        with_key: whether it asks for the API key.
    """
    text = files("minibert.serve").joinpath("page.html").read_text(encoding="utf-8")
    hidden = "" if with_key else " hidden"
    return text.replace("/* the frame */", STYLE).replace(
        "<p id=key-row>", f"<p id=key-row{hidden}>"
    )


@functools.cache
def security_policy() -> str:
    """What a browser may do with the page: its own script and style, and questions to here."""
    page = whole_page()
    script, style = (_hash(page, name) for name in ("script", "style"))
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(page: str, name: str) -> str:
    """The hash by which a browser knows the one <script> or <style> of the page."""
    inner = re.findall(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)
    digest = hashlib.sha256("".join(inner).encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
