"""Cases in folders: the files, what is done with them, what came of it, how to run it again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fuzzing.kinds import Case
from fuzzing.verdicts import Verdict


def save_case(folder: Path, case: Case, verdict: Verdict, command: str) -> None:
    """Write a case into a folder, in place of what is there.

    Args:
        folder: for it alone.
        case: the smallest that was found.
        verdict: what came of it.
        command: that runs the case from which it comes.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "files").mkdir(parents=True)
    for name, content in case.files.items():
        path = folder / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    document = {"kind": case.kind, "call": case.call}
    (folder / "case.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = f"{verdict.outcome} {verdict.where}\n\n{verdict.detail}\n\nThis, the smallest found:\n"
    text += f"    python tools/fuzz.py --case {folder}\nWhat it was found as:\n    {command}\n"
    (folder / "verdict.txt").write_text(text, encoding="utf-8", errors="backslashreplace")


def load_case(folder: Path) -> Case:
    """Read a case that was saved.

    Raises:
        OSError: none lies there.
    """
    document = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    paths = [path for path in sorted((folder / "files").rglob("*")) if path.is_file()]
    files = {path.relative_to(folder / "files").as_posix(): path.read_bytes() for path in paths}
    return Case(document["kind"], files, document["call"])
