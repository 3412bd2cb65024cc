"""Every CPU kernel, for every target that this machine runs, computes what the definition does.

The truth is the reference in float64, on the numbers that the kernel multiplies: rounded to
bfloat16 or quantised to int8 as kernels/cpu documents.  So a limit covers rounding only, and is
written as such: a few float32 steps of the numbers that were added up.
"""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from builders import batch_of, dense, norm, normal, random_weights
from random_models import random_batch, tiny_config
from unprepared import Unprepared

from minibert.batches import Batch, pack
from minibert.encoder import qa_logits
from minibert.kernels import reference
from minibert.kernels.backend import REFERENCE
from minibert.kernels.cpu.functions import Kernels
from minibert.kernels.cpu.pool import POOL
from minibert.kernels.cpu.targets import host_targets
from minibert.kernels.numbers import from_bfloat16, quantise_rows, to_bfloat16
from minibert.model import load_model
from minibert.parameters import Dense, Int8, Norm, Table, Tables, full
from minibert.trace import Trace

EPS = 1e-12
STEP = 2.0**-24  # half the distance of neighbouring float32 numbers at 1
HALF = 2.0**-8  # the same for bfloat16

# Rounding allowed in a sum of products, in STEPs of the sum of their magnitudes; found: 3.8.
SUM = 6
# And in an activation, in STEPs of its argument; found: 2.6, in GELU.
FUNCTION = 4


def targets_of(dtype):
    """The host's targets; those with the same instructions for this dtype only once."""
    found = {}
    for target in host_targets():
        key = (
            target.lanes,
            target.fma,
            target.cpu,
            target.int8 if dtype == "int8" else "",
            target.bfloat16 if dtype != "float32" else "",
        )
        found[key] = target
    return list(found.values())


PROGRAMS = {
    dtype: [Kernels(dtype, target, 2) for target in targets_of(dtype)]
    for dtype in ("float32", "bfloat16", "int8")
}


def over(*dtypes):
    """Run a test with the kernels of every target, in these dtypes or all."""
    chosen = [kernels for dtype in dtypes or PROGRAMS for kernels in PROGRAMS[dtype]]
    names = [f"{kernels.target.name}-{kernels.dtype}" for kernels in chosen]
    return pytest.mark.parametrize("kernels", chosen, ids=names)


# Tokens, in, out: all numbers of tokens on one width, all widths on one number of tokens.  From
# 513 numbers on, float32 sums are made of blocks.
SIZES = [(tokens, 100, 36) for tokens in (0, 1, 2, 17, 511, 513)]
SIZES += [(17, *pair) for pair in ((33, 100), (36, 128), (100, 33), (128, 11), (1, 1), (1100, 40))]
each_size = pytest.mark.parametrize(("tokens", "into", "out"), SIZES)

# ---------------------------------------------------------------- numbers, and what is expected


def bfloat16(x):
    return from_bfloat16(to_bfloat16(x))


def quantised(x, largest):
    """Rows in integers up to `largest`, as rows.quantise makes them.

    Returns u, scales, zero points; and where u is a tie.
    """
    low, high = (end(x, axis=1, initial=0, keepdims=True) for end in (np.min, np.max))
    span = high - low
    scale = np.where(span > 1e-30, span * np.float32(1 / largest), np.float32(1))
    inverse = 1 / scale
    zero = np.rint(-low * inverse)
    exact = x.astype("f8") * inverse + zero
    doubtful = np.abs(exact % 1 - 0.5) < 1e-3  # two ways of rounding may give neighbours
    return np.rint(np.clip(exact, 0, largest)), scale.astype("f8"), zero.astype("f8"), doubtful


