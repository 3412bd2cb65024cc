"""Part one: from tokens to an answer, in the order of the data.

Only what the definitions do not say stands here.
"""

from __future__ import annotations

from minibert import encoder, windows
from minibert.kernels import reference
from minibert.lessons import choice
from minibert.lessons.lesson import Lesson, Step

FORWARD = (
    Lesson(
        name="windows",
        title="tokens to windows",
        before="lesson 0: a text has become numbers, one for each word piece",
        idea="BERT reads at most 512 tokens at once. So a long text is cut into parts that "
        "overlap, and each part is read beside the question. What stands at the end of one "
        "part has its surroundings in the next.",
        formula="[CLS] question [SEP] part of the text [SEP]; part i is tokens i * step to i * step"
        " + room",
        hand="`pair` says how a model joins the two: pair.cls_id, pair.sep_id, pair.separators"
        " (how many [SEP] stand between them; RoBERTa has two) and pair.text_type (of "
        "what comes behind these; before it, the type is 0). Ids and types are int32",
        paper="Devlin et al. 2019, section 4.2 and google-research/bert run_squad.py "
        "(arXiv:1810.04805)",
        steps=(
            Step(windows.text_parts, "38a7523d"),
            Step(windows.join, "e3dec8a9"),
        ),
    ),
    Lesson(
        name="embed",
        title="numbers for tokens",
        before="lesson 1: input_ids, token_type_ids; rows of an array",
        idea="A token becomes a row of D numbers, looked up in a table. Attention has no order "
        "of its own, so where a token stands, and whether it belongs to the question or the"
        " text, are looked up too, and added.",
        formula="embed = layer_norm(words[input_ids] + token_types[token_type_ids] + "
        "positions[position_ids])",
        hand="tables.words, tables.token_types, tables.positions: their .rows(ids) gives the "
        "rows of these ids as a new array; tables.norm; layer_norm",
        paper="Devlin et al. 2019, section 3 and figure 2 (arXiv:1810.04805)",
        steps=(
            Step(
                reference.embed,
                "62938695",
                """\
rows = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 2, 1]], np.float32)
norm = Norm(gain=np.ones(4, np.float32), bias=np.zeros(4, np.float32))
table = Table(rows)  # the same for all three, here
tables = Tables(words=table, positions=table, token_types=table, norm=norm)
ids, types, places = np.array([2, 2]), np.array([0, 1]), np.array([0, 1])
embed(ids, types, places, tables, 1e-12).round(3)""",
            ),
        ),
    ),
    Lesson(
        name="layer_norm",
        title="layer norm",
        before="lesson 2; mean and variance",
        idea="After every step the numbers of each token are brought to the same scale, so that "
        "twelve layers of sums neither explode nor vanish. Each row by itself, never across"
        " tokens.",
        formula="layer_norm(x) = (x - mean) / sqrt(variance + eps) * gain + bias; mean and variance"
        " over the D numbers of a row, and the variance is a mean of squares: divided by D",
        hand="norm.gain and norm.bias",
        paper="Ba et al. 2016 (arXiv:1607.06450)",
        steps=(
            Step(
                reference.layer_norm,
                "36e88b64",
                """\
x = np.array([[1, 2, 3, 6], [10, 20, 30, 60]], np.float32)
norm = Norm(gain=np.full(4, 2, np.float32), bias=np.ones(4, np.float32))
layer_norm(x, norm, 1e-12).round(3)""",
            ),
        ),
    ),
    Lesson(
        name="linear",
        title="a dense layer",
        before="products of matrices",
        idea="Each of the new numbers of a token is a weighted sum of its old ones. Nearly all "
        "that BERT has learned are such weights. The file keeps them as [out, in]: a row "
        "for each new number.",
        formula="linear(x) = x W^T + b",
        hand="dense.weight and dense.bias",
        paper="Vaswani et al. 2017, section 3.3 (arXiv:1706.03762)",
        steps=(
            Step(
                reference.linear,
                "b467c60a",
                """\
x = np.array([[1, 2, 3]], np.float32)
weight = np.array([[1, 0, 0], [1, 1, 1]], np.float32)
linear(x, Dense(weight, bias=np.array([0.5, -1], np.float32)))""",
            ),
        ),
    ),
    Lesson(
        name="softmax",
        title="softmax",
        before="exp; axes of an array",
        idea="Scores of any size become shares: positive, and with a sum of 1. Taking the "
        "highest score away first changes nothing in the shares, and keeps exp from "
        "overflowing.",
        formula="softmax(s)_i = exp(s_i) / sum over j of exp(s_j), along the last axis",
        paper="Bridle 1990, Training stochastic model recognition algorithms as networks",
        steps=(
            Step(
                reference.softmax,
                "1886e2ff",
                """\
softmax(np.array([[0, 1, 2], [1000, 1000, 1000]], np.float32)).round(3)""",
            ),
        ),
    ),
    Lesson(
        name="split_heads",
        title="heads",
        before="reshape and transpose",
        idea="Attention looks in H ways at once. The D numbers of a token are cut into H groups "
        "of neighbours, and each head works with its own group.",
        formula="numbers 0 to Dh - 1 are head 0, the next Dh are head 1, and so on",
        paper="Vaswani et al. 2017, section 3.2.2 (arXiv:1706.03762)",
        steps=(
            Step(
                reference.split_heads,
                "6efe40fa",
                """\
x = np.arange(8, dtype=np.float32).reshape(2, 4)  # two tokens
split_heads(x, 2).tolist()""",
            ),
        ),
    ),
    Lesson(
        name="attention_probs",
        title="who reads from whom",
        before="lessons 5 and 6",
        idea="Each token asks (its query), and each offers (its key). How well the two fit is "
        "their product; softmax turns a token's scores into shares of what it reads. "
        "Without the root the scores would grow with Dh, and one share would be nearly 1.",
        formula="P = softmax(Q K^T / sqrt(Dh)), for each head",
        hand="softmax and split_heads; math.sqrt, which leaves float32 as it is",
        paper="Vaswani et al. 2017, section 3.2.1 (arXiv:1706.03762)",
        steps=(
            Step(
                reference.attention_probs,
                "489c8caf",
                """\
query = key = np.array([[2, 0], [0, 2]], np.float32)
attention_probs(np.concatenate([query, key, key], axis=1), 1).round(3)""",
            ),
        ),
    ),
    Lesson(
        name="attention",
        title="all heads, all windows",
        before="lesson 7",
        idea="A token reads the values of others, in the shares of lesson 7. A batch holds "
        "several windows end to end, and nobody reads beyond his own: cu_seqlens says where"
        " each begins.",
        formula="C = P V for each head of each window; the heads laid side by side again",
        hand="attention_probs and split_heads",
        paper="Vaswani et al. 2017, section 3.2 (arXiv:1706.03762)",
        steps=(
            Step(
                reference.attention,
                "2c9f6a20",
                """\
query = key = np.array([[2, 0], [0, 2], [0, 0]], np.float32)
value = np.array([[1, 10], [2, 20], [3, 30]], np.float32)
qkv = np.concatenate([query, key, value], axis=1)  # three tokens
attention(qkv, np.array([0, 2, 3]), 1).round(2)  # in two windows""",
            ),
        ),
    ),
    Lesson(
        name="gelu",
        title="GELU, and the first half of the feed-forward part",
        before="lesson 4; the normal distribution",
        idea="Between two dense layers stands something that is not a sum, or the two would be "
        "one. GELU lets large numbers pass and small ones fade; smoothly, and with erf, not"
        " with the tanh that only comes close.",
        formula="gelu(x) = x * P(x), P(x) = (1 + erf(x / sqrt(2))) / 2; then activation(linear(x)),"
        " where `activation` is a name in ACTIVATIONS",
        hand="erf, as NumPy has none; linear; ACTIVATIONS, functions by name, such as "
        'ACTIVATIONS["relu"]',
        paper="Hendrycks and Gimpel 2016 (arXiv:1606.08415)",
        steps=(
            Step(reference.gelu, "8c5b1738"),
            Step(
                reference.linear_activation,
                "7ffd9fef",
                """\
dense = Dense(np.eye(2, dtype=np.float32), np.ones(2, np.float32))
linear_activation(np.array([[-2, 0]], np.float32), dense, "relu")""",
            ),
        ),
    ),
    Lesson(
        name="encoder_layer",
        title="a layer",
        before="lessons 3, 4, 8 and 9",
        idea="Both halves of a layer, attention and feed-forward, end alike: what they give is "
        "added to what they took, and normalised. So a layer corrects its input rather than"
        " replacing it.",
        formula="x = linear_add_norm(attention(linear(x, qkv)), attention_output, x); x = "
        "linear_add_norm(linear_activation(x), output, x)",
        hand="linear and layer_norm; the functions of these lessons as kernels.linear, "
        "kernels.attention, kernels.linear_activation and kernels.linear_add_norm; "
        "layer.qkv, .attention_output, .attention_norm, .intermediate, .output and "
        ".output_norm; config.layer_norm_eps, .num_attention_heads and .activation",
        paper="He et al. 2016 (arXiv:1512.03385) for the sum, Vaswani et al. 2017, section 3.1",
        steps=(
            Step(
                reference.linear_add_norm,
                "1c40869d",
                """\
dense = Dense(np.zeros((2, 3), np.float32), np.zeros(2, np.float32))
norm = Norm(gain=np.ones(2, np.float32), bias=np.zeros(2, np.float32))
x, residual = np.ones((1, 3), np.float32), np.array([[1, 5]], np.float32)
linear_add_norm(x, dense, residual, norm, 1e-12).round(3)""",
            ),
            Step(
                encoder.encoder_layer,
                "06add6bc",
                """\
weights, config, kernels = small_model()
x = np.ones((4, 12), np.float32)
borders = np.array([0, 4])
encoder_layer(x, borders, weights.layers[0], config, kernels)[0, :4].round(3)""",
            ),
        ),
    ),
    Lesson(
        name="bert",
        title="the whole of BERT",
        before="lessons 2 and 10",
        idea="Embeddings, then layer after layer, then two numbers for each token: how well the "
        "answer would begin with it, and how well it would end with it.",
        formula="logits = linear(x, head), [T, 2]; column 0 is the start, column 1 the end",
        hand="linear; embed, which takes the batch here and hands its arrays to kernels.embed,"
        " lesson 2; encoder_layer; batch.cu_seqlens; weights.layers and "
        "weights.qa_outputs; kernels.span_logits",
        paper="Devlin et al. 2019 (arXiv:1810.04805)",
        steps=(
            Step(
                reference.span_logits,
                "8a88ae5a",
                """\
head = Dense(np.array([[1, 0], [0, 10]], np.float32), np.zeros(2, np.float32))
span_logits(np.array([[1, 2], [3, 4]], np.float32), head)""",
            ),
            Step(
                encoder.bert,
                "83248616",
                """\
weights, config, kernels = small_model()
start, end = bert(small_batch(4), weights, config, kernels)
start.round(2)
end.round(2)""",
            ),
        ),
    ),
    Lesson(
        name="best_span",
        title="the answer, or none",
        before="lessons 1 and 11",
        idea="An answer is a start and an end that belong together, so they are chosen together."
        ' [CLS] stands for "no answer": where its two logits sum to more than those of any '
        "span, the text does not say.",
        formula="score(i, j) = start[i] + end[j] with i <= j < i + longest; no answer if score(0, "
        "0) - best > threshold",
        hand="Span(start, end, score)",
        paper="Devlin et al. 2019, section 4.3 (arXiv:1810.04805)",
        steps=(
            Step(
                choice.best_span,
                "885387fd",
                """\
start = np.array([1, 0, 0, 5, 2], np.float32)  # [CLS], a question of two, a text of two
end = np.array([1, 0, 0, 2, 4], np.float32)
best_span(start, end, 3, 5, 30, 0.0)
best_span(start, end, 3, 5, 30, -8.0)""",
            ),
        ),
    ),
)
