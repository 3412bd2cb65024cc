"""What goes wrong in part one: (hint, text of the definition, what stands there instead, ...)."""

FORWARD_MISTAKES: dict[str, tuple[tuple[str, ...], ...]] = {
    "text_parts": (
        (
            "parts went on after one had reached the end of the text",
            "last = -(-(length - room) // step)",
            "last = -(-length // step) - 1",
        ),
        (
            "parts began as long as there are tokens. None begins after one has reached the end, "
            "and a text without tokens has one, which is empty",
            "    if length <= room:\n        return [(0, length)]\n",
            "",
            "last = -(-(length - room) // step)",
            "last = -(-length // step) - 1",
        ),
        (
            "the number of parts were rounded down, so that the end of the text is in none",
            "-(-(length - room) // step)",
            "(length - room) // step",
        ),
        (
            "the last part were shifted back to be as long as the others; it is short instead",
            "(i * step, min(i * step + room, length))",
            "(min(i * step, length - room), min(i * step + room, length))",
        ),
        (
            "parts began every `room` tokens, so that they do not overlap",
            "(i * step, min(i * step + room, length))",
            "(i * room, min(i * room + room, length))",
        ),
        ("the last part ended beyond the text", "min(i * step + room, length)", "i * step + room"),
        (
            "ends were included; they are one past the last token",
            "return [(0, length)]",
            "return [(0, length - 1)]",
            "min(i * step + room, length)",
            "min(i * step + room, length) - 1",
        ),
        (
            "parts were as long as a step, not as `room`",
            "min(i * step + room, length)",
            "min(i * step + step, length)",
        ),
        (
            "a text without tokens had no part; it has one, which is empty",
            "if length <= room:",
            "if length == 0:\n        return []\n    if length <= room:",
        ),
    ),
    "join": (
        ("[CLS] were missing", "([pair.cls_id], question, between)", "(question, between)"),
        ("the last [SEP] were missing", "np.append(text, np.int32(pair.sep_id))", "text"),
        (
            "there were always one [SEP] between question and text; pair.separators says how many",
            "[pair.sep_id] * pair.separators",
            "[pair.sep_id]",
        ),
        ("there were no [SEP] between question and text", "[pair.sep_id] * pair.separators", "[]"),
        (
            "the types of the text began with the [SEP] before it",
            "types[len(head) :]",
            "types[len(head) - 1 :]",
        ),
        ("the text's type were always 1; pair.text_type says which", "= pair.text_type", "= 1"),
        ("all types were 0", "types[len(head) :] = pair.text_type", "pass"),
        (
            "the last [SEP] had type 0; it belongs to the text",
            "types[len(head) :]",
            "types[len(head) : -1]",
        ),
        (
            "the text began where the question ends; [CLS] and [SEP] stand before it, too",
            "types, len(head)",
            "types, len(question)",
        ),
    ),
    "embed": (
        ("positions were left out", "x += tables.positions.rows(position_ids)", "pass"),
        ("token types were left out", "x += tables.token_types.rows(token_type_ids)", "pass"),
        ("words were left out", "tables.words.rows(input_ids)", "0"),
        ("the norm were left out", "layer_norm(x, tables.norm, eps)", "x"),
        (
            "positions were counted through the batch; position_ids begin anew in each window",
            "rows(position_ids)",
            "rows(np.arange(len(input_ids)))",
        ),
        (
            "the three were averaged; they are added",
            "layer_norm(x,",
            "layer_norm(x / 3,",
        ),
        ("eps were not handed on", "tables.norm, eps)", "tables.norm, 1e-12)"),
        (
            "the norm came before positions and types were added",
            "x = tables.words.rows(input_ids)",
            "x = layer_norm(tables.words.rows(input_ids), tables.norm, eps)",
            "layer_norm(x, tables.norm, eps)",
            "x",
        ),
    ),
    "layer_norm": (
        (
            "mean and variance had lost their axis: keepdims=True keeps it, so that a row's number "
            "meets the row",
            "x.mean(axis=-1, keepdims=True)",
            "x.mean(axis=-1)",
            "centred * centred, axis=-1, keepdims=True",
            "centred * centred, axis=-1",
        ),
        (
            "the variance were divided by D - 1 (ddof=1); BERT divides by D",
            "np.mean(centred * centred, axis=-1, keepdims=True)",
            "np.var(x, axis=-1, keepdims=True, ddof=1)",
        ),
        (
            "eps were added to the root; it belongs inside, to the variance",
            "np.sqrt(variance + eps)",
            "(np.sqrt(variance) + eps)",
        ),
        ("eps were left out", "np.sqrt(variance + eps)", "np.sqrt(variance)"),
        (
            "the root were missing: rows are divided by their variance",
            "np.sqrt(variance + eps)",
            "(variance + eps)",
        ),
        (
            "mean and variance were taken over tokens (axis 0); each row has its own",
            "x.mean(axis=-1,",
            "x.mean(axis=0,",
            "centred, axis=-1",
            "centred, axis=0",
        ),
        (
            "mean and variance were those of all numbers; each row has its own",
            "x.mean(axis=-1, keepdims=True)",
            "x.mean()",
            "np.mean(centred * centred, axis=-1, keepdims=True)",
            "np.mean(centred * centred)",
        ),
        ("the mean were not taken away", "x - x.mean(axis=-1, keepdims=True)", "x"),
        (
            "the mean were taken away, but rows not divided by their deviation",
            "centred / np.sqrt(variance + eps)",
            "centred",
        ),
        ("the gain were left out", " * norm.gain", ""),
        ("the bias were left out", " + norm.bias", ""),
        ("gain and bias were swapped", "* norm.gain + norm.bias", "* norm.bias + norm.gain"),
        (
            "the bias were added before the gain is multiplied",
            "centred / np.sqrt(variance + eps) * norm.gain + norm.bias",
            "(centred / np.sqrt(variance + eps) + norm.bias) * norm.gain",
        ),
        (
            "the deviation were the mean of absolute differences",
            "centred / np.sqrt(variance + eps)",
            "centred / (np.abs(centred).mean(axis=-1, keepdims=True) + eps)",
        ),
    ),
    "linear": (
        (
            "the weight were not transposed; it is [out, in]",
            "full(dense.weight).T",
            "full(dense.weight)",
        ),
        (
            "the weight were reshaped rather than transposed",
            "full(dense.weight).T",
            "full(dense.weight).reshape(x.shape[-1], -1)",
        ),
        ("the bias were left out", " + dense.bias", ""),
        ("the bias were subtracted", "+ dense.bias", "- dense.bias"),
        (
            "the factors were the other way round: the result is transposed",
            "x @ full(dense.weight).T + dense.bias",
            "(x @ full(dense.weight).T + dense.bias).T",
        ),
    ),
    "softmax": (
        (
            "sums had lost their axis: keepdims=True keeps it, so that a row's sum meets the row",
            "exp.sum(axis=-1, keepdims=True)",
            "exp.sum(axis=-1)",
        ),
        (
            "highest scores had lost their axis: keepdims=True keeps it",
            "scores.max(axis=-1, keepdims=True)",
            "scores.max(axis=-1)",
        ),
        (
            "shares summed to 1 along the first axis; it is the last",
            "scores.max(axis=-1,",
            "scores.max(axis=0,",
            "exp.sum(axis=-1,",
            "exp.sum(axis=0,",
        ),
        (
            "shares summed to 1 along the last axis but one; it is the last",
            "scores.max(axis=-1,",
            "scores.max(axis=-2,",
            "exp.sum(axis=-1,",
            "exp.sum(axis=-2,",
        ),
        (
            "all shares together summed to 1; each row has its own sum",
            "exp.sum(axis=-1, keepdims=True)",
            "exp.sum()",
        ),
        (
            "the highest score were not taken away: exp overflows",
            "scores - scores.max(axis=-1, keepdims=True)",
            "scores",
        ),
        (
            "the highest score of all rows were taken away: rows far below it underflow to 0 / 0",
            "scores.max(axis=-1, keepdims=True)",
            "scores.max()",
        ),
        ("exp were not divided by its sum", "exp / exp.sum(axis=-1, keepdims=True)", "exp"),
        (
            "exp were missing: scores are divided by their sum",
            "np.exp(scores - scores.max(axis=-1, keepdims=True))",
            "scores",
        ),
        ("the powers were of 2, not of e", "np.exp(", "np.exp2("),
        (
            "the logarithm of the shares were returned",
            "exp / exp.sum(axis=-1, keepdims=True)",
            "np.log(exp / exp.sum(axis=-1, keepdims=True))",
        ),
    ),
    "split_heads": (
        (
            "the numbers were reshaped to [H, S, Dh] at once, which mixes tokens; first "
            "[S, H, Dh], "
            "then transposed",
            "x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)",
            "x.reshape(num_heads, len(x), -1)",
        ),
        (
            "heads took every H-th number; they are groups of neighbours",
            "x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)",
            "x.reshape(len(x), -1, num_heads).transpose(2, 0, 1)",
        ),
        ("the axes of tokens and heads were not swapped: [S, H, Dh]", ".transpose(1, 0, 2)", ""),
        (
            "tokens and numbers were swapped, too: [H, Dh, S]",
            ".transpose(1, 0, 2)",
            ".transpose(1, 2, 0)",
        ),
        (
            "there were num_heads numbers in a head; num_heads is how many heads there are",
            "x.reshape(len(x), num_heads, -1)",
            "x.reshape(len(x), -1, num_heads)",
        ),
    ),
    "attention_probs": (
        (
            "the keys were turned by .T, which turns all three axes; swapaxes(-1, -2) turns two",
            "key.swapaxes(-1, -2)",
            "key.T",
        ),
        ("scores were not divided by sqrt(Dh)", " / math.sqrt(query.shape[-1])", ""),
        (
            "scores were divided by Dh, not by its root",
            "math.sqrt(query.shape[-1])",
            "query.shape[-1]",
        ),
        (
            "scores were divided by sqrt(D); each head has Dh numbers",
            "math.sqrt(query.shape[-1])",
            "math.sqrt(qkv.shape[-1] // 3)",
        ),
        (
            "scores were divided by sqrt(3D), the width of qkv",
            "math.sqrt(query.shape[-1])",
            "math.sqrt(qkv.shape[-1])",
        ),
        ("scores were multiplied by sqrt(Dh)", "/ math.sqrt", "* math.sqrt"),
        ("query and key were swapped", "query, key, _ =", "key, query, _ ="),
        ("the value stood in the place of the key", "query, key, _ =", "query, _, key ="),
        ("queries met queries; they meet keys", "@ key.swapaxes", "@ query.swapaxes"),
        (
            "the shares of a key summed to 1; those of a query do, along the last axis",
            "softmax(query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1]))",
            "softmax(key @ query.swapaxes(-1, -2) / math.sqrt(query.shape[-1])).swapaxes(-1, -2)",
        ),
        ("softmax were missing", "return softmax(", "return ("),
        (
            "qkv were cut into heads first, and each head into query, key and value; it is query, "
            "key and value, and each is cut into heads",
            "(split_heads(part, num_heads) for part in np.split(qkv, 3, axis=-1))",
            "np.split(split_heads(qkv, num_heads), 3, axis=-1)",
        ),
        (
            "tokens saw none that come later, as in GPT; in BERT each reads from all",
            "query @ key.swapaxes(-1, -2) / math.sqrt(query.shape[-1])",
            "np.where(np.tri(len(qkv), dtype=bool), query @ key.swapaxes(-1, -2) "
            "/ math.sqrt(query.shape[-1]), -np.inf)",
        ),
    ),
    "attention": (
        (
            "the windows were ignored: tokens read from the whole batch",
            "pairwise(cu_seqlens)",
            "[(0, len(qkv))]",
        ),
        (
            "keys stood in the place of values; they are the third part of qkv",
            "axis=-1)[2]",
            "axis=-1)[1]",
        ),
        (
            "queries stood in the place of values; they are the third part of qkv",
            "axis=-1)[2]",
            "axis=-1)[0]",
        ),
        (
            "heads were joined without a transpose, which mixes tokens",
            "read.transpose(1, 0, 2).reshape(end - begin, -1)",
            "read.reshape(end - begin, -1)",
        ),
        (
            "the shares were transposed: tokens are read rather than read",
            "attention_probs(window, num_heads) @",
            "attention_probs(window, num_heads).swapaxes(1, 2) @",
        ),
        (
            "numbers of heads were interleaved; the heads stand side by side",
            "read.transpose(1, 0, 2).reshape",
            "read.transpose(1, 2, 0).reshape",
        ),
        (
            "all tokens of a window were read evenly: the shares are missing",
            "attention_probs(window, num_heads) @ value",
            "value.mean(axis=1, keepdims=True).repeat(len(window), axis=1)",
        ),
        (
            "only the first window were computed",
            "np.empty((len(qkv), qkv.shape[1] // 3), qkv.dtype)",
            "np.zeros((len(qkv), qkv.shape[1] // 3), qkv.dtype)",
            "pairwise(cu_seqlens)",
            "[tuple(cu_seqlens[:2])]",
        ),
    ),
    "gelu": (
        (
            "it were the tanh that only comes close to GELU; BERT has erf",
            "0.5 * x * (1 + erf(x * math.sqrt(0.5)))",
            "0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
        ),
        (
            "it were x * sigmoid(1.702 x), which only comes close to GELU",
            "0.5 * x * (1 + erf(x * math.sqrt(0.5)))",
            "x / (1 + np.exp(-1.702 * x))",
        ),
        ("it were ReLU", "0.5 * x * (1 + erf(x * math.sqrt(0.5)))", "np.maximum(x, 0)"),
        ("it were SiLU", "0.5 * x * (1 + erf(x * math.sqrt(0.5)))", "x / (1 + np.exp(-x))"),
        ("x were not divided by sqrt(2) inside erf", "erf(x * math.sqrt(0.5))", "erf(x)"),
        ("x were divided by 2 inside erf, not by its root", "x * math.sqrt(0.5)", "x / 2"),
        ("x were multiplied by sqrt(2) inside erf", "math.sqrt(0.5)", "math.sqrt(2)"),
        ("the 1 before erf were missing", "(1 + erf(", "(erf("),
        ("the half were missing", "0.5 * x * (", "x * ("),
        ("the factor x were missing: that is P(x)", "0.5 * x * (", "0.5 * ("),
    ),
    "linear_activation": (
        (
            "the activation came before the dense layer",
            "ACTIVATIONS[activation](linear(x, dense))",
            "linear(ACTIVATIONS[activation](x), dense)",
        ),
        (
            "it were always GELU; `activation` says which",
            "ACTIVATIONS[activation]",
            'ACTIVATIONS["gelu"]',
        ),
        (
            "the activation were missing",
            "ACTIVATIONS[activation](linear(x, dense))",
            "linear(x, dense)",
        ),
        ("the dense layer were missing", "linear(x, dense))", "x)"),
    ),
    "linear_add_norm": (
        ("the residual were not added", "linear(x, dense) + residual", "linear(x, dense)"),
        (
            "the residual were added after the norm",
            "layer_norm(linear(x, dense) + residual, norm, eps)",
            "layer_norm(linear(x, dense), norm, eps) + residual",
        ),
        ("x were added rather than the residual", "+ residual", "+ x"),
        (
            "the norm were missing",
            "layer_norm(linear(x, dense) + residual, norm, eps)",
            "linear(x, dense) + residual",
        ),
        ("the dense layer were missing", "linear(x, dense) + residual", "x + residual"),
        (
            "the residual were added before the dense layer",
            "linear(x, dense) + residual",
            "linear(x + residual, dense)",
        ),
        (
            "eps were not handed on",
            "norm, eps)",
            "norm, 1e-12)",
        ),
    ),
    "encoder_layer": (
        (
            "the second half added what the layer took, not what attention gave",
            "eps = config.layer_norm_eps",
            "eps, first = config.layer_norm_eps, x",
            "layer.output, x, layer.output_norm",
            "layer.output, first, layer.output_norm",
        ),
        (
            "the feed-forward part read the layer's input",
            "eps = config.layer_norm_eps",
            "eps, first = config.layer_norm_eps, x",
            "linear_activation(x,",
            "linear_activation(first,",
        ),
        (
            "the two norms were swapped",
            "layer.attention_norm",
            "layer.output_norm",
            "x, layer.output_norm, eps)  # [T, D]",
            "x, layer.attention_norm, eps)",
        ),
        (
            "the norm of the attention part stood at both ends",
            "x, layer.output_norm",
            "x, layer.attention_norm",
        ),
        (
            "the residual of the attention part were the context",
            "layer.attention_output, x,",
            "layer.attention_output, context,",
        ),
        (
            "attention were missing",
            "kernels.attention(qkv, cu_seqlens, config.num_attention_heads)",
            "x",
        ),
        (
            "the feed-forward part were missing",
            "return kernels.linear_add_norm(inner, layer.output, x, layer.output_norm, eps)",
            "return x",
        ),
        (
            "the activation were always GELU; config.activation says which",
            "config.activation",
            '"gelu"',
        ),
        (
            "there were one head; config.num_attention_heads says how many",
            "cu_seqlens, config.num_attention_heads",
            "cu_seqlens, 1",
        ),
        (
            "the windows were ignored",
            "attention(qkv, cu_seqlens,",
            "attention(qkv, cu_seqlens[[0, -1]],",
        ),
    ),
    "span_logits": (
        ("start and end were swapped", "logits[:, 0], logits[:, 1]", "logits[:, 1], logits[:, 0]"),
        (
            "rows were taken; start and end are the columns",
            "logits[:, 0], logits[:, 1]",
            "logits[0], logits[1]",
        ),
        ("both were returned in one array [T, 2]", "logits[:, 0], logits[:, 1]", "logits"),
        ("both were the start", "logits[:, 1]", "logits[:, 0]"),
        (
            "they were turned into shares; logits stay as they are",
            "logits[:, 0], logits[:, 1]",
            "tuple(np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in logits.T)",
        ),
    ),
    "bert": (
        (
            "the layers ran from the last to the first",
            "enumerate(weights.layers)",
            "enumerate(weights.layers[::-1])",
        ),
        ("only one layer ran", "enumerate(weights.layers)", "enumerate(weights.layers[:1])"),
        (
            "the last layer were left out",
            "enumerate(weights.layers)",
            "enumerate(weights.layers[:-1])",
        ),
        ("the first layer ran every time", "cu_seqlens, layer,", "cu_seqlens, weights.layers[0],"),
        (
            "every layer read the embeddings; each reads what the one before it gave",
            "for i, layer",
            "embedded = x\n    for i, layer",
            "encoder_layer(x,",
            "encoder_layer(embedded,",
        ),
        (
            "the hidden states were returned, not the logits",
            "kernels.span_logits(x, weights.qa_outputs)",
            "x",
        ),
    ),
    "best_span": (
        (
            "ends before the start were allowed",
            "for j in range(i, min(i + longest, end))",
            "for j in range(begin, min(i + longest, end))",
        ),
        (
            "a span had at least two tokens; start and end may be one token",
            "range(i, min(i + longest, end))",
            "range(i + 1, min(i + longest, end))",
        ),
        (
            "a span might be one token too long",
            "min(i + longest, end)",
            "min(i + longest + 1, end)",
        ),
        (
            "a span might be one token too short",
            "min(i + longest, end)",
            "min(max(i + longest - 1, i + 1), end)",
        ),
        ("spans of any length were allowed", "min(i + longest, end)", "end"),
        (
            "the question's tokens were allowed, too",
            "for i in range(begin, end)",
            "for i in range(1, end)",
        ),
        (
            "start and end were chosen by themselves; they are chosen together",
            "    for i in range(begin, end):\n        for j in range(i, min(i + longest, end)):\n",
            "    if begin < end:\n        i = begin + int(start_logits[begin:end].argmax())\n"
            "        j = begin + int(end_logits[begin:end].argmax())\n        if True:\n",
        ),
        (
            "the best end for the best start were chosen; another pair may have a higher sum",
            "for i in range(begin, end)",
            "for i in [begin + int(start_logits[begin:end].argmax())] if begin < end else []",
        ),
        ("the later of two level spans were chosen", "score > best.score", "score >= best.score"),
        (
            '"no answer" were the start logit of [CLS] alone; it is the sum of both',
            "start_logits[0] + end_logits[0]",
            "start_logits[0]",
        ),
        (
            '"no answer" were never chosen',
            "best is None or null_score - best.score > threshold",
            "best is None",
        ),
        ("the threshold were ignored", "> threshold", "> 0"),
        ('"no answer" won where it is level', "> threshold", ">= threshold"),
        (
            "the threshold were added to the wrong side",
            "null_score - best.score > threshold",
            "null_score - best.score > -threshold",
        ),
        (
            '"no answer" won where it is worse',
            "null_score - best.score > threshold",
            "best.score - null_score > threshold",
        ),
        (
            "the end were one past the last token; it is included",
            "best = Span(i, j, score)",
            "best = Span(i, j + 1, score)",
        ),
        (
            "tokens were counted from the text's first; they are counted from the window's",
            "best = Span(i, j, score)",
            "best = Span(i - begin, j - begin, score)",
        ),
    ),
}