def product(x, layer, dtype, largest=255):
    """X @ weight.T + bias in this dtype, in exact arithmetic; and how far rounding may take it."""
    weight, bias = full(layer.weight), layer.bias.astype("f8")
    if dtype != "int8":
        if dtype == "bfloat16":
            x, weight = bfloat16(x), bfloat16(weight)
        x, weight = x.astype("f8"), weight.astype("f8")
        return x @ weight.T + bias, SUM * STEP * (np.abs(x) @ np.abs(weight).T + np.abs(bias))
    int8 = layer.weight if isinstance(layer.weight, Int8) else quantise_rows(weight)
    w, w_scale = int8.values.astype("f8"), int8.scales.astype("f8")
    u, scale, zero, doubtful = quantised(x, largest)
    sums, shift = u @ w.T, zero * w.sum(axis=1)
    size = scale * w_scale * (np.abs(sums) + np.abs(shift)) + np.abs(bias)
    neighbour = scale * w_scale * (doubtful @ np.abs(w).T)  # had u been one more or less
    return scale * w_scale * (sums - shift) + bias, SUM * STEP * size + neighbour


def close(ours, truth, limit):
    """Equal within limits, and of the right form."""
    assert ours.dtype == np.float32
    assert ours.shape == truth.shape
    off = np.abs(ours - truth)
    assert (off <= limit).all(), f"{off.max()} off, {np.max(off / limit)} times the limit"


# ---------------------------------------------------------------- products


@each_size
@over()
def test_linear(kernels, tokens, into, out):
    x, layer = normal(0, tokens, into), dense(1, out, into)
    close(
        Unprepared(kernels).linear(x, layer),
        *product(x, layer, kernels.dtype, kernels.target.largest),
    )


@over()
def test_linear_takes_int8_weights_as_they_are(kernels):
    random = np.random.default_rng(0)
    weight = Int8(
        random.integers(-127, 128, (36, 100)).astype(np.int8),
        random.uniform(0.001, 0.002, 36).astype(np.float32),
    )
    x, layer = normal(0, 17, 100), Dense(weight, normal(1, 36))
    close(
        Unprepared(kernels).linear(x, layer),
        *product(x, layer, kernels.dtype, kernels.target.largest),
    )


@each_size
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@over()
def test_linear_activation(kernels, tokens, into, out, activation):
    x, layer = normal(0, tokens, into), dense(1, out, into)
    y, limit = product(x, layer, kernels.dtype, kernels.target.largest)
    truth = reference.ACTIVATIONS[activation](y)
    limit = 1.2 * limit + FUNCTION * STEP * np.abs(y)  # no slope is above 1.13
    if kernels.inner != "float32":
        limit = limit + HALF * np.abs(truth)
    close(Unprepared(kernels).linear_activation(x, layer, activation), truth, limit)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@over("float32", "bfloat16")
def test_every_activation_over_the_whole_range(kernels, activation):
    ends = [-3e4, -1000, -130, -89, -88, -87, -30, -4, -1e-3, -1e-30, 0, 1e-30, 4, 30, 90, 3e4]
    x = np.concatenate([np.linspace(-12, 12, 1000), ends]).astype(np.float32)[:, None]
    one = Dense(np.ones((1, 1), np.float32), np.zeros(1, np.float32))
    if kernels.dtype == "bfloat16":
        x = bfloat16(x)
    truth = reference.ACTIVATIONS[activation](x.astype("f8"))
    limit = FUNCTION * STEP * np.abs(x)
    if kernels.dtype == "bfloat16":
        limit = limit + HALF * np.abs(truth) + 1e-38  # too small for a bfloat16
    close(Unprepared(kernels).linear_activation(x, one, activation), truth, limit + 1e-38)


@over("bfloat16")
def test_a_result_is_rounded_to_bfloat16_with_ties_to_even(kernels):
    x = np.array([[sign * 2.0 * i, sign] for i in range(128, 256) for sign in (1, -1)], np.float32)
    columns = Dense(np.array([[1, 1], [-1, -1], [1, 0]] * 13, np.float32), np.zeros(39, np.float32))
    ours = Unprepared(kernels).linear_activation(x, columns, "relu")
    sums = np.maximum(x @ columns.weight.T, 0)  # halfway between two bfloat16
    np.testing.assert_array_equal(ours, bfloat16(sums))
    assert not np.array_equal(ours, sums)


