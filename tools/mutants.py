# ruff: noqa: E501 (a mutant reads best as a row)
"""Break the code in known ways, one at a time; every break must turn a test red.

    python tools/mutants.py            all of them
    python tools/mutants.py gelu eps   those whose name contains a word

Each mutant is a copy of the package with one text replaced, in a temporary folder; the tests that
are named beside it run against the copy.  A mutant that passes its tests is reported, and the
status is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """One planted mistake."""

    name: str
    file: str
    old: str
    new: str
    tests: str  # files under tests/, separated by spaces


REFERENCE, SPANS, WINDOWS = "kernels/reference.py", "minibert/spans.py", "minibert/windows.py"
MUTANTS = [
    Mutant("tanh GELU", REFERENCE, '"gelu": gelu,', '"gelu": gelu_tanh,', "test_parity.py"),
    Mutant("gelu_new is exact", REFERENCE, '"gelu_new": gelu_tanh', '"gelu_new": gelu', "test_parity.py"),
    Mutant("eps forgotten", REFERENCE, "np.sqrt(variance + eps)", "np.sqrt(variance)", "test_parity.py"),
    Mutant("variance over D - 1", REFERENCE, "np.mean(centred * centred, axis=-1, keepdims=True)",
           "np.var(x, axis=-1, keepdims=True, ddof=1)", "test_parity.py"),
    Mutant("query and key swapped", REFERENCE, "query, key, _ =", "key, query, _ =", "test_parity.py"),
    Mutant("scores not scaled", REFERENCE, "/ math.sqrt(query.shape[-1])", "/ 1.0", "test_parity.py"),
    Mutant("no token types", REFERENCE, "x += tables.token_types.rows(token_type_ids)", "pass",
           "test_parity.py"),
    Mutant("positions run through the batch", "minibert/batches.py",
           "[np.arange(n, dtype=np.int32) for n in lengths]",
           "[np.arange(sum(lengths), dtype=np.int32)]", "test_windows.py"),
    Mutant("attention sees the neighbour window", REFERENCE, "window = qkv[begin:end]",
           "window = qkv[max(begin - 1, 0) : end][-(end - begin) :] if begin == 0 else "
           "qkv[begin - 1 : end - 1]", "test_kernels.py"),
    Mutant("heads interleaved", REFERENCE, "x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)",
           "x.reshape(len(x), -1, num_heads).transpose(2, 0, 1)", "test_parity.py"),
    Mutant("residual forgotten", REFERENCE, "linear(x, dense) + residual", "linear(x, dense)",
           "test_parity.py"),
    Mutant("start and end swapped", REFERENCE, "logits[:, 0], logits[:, 1]",
           "logits[:, 1], logits[:, 0]", "test_parity.py"),
    Mutant("stride off by one", WINDOWS, "text_parts(len(context), room, room - doc_stride)",
           "text_parts(len(context), room, room - doc_stride - 1 or 1)", "test_windows.py"),
    Mutant("last window shifted back", WINDOWS, "[(i * step, min(i * step + room, length))",
           "[(min(i * step, length - room), min(i * step + room, length))", "test_windows.py"),
    Mutant("second [SEP] of type 0", WINDOWS, "types[len(head) :] = 1", "types[len(head) : -1] = 1",
           "test_windows.py"),
    Mutant("answers one token too long", SPANS, "longest = min(longest, len(start))",
           "longest = min(longest + 1, len(start))", "test_spans.py"),
    Mutant("null at the threshold", SPANS, "not null_score - a.score > null",
           "not null_score - a.score >= null", "test_spans.py"),
    Mutant("null is the highest", SPANS, "np.argmin(null_scores)", "np.argmax(null_scores)",
           "test_spans.py"),
    Mutant("no maximum context", SPANS, "better = token[score > scores[token]]", "better = token",
           "test_spans.py"),
    Mutant("merged without adding", SPANS, 'same["score"] += span.score', "pass",
           "test_spans.py test_pipelines.py test_parity_live.py"),
    Mutant("merged with case", SPANS, "answers.get(text.lower())", "answers.get(text)",
           "test_spans.py"),
    Mutant("[CLS] left out of the softmax", SPANS, "allowed = window.input_ids == cls_id",
           "allowed = np.zeros(len(window), bool)", "test_spans.py"),
    Mutant("offset end excluded", SPANS, "past = int(context.offsets[begin + span.end, 1])",
           "past = int(context.offsets[begin + span.end, 0])", "test_spans.py"),
    Mutant("int8 scales forgotten", "minibert/weights.py",
           "matrix.values.astype(np.float32) * matrix.scales[:, None]",
           "matrix.values.astype(np.float32)", "test_kernels.py test_weights.py test_pipelines.py"),
    Mutant("gamma not renamed", "minibert/weights.py", '((".gamma", ".weight"), (".beta", ".bias"))',
           '((".beta", ".bias"),)', "test_weights.py"),
]  # fmt: skip


def run(mutant: Mutant) -> bool:
    """Plant one mistake; True if a test fails."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("minibert", "kernels", "tests"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
        shutil.copyfile(ROOT / "pyproject.toml", copy / "pyproject.toml")
        target = copy / mutant.file
        text = target.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: {mutant.file} holds its text {text.count(mutant.old)} times"
            )
        target.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        site = copy / "site"
        (site / "minibert").mkdir(parents=True)
        for source in (copy / "minibert").iterdir():
            (site / "minibert" / source.name).symlink_to(source)
        (site / "minibert" / "kernels").symlink_to(copy / "kernels")
        tests = [str(copy / "tests" / name) for name in mutant.tests.split()]
        # The copy has to win over the installed package: first on the path, and not as a plugin.
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
        )
    if done.returncode not in (0, 1):  # 1: tests failed; others: they did not run
        raise SystemExit(
            f"{mutant.name}: the tests did not run\n{done.stdout[-2000:]}{done.stderr}"
        )
    return done.returncode == 1


def main() -> int:
    """Run the chosen mutants."""
    chosen = [m for m in MUTANTS if not sys.argv[1:] or any(w in m.name for w in sys.argv[1:])]
    missed = []
    for mutant in chosen:
        caught = run(mutant)
        print(f"{'caught' if caught else 'MISSED'}  {mutant.name}", flush=True)
        if not caught:
            missed.append(mutant.name)
    print(f"{len(chosen) - len(missed)} of {len(chosen)} caught")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
