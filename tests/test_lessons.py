"""minibert lessons: files from the definitions, a checker that knows mistakes, an answer."""

import ast
import doctest
import importlib.util
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learners import right_text, solve, with_body

from minibert.cli import main
from minibert.encoder import bert
from minibert.errors import InputError
from minibert.lessons.catalogue import LESSONS, file_name, find
from minibert.lessons.checking import check_lesson
from minibert.lessons.choice import best_span
from minibert.lessons.definitions import definition
from minibert.lessons.folder import folder_files, lesson_text, write_lessons
from minibert.lessons.inputs import cases
from minibert.lessons.learner import World, departure, load_learner
from minibert.lessons.mistakes import mistakes
from minibert.lessons.models import small_batch, small_model
from minibert.lessons.outcomes import Raised, outcome, same
from minibert.lessons.reading import read_lesson
from minibert.lessons.trial import try_lesson
from minibert.lessons.whole import main as together
from minibert.lessons.whole import train_with
from minibert.model import load_model
from minibert.spans import decode_answers
from minibert.trace import Trace

STEPS = [step for lesson in LESSONS for step in lesson.steps if lesson.part < 3]
by_name = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
by_lesson = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)


def tried(path, name):
    return try_lesson(path, find(name))


# ---------------------------------------------------------------- the text of lessons


@by_name
def test_the_text_of_a_lesson_was_read_beside_what_the_definition_says_now(step):
    assert step.definition.digest == step.seen, (
        f"the body of {step.name} has changed. Read minibert/lessons/forward.py or backward.py: "
        f"does its lesson still say what it does? Then set seen to {step.definition.digest!r}"
    )


@by_name
def test_a_body_of_at_most_fifteen_lines_is_enough(step):
    assert sum(bool(line.strip()) for line in step.definition.body.splitlines()) <= 15


@by_name
def test_the_text_that_lessons_tell_computes_what_the_library_does(step):
    told = step.definition.made_in(vars(step.definition.module))
    tries = [case.arguments for case in cases(step.name)]
    ours = [outcome(step.function, arguments, step.changed) for arguments in tries]
    assert same([outcome(told, arguments, step.changed) for arguments in tries], ours)
    assert not any(isinstance(each.value, Raised) for each in ours)


@by_lesson
def test_a_lesson_holds_the_signature_and_the_docstring_of_the_definition_and_an_example(lesson):
    text = lesson_text(lesson)
    for step in lesson.steps:
        assert step.definition.header in text
        assert step.definition.docstring.splitlines()[0] in text
    assert ">>> " in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("lesson", [x for x in LESSONS if x.part < 3], ids=lambda x: x.name)
