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
    tests: str  # files under tests/, or tests in them (file::test), separated by spaces


REFERENCE, SPANS, WINDOWS = "kernels/reference.py", "minibert/spans.py", "minibert/windows.py"
PROBABILITIES = "minibert/probabilities.py"
METRICS, RUN_SQUAD, EVALUATION = (
    f"minibert/squad/{name}.py" for name in ("metrics", "run_squad", "evaluation")
)
GEMM, ROWS, STEPS, THREADS, ATTENTION, ACTIVATIONS, COMPILER = (
    f"kernels/cpu/{name}.py"
    for name in ("gemm", "rows", "steps", "threads", "attention", "activations", "compiler")
)
COMPONENTS = "minibert/checkpoints/components.py"
VOCABULARIES, SPLITTERS = (
    f"minibert/checkpoints/{name}.py" for name in ("vocabularies", "splitters")
)
UNFINISHED, STREAM = "minibert/unfinished.py", "minibert/commands/stream.py"
TABLES = "minibert/scale/answerer.py"
GRADIENTS, PASSES, LOSS = (
    "kernels/gradients.py",
    "minibert/training/passes.py",
    "minibert/training/loss.py",
)
BY_DIFFERENCES = "test_gradients.py"
CONTRACT, JOINING, SERVICE, BODIES, CONNECTIONS, KEYS, JOURNAL, SHARING = (
    f"minibert/serve/{name}.py"
    for name in (
        "contract",
        "joining",
        "service",
        "bodies",
        "connections",
        "keys",
        "journal",
        "sharing",
    )
)
SERVED, JOINED, LIMITED = "test_serve.py", "test_serve_joining.py", "test_serve_limits.py"
TRAINING, TRAINED = "kernels/cpu/training/", "test_cpu_training.py"
CPU = "test_cpu_kernels.py::"
EXPLAINING = "test_explaining.py"
INT8 = "test_rows_of_zeros_and_of_one_sign_are_quantised"
WINDOWS_OF_ALL = "test_attention_over_several_windows"
MUTANTS = [
    Mutant("tanh GELU", REFERENCE, '"gelu": gelu,', '"gelu": gelu_tanh,', "test_parity.py"),
    Mutant("gelu_new is exact", "minibert/config.py", '"gelu_new": "gelu_tanh"', '"gelu_new": "gelu"', "test_parity.py"),
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
    Mutant("second [SEP] of type 0", WINDOWS, "types[len(head) :] = pair.text_type", "types[len(head) : -1] = pair.text_type",
           "test_windows.py"),
    Mutant("answers one token too long", SPANS, "longest = min(longest, len(start))",
           "longest = min(longest + 1, len(start))", "test_spans.py"),
    Mutant("null at the threshold", SPANS, "not null_score - a.score > null",
           "not null_score - a.score >= null", "test_spans.py"),
    Mutant("null is the highest", SPANS, "np.argmin(null_scores)", "np.argmax(null_scores)",
           "test_spans.py"),
    Mutant("no maximum context", SPANS, "better = token[score > scores[token]]", "better = token",
           "test_spans.py"),
    Mutant("merged without adding", PROBABILITIES, 'same["score"] += span.score', "pass",
           "test_spans.py test_pipelines.py test_parity_live.py"),
    Mutant("merged with case", PROBABILITIES, "answers.get(text.lower())", "answers.get(text)",
           "test_spans.py"),
    Mutant("[CLS] left out of the softmax", PROBABILITIES, "allowed = window.input_ids == cls_id",
           "allowed = np.zeros(len(window), bool)", "test_spans.py"),
    Mutant("offset end excluded", SPANS, "int(ends.ends[span.end])",
           "int(ends.starts[span.end])", "test_spans.py"),
    Mutant("accents cut off", "minibert/scripts.py", "mark = (kinds == MARK) &",
           "mark = (kinds < 0) &", "test_spans.py test_answering.py"),
    Mutant("words without spaces are sentences", "minibert/scripts.py", "return LONE_LETTER",
           "return LETTER", "test_spans.py test_answering.py"),
    Mutant("answers with the same ends", SPANS, "(starts[1:] != starts[:-1]) | ~shown[:-1]",
           "True", "test_spans.py"),
    Mutant("overlap in the other texts", SPANS, "near = documents[other] == documents[number]",
           "near = True", "test_spans.py"),
    Mutant("overlap of the longer answer", SPANS, "most * np.minimum(stops - starts, past - first)",
           "most * np.maximum(stops - starts, past - first)", "test_spans.py"),
    Mutant("int8 scales forgotten", "minibert/parameters.py",
           "matrix.values.astype(np.float32) * matrix.scales[:, None]",
           "matrix.values.astype(np.float32)", "test_kernels.py test_weights.py test_pipelines.py"),
    Mutant("own threshold of a model forgotten", "minibert/answering.py", "self.model.config.null_threshold", "0.0",
           "test_answering.py"),
    Mutant("temperature: of the sum alone", SPANS, "score / temperature - log_total", "score - log_total", "test_spans.py"),
    Mutant("bits: upper ones forgotten", "minibert/checkpoints/layouts.py", "rows |= packed[byte + 1] <<",
           "rows |= packed[byte] <<", "test_layouts.py"),
    Mutant("bits: those of attention for all layers", "minibert/checkpoints/conversion.py", '("feed-forward", bits[2])',
           '("feed-forward", bits[1])', "test_layouts.py"),
    Mutant("bits: nothing is cut off", "kernels/numbers.py", "clips[rows][squares < least] = clip", "pass",
           "test_layouts.py"),
    Mutant("gamma not renamed", "minibert/families.py", '((".gamma", ".weight"), (".beta", ".bias"))',
           '((".beta", ".bias"),)', "test_weights.py"),
    Mutant("pickles: an object in the place of weights is passed over", "minibert/checkpoints/torch_pickle.py",
           "unread[name] = value.name", "pass", "test_torch_pickle.py test_conversion.py"),
    Mutant("files: devices are files", "minibert/files.py", "if not (stat.S_ISREG(mode) or", "if not (True or",
           "test_files.py"),
    Mutant("files: a bound on size is none", "minibert/files.py", "if content.tell() > bound(at_most):", "if False:",
           "test_files.py"),
    Mutant("weights: a file that is written anew goes unnoticed", "minibert/checkpoints/safetensors.py",
           "if found < size or self._look() != self._state:", "if found < size:", "test_checkpoint.py"),
    Mutant("weights: read into one array after the other of the same id", "minibert/training/flat.py",
           "placed[id(matrix)] = matrix, place(", "placed[id(matrix)] = None, place(", "test_flat.py"),
    Mutant("pickles: tensors share without end", "minibert/checkpoints/torch_pickle.py",
           "if total > bound(max(SHARED * file_size, SHARED_ALWAYS)):", "if False:", "test_bombs.py"),
    Mutant("SQuAD: packed files grow without end", "minibert/squad/files.py", "if unpacked.tell() > most:", "if False:",
           "test_bombs.py"),
    Mutant("Google's checkpoint: matrices as they lie there", "minibert/checkpoints/tensor_bundle.py",
           'array.T if name.endswith("/kernel") else array', "array", "test_tensor_bundle.py"),
    Mutant("an adapter is a model", "minibert/checkpoints/kinds.py", '"adapter_model.*"', '"adapter.*"',
           "test_doctor.py"),
    Mutant("what stands around a model is part of it", "minibert/weights.py", "if name.startswith(before)",
           "if True", "test_conversion.py"),
    Mutant("SQuAD: articles inside words", METRICS, r'r"\b(a|an|the)\b"', 'r"(a|an|the)"', "test_metrics.py"),
    Mutant("SQuAD: right answers of which nothing is left", METRICS,
           "for gold in golds if (kept := parts(gold))]",
           "for gold in golds for kept in [parts(gold)]]", "test_metrics.py"),
    Mutant("SQuAD: marks count by themselves", METRICS, "elif is_mark(char) and found:",
           "elif False:", "test_metrics.py"),
    Mutant("SQuAD: plausible answers are right", "minibert/squad/files.py",
           'if self.is_impossible(qa, where):', "if False:", "test_squad.py"),
    Mutant("SQuAD: odds at the threshold", METRICS, "not odds[question.id] > null_threshold",
           "not odds[question.id] >= null_threshold", "test_metrics.py"),
    Mutant("SQuAD: the least sure first", METRICS, "key=lambda key: null_odds[key])",
           "key=lambda key: -null_odds[key])", "test_metrics.py"),
    Mutant("SQuAD: wrong answers cost nothing", METRICS, "return -1.0 if prediction else 0.0",
           "return 0.0", "test_metrics.py"),
    Mutant("SQuAD: questions are not cut", RUN_SQUAD, ".first(max_query_length)", "", "test_run_squad.py"),
    Mutant("SQuAD: the step is an overlap", RUN_SQUAD,
           "max(0, model.pair.text_room(asked, max_seq_length) - doc_stride)", "doc_stride", "test_run_squad.py"),
    Mutant("positions begin with those of padding", "minibert/weights.py", "return matrix[first:]", "return matrix",
           "test_families.py"),
    Mutant("RoBERTa: one separator", "minibert/windows.py", "[pair.sep_id] * pair.separators", "[pair.sep_id]",
           "test_families.py"),
    Mutant("DistilBERT: lin2 is lin1", "minibert/families.py", '(".intermediate.dense.", ".ffn.lin1.")', '(".intermediate.dense.", ".ffn.lin2.")',
           "test_families.py"),
    Mutant("the projection is left out", "minibert/encoder.py",
           'x = note(trace, "projection", kernels.linear(x, weights.projection))',
           'note(trace, "projection", x)', "test_family_goldens.py"),
    Mutant("the projection is not narrowed", "kernels/cpu/schedule.py",
           "steps.narrow(x, layer_at(job.layers, 0).qkv, thread)", "pass",
           CPU + "test_the_pass_in_one_call_equals_its_steps_and_the_reference"),
    Mutant("ALBERT: groups take turns", "minibert/weights.py",
           "int(i / (layers / config.num_hidden_groups))", "i % config.num_hidden_groups",
           "test_families.py test_family_goldens.py"),
    Mutant("CPU training: scores are not divided by the root", TRAINING + "attention.py",
           "code.load(deltas + k * 4)) * over_root", "code.load(deltas + k * 4))", TRAINED),
    Mutant("CPU training: the softmax's own share is left out", TRAINING + "attention.py",
           "(code.load(gradient + k * 4) - code.load(deltas + k * 4))", "code.load(gradient + k * 4)", TRAINED),
    Mutant("CPU training: keys and queries swap places in dropout", TRAINING + "attention.py",
           "place = (job.dropout.first_token + task.begin) * heads + task.head",
           "place = (job.dropout.first_token + task.begin + 1) * heads + task.head", TRAINED),
    Mutant("CPU training: the gradient of queries is not put across", TRAINING + "attention.py",
           "rows_of(thread.d_scores_across, done, count)", "rows_of(thread.d_scores, done, count)", TRAINED),
    Mutant("CPU training: a norm's slope is left out", TRAINING + "rows.py",
           "(scaled - mean - x * slope) * factor", "(scaled - mean) * factor", TRAINED),
    Mutant("CPU training: GELU's density is left out", TRAINING + "activations.py",
           "code.fma(erf, 0.5, 0.5) + x * density", "code.fma(erf, 0.5, 0.5)", TRAINED),
    Mutant("CPU training: what was dropped flows back", TRAINING + "dense.py",
           "drop(d_sum, block.begin, width, job.dropout, d_out)", "pass", TRAINED),
    Mutant("CPU training: biases get the last batch only", TRAINING + "functions.py",
           "gradient.bias[:] += sums[: dense.out]", "gradient.bias[:] = sums[: dense.out]", TRAINED),
    Mutant("CPU training: the second mean is not corrected", TRAINING + "functions.py",
           "1 / math.sqrt(1 - s.beta2**s.step)", "1.0", TRAINED),
    Mutant("CPU training: decay without the learning rate", TRAINING + "functions.py",
           "1 - s.learning_rate * s.weight_decay", "1 - s.weight_decay", TRAINED),
    Mutant("CPU training: old weights for the gradient of the input", TRAINING + "optimizer.py",
           "pack_values(x, job.narrow.stride, job.out, panel, to)",
           "pack_values(x, job.narrow.stride, 0, panel, to)", TRAINED),
    Mutant("SQuAD: last tokens need the most context", RUN_SQUAD, "in_text[last][None, :]",
           "may_start[last][None, :]", "test_run_squad.py"),
    Mutant("SQuAD: null score of the last window", RUN_SQUAD,
           "if float(start[0]) + float(end[0]) < null_score:", "if True:", "test_run_squad.py"),
    Mutant("SQuAD: of equals the last", RUN_SQUAD, 'np.argsort(-logits, kind="stable")[:n]',
           'len(logits) - 1 - np.argsort(-logits[::-1], kind="stable")[:n]', "test_run_squad.py"),
    Mutant("SQuAD: no answer at the threshold", RUN_SQUAD, "self.null_odds > null_score_diff",
           "self.null_odds >= null_score_diff", "test_run_squad.py"),
    Mutant("SQuAD: a paragraph without spaces is a word", RUN_SQUAD,
           "for word in split_script(text, a, b)]", "for word in [(a, b)]]", "test_run_squad.py"),
    Mutant("SQuAD: the last occurrence", RUN_SQUAD, "seen.find(wanted)", "seen.rfind(wanted)",
           "test_run_squad.py"),
    Mutant("SQuAD: scored on what it was tuned on", EVALUATION, "if q.article not in chosen]",
           "if q.article in chosen]", "test_evaluation.py"),
    Mutant("half a line is a result", UNFINISHED, 'if not line.endswith(b"\\n"):', "if False:",
           "test_journal.py test_stream.py"),
    Mutant("other settings go on", UNFINISHED, "if before.get(name) != value", "if False",
           "test_journal.py test_stream.py"),
    Mutant("other lines go on", STREAM, "elif match[1] != digest(line[1]):", "elif False:",
           "test_stream.py"),
    Mutant("damaged rows are written", STREAM, "if match is None or not is_object(match[3]):",
           "if match is None:", "test_stream.py"),
    Mutant("errors of before are forgotten", STREAM, 'bad += match[2] == b"bad"', "pass",
           "test_stream.py"),
    Mutant("rows wait in a buffer", STREAM, """b"bad" if row.error else b"ok", text))
            file.flush()""", """b"bad" if row.error else b"ok", text))""", "test_stream.py"),
    Mutant("tables: a row that cannot be answered ends all", TABLES, 'if failed and self.on_error == "raise":',
           "if failed:", "test_scale.py"),
    Mutant("tables: each batch loads a model", TABLES, "_ANSWERERS.loaded[settings] = answerer", "pass",
           "test_scale.py"),
    Mutant("tables: the child of a fork waits for a thread that is gone", TABLES,
           "after_in_child=_ANSWERERS.after_fork,", "",
           "test_scale.py::test_a_fork_while_a_thread_loads_leaves_a_child_that_can_load"),
    Mutant("rows with errors wait without end", "minibert/reading.py", "sum(map(len, windows)) or 1",
           "sum(map(len, windows))", "test_stream.py"),
    Mutant("an error comes before its turn", "minibert/reading.py", "failures.append(error)", "raise",
           "test_pipelines.py"),
    Mutant("blank pages are read", "minibert/model.py", "if len(texts) > 1 and not (len(context) and text.strip()):",
           "if False:", "test_answering.py"),
    Mutant("texts are kept without a bound", "minibert/recent.py", "while self.size > KEPT_TOKENS:",
           "while False:", "test_recent.py"),
    Mutant("tokenizer: MeCab's tokens from tokenizer.json", VOCABULARIES, "if name in OTHER_SPLITTERS:",
           "if name in OTHER_SPLITTERS and form is not None:", "test_vocabularies.py"),
    Mutant("tokenizer: marks of the vocabulary are dropped", SPLITTERS, "and any(map(_has_marks, plain))",
           "and False", "test_vocabularies.py"),
    Mutant("tokenizer: XLM-R's pieces are not moved", SPLITTERS, "model.pieces[3:]", "model.pieces[4:]",
           "test_vocabularies.py"),
    Mutant("tokenizer: tokens of the vocabulary are not added", SPLITTERS, "[token for _, token in tokens]",
           "[token for number, token in tokens if number >= backend.get_vocab_size()]", "test_vocabularies.py"),
    Mutant("tokenizer.json: a regex may be repeated within", COMPONENTS, "(ended and not piece[\"bar\"])",
           "False", "test_components.py"),
    Mutant("tokenizer.json: replacements are not multiplied", COMPONENTS, "> MOST_GROWTH:", "> MOST_GROWTH**9:",
           "test_components.py"),
    Mutant("tokenizer.json: merges into nothing", "minibert/checkpoints/subwords.py", "and made in vocab)", ")",
           "test_components.py"),
    Mutant("tokenizer: rules lead out of their trie", "minibert/checkpoints/sentencepiece.py", "((links | 255) >=",
           "(links >=", "test_sentencepiece.py"),
    Mutant("tokenizer: a panic is passed on", "minibert/tokenizer.py", '!= "PanicException"', '!= "x"',
           "test_tokenizer.py"),
    Mutant("tokenizer: a short text brings a warning", "minibert/tokenizer.py", "len(ids) < FEWEST_TOKENS",
           "len(ids) < 1", "test_tokenizer.py"),
    Mutant("SQuAD: no space before the first word", "minibert/tokenizer.py", 'if text[begin].isspace() else " "',
           'if begin == 0 else " "', "test_families.py"),
    Mutant("pictures are cut", "minibert/scripts.py", "() if text.isascii() else", "() if True else", "test_scripts.py"),
    Mutant("Hub: weights are fetched for a config that cannot run", "minibert/checkpoints/hub.py",
           "BertConfig.from_json(config)  #", "#", "test_hub_server.py"),
    Mutant("Hub: the cache is not looked at where no Hub answers", "minibert/checkpoints/hub.py",
           "if not isinstance(path, str):", "if self.offline:", "test_hub_server.py test_hub.py"),
    Mutant("Hub: a slow one is taken for none", "minibert/checkpoints/hub.py",
           "if cached and not os", "if not os", "test_hub_server.py"),
    Mutant("Hub: weights are fetched before the tokenizer is looked at", "minibert/checkpoints/hub.py",
           "check(config.parent)", "pass", "test_hub_server.py"),
    Mutant("Hub: what the cache knows of a commit is asked for again", "minibert/checkpoints/hub.py",
           "if not final and", "if", "test_hub_server.py"),
    Mutant("SQuAD: the pipeline chooses among fifty", "minibert/squad/decoders.py", "k=12,", "k=50,",
           "test_evaluation.py"),
    Mutant("training: the second epoch in the order of the first", "minibert/training/order.py",
           "shuffled(len(self.lengths), self.settings.seed, epoch)", "shuffled(len(self.lengths), self.settings.seed, 0)",
           "test_training_steps.py"),
    Mutant("training: answers that are cut off are right", "minibert/training/examples.py",
           "if begin <= a and b < end]", "if begin <= a < end]",
           "test_training_examples.py"),
    Mutant("training: answers one token early", "minibert/training/examples.py",
           "starts.append([head + a - begin", "starts.append([head + a - begin - 1",
           "test_training_examples.py"),
    Mutant("training: occurrences within tokens are right", "minibert/training/examples.py",
           "if other and between_borders", "if other or between_borders",
           "test_training_examples.py"),
    Mutant("training: frozen layers learn", "minibert/training/optimizer.py",
           "part.depth <= settings.freeze_layers", "part.depth < settings.freeze_layers",
           "test_training_steps.py"),
    Mutant("training: norms decay", "minibert/training/optimizer.py",
           "settings.weight_decay if part.decays else 0.0", "settings.weight_decay",
           "test_training_steps.py"),
    Mutant("training: the top layer learns slowest", "minibert/training/optimizer.py",
           "** (top - part.depth)", "** part.depth",
           "test_training_steps.py"),
    Mutant("training: the scale of clipping is forgotten", "minibert/training/trainer.py",
           "scale=clipping(norm, settings) / len(windows)", "scale=clipping(norm, settings)",
           "test_training_run.py::test_the_loss_of_a_step_is_the_mean_over_its_windows"),
    Mutant("training: each pass drops the same", "minibert/training/trainer.py",
           "dropouts = self.dropouts(tokens)", "dropouts = self.dropouts(0)",
           "test_training_run.py::test_how_a_step_is_cut_changes_only_roundings"),
    Mutant("training: the optimizer's means begin again", "minibert/training/trainer.py",
           '{"weights": self.flat, "first": self.first, "second": self.second}', '{"weights": self.flat, "first": self.first}',
           "test_training_run.py"),
    Mutant("training: the log goes on behind what was killed", "minibert/training/run_folder.py",
           "file.truncate(min(size, file.tell()))", "pass",
           "test_training_run.py"),
    Mutant("training: damaged checkpoints go on", "minibert/training/run_folder.py",
           'if checksum(array) != sums[name]:', "if False:",
           "test_training_run.py"),
    Mutant("training: a finished model is overwritten", "minibert/training/run_folder.py",
           "if (folder / WEIGHTS).exists():", "if False:",
           "test_training_run.py"),
    Mutant("training: steps that are no numbers are taken", "minibert/training/optimizer.py",
           "if not math.isfinite(loss):", "if False:",
           "test_training_steps.py"),
    Mutant("training: padding's positions are lost", "minibert/training/result.py",
           "if name == POSITIONS and base.config.first_position:", "if False:",
           "test_training_run.py"),
    Mutant("training: held-out articles are trained on", "minibert/training/held_out.py",
           "if question.article not in chosen]", "if True]",
           "test_training_run.py"),
    Mutant("training: the temperature is forgotten in the gradient", "minibert/training/distillation.py",
           "weight / 2 * temperature * (np",
           "weight / 2 * (np", "test_training_distillation.py"),
    Mutant("training: layers are matched from the first on", "minibert/training/distillation.py",
           "(i + 1) * teacher_layers // student_layers - 1 for",
           "i * teacher_layers // student_layers for", "test_training_distillation.py"),
    Mutant("training: kept logits of other windows", "minibert/training/distillation.py",
           "self.kept[0, place], self.kept[1, place] = start[a:b], end[a:b]",
           "self.kept[0, place], self.kept[1, place] = end[a:b], start[a:b]", "test_training_distillation.py"),
    Mutant("training: a teacher with other tokens teaches", "minibert/training/distillation.py",
           "if vocabularies[0] != vocabularies[1]:",
           "if False:", "test_training_distillation.py"),
    Mutant("gradient: of scores not scaled", GRADIENTS, "d_scores /= math.sqrt(query.shape[-1])", "pass",
           BY_DIFFERENCES),
    Mutant("gradient: of keys not across", GRADIENTS, "d_key = d_scores.swapaxes(-1, -2) @ query",
           "d_key = d_scores @ query", BY_DIFFERENCES),
    Mutant("gradient: softmax without its sum", GRADIENTS,
           "d_probs - (probs * d_probs).sum(axis=-1, keepdims=True)", "d_probs", BY_DIFFERENCES),
    Mutant("gradient: of values from all probabilities", GRADIENTS,
           "d_value = drop(probs, places, dropout).swapaxes", "d_value = probs.swapaxes", BY_DIFFERENCES),
    Mutant("gradient: of probabilities that were dropped", GRADIENTS,
           "d_probs = drop(d_context @ value.swapaxes(-1, -2), places, dropout)",
           "d_probs = d_context @ value.swapaxes(-1, -2)", BY_DIFFERENCES),
    Mutant("gradient: of hidden states that were dropped", GRADIENTS,
           "d_y = drop(d_residual, hidden_places(d_residual.shape, dropout), dropout)", "d_y = d_residual",
           BY_DIFFERENCES),
    Mutant("gradient: of embeddings that were dropped", GRADIENTS,
           "d_norm = drop(d_out, hidden_places(d_out.shape, dropout), dropout)", "d_norm = d_out",
           BY_DIFFERENCES),
    Mutant("gradient: of weights across", GRADIENTS, "d_weight += d_out.T @ x.out",
           "d_weight += (x.out.T @ d_out).reshape(d_weight.shape)", BY_DIFFERENCES),
    Mutant("gradient: the last batch's alone", GRADIENTS, "d_bias += d_out.sum(axis=0)\n    d_x =",
           "d_bias[...] = d_out.sum(axis=0)\n    d_x =", BY_DIFFERENCES),
    Mutant("gradient: a row once, however often looked up", GRADIENTS,
           "np.add.at(full(table.matrix), ids, d_x)", "full(table.matrix)[ids] += d_x", BY_DIFFERENCES),
    Mutant("gradient: norm without its gain", GRADIENTS, "d_normal = d_out * norm.gain", "d_normal = d_out",
           BY_DIFFERENCES),
    Mutant("gradient: norm whose deviation stays", GRADIENTS, "(d_centred - kept.normal * along)", "d_centred",
           BY_DIFFERENCES),
    Mutant("gradient: norm whose mean stays", GRADIENTS, "d_normal - d_normal.mean(axis=-1, keepdims=True)",
           "d_normal", BY_DIFFERENCES),
    Mutant("gradient: GELU without its density", GRADIENTS,
           "return 0.5 * (1 + erf(x * math.sqrt(0.5))) + x * density",
           "return 0.5 * (1 + erf(x * math.sqrt(0.5)))", BY_DIFFERENCES),
    Mutant("gradient: slope of tanh GELU", GRADIENTS, '"gelu": gelu_slope', '"gelu": gelu_tanh_slope',
           BY_DIFFERENCES),
    Mutant("gradient: past attention nothing flows", PASSES, "layer.qkv, gradient.qkv, d_past)",
           "layer.qkv, gradient.qkv, None)", BY_DIFFERENCES),
    Mutant("gradient: layers from the first to the last", PASSES, "in reversed(range(len(weights.layers))):",
           "in range(len(weights.layers)):", BY_DIFFERENCES),
    Mutant("dropout: not made up for", GRADIENTS, "x / x.dtype.type(1 - dropout.rate)", "x", BY_DIFFERENCES),
    Mutant("dropout: each batch begins anew", GRADIENTS, "first = dropout.first_token if dropout else 0",
           "first = 0", BY_DIFFERENCES),
    Mutant("dropout: of all layers alike", PASSES, 'f"{self.seed} {self.step} {where}"',
           'f"{self.seed} {self.step} {where[-6:]}"', BY_DIFFERENCES),
    Mutant("dropout: of all steps alike", PASSES, 'f"{self.seed} {self.step} {where}"',
           'f"{self.seed} {where}"', BY_DIFFERENCES),
    Mutant("AdamW: decay in the gradient", GRADIENTS, "g = gradient * s.scale",
           "g = gradient * s.scale + s.weight_decay * weights", BY_DIFFERENCES),
    Mutant("AdamW: means begin at zero", GRADIENTS, "m = first / (1 - s.beta1**s.step)", "m = first",
           BY_DIFFERENCES),
    Mutant("AdamW: gradient not scaled", GRADIENTS, "g = gradient * s.scale", "g = gradient * 1.0",
           BY_DIFFERENCES),
    Mutant("AdamW: eps under the root", GRADIENTS, "(np.sqrt(v) + s.eps)", "np.sqrt(v + s.eps)",
           BY_DIFFERENCES),
    Mutant("AdamW: norms decay", "minibert/training/flat.py",
           'name.endswith(".weight") and "LayerNorm" not in name', 'name.endswith(".weight")', "test_flat.py"),
    Mutant("loss: of each right token", LOSS, "np.exp(log_probs[places] - log_right)", "1", "test_loss.py"),
    Mutant("loss: start and end are not halved", LOSS, "np.multiply(weights, 0.5)", "np.multiply(weights, 1.0)",
           "test_loss.py"),
    Mutant("loss: over the whole batch", LOSS, "log_probs = scores - log_sum(scores)",
           "log_probs = scores - log_sum(logits.astype(np.float64))", "test_loss.py"),
    Mutant("CPU: later blocks forget the sum", STEPS, "start, start_stride = thread.sums, panel * 4",
           "start, start_stride = dense.start + p * panel * 4, 0", f"{CPU}test_linear"),
    Mutant("CPU: all tiles from the first row", GEMM, "            x + i * x_stride,",
           "            x,", f"{CPU}test_linear"),
    Mutant("CPU: every block of steps is the first", STEPS, "x.address + done * 4, x.stride",
           "x.address, x.stride", f"{CPU}test_linear"),
    Mutant("CPU: rounded numbers keep all bits", ROWS, "nearest_even(code, x) & -0x10000",
           "nearest_even(code, x)", f"{CPU}test_a_result_is_rounded_to_bfloat16_with_ties_to_even"),
    Mutant("CPU: bfloat16 ties away from zero", ROWS, "(bits.shift_unsigned(16) & 1) + 0x7FFF",
           "0x8000", f"{CPU}test_a_result_is_rounded_to_bfloat16_with_ties_to_even"),
    Mutant("CPU: words of weights unsigned", GEMM, "((x << 16) >> 16) * ((w << 16) >> 16)",
           "((x << 16) >> 16) * (w & 0xFFFF)", f"{CPU}{INT8}"),
    Mutant("CPU: activations of 8 bits overflow in 16", "kernels/cpu/targets.py", "return 127 if self",
           "return 255 if self", f"{CPU}test_the_largest_products_do_not_overflow"),
    Mutant("CPU: column scale forgotten", ROWS, 'code.cast("sitofp", integers, F32) * w_scale - zero',
           'code.cast("sitofp", integers, F32) - zero', f"{CPU}{INT8}"),
    Mutant("CPU: zero point not rounded", ROWS, "(smallest * inverse * -1.0 + ROUND) - ROUND",
           "smallest * inverse * -1.0", f"{CPU}{INT8}"),
    Mutant("CPU: bytes end at 63", ROWS, "code.maximum(y, 0.0), largest)", "code.maximum(y, 0.0), 63.0)",
           f"{CPU}{INT8}"),
    Mutant("CPU: residual forgotten", ROWS, 'if kind == "residual":', "if False:",
           f"{CPU}test_linear_add_norm"),
    Mutant("CPU: mean over the padding", ROWS, '1.0 / code.cast("sitofp", count, F32)',
           '1.0 / code.cast("sitofp", width, F32)', f"{CPU}test_linear_add_norm"),
    Mutant("CPU: variance over the padding", ROWS, "& -panel, count & -lanes",
           "& -panel, (count + (lanes - 1)) & -lanes", f"{CPU}test_linear_add_norm"),
    Mutant("CPU: what is no number is the smaller one", "kernels/cpu/simd.py", "self.select(b > a, b, a)",
           "self.select(a > b, a, b)", f"{CPU}test_what_is_no_number_stays_none_through_every_step"),
    Mutant("CPU: huge scores are shifted as others are", ATTENTION, "HUGE = 2.0**20", "HUGE = 2.0**63",
           f"{CPU}test_attention_with_scores_beyond_all_sense"),
    Mutant("CPU: integers hide what is no number", ROWS, "scale = scale + code.reduce(odd + odd2, Value.__add__)",
           "scale = scale + 0.0", f"{CPU}test_what_is_no_number_stays_none_through_every_step"),
    Mutant("ids beyond the tables", "kernels/bounds.py", ".max() >= count:", ".max() < 0:", "test_bounds.py"),
    Mutant("counts stay NumPy's", "minibert/options.py", "count = int(value)", "count = value", "test_options.py"),
    Mutant("logits that are no numbers", "minibert/model.py", "(np.abs(part) < LARGEST_LOGIT).all()", "part.size >= 0",
           "test_answering.py"),
    Mutant("terminals are steered", "minibert/progress.py", "    if not on_terminal(stream):", "    if True:",
           "test_cli.py"),
    Mutant("CPU: eps forgotten", ROWS, "code.sqrt(variance + epsilon)", "code.sqrt(variance)",
           f"{CPU}test_layer_norm_adds_eps_to_the_variance"),
    Mutant("CPU: GELU not cut off", ACTIVATIONS, "clip(code, x * math.sqrt(0.5), -4.0, 4.0)",
           "x * math.sqrt(0.5)", f"{CPU}test_every_activation_over_the_whole_range"),
    Mutant("CPU: exponential not cut off", ACTIVATIONS, "x = code.maximum(x, -126.0)", "pass",
           f"{CPU}test_attention_with_large_scores"),
    Mutant("CPU: embedding's scale forgotten", ROWS, "x = x * code.like(code.load_one(scales", "code.like(code.load_one(scales",
           f"{CPU}test_embed"),
    Mutant("CPU: end scored as start", ROWS, "code.load(head + (width + k) * 4), sums[1]",
           "code.load(head + k * 4), sums[1]", f"{CPU}test_span_logits"),
    Mutant("CPU: halves swapped in a transpose", ATTENTION, "for half in (low, high)]",
           "for half in (high, low)]", f"{CPU}{WINDOWS_OF_ALL}"),
    Mutant("CPU: keys go on with the next head", ATTENTION, "step * 4, I32) & keep)", "step * 4, I32))",
           f"{CPU}{WINDOWS_OF_ALL}"),
    Mutant("CPU: keys that are not there", ATTENTION, "code.select(code.mask(count - k), x, NOTHING)", "x",
           f"{CPU}{WINDOWS_OF_ALL}"),
    Mutant("CPU: sums of probabilities not divided out", ATTENTION, "x * code.like(inverse, x)", "x",
           f"{CPU}{WINDOWS_OF_ALL}"),
    Mutant("CPU: scores divided by the size", ATTENTION, 'code.sqrt(code.cast("sitofp", size, F32))',
           'code.cast("sitofp", size, F32)', f"{CPU}{WINDOWS_OF_ALL}"),
    Mutant("CPU: nobody waits for queries, keys and values", THREADS, "    wait_for(address_of(job, \"done\"), thread.stage_begin, job.yield_function)\n    thread.begun", "    thread.begun",
           f"{CPU}test_the_number_of_threads_changes_no_bit"),
    Mutant("CPU: a child keeps its parent's lock", "kernels/cpu/pool.py",
           "os.register_at_fork(after_in_child=POOL.__init__)", "pass",
           "test_cpu_pool.py::test_a_fork_may_come_while_another_thread_computes"),
    Mutant("CPU: bfloat16 cut off", "kernels/numbers.py", "(bits + np.uint32(0x7FFF) + odd) >>", "bits >>", "test_cpu_packing.py"),
    Mutant("CPU: scales of 128 steps", "kernels/numbers.py", "largest / np.float32(127)", "largest / np.float32(128)",
           "test_cpu_packing.py"),
    Mutant("cache: damaged code is run", "kernels/cache.py", "return code if _digest(path.name, code) == digest else None",
           "return code", "test_cache.py"),
    Mutant("cache: another user's code is run", "kernels/cache.py", "if facts.st_uid not in (os.geteuid(), 0):", "if False:",
           "test_cache.py"),
    Mutant("cache: code that others may write is run", "kernels/cache.py", "if facts.st_mode & 0o022:", "if False:",
           "test_cache.py"),
    Mutant("drafts: those of living processes are swept", "minibert/drafts.py", "free = got is not False and", "free =",
           "test_drafts.py"),
    Mutant("drafts: an old model goes before the new one is there", "minibert/drafts.py", "if not os.path.lexists(target):",
           "if not shutil.rmtree(target, ignore_errors=True):", "test_drafts.py"),
    Mutant("serve: one answer of several is bare", CONTRACT, "[answers] if top_k > 1 and", "[answers] if top_k > 99 and", SERVED),
    Mutant("serve: the address outweighs the body", CONTRACT, "{**_from_query(query), **(parameters or {})}",
           "{**(parameters or {}), **_from_query(query)}", SERVED),
    Mutant("serve: NaN is taken", CONTRACT, ", parse_constant=_refuse_constant", "", SERVED),
    Mutant("serve: batches for those who left", JOINING, "if reading.result.cancelled():", "if False:", JOINED),
    Mutant("serve: a long text goes first", JOINING, "self.waiting.append(reading)  # behind", "self.waiting.appendleft(reading)  # behind", JOINED),
    Mutant("serve: a long text fills whole batches", JOINING, "if reading in served and room", "if False and room", JOINED),
    Mutant("serve: a failed batch is forgotten", JOINING, "                    self._drop(reading)\n", "", JOINED),
    Mutant("serve: places are lost", SERVICE, "            self.places.give(more)\n", "            pass\n", LIMITED),
    Mutant("serve: work for clients that left", SERVICE, "            ticket.give_up()\n", "            pass\n", LIMITED),
    Mutant("serve: bodies are held for ever", BODIES, "self.service.bodies.give(self.held)", "pass", LIMITED),
    Mutant("serve: each byte moves the deadline", CONNECTIONS, "if not self.busy and self.is_busy():", "if True:", LIMITED),
    Mutant("serve: part of a key is enough", KEYS, "hmac.compare_digest(given.strip().encode(\"utf-8\", \"replace\"), key.encode())",
           "key.startswith(given.strip()[:4])", LIMITED),
    Mutant("serve: lines of the log can be forged", JOURNAL, "ascii(f\"", "str(f\"'", LIMITED),
    Mutant("serve: windows beyond number", SHARING, "if self.ticket.tokens > self.max_tokens:", "if False:", LIMITED),
    Mutant("serve: one lane for all bodies", SERVICE, "if len(body) >= self.settings.long_body:", "if False:", LIMITED),
    Mutant("serve: all long texts are under way", SERVICE, "with under_way, turn:", "with turn:", LIMITED),
    Mutant("serve: long texts without end", JOINING, "if waiting + tokens > MARGIN", "if False and waiting + tokens > MARGIN", JOINED),
    Mutant("serve: who is under way at the end is not told", "minibert/serve/app.py", "raise stopping() from None", "raise", LIMITED),
    Mutant("CPU: old code for new sources", COMPILER, "digest.update(source.read_bytes())", "pass",
           "test_cpu_compiler.py"),
    Mutant("explain: value not multiplied", "minibert/explaining/passes.py",
           "probs.append(d_context @ value.swapaxes(-1, -2))", "probs.append(d_context @ d_context.swapaxes(-1, -2))",
           EXPLAINING),
    Mutant("explain: gradients of layers in the order of the way back", "minibert/explaining/passes.py",
           "probs[::-1]", "probs", EXPLAINING),
    Mutant("explain: rules in the wrong order", "minibert/explaining/spans.py",
           "(TOO_LONG, end - start >= max_answer_length)", "(TOO_LONG, end - start > max_answer_length)", EXPLAINING),
    Mutant("explain: the rival counts twice", "minibert/explaining/explanation.py",
           "float(seen.end[best.end] - seen.end[pair.end])", "float(seen.end[best.end] + seen.end[pair.end])",
           EXPLAINING),
    Mutant("explain: half a path", "minibert/explaining/words.py", "total / count * way", "total / count * way / 2",
           EXPLAINING),
    Mutant("explain: the page sums in float64", "minibert/pages/explanation/script.js",
           "visit(i, j, f(w.start[i] + w.end[j]))", "visit(i, j, w.start[i] + w.end[j])", "test_explanation_page.py"),
    Mutant("explain: the page forgets who owns a token", "minibert/pages/explanation/script.js",
           "if (!has(w, i, MINE | MAY_START)) continue;", "if (!has(w, i, MAY_START)) continue;",
           "test_explanation_page.py"),
    Mutant("lessons: a small mistake is right", "minibert/lessons/outcomes.py", '"float64": 1e-7', '"float64": 1e-2',
           "test_lessons.py"),
    Mutant("lessons: changed arguments go unnoticed", "minibert/lessons/trial.py", "if name not in step.changes and", "if False and",
           "test_lessons.py"),
    Mutant("lessons: any call of the library is lent", "minibert/lessons/watching.py", "if code in self.lent or", "if code or",
           "test_lessons.py"),
    Mutant("lessons: the library is called within a learner's world", "minibert/lessons/learner.py",
           "if value is before or value is definition:", "if value is before:", "test_lessons.py"),
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
        variables = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
        if mutant.file.startswith("kernels/"):  # no broken code in the user's cache
            variables["MINIBERT_CACHE_DIR"] = str(copy / "cache")
        # The copy has to win over the installed package: first on the path, and not as a plugin.
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env=os.environ | variables,
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
