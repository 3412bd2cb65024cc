"""The emulator's tests notice mistakes: each of these, planted in a kernel, is caught.

A mistake is an edit of a kernel's source.  It is caught if the emulator reports it, if the numbers
are wrong, or, where only speed suffers, if shared memory's banks conflict.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import normal
from cuda_emulator import launch
from emulator_numbers import EmulatorError

from minibert.kernels import cuda as package
from minibert.kernels import reference
from minibert.kernels.cuda.program import attention_tiles
from minibert.kernels.cuda.upload import narrow, widen
from minibert.parameters import Dense, Norm

FOLDER = Path(package.__file__).parent


def planted(module, edit, tmp_path):
    """A copy of a kernel file, with `edit` = (old, new) made in it or in a file that it imports."""
    name = f"{package.__name__}.planted_{module}"
    text = (FOLDER / f"{module}.py").read_text(encoding="utf-8")
    if edit:
        old, new = edit
        assert text.count(old) >= 1, f"{module}.py no longer has {old!r}"
        text = text.replace(old, new, 1)
    path = tmp_path / f"planted_{module}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


def right(ours, truth, limit=0.03):
    return bool((np.abs(ours - truth) <= limit).all())


def gemm_is_right(module, dtype, reverse):
    """70 x 72 of y, 5 steps of K: the last stage of the pipeline is where the sums will lie."""
    tokens, out, into = 70, 72, 160
    matrix, kind = (np.float32,) * 2 if dtype == "float32" else (np.uint16, np.uint32)
    make = module.gemm if dtype == "float32" else lambda *o: module.gemm(dtype, *o)
    kernel = make("residual", "", 64, 64)
    x, other = normal(0, tokens, into), normal(3, tokens, out)
    layer = Dense(normal(1, out, into, std=into**-0.5), normal(2, out))
    y = np.full((tokens + 9) * out * (4 if dtype == "float32" else 2), 0xFF, np.uint8)
    arguments = [
        np.array([tokens, 0], np.int32),
        narrow(x, dtype).view(matrix).ravel(),
        narrow(layer.weight, dtype).view(matrix).ravel(),
        layer.bias,
        narrow(other, dtype).ravel().view(kind),
        y.view(kind), out, into, tokens,
    ]  # fmt: skip
    statistics = launch(kernel, (2, 2), arguments, reverse=reverse)
    result = y.view(np.float32 if dtype == "float32" else np.float16).reshape(-1, out)
    truth = reference.linear(x, layer) + other
    untouched = bool((result[tokens:].view(np.uint8) == 0xFF).all())
    fast = statistics.bank_conflicts == 0
    whole = right(widen(result[:tokens], dtype), truth) and untouched and fast
    if dtype == "float32":
        return whole
    parts = np.full((3, tokens, out), np.nan, np.float32)
    arguments[4:6] = None, parts.ravel()
    launch(make("partial", "", 64, 64), (2, 2, 3), arguments, reverse=reverse)
    return whole and right(parts.sum(axis=0), x @ layer.weight.T)


def attention_is_right(module, dtype, reverse):
    """Windows of 2, 200 and 66 tokens: four steps of keys, and a last step of two."""
    borders = np.array([0, 2, 202, 268], np.int32)
    qkv = normal(0, 268, 96, std=1.5)
    tiles = attention_tiles(borders)
    make = module.attention if dtype == "float32" else lambda *o: module.attention(dtype, *o)
    matrix, kind = (np.float32,) * 2 if dtype == "float32" else (np.uint16, np.uint32)
    y = np.full(268 * 32 * (4 if dtype == "float32" else 2), 0xFF, np.uint8)
    arguments = [
        np.array([268, len(tiles)], np.int32), tiles.ravel(),
        narrow(qkv, dtype).view(matrix).ravel(), y.view(kind),
    ]  # fmt: skip
    statistics = launch(make(1, 32), 4, arguments, reverse=reverse)
    result = y.view(np.float32 if dtype == "float32" else np.float16).reshape(-1, 32)
    truth = reference.attention(qkv, borders, 1)
    return right(widen(result, dtype), truth, 0.01) and statistics.bank_conflicts == 0


def rows_are_right(module, dtype, reverse):
    """Rows of 264 numbers: the second chunk of eight lanes' worth is nearly empty."""
    tokens, width = 6, 264
    norm = Norm(1 + normal(0, width, std=0.2), normal(1, width))
    parts, bias, other = normal(2, 2, 8, width), normal(3, width), normal(4, tokens, width)
    y = np.full((8, width), np.nan, np.float32)
    counts = np.array([tokens], np.int32)
    arguments = [
        counts, parts.ravel(), 2, 8, bias, other.ravel(), norm.gain, norm.bias, y.ravel(), 1e-12,
    ]  # fmt: skip
    launch(module.add_norm("float32", width), 2, arguments, reverse=reverse)
    truth = reference.layer_norm(parts[:, :tokens].sum(axis=0) + bias + other, norm, 1e-12)
    logits, head = np.full((2, 8), np.nan, np.float32), normal(5, 2, width)
    arguments = [counts, other.ravel(), head.ravel(), bias, logits.ravel(), 8]
    launch(module.span_logits("float32", width), 2, arguments, reverse=reverse)
    ours, theirs = logits[:, :tokens].T, other @ head.T + bias[:2]
    return (
        right(y[:tokens], truth, 1e-5)
        and right(ours, theirs, 1e-4)
        and np.isnan(y[tokens:]).all()
        and np.isnan(logits[:, tokens:]).all()
    )


