"""Parts two and three: gradients and a step of training; and a kernel of one's own."""

from __future__ import annotations

from minibert.kernels import gradients, reference
from minibert.lessons.lesson import Lesson, Step
from minibert.training import loss

BACKWARD = (
    Lesson(
        name="cross_entropy",
        title="how wrong it is",
        before="lessons 5 and 12; derivatives",
        idea="The loss is small where the right token has a large share. Its derivative is as "
        "simple as can be: what the model says less what is right. `right` lists the right "
        "tokens of each window, mostly one.",
        formula="p = softmax(logits of the window); loss = -weight * log(sum of p over right "
        "tokens); gradient = weight * (p - q), q: p on the right tokens alone, brought to a"
        " sum of 1",
        hand="log_sum: the logarithm of the sum of exp, without overflow",
        paper="Devlin et al. 2019, section 4.2; several right tokens: Clark and Gardner 2018 "
        "(arXiv:1710.10723)",
        steps=(
            Step(
                loss.cross_entropy,
                "01bc3f77",
                """\
logits = np.array([1, 1, 1, 1], np.float32)
total, gradient = cross_entropy(logits, np.array([0, 4]), [[2]], np.ones(1))
round(total, 3), gradient.tolist()""",
            ),
        ),
        part=2,
    ),
    Lesson(
        name="linear_backward",
        title="the gradient of a dense layer",
        before="lessons 4 and 13; the chain rule",
        idea="d_out says how the loss changes with each number that came out. The weight met "
        "every token, so its gradient is a sum over tokens. Gradients of weights are added "
        "to the arrays that are there, in place; that of x is returned.",
        formula="d_W += d_out^T x; d_b += sum of d_out over tokens; d_x = d_out W (+ plus)",
        hand="x.out is what the layer took. gradient.weight and gradient.bias are arrays to "
        "add to: d_weight = gradient.weight, and then d_weight += ..., as the record "
        "itself cannot be changed",
        paper="Rumelhart, Hinton and Williams 1986, Learning representations by "
        "back-propagating errors",
        steps=(
            Step(
                gradients.linear_backward,
                "c3ae4256",
                """\
x = Linear(np.array([[1, 2]], np.float32))  # what linear took is x.out
dense = Dense(np.array([[3, 4]], np.float32), np.zeros(1, np.float32))
gradient = Dense(np.zeros((1, 2), np.float32), np.zeros(1, np.float32))
linear_backward(np.array([[10]], np.float32), x, dense, gradient, None)
gradient.weight, gradient.bias""",
                changes=("gradient",),
            ),
        ),
        part=2,
    ),
    Lesson(
        name="layer_norm_backward",
        title="the gradient of a layer norm",
        before="lessons 3 and 14",
        idea="Every number of a row moves the row's mean and deviation, so it moves all the "
        "others too. What would only shift or stretch the row is taken out of the gradient.",
        formula="d_n = d_out gain; d_x = (d_n - mean(d_n) - n mean(d_n n)) / deviation; d_gain += "
        "sum of d_out n; d_bias += sum of d_out",
        hand="kept.normal (n) and kept.deviation; gradient.gain and gradient.bias, to be added"
        " to as in lesson 14",
        paper="Ba et al. 2016 (arXiv:1607.06450), by the chain rule",
        steps=(
            Step(
                gradients.layer_norm_backward,
                "3e6446b9",
                """\
kept = Normalised(out=None, normal=np.array([[1, -1]]), deviation=np.array([[2.0]]))
norm = Norm(gain=np.array([1.0, 3.0]), bias=np.zeros(2))
gradient = Norm(gain=np.zeros(2), bias=np.zeros(2))
layer_norm_backward(np.array([[1.0, 0.5]]), kept, norm, gradient)
gradient.gain, gradient.bias""",
                changes=("gradient",),
            ),
        ),
        part=2,
    ),
    Lesson(
        name="adamw",
        title="a step of training",
        before="lessons 13 to 15",
        idea="Each weight goes a little against its gradient. How far depends on the mean of its"
        " last gradients and on how large they were, so that all weights move at about the "
        "same pace. All arrays but the gradient are changed in place.",
        formula="m and v: running means of g and g^2, divided by what they lack at the beginning; "
        "weights = weights (1 - rate decay) - rate m / (sqrt(v) + eps)",
        hand="settings.learning_rate, .beta1, .beta2, .eps, .weight_decay, .step and .scale",
        paper="Loshchilov and Hutter 2019, algorithm 2 (arXiv:1711.05101)",
        steps=(
            Step(
                gradients.adamw,
                "208eecb1",
                """\
weights, gradient = np.array([1.0, 1.0]), np.array([0.5, -4.0])
first, second = np.zeros(2), np.zeros(2)
settings = AdamW(0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0, step=1)
adamw(weights, gradient, first, second, settings)
weights.round(3)""",
                changes=("weights", "first", "second"),
            ),
        ),
        part=2,
    ),
    Lesson(
        name="kernel",
        title="a kernel of your own (optional)",
        before="lesson 8; loops",
        idea="NumPy writes every score down and reads it again. A kernel is loops over single "
        "numbers, compiled by Numba: it can keep a row of scores where it needs them. Put "
        "@numba.njit above the function; then loop over windows, heads and queries; for a "
        "query over keys for the scores, over keys for exp and their sum, over keys for the "
        "values. Numba knows loops, numbers, arrays and math; not pairwise, nor x @ y without "
        "SciPy. Slices make new arrays: single numbers, and sums in variables, are faster.",
        formula="that of lesson 8; the check says how fast yours is beside NumPy and beside ours",
        paper="Dao et al. 2022 (arXiv:2205.14135) for why scores are better not written down",
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
        part=3,
    ),
)
