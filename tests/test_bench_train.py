"""The part of the benchmark that trains.  Nothing here looks at a time."""

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import bench
from benchmark import peers, results, train, workload
from benchmark import train_side as side

CASE = results.Case("training", "1/32/2", 1)


def train_series(library, dtype, seconds, **facts):
    found = results.Series(CASE, peers.peer_of(library, dtype))
    peaks = {f"peak, {dtype}": [8e11 for _ in seconds], "peak, memory": [100.0 for _ in seconds]}
    found.numbers = {"seconds": list(seconds), "waited": [0.0 for _ in seconds], **peaks}
    found.facts = {"tokens": 30, "operations": 4e11, "difference": 2e-6, "parts": {}, **facts}
    return found


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A folder with a random model of one narrow layer."""
    folder = tmp_path_factory.mktemp("bench") / "1-32-2"
    workload.write_model(folder, workload.Shape.parse("1/32/2"))
    return folder


@pytest.fixture(scope="module")
def batches():
    """Two batches of few windows."""
    examples = train.choose_examples(None)
    return [examples[:3], examples[3:5]]


# ---------------------------------------------------------------- batches


def test_batches_hold_windows_of_neighbouring_lengths_and_spread_over_all():
    examples = train.choose_examples(None)
    assert len(examples) == train.WINDOWS * train.BATCHES
    for one in examples:
        assert 0 <= one.start <= one.end < len(one.ids) == len(one.types)
    order = sorted(len(one.ids) for one in examples)
    found = sorted([len(one.ids) for one in batch] for batch in train.cut(examples, 10))
    assert [length for batch in found for length in batch] == order
    chosen = sorted([len(one.ids) for one in batch] for batch in train.cut(examples, 4))
    assert chosen == [found[i] for i in (1, 3, 6, 8)]
    assert train.cut(examples, 4) == train.cut(train.choose_examples(None), 4)


def test_a_file_that_cannot_be_used_is_one_line(tmp_path, capsys):
    assert bench.main(["train", "--peers", "none", "--data", str(tmp_path / "no.json")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("bench: error: ")
    assert "no.json: cannot be read" in last


# ---------------------------------------------------------------- steps


def test_steps_of_the_definition_lower_the_loss(smallest, batches):
    trainer = side.MinibertTrainer(smallest, "float32", 0)
    batch = trainer.lay_out(batches[0])
    losses, norms = zip(*(trainer.step(batch, dropout=False) for _ in range(5)), strict=True)
    assert sorted(losses, reverse=True) == list(losses)
    assert min(norms) > 0
    other = side.MinibertTrainer(smallest, "float32", 0)
    assert other.step(other.lay_out(batches[0]), dropout=False) == (losses[0], norms[0])
    assert other.step(other.lay_out(batches[0]), dropout=True)[0] != losses[1]


def test_a_batch_is_cut_into_passes_as_the_trainer_does_it(smallest, batches):
    trainer = side.MinibertTrainer(smallest, "float32", 0)
    longest = batches[0][0]
    ids = [7] * trainer.settings.max_tokens_per_pass
    assert len(trainer.lay_out([longest, longest])) == 1
    passes = trainer.lay_out([longest, longest, longest._replace(ids=ids, types=ids)])
    assert [len(starts) for _, starts, _ in passes] == [2, 1]


@pytest.mark.slow
def test_torch_trains_as_the_definition_does(smallest, batches):
    needed = ("torch", "transformers")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"no {' and no '.join(missing)} here")
    ours = side.MinibertTrainer(smallest, "float32", 0)
    theirs = side.TorchTrainer(smallest, "float32", 1)
    for batch in [*batches, *batches]:
        found, expected = (
            trainer.step(trainer.lay_out(batch), dropout=False) for trainer in (theirs, ours)
        )
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_wrong_first_step_is_told_and_nothing_that_is_no_number_is_right():
    found = results.Results()
    for loss, norm, right in ((2.001, 8.0, True), (2.003, 8.0, False), (2.0, math.nan, False)):
        one = train_series("train-torch", "float32", [], loss=loss, norm=norm)
        assert train.check(one, (2.0, 8.0), found) is right
    assert found.wrong == [
        "torch float32 in 1/32/2, training, 1 thread: loss and norm are 2.003 and 8, not 2 and 8",
        "torch float32 in 1/32/2, training, 1 thread: loss and norm are 2 and nan, not 2 and 8",
    ]


# ---------------------------------------------------------------- sums and tables


def test_the_work_of_a_call_is_that_counted_by_hand():
    meter = side.Meter()
    meter.tokens, meter.squares = 3, 5  # windows of 2 and of 1

    def work(entry, size=4, **record):
        arrays = [np.zeros(10, np.float32)]
        return side.work_of(SimpleNamespace(entry=entry, record=record, arrays=arrays), size, meter)

    dense = {"into": 4, "out": 8}
    assert work("linear_add_norm", dense=dense) == ("linear_add_norm, 4 to 8", 2 * 3 * 4 * 8)
    assert work("linear_backward", dense=dense) == ("linear_backward, 4 to 8", 2 * 2 * 3 * 4 * 8)
    assert work("attention", hidden=4) == ("attention", 2 * 2 * 5 * 4)
    assert work("attention_backward", hidden=4) == ("attention_backward", 5 * 2 * 5 * 4)
    assert work("pack", size=2, **dense) == ("pack", (4 + 2 + 2) * 4 * 8)
    assert work("adamw") == ("adamw", 7 * 4 * 10)
    assert work("sum_of_squares") == ("sum_of_squares", 4 * 10)
    assert work("embed", tables={"hidden": 4}) == ("embed", 3 * 4 * 3 * 4)
    assert work("span_logits_backward", hidden=4) == ("span_logits_backward", 2 * 4 * 3 * 4)


def test_a_row_has_tokens_operations_share_and_the_ratio_of_the_rounds():
    measured = [
        train_series("train-minibert", "float32", [1.0, 2.0]),
        train_series("train-torch", "float32", [2.0, 3.0]),
        train_series("train-compile", "float32", [3.0]),  # failed half way
        train_series("train-torch", "bfloat16", [4.0, 4.0]),
    ]
    rows = train.time_rows(measured)
    assert rows[0] == ["1/32/2", "float32", "minibert", "20", "267", "38%", "-", "-", "-"]
    assert rows[1][2:] == ["torch", "12", "160", "21%", "-", "-", "1.75 (1.62-1.88)"]
    assert [row[-1] for row in rows[2:]] == ["-", "-"]
    assert {len(row) for row in rows} == {len(train.HEAD)}


def test_the_parts_of_a_round_and_what_is_left_make_up_the_whole():
    parts = {"linear": ["float32", 0.0, 2, 1.6e11], "loss": ["", 0.0, 1, 0]}
    one = train_series("train-minibert", "float32", [1.0], parts=parts)
    one.numbers |= {"linear": [0.4], "loss": [0.1]}
    assert train.part_rows(one) == [
        ["linear", "2", "400", "40.0%", "200", "50%"],
        ["loss", "1", "100", "10.0%", "-", "-"],
        ["between them, in Python", "-", "500", "50.0%", "-", "-"],
    ]


@pytest.mark.slow
def test_minibert_alone_is_checked_timed_and_profiled(tmp_path, capsys):
    arguments = ["--shapes", "1/32/2", "--peers", "none", "--rounds", "1", "--steps", "1"]
    more = ["--threads", "1", "--profile", "--dropout", "--json", str(tmp_path / "numbers.json")]
    assert bench.main(["train", *arguments, *more]) == 0
    shown = capsys.readouterr().out
    for row in ("1/32/2 | float32", "1/32/2 | bfloat16", "linear, 32 to 96", "adamw", "embed"):
        assert f"| {row} |" in shown
    assert (tmp_path / "numbers.json").exists()
