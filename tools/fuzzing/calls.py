"""Odd arguments of functions: right ones, of which a few are then replaced.

An argument is an expression of Python, as values.py has them.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any, NamedTuple

from fuzzing.values import odd_expression


class Function(NamedTuple):
    """A function's arguments."""

    right: dict[str, str]  # those that a call has anyway
    names: tuple[str, ...]  # of the others
    fields: tuple[str, ...] = ()  # of the record that it takes as `settings`


SQUAD_FIELDS = (
    "decoder max_seq_length doc_stride max_query_length max_answer_length n_best_size "
    "null_threshold with_null"
)
# Without max_steps and num_train_epochs, which ask for hours of work that is then done.
TRAINING_FIELDS = (
    "learning_rate per_device_train_batch_size batch_tokens gradient_accumulation_steps "
    "max_tokens_per_pass warmup_ratio warmup_steps lr_scheduler_type weight_decay adam_beta1 "
    "adam_beta2 adam_epsilon max_grad_norm layerwise_decay freeze_embeddings freeze_layers "
    "hidden_dropout_prob attention_probs_dropout_prob ema max_seq_length doc_stride "
    "max_query_length layers teacher_weight match_layers temperature all_occurrences limit seed "
    "device dtype num_threads logging_steps save_steps save_total_limit held_out eval_steps "
    "eval_limit early_stopping time_limit"
)
OPTIONS = (
    "question context prefix on_error num_threads tokenizer device dtype revision token cache_dir "
    "max_seq_length doc_stride max_question_length max_answer_length min_score max_overlap "
    "null_score_diff_threshold align_to_words"
)
# Values that are right for some and, as those of other programs, odd for all.
LIKELY = re.split(
    r"\s\s+",
    """0  1  2  3  8  16  64  0.1  0.5  1.0  np.uint8(3)  np.int64(16)  np.uint16(40)  True  False
    None  np.float32(0.5)  np.float16(0.1)  np.float64(0.25)  Fraction(1, 3)  np.bool_(True)
    np.bool_(False)  Count(3)  float('inf')  -1  ''  'a'  'new'  'run'  [0]  (0, 1)
    np.array([0, 1])  [np.int8(5)] * 3  'int8'  'float16'  'bfloat16'  'characters'  'cosine'
    'pipeline'  print  [lambda record: False]  folder  loaded  [loaded]  read_squad('squad.json')
    'squad.json'  'config.json'  1e-300  1e300  2**63 - 1  2**64 - 1""",
)
DATA = "read_squad('squad.json')"
FUNCTIONS = {
    "convert": Function(
        {"model": "'.'", "output": "'new'"},
        ("dtype", "bits", "revision", "token", "cache_dir", "overwrite", "report"),
    ),
    "evaluate": Function(
        {"model": "loaded", "data": DATA, "output_dir": "'run'"},
        ("overwrite", "f1", "settings"),
        tuple(SQUAD_FIELDS.split()),
    ),
    "score_predictions": Function(
        {"data": DATA, "predictions": "'predictions.json'"},
        ("null_odds", "nbest", "null_threshold", "f1"),
    ),
    "squad_evaluate": Function(
        {"questions": f"{DATA}.questions", "predictions": "dict(predictions)"},
        ("null_odds", "null_threshold", "f1"),
    ),
    "train": Function(
        {"data": "'squad.json'", "model": "'.'", "output_dir": "'new'"},
        tuple("eval_data callbacks command teachers teacher_cache revision settings".split()),
        tuple(TRAINING_FIELDS.split()),
    ),
    "BatchAnswerer": Function({"model": "'.'"}, tuple(OPTIONS.split())),
}
# Values that are right, so that a call with an odd one comes further.
RIGHT_VALUES = {
    "teachers": "['.']",
    "teacher_cache": "'cache'",
    "callbacks": "[print]",
    "device": "'reference'",
    "dtype": "'float32'",
    "bits": "(5, 6, 6)",
    "null_odds": "'odds.json'",
    "nbest": "'nbest.json'",
    "eval_data": "'squad.json'",
    "decoder": "'answerer'",
    "held_out": "0.5",
}
BATCHES = (
    "dict(question=['who?', None], context=['ada lee wrote it.'] * 2)",
    "dict(question=np.array(['who?']), context=np.array(['ada ' * 90]))",
    "UserDict(question=['who?'], context=['ada'], more=[1])",
)


def odd_call(random: Random, name: str) -> dict[str, Any]:
    """A call of one of `FUNCTIONS` in which a few arguments are odd.

    Returns:
        The function's name, its arguments, and the fields of its settings, as expressions.
    """
    function = FUNCTIONS[name]
    arguments, settings = dict(function.right), {}
    for other in random.sample(sorted(RIGHT_VALUES), 3):
        if other in function.names:
            arguments[other] = RIGHT_VALUES[other]
        elif other in function.fields:
            settings[other] = RIGHT_VALUES[other]
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        if function.fields and random.random() < 0.5:
            settings[random.choice(function.fields)] = expression(random)
        else:
            chosen = random.choice([*function.right, *function.names])
            arguments[chosen] = expression(random)
    call: dict[str, Any] = {"function": name, "arguments": arguments, "settings": settings}
    if name == "BatchAnswerer":
        call["batch"] = odd_batch(random)
    return call


def expression(random: Random) -> str:
    """An argument."""
    return random.choice(LIKELY) if random.random() < 0.6 else odd_expression(random)


def odd_batch(random: Random) -> str:
    """A batch of rows with questions and texts, or something like it."""
    if random.random() < 0.5:
        return random.choice(BATCHES)
    if random.random() < 0.3:
        return odd_expression(random)
    question, context = (
        random.choice([f"[{odd_expression(random)}, 'who?']", odd_expression(random)])
        for _ in range(2)
    )
    return f"dict(question={question}, context={context})"