CHECKS = {
    "gemm": (gemm_is_right, "float16"),
    "gemm_float32": (gemm_is_right, "float32"),
    "attention": (attention_is_right, "float16"),
    "attention_float32": (attention_is_right, "float32"),
    "rows": (rows_are_right, "float32"),
}

BARRIER = "cuda.syncthreads()"
# fmt: off
# ruff: noqa: E501
MISTAKES = [
    ("gemm", "no wait for copies", ("                wait()\n", "")),
    ("gemm", "no barrier after the wait", (f"wait()\n                {BARRIER}", "wait()")),
    ("gemm", "waits for one stage too few", ("wait_copies(stages - 2)", "wait_copies(stages - 1)")),
    ("gemm", "copies one stage too far", ("ahead = stages - 1", "ahead = stages")),
    ("gemm", "no barrier before the sums", (f"wait_all()\n        {BARRIER}", "wait_all()")),
    ("gemm", "no barrier behind the sums", (f"        {BARRIER}\n        end_with", "        end_with")),
    ("gemm", "rows past the last are copied", ("int32(i * lines) < height", "int32(i * lines) < capacity + int32(9)")),
    ("gemm", "columns past the width are copied", ("int32(i * lines) < width", "int32(i * lines) >= int32(0)")),
    ("gemm", "A is read with another swizzle", ("(a_row >> uint32(1))", "(a_row >> uint32(2))")),
    ("gemm", "B's lanes are mixed up", ("(lane >> uint32(4)) << uint32(3))\n        b_from", "(lane >> uint32(3)) << uint32(3))\n        b_from")),
    ("gemm", "no swizzle, which is only slow", ("^ ((line >> uint32(1)) & uint32(3))", "^ (uint32(0) & line)")),
    ("gemm", "the second half of a step is skipped", ("uint32(32 * k))\n                    load_b", "uint32(0 * k))\n                    load_b")),
    ("gemm", "parts lie on each other", ("shift = first * capacity", "shift = first * int32(0)")),
    ("gemm", "parts take all of K", ("step += every", "step += int32(1)")),
    ("gemm_float32", "no barrier in the loop", (f"            {BARRIER}\n            half_now", "            half_now")),
    ("gemm_float32", "multiplies the half that is written", ("other = int32(half) - half_now", "other = half_now")),
    ("gemm_float32", "no barrier between the halves of the end", (f"        {BARRIER}\n        write_lower", "        write_lower")),
    ("gemm_float32", "the lower half is the upper", ("store_tile(TILE, 4, 4", "store_tile(TILE, 0, 4")),
    ("gemm_float32", "rows past the last are read", ("(at if at < height else int32(0)) * depth", "at * depth")),
    ("attention", "no wait for keys", ("                    wait_older()\n", "")),
    ("attention", "waits for one step too few", ("wait_copies(1)", "wait_copies(2)")),
    ("attention", "no barrier after the wait", (f"wait_older()\n                    {BARRIER}", "wait_older()")),
    ("attention", "no barrier before the next copies", (f"{BARRIER}  # before the next", "pass  # before the next")),
    ("attention", "no barrier behind the queries", (f"load_query(query, query_from)\n            {BARRIER}", "load_query(query, query_from)")),
    ("attention", "one key past the window counts", ("int32(8 * j) >= limit", "int32(8 * j - 1) >= limit")),
    ("attention", "sums are not scaled down", ("load(sums, int32(4 * j)) * shrink0", "load(sums, int32(4 * j)) * ONE")),
    ("attention", "the total is not scaled down", ("total1 *= shrink1", "total1 *= ONE")),
    ("attention", "lanes keep their own maximum", ("new0 = max(new0, cuda.shfl_xor_sync(ALL_LANES, new0, 2))", "new0 = max(new0, cuda.shfl_xor_sync(ALL_LANES, new0, 1))")),
    ("attention", "values are not transposed", ("xor=True, transposed=True", "xor=True, transposed=False")),
    ("attention", "queries past the window are written", ("if r + int32(8) < length:", "if r < length:")),
    ("attention", "scores are not scaled", ("math.log2(math.e) / math.sqrt(head_size)", "math.log2(math.e) / math.sqrt(16)")),
    ("attention_float32", "weights overwrite keys in use", (f"{BARRIER}  # all are done", "pass  # all are done")),
    ("attention_float32", "no barrier before the next keys", (f"{BARRIER}  # before the next", "pass  # before the next")),
    ("attention_float32", "keys past the window count", ("if key >= length:", "if key > length:")),
    ("rows", "a lane is left out of the sums", ("x, 8)", "x, 4)")),
    ("rows", "the empty lanes count for the variance", ("if lane * int32(8) + int32(c * PER_WARP) < int32(width):\n                for", "if True:\n                for")),
    ("rows", "the product's bias is forgotten", ("values = read8_float32(product_bias, column)", "values = read8_float32(gain, column)")),
    ("rows", "rows past the last are written", ("if row >= load(counts, int32(0)):\n            return\n        x = cuda.local.array(held, float32)\n        total = ZERO\n        for c in range(chunks):\n            column = lane * int32(8) + int32(c * PER_WARP)\n            if column < int32(width):\n                values = read8_float32(product", "if row >= int32(8):\n            return\n        x = cuda.local.array(held, float32)\n        total = ZERO\n        for c in range(chunks):\n            column = lane * int32(8) + int32(c * PER_WARP)\n            if column < int32(width):\n                values = read8_float32(product")),
]
# fmt: on


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("module", CHECKS)
def test_without_a_mistake_all_is_right(module, reverse, tmp_path):
    check, dtype = CHECKS[module]
    assert check(planted(module, None, tmp_path), dtype, reverse)


@pytest.mark.parametrize(
    ("module", "edit"),
    [pytest.param(m, edit, id=f"{m}: {name}") for m, name, edit in MISTAKES],
)
@pytest.mark.slow
def test_a_mistake_is_caught(module, edit, tmp_path):
    check, dtype = CHECKS[module]
    made = planted(module, edit, tmp_path)
    try:
        caught = not check(made, dtype, False) or not check(made, dtype, True)
    except EmulatorError:
        caught = True
    assert caught
