"""Write anew what the sessions in a document print: those in its blocks marked `pycon`.

    python tools/renew_sessions.py minibert/lessons/how-bert-answers.md

For when another model has come along.  Then read `git diff`: does the text beside a number that
changed still hold?  tests/test_docs.py runs the same sessions and compares.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import sys
from pathlib import Path
from typing import Any


def renewed(document: str) -> str:
    """The document with the output that its sessions give now; they share their names."""
    names: dict[str, Any] = {}
    return re.sub(
        r"(?<=```pycon\n).*?(?=```)",
        lambda block: renewed_session(block[0], names),
        document,
        flags=re.DOTALL,
    )


def renewed_session(text: str, names: dict[str, Any]) -> str:
    """One session, run in `names`."""
    parts = []
    for part in doctest.DocTestParser().parse(text):
        if isinstance(part, str):
            parts.append(part)
            continue
        first, *others = part.source.splitlines()
        parts += [f">>> {first}\n", *(f"... {line}".rstrip() + "\n" for line in others)]
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(part.source, "session", "single"), names)
        parts.append(re.sub(r"^$", "<BLANKLINE>", out.getvalue().rstrip("\n"), flags=re.M))
        parts[-1] = f"{parts[-1]}\n" if out.getvalue() else ""
    return "".join(parts)


def main() -> None:
    """Renew the documents that are named."""
    for name in sys.argv[1:]:
        path = Path(name)
        before = path.read_text(encoding="utf-8")
        after = renewed(before)
        path.write_text(after, encoding="utf-8")
        print(f"{name}: {'changed; read git diff' if after != before else 'as it was'}")


if __name__ == "__main__":
    main()