@each_size
@over()
def test_linear_add_norm(kernels, tokens, into, out):
    x, layer, residual = normal(0, tokens, into), dense(1, out, into), normal(2, tokens, out)
    gains = norm(3, out)
    y, limit = product(x, layer, kernels.dtype, kernels.target.largest)
    y = y + residual
    truth = reference.layer_norm(y, Norm(gains.gain.astype("f8"), gains.bias.astype("f8")), EPS)
    # A row's mean and deviation are as far off as its numbers, and the numbers are divided by it.
    far = (limit.max(axis=1, initial=0) + SUM * STEP)[:, None] / np.sqrt(
        y.var(axis=1, keepdims=True) + EPS
    )
    ours = Unprepared(kernels).linear_add_norm(x, layer, residual, gains, EPS)
    close(ours, truth, (np.abs(truth) + 2) * (far + SUM * STEP))


@over()
def test_layer_norm_adds_eps_to_the_variance(kernels):
    x = np.array([[1, 3]], np.float32)  # mean 2, variance 1
    nothing = Dense(np.zeros((2, 2), np.float32), np.zeros(2, np.float32))
    plain = Norm(np.ones(2, np.float32), np.zeros(2, np.float32))
    for eps, want in ((0.0, 1.0), (3.0, 0.5)):
        ours = Unprepared(kernels).linear_add_norm(x, nothing, x, plain, eps)
        np.testing.assert_allclose(ours, [[-want, want]], rtol=1e-6)


@over("int8")
def test_rows_of_zeros_and_of_one_sign_are_quantised(kernels):
    x = np.zeros((6, 40), np.float32)
    x[1], x[2] = normal(0, 40), np.abs(normal(1, 40)) + 5
    x[3], x[4], x[5] = -x[2], 1e-3 * x[1], 1e4 * x[1]
    layer = dense(2, 36, 40)
    close(Unprepared(kernels).linear(x, layer), *product(x, layer, "int8", kernels.target.largest))
    np.testing.assert_array_equal(Unprepared(kernels).linear(x[:1], layer)[0], layer.bias)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_all_targets_that_fuse_and_quantise_alike_give_the_same_product(dtype):
    x, layer = normal(0, 50, 1100), dense(1, 40, 1100)
    first = {}
    for kernels in PROGRAMS[dtype]:
        target, result = kernels.target, Unprepared(kernels).linear(x, layer)
        wanted = first.setdefault((target.fma, dtype == "int8" and target.largest), result)
        np.testing.assert_array_equal(result, wanted, target.name)


@over("int8")
def test_the_largest_products_do_not_overflow(kernels):
    x = np.full((13, 64), 3.0, np.float32)
    x[:, 1::2] = np.arange(13)[:, None] / 4  # some rows of neighbours that are both the largest
    for sign in (1, -1):
        layer = Dense(np.full((40, 64), sign, np.float32), np.zeros(40, np.float32))
        close(
            Unprepared(kernels).linear(x, layer), *product(x, layer, "int8", kernels.target.largest)
        )


# ---------------------------------------------------------------- attention

HEADS = [(3, 11), (1, 33), (3, 12), (2, 40), (2, 64), (1, 80), (5, 1)]  # how many, how wide
MIXED = [5, 0, 17, 1, 64, 2, 0]  # tokens of the windows


def check_attention(kernels, qkv, lengths, heads):
    borders = np.cumsum([0, *lengths], dtype=np.int32)
    ours = kernels.attention(qkv, borders, heads)
    if kernels.qkv == "bfloat16":
        qkv = bfloat16(qkv)
    qkv, borders = qkv.astype("f8"), np.unique(borders)  # the reference takes no empty windows
    query, key, value = np.split(qkv, 3, axis=1)
    sizes = np.concatenate([query, key, np.abs(value)], axis=1)
    truth = reference.attention(qkv, borders, heads)
    read = reference.attention(sizes, borders, heads)  # of magnitudes of values
    limit = np.zeros_like(truth)
    width = query.shape[1] // heads
    for begin, end in pairwise(borders):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            q, k = np.abs(query[begin:end, part]), np.abs(key[begin:end, part])
            score = (q @ k.T).max(axis=1, keepdims=True) / width**0.5
            # A score that is d too large makes its probability exp(d) times as large.
            limit[begin:end, part] = SUM * STEP * (score + 1) * read[begin:end, part]
    if kernels.qkv == "bfloat16":  # the probabilities too
        limit += HALF * read
    if kernels.inner != "float32":
        limit += HALF * np.abs(truth)
    close(ours, truth, limit)


