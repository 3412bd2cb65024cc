"""The benchmark's part that asks a server."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="minibert's extra 'serve' is not installed")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import bench  # noqa: E402
from benchmark import serve  # noqa: E402
from random_models import tiny_config, write_model  # noqa: E402
from servers import Served  # noqa: E402


def test_requests_are_questions_about_texts_of_their_own():
    bodies = [json.loads(body)["inputs"] for body in serve.requests()]
    texts = [pair["context"] for pair in bodies]
    assert len(set(texts)) == len(texts) > 10
    lengths = [len(text.split()) for text in texts]
    assert max(lengths) > 2 * min(lengths)


def test_all_clients_ask_and_every_answer_is_timed(tiny):
    bodies = [json.dumps({"inputs": {"question": "who", "context": "ada ."}}).encode()]
    with Served(tiny) as served:
        rate, seconds = serve.load(served.port, bodies, clients=3, seconds=0.2)
        assert rate > 0
        assert len(seconds) == served.service.metrics.texts.values[()] >= 3
        assert min(seconds) > 0
        with pytest.raises(serve.BenchError, match="answered with 400"):
            serve.load(served.port, [b"{"], clients=2, seconds=0.1)


def test_the_table_has_a_row_for_each_side_and_number_of_clients():
    sides = serve.SIDES[:2]
    seen = {(side, 4): serve.Seen([10.0, 20.0], [0.1, 0.2, 0.3]) for side in sides}
    head, _, *rows = serve.table(sides, [4], seen).splitlines()
    assert "p50, ms" in head
    assert len(rows) == 2
    for row, label in zip(rows, ("requests share batches", "one at a time"), strict=True):
        assert label in row
        assert "200" in row
        assert "300" in row


@pytest.mark.slow
def test_a_short_run_measures_and_compares(tmp_path, monkeypatch, capsys):
    config = tiny_config(max_position_embeddings=512)
    folder = str(write_model(tmp_path / "model", config))
    usual = serve.missing_modules
    monkeypatch.setattr(
        serve, "missing_modules", lambda names: ["onnx"] if "onnxruntime" in names else usual(names)
    )
    argv = ["serve", "--model", folder, "--clients", "2", "--rounds", "1", "--seconds", "1"]
    assert not bench.main(argv)
    out = capsys.readouterr().out
    assert out.count("minibert, ") == 2
    assert "The answers of all are equal." in out
    assert "ONNX Runtime is left out: no onnx here." in out