def test_the_example_of_a_lesson_holds_for_a_right_function(lesson, tmp_path):
    path = tmp_path / "lesson.py"
    path.write_text(right_text(lesson), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("lesson", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


def test_guards_and_traces_are_left_out_of_what_lessons_tell():
    def doubled(x, trace=None, name="x"):
        """Twice the input.

        Args:
            x: a number.
            trace: where to note it,
                at length.
        """
        check(x)
        if trace is not None:
            note(trace, "before", x)
        if x < 0:
            raise ValueError("negative")
        y = note(trace, name, 2 * x)  # kept
        return doubled(y, trace, name)

    told = definition(doubled)
    assert told.header == "def doubled(x):"
    assert told.docstring == "Twice the input.\n\nArgs:\n    x: a number."
    assert told.body == "    y = 2 * x  # kept\n    return doubled(y)"


def check(_):
    pass


def note(_, __, value):
    return value


numbers = st.lists(st.integers(-3, 3), min_size=6, max_size=6)


@given(numbers, numbers, st.integers(1, 4), st.sampled_from([-2.5, 0.0, 1.5]), st.integers(0, 3))
def test_the_choice_that_lessons_tell_is_the_librarys(starts, ends, longest, threshold, words):
    model = load_tiny()
    (window,) = model.windows("a", ["a b a b a"[: 2 * words + 1]])
    length = len(window)
    start, end = (np.resize(np.array(each, np.float32), length) for each in (starts, ends))
    (best,) = decode_answers(
        [window],
        [(start, end)],
        n=1,
        max_answer_length=longest,
        null_score_diff_threshold=threshold,
        align_to_words=False,
    )
    past = window.offset + window.end - window.begin
    span = best_span(start, end, window.offset, past, longest, threshold)
    assert (span is None) == best.is_null
    if span is not None:
        first, last = (place - window.offset for place in span[:2])
        offsets = window.context.offsets
        assert (best.start, best.end) == (offsets[first, 0], offsets[last, 1])
        assert best.score == span.score


def load_tiny(loaded=[]):  # noqa: B006 (kept for all examples)
    if not loaded:
        loaded.append(load_model(device="reference"))
    return loaded[0]


# ---------------------------------------------------------------- known mistakes


@by_name
def test_inputs_tell_every_known_mistake_from_the_right_one_and_from_every_other(step):
    tries = [case.arguments for case in cases(step.name)]
    told, names = step.definition, vars(step.definition.module)
    seen = {"the definition": [outcome(step.function, each, step.changed) for each in tries]}
    for mistake in mistakes(step.name):
        wrong = told.made_in(names, mistake.put_into(told.code))
        results = [outcome(wrong, each, step.changed) for each in tries]
        for other, its in seen.items():
            assert not same(results, its), f"{mistake.hint!r} and {other!r} give the same"
        seen[mistake.hint] = results
    assert len(seen) > 4


def tell_mistakes(step, tmp_path, how_many=None):
    """Give the checker functions with known mistakes; nothing comes back if it names each."""
    for mistake in list(mistakes(step.name))[:how_many]:
        header, right = step.definition.header, step.definition.body
        wrong = mistake.put_into(step.definition.code).removeprefix(f"{header}\n")
        text = right_text(find(step.name)).replace(right, wrong)
        path = tmp_path / "lesson.py"
        path.write_text(text, encoding="utf-8")
        verdict = try_lesson(path, find(step.name))
        assert verdict.hint == f"It looks as if {mistake.hint}.", (mistake.hint, verdict)
        assert verdict.state in ("wrong", "broken")


def test_the_first_known_mistake_of_layer_norm_is_named(tmp_path):
    tell_mistakes(find("layer_norm").steps[0], tmp_path, 1)


def test_two_mistakes_at_once_are_named(tmp_path):
    body = "    return (x - x.mean()) / x.std() * norm.gain + norm.bias"
    verdict = tried(with_body(tmp_path, "layer_norm", body), "layer_norm")
    assert verdict.hint.splitlines() == [
        "It looks as if two things were so.",
        "1. eps were left out",
        "2. mean and variance were those of all numbers; each row has its own",
    ]


@pytest.mark.slow
@by_name
def test_every_known_mistake_is_named_when_a_learner_makes_it(step, tmp_path):
    tell_mistakes(step, tmp_path)


# ---------------------------------------------------------------- one file


NORM = """
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * norm.gain + norm.bias
"""


@pytest.mark.parametrize(
    ("name", "body", "state", "words"),
    [
        ("layer_norm", NORM, "right", ""),
        ("layer_norm", NORM.replace("mean(axis", "mean(axs"), "broken", ": TypeError: "),
        ("layer_norm", "    return x.mean(axis=-1)", "wrong", "should be [3, 7]"),
        ("layer_norm", "    return 7", "wrong", "result is 7 (int); it should be an array"),
        ("layer_norm", "    x * 2", "wrong", "Is a `return` missing?"),
        ("layer_norm", "    raise NotImplementedError", "unwritten", ""),
        ("layer_norm", "    pass", "unwritten", ""),
        ("layer_norm", "    x -= x.mean(axis=-1, keepdims=True)\n" + NORM, "wrong", "argument 'x'"),
        ("layer_norm", NORM.replace("norm.gain", "(norm.gain + 1e-5)"), "wrong", "numbers differ"),
        ("layer_norm", "    return layer_norm(x, norm, eps)", "broken", "itself without end"),
        ("layer_norm", "    exit(3)", "broken", "ends the program"),
        ("layer_norm", "    return x +", "broken", "no Python"),
        (
            "softmax",
            "    exp = np.exp(scores - scores.max(axis=-1, keepdims=True))\n"
            "    return exp.astype(np.float64) / exp.sum(axis=-1, keepdims=True)",
            "wrong",
            "it should be float32: float64 numbers of NumPy",
        ),
        (
            "text_parts",
            "    return ((0, length),)",
            "wrong",
            "result is ((0, 10),); it should be [(0, 4), (3, 7), (6, 10)]",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(name, body, state, words, tmp_path):
    verdict = tried(with_body(tmp_path, name, body), name)
    assert verdict.state == state
    assert words in verdict.text


@pytest.mark.parametrize(
    "body",
    [
        "    from minibert.kernels.reference import softmax as s\n    return s(scores)",
        "    import minibert.kernels.reference as r\n    return r.softmax(scores)",
        "    import importlib\n"
        "    kernels = importlib.import_module('minibert.' + 'kernels.reference')\n"
        "    return kernels.softmax(scores)",
        "    import sys\n    return sys.modules['minibert.kernels.reference'].softmax(scores)",
        "    import functools, sys\n"
        "    hidden = getattr(sys.modules['minibert.kernels.reference'], 'soft' + 'max')\n"
        "    return functools.reduce(lambda x, f: f(x), [hidden], scores)",
        "    import types, sys\n"
        "    code = sys.modules['minibert.kernels.reference'].softmax.__code__\n"
        "    return types.FunctionType(code, {'np': np})(scores)",
    ],
    ids=["from", "import", "importlib", "sys.modules", "by detours", "its code"],
)
def test_a_function_that_calls_the_librarys_own_is_found(body, tmp_path):
    verdict = tried(with_body(tmp_path, "softmax", body), "softmax")
    assert verdict.state == "taken"
    assert "yours to write" in verdict.text


def test_lessons_are_parsed_one_after_the_other(tmp_path, monkeypatch):
    write_lessons(str(tmp_path))
    parse, under_way, most = ast.parse, [], []

    def slowly(*args):
        under_way.append(args)
        time.sleep(0.005)
        most.append(len(under_way))
        tree = parse(*args)
        under_way.pop()
        return tree

    monkeypatch.setattr("minibert.lessons.reading.ast.parse", slowly)
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda each: read_lesson(tmp_path / file_name(each), each), LESSONS)
        assert not any(written for _, written in read)
    assert set(most) == {1}


def test_the_function_of_a_lesson_cannot_be_borrowed(tmp_path):
    path = with_body(tmp_path, "softmax", "    return borrowed(scores)")
    path.write_text(
        path.read_text().replace("import Floats", "import Floats, softmax as borrowed"), "utf-8"
    )
    assert "borrows the library's 'softmax'" in tried(path, "softmax").text


def test_what_is_borrowed_may_be_called(tmp_path):
    body = "    return 0.5 * x * (1 + erf(x / math.sqrt(2)))"
    path = with_body(tmp_path, "gelu", body)
    verdict = tried(path, "gelu")
    assert verdict.text == "linear_activation is not written yet"
    assert verdict.written == ["gelu"]


def test_a_file_without_its_function_or_that_is_not_there_is_missing(tmp_path):
    path = tmp_path / file_name(find("gelu"))
    assert tried(path, "gelu").state == "missing"
    path.write_text("def gel(x):\n    return x\n")
    verdict = tried(path, "gelu")
    assert verdict.state == "missing"
    assert "no function 'gelu' any more" in verdict.text


def test_a_function_may_be_made_otherwise_than_by_def_but_must_be_one(tmp_path):
    path = tmp_path / file_name(find("softmax"))
    path.write_text("softmax = lambda scores: scores\n")
    assert tried(path, "softmax").state == "wrong"
    for text in ("softmax = 7\n", "def softmax(scores):\n    return scores\ndel softmax\n"):
        path.write_text(text)
        assert tried(path, "softmax").text.endswith("'softmax' is no function in it")


def test_what_a_learner_prints_is_shown_but_not_without_end(tmp_path):
    body = "    print('x' * 100_000, flush=True)\n    return None"
    verdict = tried(with_body(tmp_path, "gelu", body), "gelu")
    assert verdict.printed == "x" * 2000


@pytest.mark.slow
def test_threads_and_processes_that_a_learner_leaves_are_not_waited_for(tmp_path):
    begin = (
        "    import subprocess, sys, threading, time\n"
        "    threading.Thread(target=time.sleep, args=(1000,)).start()\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(9)'])\n"
    )
    with_body(tmp_path, "softmax", begin + find("softmax").steps[0].definition.body)
    assert check_lesson(tmp_path, find("softmax")).state == "right"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look in")
def test_processes_that_a_learner_forks_end_with_the_check(tmp_path):
    note = tmp_path / "child"
    begin = (
        "    import os, time\n"
        f"    if not os.path.exists({str(note)!r}):\n"
        "        child = os.fork()\n"
        "        if child == 0:\n            time.sleep(1000)\n"
        f"        print(child, file=open({str(note)!r}, 'w'))\n"
    )
    with_body(tmp_path, "softmax", begin + find("softmax").steps[0].definition.body)
    assert check_lesson(tmp_path, find("softmax")).state == "right"
    stat = Path(f"/proc/{int(note.read_text())}/stat")
    end = time.monotonic() + 60  # only a fault takes so long
    with suppress(FileNotFoundError, ProcessLookupError):
        while stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("    return np.ones(10**11) @ x", "memory"),
        ("    import os\n    os._exit(7)", "ends Python itself (status 7)"),
        ("    import os\n    os.abort()", "ends Python itself (signal 6)"),
    ],
    ids=["memory", "exit", "abort"],
)
def test_a_process_that_is_lost_is_said_to_be(body, words, tmp_path):
    with_body(tmp_path, "gelu", body)
    verdict = check_lesson(tmp_path, find("gelu"))
    assert verdict.state == "broken"
    assert words in verdict.text


@pytest.mark.slow
def test_a_loop_without_end_is_named_with_its_line(tmp_path):
    path = with_body(tmp_path, "gelu", "    while True:\n        x = x + 1")
    line = path.read_text().splitlines().index("    while True:") + 1
    text = check_lesson(tmp_path, find("gelu"), seconds=5).text
    assert text in [
        f"line {at}: it does not come to an end: stopped after 5 seconds" for at in (line, line + 1)
    ]


# ---------------------------------------------------------------- the folder


def test_files_are_written_once_and_never_again(tmp_path):
    folder = tmp_path / "mine"
    assert set(write_lessons(str(folder))) == set(folder_files())
    changed, lost = folder / "03_layer_norm.py", folder / "05_softmax.py"
    changed.write_text("mine")
    lost.unlink()
    (folder / "notes.txt").write_text("mine, too")
    assert write_lessons(str(folder)) == ["05_softmax.py"]
    assert changed.read_text() == "mine"
    assert write_lessons(str(folder)) == []


@pytest.mark.parametrize("name", ["README.md", "thesis.txt"])
def test_a_folder_of_other_things_is_refused(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"holds other files, such as {name}"):
        write_lessons(str(tmp_path))
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        write_lessons(str(tmp_path / "file" / "mine"))
    with pytest.raises(InputError, match="cannot be written"):
        write_lessons("a\0b")


def test_lesson_0_answers_a_question(tmp_path, capsys):
    write_lessons(str(tmp_path / "mine"))
    code = (tmp_path / "mine" / "00_answer.py").read_text()
    exec(compile(code, "00_answer.py", "exec"), {})
    assert "answer: Ada Lovelace\n" in capsys.readouterr().out


# ---------------------------------------------------------------- together


def test_a_learners_functions_stand_in_for_the_librarys_wherever_they_are_called(tmp_path):
    with_body(tmp_path, "softmax", "    return scores * 0 + 1 / scores.shape[-1]")
    functions = load_learner(tmp_path)
    assert list(functions) == ["softmax"]
    weights, config, kernels = small_model()
    batch = small_batch(4, 3)
    right, mine = (World(each).traced(batch, weights, config) for each in ({}, functions))
    assert departure(right, right) is None
    assert departure(mine, right) == "layer.0.attention.probs.0"
    assert mine.trace["layer.0.attention.probs.0"][0, 0].tolist() == [0.25] * 4
    trace = Trace()
    logits = bert(batch, weights, config, kernels, trace)
    np.testing.assert_array_equal(right.logits, logits)
    assert list(right.trace) == list(trace)


def test_a_run_that_a_learner_ends_with_an_error_is_kept_as_far_as_it_went():
    weights, config, _ = small_model()
    right = World().traced(small_batch(5), weights, config)
    mine = World({"gelu": lambda x: x @ x}).traced(small_batch(5), weights, config)
    assert isinstance(mine.error, ValueError)
    assert departure(mine, right) == "layer.0.intermediate"


def test_a_function_stands_in_also_where_another_module_has_taken_it_from_its_own():
    asked = []

    def split_heads(x, num_heads):
        asked.append(num_heads)
        return x.reshape(len(x), num_heads, -1).transpose(1, 0, 2)

    train_with(World({"split_heads": split_heads}), 1)
    assert set(asked) == {3}


def test_a_world_leaves_the_library_as_it_is():
    weights, config, kernels = small_model()
    batch = small_batch(5)
    before = bert(batch, weights, config, kernels)
    World({"layer_norm": lambda x, *_: x, "softmax": lambda x: x, "erf": lambda x: x})
    np.testing.assert_array_equal(before, bert(batch, weights, config, kernels))


def test_a_folder_without_lessons_cannot_be_loaded(tmp_path):
    with pytest.raises(InputError, match="holds no lessons"):
        load_learner(tmp_path)


def test_a_file_that_ends_with_an_error_cannot_be_loaded(tmp_path):
    path = with_body(tmp_path, "gelu", "    return x")
    path.write_text(path.read_text() + "\n1 / 0\n")
    with pytest.raises(InputError, match=r"09_gelu\.py: line \d+: ZeroDivisionError"):
        load_learner(tmp_path)


def test_right_functions_give_the_answer_of_the_definition_to_the_last_digit(tmp_path):
    lines = together(solve(tmp_path, part=1), ",".join(s.name for s in STEPS))["lines"]
    assert lines[1].startswith("    Ada Lovelace, score ")
    assert lines[2] == "    logits equal to the definition's to the last digit of float32"
    assert lines[3] == "    The whole of BERT is yours."


def test_wrong_functions_give_the_answer_that_they_give(tmp_path):
    with_body(tmp_path, "layer_norm", "    return x * 0 + norm.bias")
    lines = together(tmp_path, "layer_norm")["lines"]
    assert "from the definition's, which reach" in lines[2]


def test_functions_that_fail_together_are_named(tmp_path):
    with_body(tmp_path, "linear", "    return x @ dense.weight.T[:5, :5]")
    (line,) = together(tmp_path, "linear")["lines"]
    assert "04_linear.py: line" in line


def test_the_loss_falls_with_right_gradients_and_not_with_those_of_the_wrong_sign():
    right = train_with(World())
    assert right[-1] < 0.1 * right[0]

    def backwards(weights, gradient, first, second, settings):
        weights += settings.learning_rate * gradient

    assert train_with(World({"adamw": backwards}), 5)[-1] > right[0]


# ---------------------------------------------------------------- the command


def command(capsys, *arguments):
    try:
        code = main(["lessons", *map(str, arguments)])
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


@pytest.mark.slow
def test_a_folder_is_checked_from_the_first_file_to_the_last(tmp_path, capsys):
    folder = tmp_path / "mine"
    assert command(capsys, folder)[0] == 0
    code, out, _ = command(capsys, "check", folder)
    assert code == 0
    assert out.startswith("part 1: yours 0 of 12\n")
    assert "With the library alone:\n    Ada Lovelace" in out
    assert "last digit" not in out  # where nothing is the learner's
    solve(folder, "layer_norm", "softmax", "cross_entropy")
    with_body(folder, "gelu", "    return np.tanh(x)")
    code, out, err = command(capsys, "check", folder)
    assert code == 1
    assert err == "minibert: error: not right yet: gelu; see above\n"
    assert " 3 layer_norm           right\n 5 softmax              right\n 9 gelu" in out
    assert "part 1: yours 2 of 12\npart 2: yours 1 of 4\n" in out
    assert "its loss: " in out


def test_the_code_is_shown_when_it_is_asked_for_and_after_passing(tmp_path, capsys):
    solve(tmp_path, "softmax")
    for arguments in (["--reveal", "softmax"], ["--only", "5"]):
        code, out, _ = command(capsys, "check", tmp_path, *arguments)
        assert code == 0
        assert "    return exp / exp.sum(axis=-1, keepdims=True)\n" in out
    assert "    Ada Lovelace, score " in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["check"], 2, "give a folder"),
        (["a", "b"], 2, "give a folder"),
        (["check", "a", "b"], 2, "give a folder"),
        (["a", "--only", "gelu"], 2, "go with minibert lessons check"),
        (["check", "nowhere"], 1, "holds no lessons; `minibert lessons nowhere` writes them"),
    ],
)
def test_wrong_usage_is_said(arguments, code, words, capsys):
    done, out, err = command(capsys, *arguments)
    assert (done, out) == (code, "")
    assert words in err