@pytest.mark.parametrize("lengths", [[], [1], [2], [17], [64], [511], [513]])
@over()
@pytest.mark.slow
def test_attention_over_one_window(kernels, lengths):
    check_attention(kernels, normal(0, sum(lengths), 3 * 3 * 12), lengths, 3)


@pytest.mark.parametrize(("heads", "size"), HEADS)
@over()
def test_attention_over_several_windows(kernels, heads, size):
    check_attention(kernels, normal(0, sum(MIXED), 3 * heads * size), MIXED, heads)


@pytest.mark.parametrize("sign", [1, -1])
@over()
def test_attention_with_large_scores(kernels, sign):
    qkv = normal(0, sum(MIXED), 3 * 2 * 40, std=40.0)
    qkv[:, 80:160] = sign * qkv[:, :80]  # each token looks for itself, or for all but itself
    check_attention(kernels, qkv, MIXED, 2)


@over()
def test_attention_where_all_scores_are_far_below_zero(kernels):
    qkv = normal(0, 37, 3 * 40)
    qkv[:, :40], qkv[:, 40:80] = np.abs(qkv[:, :40]) + 20, -np.abs(qkv[:, 40:80]) - 20
    check_attention(kernels, qkv, [37], 1)


@pytest.mark.parametrize("size", [1e4, 1e10, 1e20, 1e36])
@pytest.mark.parametrize("sign", [1, -1])
@over()
def test_attention_with_scores_beyond_all_sense(kernels, size, sign):
    qkv = normal(0, sum(MIXED), 3 * 2 * 40)
    qkv[:, 80:160] = bfloat16(np.abs(qkv[:, 80:160]))
    qkv[:, :80] = np.float32(0)
    qkv[:, [0, 40]] = bfloat16(np.float32(sign * size))  # scores are keys' first numbers
    qkv = bfloat16(qkv)
    borders = np.unique(np.cumsum([0, *MIXED], dtype=np.int32))
    ours, truth = (
        kernels.attention(qkv, borders, 2),
        reference.attention(qkv.astype("f8"), borders, 2),
    )
    close(ours, truth, 1e-3 if kernels.dtype == "float32" else 4 * HALF)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@over()
def test_what_is_no_number_stays_none_through_every_step(kernels, bad):
    steps, rows = Unprepared(kernels), np.arange(20) != 7
    x, layer = normal(0, 20, 70), dense(1, 70, 70)
    x[7, 33] = bad

    def check(y):
        assert np.isfinite(y[rows]).all()
        assert not np.isfinite(y[~rows]).all()

    check(steps.linear(x, layer))
    for activation in reference.ACTIVATIONS:
        check(steps.linear_activation(x, layer, activation))
    check(steps.linear_add_norm(x, layer, normal(2, 20, 70), norm(3, 70), EPS))
    check(steps.linear_add_norm(normal(2, 20, 70), layer, x, norm(3, 70), EPS))
    check(np.stack(steps.span_logits(x, dense(4, 2, 70)), axis=1))
    for column in (33, 103, 173):  # a query, a key, a value
        qkv = normal(5, 20, 210)
        qkv[7, column] = bad
        y = kernels.attention(qkv, np.array([0, 7, 20], np.int32), 2)
        assert np.isfinite(y[:7]).all()
        assert not np.isfinite(y[7 : 8 if column == 33 else None]).all()


