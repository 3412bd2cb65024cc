"""How a case is made: which seed, and what of it is changed.

Case k of a kind depends on the seed of the run, the kind and k alone, so that it can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeAlias

from fuzzing import formats, interrupted, mutations, seeds, tokenizers
from fuzzing.calls import odd_call
from fuzzing.commands import odd_command
from fuzzing.seeds import CONTEXT, FAMILIES, QUESTION, Folder
from fuzzing.values import long_text, odd_expression, odd_text


@dataclass(frozen=True)
class Case:
    """A folder of files, and what is done with them."""

    kind: str
    files: Folder
    call: dict[str, Any]  # JSON


Mutator: TypeAlias = Callable[[Random, bytes], bytes]
Made: TypeAlias = tuple[Folder, dict[str, Any]]  # the files and the call of a case


def changed(random: Random, files: Folder, mutators: dict[str, Mutator]) -> Folder:
    """A folder in which one of these files is changed; or, rarely, away."""
    name = random.choice([name for name in mutators if name in files])
    others = {each: content for each, content in files.items() if each != name}
    if random.random() < 0.02:
        return others
    return others | {name: mutators[name](random, files[name])}


def asked(random: Random) -> dict[str, Any]:
    """What a model is asked that is not the point of a case."""
    texts = [[CONTEXT], [CONTEXT * 4], [CONTEXT, "", "it is 東京."]]
    return {"question": QUESTION, "texts": random.choice(texts), "options": {}}


def weights(random: Random) -> Made:
    """A damaged model.safetensors, of floats or of few bits."""
    bits = random.choice([None, None, None, 8, 5])
    family = random.choice(FAMILIES)
    files = seeds.model(family) if bits is None else seeds.packed(family, bits)
    mutators: dict[str, Mutator] = {"model.safetensors": formats.mutate_safetensors}
    return changed(random, files, mutators), asked(random)


def index(random: Random) -> Made:
    """A damaged index, or a shard."""
    files = seeds.shards(random.choice(FAMILIES))
    mutators: dict[str, Mutator] = {
        "model.safetensors.index.json": mutate_index,
        "model-00001-of-00002.safetensors": formats.mutate_safetensors,
    }
    return changed(random, files, mutators), asked(random)


FILES = "../outside.safetensors /etc/passwd . config.json model.safetensors.index.json".split()


def mutate_index(random: Random, content: bytes) -> bytes:
    """Change an index; now and then where it says that a tensor is."""
    raw = json.loads(content)
    if random.random() < 0.5:
        return mutations.mutate_json(random, content)
    name = random.choice(sorted(raw["weight_map"]))
    raw["weight_map"][name] = random.choice(
        (*FILES, "", "C:\\x", "a\x00b", "x" * 5000, "\ud800", odd_text(random), 7, None)
    )
    if random.random() < 0.2:  # one file under many names
        file = next(value for value in raw["weight_map"].values() if isinstance(value, str))
        names = (f"{random.choice(['./', 'a/../', '/'])}" * k + file for k in range(300))
        raw["weight_map"] |= {f"{name} {n}": each for n, each in enumerate(names)}
    return mutations.written(raw)


def config(random: Random) -> Made:
    """A config.json with an odd value."""
    files = seeds.model(random.choice(FAMILIES))
    return changed(random, files, {"config.json": mutate_config}), asked(random)


CONFIG_KEYS = (
    "layer_norm_eps hidden_act activation num_attention_heads n_heads pad_token_id model_type "
    "type_vocab_size position_embedding_type minibert num_hidden_groups inner_group_num auto_map "
    "architectures tokenizer_class quantization_config torch_dtype is_decoder embedding_size"
).split()


def mutate_config(random: Random, content: bytes) -> bytes:
    """Change a config.json; mostly in what the weights do not have to fit."""
    if random.random() < 0.4:
        return mutations.mutate_json(random, content)
    raw = json.loads(content)
    key = random.choice(CONFIG_KEYS)
    value = random.choice(mutations.ODD_VALUES)(random)
    if key == "minibert":
        value = {random.choice(["null_threshold", "temperature", "layout", "matrices"]): value}
    elif random.random() < 0.3:
        value = random.choice([0, 1, 2, 4, 8, 16, 1e-5, 0.5, "relu", "silu", "gelu_new", "bert"])
    raw[key] = value
    return mutations.written(raw)


def tokenizer(random: Random) -> Made:
    """A tokenizer.json with an odd value, or with components of other kinds."""
    files = seeds.model(random.choice(FAMILIES))
    return changed(random, files, {"tokenizer.json": tokenizers.mutate_tokenizer}), asked(random)


BESIDE = {
    "tokenizer_config.json": b"{}",  # where the seed has none
    "special_tokens_map.json": b'{"cls_token": "[CLS]", "additional_special_tokens": ["[A]"]}',
    "added_tokens.json": b'{"new": 167, "newer": 168}',
}


def settings(random: Random) -> Made:
    """Odd values in what stands beside a tokenizer."""
    seed = random.choice([seeds.model, seeds.vocabulary_files])
    name = random.choice(list(BESIDE))
    files = {name: BESIDE[name]} | seed(random.choice(FAMILIES))
    return changed(random, files, {name: tokenizers.mutate_settings}), asked(random)


def vocabularies(random: Random) -> Made:
    """A damaged vocabulary of an older form."""
    files = seeds.vocabulary_files(random.choice(FAMILIES))
    mutators: dict[str, Mutator] = {
        "vocab.txt": mutations.mutate_lines,
        "vocab.json": mutations.mutate_json,
        "merges.txt": mutations.mutate_lines,
        "spiece.model": mutate_pieces,
        "sentencepiece.bpe.model": mutate_pieces,
    }
    return changed(random, files, mutators), asked(random)


def mutate_pieces(random: Random, content: bytes) -> bytes:
    """Change a SentencePiece model, or give it rules by which it replaces characters."""
    if random.random() < 0.6:
        return mutations.mutate_bytes(random, content)
    # A trie that replaces "a" with the first text: a root, and what follows it.
    units = [1 << 10, *[0] * 511]
    units[1 ^ ord("a")] = 256 << 10 | 1 << 8 | ord("a")
    units[random.randrange(512)] = random.choice([0, 2**31, 2**32 - 1, 256 << 10 | 1 << 8])
    texts = "x" * random.choice([1, 30, 999, 1001, 10**6]) + "\0" + odd_text(random)
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    size = random.choice([len(trie)] * 6 + [0, 4, 2**31])
    rules = size.to_bytes(4, "little") + trie + texts.encode("utf-8", "replace")
    return content + seeds.normaliser(rules)


def pickles(random: Random) -> Made:
    """A damaged or hostile pytorch_model.bin."""
    form = random.choice(["zip", "legacy"])
    files = seeds.pickle(random.choice(FAMILIES), form)
    mutate = formats.mutate_zip if form == "zip" else formats.mutate_legacy
    return changed(random, files, {"pytorch_model.bin": mutate}), {}


def bundle(random: Random) -> Made:
    """A damaged checkpoint of TensorFlow."""
    files = seeds.bundle()
    mutators = {name: mutations.mutate_bytes for name in files if "ckpt" in name}
    return changed(random, files, mutators), {}


def squad(random: Random) -> Made:
    """A damaged SQuAD file."""
    form = random.choice(["plain", "gz", "xz", "rows", "lines"])
    mutators: dict[str, Mutator] = {
        "plain": mutations.mutate_json,
        "rows": mutations.mutate_json,
        "lines": formats.mutate_rows,
        "gz": formats.mutate_packed,
        "xz": formats.mutate_packed,
    }
    decoder = random.choice(["run_squad", "pipeline", "answerer"])
    return changed(random, seeds.squad(form), {"squad.json": mutators[form]}), {"decoder": decoder}


def predictions(random: Random) -> Made:
    """Damaged predictions, odds or n best answers, that are scored."""
    name = random.choice(["predictions.json", "listed.json", "odds.json", "nbest.json"])
    files = changed(random, seeds.predictions(), {name: mutations.mutate_json})
    argv = ["evaluate", "--data", "squad.json", "--predictions"]
    argv += ["listed.json"] if name == "listed.json" else ["predictions.json"]
    argv += ["--null-odds", "odds.json"] * (name == "odds.json")
    argv += ["--nbest", "nbest.json", "--report", "report.html"] * (name == "nbest.json")
    argv += ["--tune-null"] * (random.random() < 0.2 and name == "odds.json")
    return files, {"argv": argv, "stdin": ""}


def lines(random: Random) -> Made:
    """Odd rows of questions."""
    files = seeds.model(random.choice(FAMILIES)) | seeds.rows()
    files = changed(random, files, {"rows.jsonl": formats.mutate_rows})
    argv = ["answer", "--jsonl", "rows.jsonl", "--model", ".", "--device", "reference"]
    if random.random() < 0.4:
        argv += ["--output", "answers.jsonl"] + ["--overwrite"] * (random.random() < 0.5)
    argv += ["--top-k", "3"] * (random.random() < 0.3)
    return files, {"argv": argv, "stdin": ""}


def tables(random: Random) -> Made:
    """A damaged Parquet file of questions, and options of the command that answers it."""
    form = random.choice(["plain", "categories", "compressed"])
    files = seeds.model("bert") | seeds.table(form)
    if random.random() < 0.8:
        files = changed(random, files, {"rows.parquet": mutations.mutate_bytes})
    argv = ["answer", "--parquet", "rows.parquet", "--model", ".", "--device", "reference"]
    argv += ["--output", random.choice(["answers.parquet"] * 6 + ["rows.parquet", "null", "run/a"])]
    if random.random() < 0.3:
        option = random.choice(["--prefix", "--question-column", "--context-column"])
        argv += [option, random.choice(["question", "more", "context", odd_text(random)])]
    return files, {"argv": [mutations.for_command(text) for text in argv], "stdin": ""}


def texts(random: Random) -> Made:
    """Texts of odd unicode, and options that are right."""
    form = random.choice([seeds.model, seeds.model, seeds.vocabulary_files])
    options: dict[str, Any] = {}
    if random.random() < 0.6:
        options["max_seq_length"] = random.choice([8, 16, 40, 96])
        options["doc_stride"] = random.choice([0, 1, 3])
    if random.random() < 0.5:
        options["max_answer_length"] = random.choice([1, 2, 30, 10**6])
        options["align_to_words"] = random.random() < 0.5
        options["max_question_length"] = random.choice([1, 3, 50])
    if random.random() < 0.3:
        options["max_overlap"] = random.choice([0, 0.5, 1])
        options["null_score_diff_threshold"] = random.choice([float("inf"), -float("inf"), 3.5])
    question = random.choice([long_text, odd_text])(random)
    several = [long_text(random) for _ in range(random.choice([1, 1, 1, 3]))]
    call = {"question": question, "texts": several, "options": options}
    return form(random.choice(FAMILIES)), call


ANSWERER = ("max_seq_length doc_stride max_question_length max_answer_length min_score max_overlap "
            "null_score_diff_threshold align_to_words n batch_size").split()  # fmt: skip
PIPELINE = ("top_k max_answer_len max_seq_len doc_stride max_question_len handle_impossible_answer "
            "align_to_words batch_size topk padding").split()  # fmt: skip
MAKING = ("model tokenizer device dtype num_threads revision token cache_dir task framework "
          "torch_dtype model_kwargs").split()  # fmt: skip


def arguments(random: Random, names: list[str]) -> dict[str, Any]:
    """Expressions for the arguments of a face: of its making, its call, the question, the text."""
    call = {
        "make": {"model": random.choice(["loaded"] * 8 + ["'.'", "folder"])},
        "question": "'who wrote it?'",
        "context": random.choice(
            ["'ada lee wrote it.'", "['ada wrote it.', 'not i']", "'ada ' * 90"]
        ),
        "call": {},
    }
    for _ in range(random.choice([1, 1, 2, 3])):
        match random.randrange(6):
            case 0:
                call["make"][random.choice(MAKING)] = odd_expression(random)
            case 1:
                call["question"] = odd_expression(random)
            case 2:
                call["context"] = odd_expression(random)
            case 3 if random.random() < 0.5:
                call["make"][random.choice(names)] = odd_expression(random)
            case _:
                call["call"][random.choice(names)] = odd_expression(random)
    return call


def answerer(random: Random) -> Made:
    """Odd arguments of QuestionAnswerer and its methods."""
    methods = ["answer", "n_best", "n_best", "answer_many", "n_best_many", "explain"]
    method = random.choice(methods)
    call = arguments(random, ANSWERER) | {"method": method}
    return seeds.model(random.choice(FAMILIES)), call


def pipelines(random: Random) -> Made:
    """Odd arguments of the pipeline."""
    form = random.choice(["names", "names", "positions", "dict", "list", "one"])
    call = arguments(random, PIPELINE) | {"form": form}
    return seeds.model(random.choice(FAMILIES)), call


def commands(random: Random) -> Made:
    """Odd command lines."""
    files = seeds.model(random.choice(FAMILIES)) | seeds.rows() | seeds.predictions()
    files |= {"text.txt": CONTEXT.encode()}
    return files, odd_command(random)


def conversions(random: Random) -> Made:
    """Odd arguments of `convert`."""
    return seeds.model(random.choice(FAMILIES)), odd_call(random, "convert")


def evaluations(random: Random) -> Made:
    """Odd arguments of `evaluate`, and of what scores predictions."""
    name = random.choice(["evaluate", "evaluate", "score_predictions", "squad_evaluate"])
    return seeds.model("bert") | seeds.predictions(), odd_call(random, name)


def trainings(random: Random) -> Made:
    """Odd arguments of `train`."""
    call = odd_call(random, "train")
    if call["arguments"]["model"] == "None":  # to train the embedded model takes long
        call["arguments"]["model"] = "'.'"
    return seeds.model("bert") | seeds.squad(), call


def batches(random: Random) -> Made:
    """Odd arguments of BatchAnswerer, and odd batches."""
    return seeds.model(random.choice(FAMILIES)), odd_call(random, "BatchAnswerer")


PLACES = ("fifo", "folder", "dangling", "loop", "null", "zero", "memory", "lfs", "empty")


def places(random: Random) -> Made:
    """Something else in the place of a file: a pipe, a folder, a link that leads nowhere."""
    seed = random.choice([seeds.model, seeds.vocabulary_files, seeds.shards])
    files = seed(random.choice(FAMILIES))
    if random.random() < 0.2:
        files = seeds.pickle("bert", "zip")
    name = random.choice([*files, "special_tokens_map.json", "added_tokens.json"])
    return files, asked(random) | {"places": {name: random.choice(PLACES)}}


def requests(random: Random) -> Made:
    """What a stranger sends to `minibert serve`."""
    face, names = random.choice([("predict", PIPELINE), ("answer", ANSWERER)])
    question, texts = {"question": QUESTION, "context": CONTEXT}, [CONTEXT, "it is 東京."]
    names = [*names, "model", "self", "question", "context", "args"]
    few = range(random.choice([0, 0, 1, 2]))
    options = {random.choice(names): random.choice([1, 3, 20, True, None]) for _ in few}
    if face == "predict":
        body = {"inputs": random.choice([question, [question] * 3]), "parameters": options}
    else:
        body = {"question": QUESTION, "context": texts, **options}
    if random.random() < 0.5:
        holder = body["parameters"] if face == "predict" else body
        holder[random.choice(names)] = random.choice(mutations.ODD_VALUES)(random)
    if random.random() < 0.3:
        content = mutations.written(body)
    else:
        content = mutations.mutate_json(random, json.dumps(body).encode())
    query = {random.choice(names): odd_text(random)} if random.random() < 0.2 else {}
    return {"body": content}, {"face": face, "query": query}


def resumed(random: Random) -> Made:
    """Damage in what an interrupted run has left, and the command that goes on with it."""
    run = random.choice(["answers", "answers", "evaluation", "evaluation", "training"])
    mutators = {
        name: mutate_record if name.endswith((".json", ".jsonl")) else mutations.mutate_lines
        for name in interrupted.interrupted(run)
        if name.startswith(interrupted.LEFT)
    }
    argv = [*interrupted.RUNS[run][0], *interrupted.MODEL]
    argv += ["--overwrite"] * (run != "training" and random.random() < 0.3)
    files = changed(random, interrupted.interrupted(run), mutators)
    return files, {"argv": argv, "stdin": ""}


def mutate_record(random: Random, content: bytes) -> bytes:
    """Change a file that holds one value of JSON, or one a line, or nothing yet."""
    lines = content.splitlines()
    if not lines or random.random() < 0.3:
        return mutations.mutate_lines(random, content)
    try:
        json.loads(lines[0])
    except ValueError:  # it goes on in the next lines
        return mutations.mutate_json(random, content)
    return formats.mutate_rows(random, content)


FUNCTIONS: tuple[Callable[[Random], Made], ...] = (
    *(weights, index, config, tokenizer, settings, vocabularies, pickles, bundle, squad),
    *(predictions, lines, texts, answerer, pipelines, commands, places, resumed, requests),
    *(conversions, evaluations, trainings, batches),
)
if seeds.has_pyarrow():
    FUNCTIONS += (tables,)
KINDS = {function.__name__: function for function in FUNCTIONS}


def make_case(seed: int, kind: str, number: int) -> Case:
    """Case `number` of a kind, always the same."""
    files, call = KINDS[kind](Random(f"{seed} {kind} {number}"))
    return Case(kind, files, call)