def test_an_unknown_lesson_is_said_with_those_that_are_known(tmp_path, capsys):
    solve(tmp_path, "softmax")
    code, _, err = command(capsys, "check", tmp_path, "--only", "sofmax")
    assert code == 1
    assert "there is no lesson 'sofmax'; the lessons are windows, embed, " in err


@pytest.mark.slow
def test_a_kernel_is_raced_and_must_be_compiled(tmp_path):
    body = find("attention").steps[0].definition.body
    path = with_body(tmp_path, "kernel", body)
    assert "nothing in it is compiled" in tried(path, "kernel").text
    compiled = "unused = numba.njit(lambda x: x)\n\n\ndef attention("
    path.write_text(path.read_text().replace("def attention(", compiled))
    verdict = tried(path, "kernel")
    assert verdict.state == "right", verdict.text
    assert "one thread: NumPy" in verdict.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "body"),
    [
        ("", "    return library('reference').attention(qkv, cu_seqlens, num_heads)"),
        ("", "    return library('backend').REFERENCE.attention(qkv, cu_seqlens, num_heads)"),
        (
            "theirs = library('reference').attention\n",
            "    return theirs(qkv, cu_seqlens, num_heads)",
        ),
        ("theirs = library('reference')\n", "    return np.zeros((len(qkv), qkv.shape[1] // 3))"),
        (
            "theirs = numba.njit(library('reference').attention)\n",
            "    return np.zeros((len(qkv), qkv.shape[1] // 3))",
        ),
    ],
    ids=["called", "through a table", "by a name", "a module", "compiled"],
)
def test_a_kernel_that_calls_the_librarys_own_is_found(before, body, tmp_path):
    path = with_body(tmp_path, "kernel", body)
    begin = (
        "import sys\n\n\ndef library(name):\n"
        "    return sys.modules['minibert.kernels.' + name]\n\n\n"
        "unused = numba.njit(lambda x: x)\n"
    )
    path.write_text(path.read_text().replace("def attention(", f"{begin}{before}def attention("))
    verdict = tried(path, "kernel")
    assert verdict.state == "taken"
    assert "yours to write" in verdict.text