# ---------------------------------------------------------------- both ends of the model


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("tokens", "width"), [(t, 100) for t in (0, 1, 2, 17, 511, 513)] + [(17, 33), (17, 128), (3, 1)]
)
@over()
def test_embed(kernels, int8, tokens, width):
    random = np.random.default_rng(0)
    tables = []
    for rows in (50, 600, 2):
        values = random.integers(-127, 128, (rows, width)).astype(np.int8)
        matrix = Int8(values, random.uniform(0.005, 0.02, rows).astype(np.float32))
        tables.append(Table(matrix if int8 else full(matrix)))
    gains = norm(9, width)
    ids = [random.integers(0, rows, tokens).astype(np.int32) for rows in (50, 2, 600)]
    ours = Unprepared(kernels).embed(*ids, Tables(*tables, gains), EPS)
    words, places, kinds = (full(table.matrix).astype("f8") for table in tables)
    y = words[ids[0]] + kinds[ids[1]] + places[ids[2]]
    truth = reference.layer_norm(y, Norm(gains.gain.astype("f8"), gains.bias.astype("f8")), EPS)
    size = np.abs(y).max(axis=1, initial=0, keepdims=True)
    far = SUM * STEP * (1 + size / np.sqrt(y.var(axis=1, keepdims=True) + EPS))
    close(ours, truth, (np.abs(truth) + 2) * far)


@pytest.mark.parametrize(
    ("tokens", "width"), [(t, 100) for t in (0, 1, 2, 17, 511, 513)] + [(17, 33), (17, 128), (3, 1)]
)
@over()
def test_span_logits(kernels, tokens, width):
    x, head = normal(0, tokens, width), dense(1, 2, width)
    truth, limit = product(x, head, "float32")  # in every dtype
    for j, ours in enumerate(Unprepared(kernels).span_logits(x, head)):
        close(ours, truth[:, j], limit[:, j])


# ---------------------------------------------------------------- the whole pass


SHAPES = {
    "narrow": {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 100},
    "odd": {"hidden_size": 33, "num_attention_heads": 3, "hidden_act": "silu"},
    "whole panels": {"hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu_new"},
    "deep sums": {"hidden_size": 64, "intermediate_size": 1100, "hidden_act": "relu"},
    "narrow tables": {
        "family": "electra", "embedding_size": 20, "hidden_size": 36, "num_attention_heads": 3,
    },
    "wide tables": {
        "family": "albert", "embedding_size": 77, "hidden_size": 33, "num_attention_heads": 3,
        "intermediate_size": 40,
    },
}  # fmt: skip
WINDOWS = [5, 17, 40, 1, 64, 2]


@pytest.fixture(scope="module")
def random_model(tmp_path_factory):
    """Function: name of a shape -> config, weights as in the file, batch."""
    folder = tmp_path_factory.mktemp("weights")

    @cache
    def make(shape):
        config = tiny_config(**SHAPES[shape])
        return config, random_weights(config, 0, folder), batch_of(random_batch(config, WINDOWS, 0))

    return make


# Largest difference of a logit from the reference in float32: the bound, then what was found on the
# random models above and on the embedded model's windows below, whose logits go from -7 to 5; the
# worst of all targets of an AMD Zen 5.
LIMITS = {
    "float32": 2e-5,  # 4e-6, 9e-6
    "bfloat16": 0.15,  # 0.03, 0.06
    "int8": 0.6,  # 0.11, 0.29
}


@pytest.mark.parametrize("shape", SHAPES)
@over()
def test_the_pass_in_one_call_equals_its_steps_and_the_reference(kernels, shape, random_model):
    config, weights, batch = random_model(shape)
    ours = kernels.prepare(weights)
    logits = kernels.forward(batch, ours, config)
    np.testing.assert_array_equal(logits, qa_logits(batch, ours, config, kernels, Trace()))
    off = np.subtract(logits, qa_logits(batch, weights, config, REFERENCE))
    assert np.abs(off).max() <= LIMITS[kernels.dtype]


@pytest.mark.parametrize("shape", ["odd", "narrow tables", "wide tables"])
@over()
def test_the_pass_does_not_depend_on_what_was_in_memory_before(kernels, shape, random_model):
    config, weights, batch = random_model(shape)
    weights = kernels.prepare(weights)
    results = []
    for garbage in (0x00, 0xFF, 0x7F, 0x41):  # zeros, NaN, 3e38, 12
        kernels.forward(batch, weights, config)
        with POOL.lock:
            POOL.memory[:] = garbage
        results.append(kernels.forward(batch, weights, config))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@over()
def test_the_pass_takes_a_batch_without_tokens(kernels, random_model):
    config, weights, _ = random_model("narrow")
    nothing = np.zeros(0, np.int32)
    batch = Batch(nothing, nothing, nothing, np.zeros(1, np.int32))
    start, end = kernels.forward(batch, kernels.prepare(weights), config)
    assert start.shape == end.shape == (0,)


# ---------------------------------------------------------------- threads and neighbours


@pytest.mark.parametrize("shape", ["narrow", "whole panels", "narrow tables"])
@over()
def test_the_number_of_threads_changes_no_bit(kernels, shape, random_model):
    config, weights, batch = random_model(shape)
    weights = kernels.prepare(weights)
    alone = Kernels(kernels.dtype, kernels.target, 1).forward(batch, weights, config)
    for threads in (2, 3, 8, 61):
        several = Kernels(kernels.dtype, kernels.target, threads)
        np.testing.assert_array_equal(several.forward(batch, weights, config), alone)


@over()
def test_the_neighbours_of_a_window_change_no_bit_of_it(kernels, random_model):
    config, weights, _ = random_model("narrow")
    weights = kernels.prepare(weights)
    windows = random_batch(config, WINDOWS, 0)
    alone = [kernels.forward(batch_of([window]), weights, config) for window in windows]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0], [4, 4, 0]):
        together = np.array(kernels.forward(batch_of([windows[i] for i in order]), weights, config))
        wanted = np.concatenate([alone[i] for i in order], axis=1)
        np.testing.assert_array_equal(together, wanted)


# ---------------------------------------------------------------- a model that was trained

TEXT = """
Ada Lovelace wrote the first published program in 1843, for a machine that Charles Babbage had
designed and never finished. Her notes were three times as long as the article that she translated.
The machine was to be driven by steam, and to read its numbers from punched cards, as the looms of
Jacquard did; Babbage, who had spent the government's 17,000 pounds on an earlier engine, found
nobody to pay for it. She saw that it could work on anything whose relations can be written down,
music for instance, and that it would never have a thought of its own: "It can do whatever we know
how to order it to perform." A hundred years later Alan Turing answered that sentence.
"""
QUESTIONS = (
    "Who designed the machine?",
    "When was the first program published?",
    "How much had the earlier engine cost?",
    "What was the machine driven by?",
    "Who answered her sentence?",
    "Who paid for the machine?",
)


@pytest.fixture(scope="module")
def trained():
    """The embedded model, windows of several lengths, and the reference's logits."""
    model = load_model(device="reference")
    windows = []
    for question in QUESTIONS:
        windows += model.windows(question, [TEXT])
    windows += model.windows(QUESTIONS[0], [TEXT], max_seq_length=64, doc_stride=20)
    batch = pack(windows)
    return model, batch, np.array(qa_logits(batch, model.weights, model.config, REFERENCE))


def best_spans(batch, logits):
    """The best start and end of each window."""
    return [(logits[:, a:b].argmax(axis=1)).tolist() for a, b in pairwise(batch.cu_seqlens)]


@over()
@pytest.mark.slow
def test_the_embedded_model_stays_within_the_limits_of_the_dtype(kernels, trained):
    model, batch, truth = trained
    ours = np.array(kernels.forward(batch, kernels.prepare(model.weights), model.config))
    assert np.abs(ours - truth).max() <= LIMITS[kernels.dtype]
    if kernels.dtype == "float32":
        assert best_spans(batch, ours) == best_spans(batch, truth)
