"""Models from a Hub that answers, or does not: what is asked for, and what is said.

Each test runs a program of its own, because huggingface_hub reads its settings when it is loaded.
"""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from hub_server import COMMIT, Hub
from random_models import write_model
from test_hub import shard, use_pickle

pytestmark = pytest.mark.slow  # each test starts processes, and some wait for a Hub

PROGRAM = """
import json, sys
from minibert import MinibertError, convert, load_model, pipeline
from minibert.checkpoints.hub import find_model, find_tokenizer
try:
    print(json.dumps(str(eval(sys.argv[1]))))
except MinibertError as error:
    print(json.dumps([type(error).__name__, str(error)]))
"""


# The files of the tiny model.
KEPT = ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]


@pytest.fixture
def folder(tmp_path):
    """A model folder that a test may change."""
    return write_model(tmp_path / "model")


@pytest.fixture
def run(tmp_path):
    """Evaluate an expression with a Hub at a URL: its text, or an error's [name, message]."""

    def run(url, expression, **settings):
        kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        del kept["HF_HUB_OFFLINE"]
        settings = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "home"), **settings}
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", PROGRAM, expression],
            env=kept | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def error(result):
    """The message of a ModelNotFoundError."""
    kind, message = result
    assert kind == "ModelNotFoundError"
    assert "\n" not in message
    return message


@pytest.fixture
def nobody():
    """The URL of a port at which nobody listens."""
    with socket.socket() as kept:  # bound and not listening: connections are refused
        kept.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{kept.getsockname()[1]}"


# --- a Hub that answers ----------------------------------------------------------------------


def test_each_file_of_a_model_is_fetched_once(folder, run):
    with Hub({"org/tiny": folder}) as hub:
        for _ in range(2):
            assert "bert, 2 layers x 32" in run(hub.url, "load_model('org/tiny')")
            assert sorted(hub.fetched) == KEPT
        assert {file for _, file in hub.asked} <= {
            *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
            *("vocab.txt", "vocab.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model"),
            *("special_tokens_map.json", "added_tokens.json"),
        }
        hub.asked.clear()
        run(hub.url, "load_model('org/tiny')")  # is there a newer commit?
        assert set(hub.asked) == {("HEAD", "config.json")}
        hub.asked.clear()
        run(hub.url, f"load_model('org/tiny', revision='{COMMIT}')")
        assert not hub.asked
    assert "bert, 2 layers x 32" in run(hub.url, "load_model('org/tiny')", HF_HUB_OFFLINE="1")


def test_shards_are_fetched(folder, run):
    with Hub({"org/tiny": shard(folder)}) as hub:
        assert "2 layers" in run(hub.url, "load_model('org/tiny')")
        assert {f"model-{n}-of-2.safetensors" for n in (1, 2)} < set(hub.fetched)
        (folder / "model-2-of-2.safetensors").unlink()
        message = error(run(hub.url, "load_model('org/tiny')", HF_HOME="other"))
    assert message == "org/tiny: this model on the Hub has no model-2-of-2.safetensors"


@pytest.mark.parametrize("call", ["load_model('org/tiny')", "convert('org/tiny', 'new')"])
def test_a_model_that_cannot_run_is_refused_by_its_config_alone(folder, run, call):
    (folder / "config.json").write_text('{"model_type": "t5"}')
    with Hub({"org/tiny": folder}) as hub:
        kind, message = run(hub.url, call)
    assert kind == "ConfigError"
    assert "model_type is 't5'" in message
    assert {file for _, file in hub.asked} == {"config.json"}


@pytest.mark.parametrize("call", ["load_model('org/tiny'{})", "convert('org/tiny', 'new')"])
@pytest.mark.parametrize("words", [None, 10_000])
def test_a_model_is_refused_by_its_tokenizer_before_its_weights_are_fetched(
    folder, run, call, words
):
    if words is None:
        (folder / "vocab.txt").unlink()
    else:
        with (folder / "vocab.txt").open("a") as vocabulary:
            vocabulary.writelines(f"word{n}\n" for n in range(words))
    other = write_model(folder.parent / "other")
    with Hub({"org/tiny": folder, "org/other": other}) as hub:
        kind, message = run(hub.url, call.format(""))
        assert kind == ("TokenizerError" if words else "ModelNotFoundError")
        assert ("more than" if words else "holds neither tokenizer.json") in message
        assert "model.safetensors" not in hub.fetched
        if call.startswith("load"):
            assert "2 layers" in run(hub.url, call.format(", tokenizer='org/other'"))
            assert hub.fetched.count("model.safetensors") == 1


def test_a_pickle_is_named_and_fetched_only_by_convert(folder, run):
    with Hub({"org/tiny": use_pickle(folder)}) as hub:
        message = error(run(hub.url, "load_model('org/tiny')"))
        assert "no model.safetensors, only pytorch_model.bin. Run `minibert convert" in message
        assert "pytorch_model.bin" not in hub.fetched
        assert run(hub.url, "convert('org/tiny', 'new')") == "new"
        assert "pytorch_model.bin" in hub.fetched


def test_a_model_without_weights_or_config_is_refused(folder, run):
    (folder / "model.safetensors").unlink()
    with Hub({"org/tiny": folder}) as hub:
        message = error(run(hub.url, "load_model('org/tiny')"))
        assert message == "org/tiny: this model on the Hub has no model.safetensors"
        (folder / "config.json").unlink()
        message = error(run(hub.url, "load_model('org/tiny')", HF_HOME="other"))
        assert message == "org/tiny: this model on the Hub has no config.json"


def test_a_mistyped_name_or_revision_is_refused(folder, run):
    with Hub({"org/tiny": folder}) as hub:
        for call in ("load_model('org/tinny')", "find_tokenizer('org/tinny')"):
            assert "org/tinny: the Hub does not give this model: 401" in error(run(hub.url, call))
        message = error(run(hub.url, "load_model('org/tiny', revision='v9')"))
        assert "org/tiny, revision v9: the Hub does not give this model: 404" in message
    assert not hub.fetched


def test_a_tokenizer_is_fetched_without_weights(folder, run, tmp_path):
    words = shutil.copytree(folder, tmp_path / "words")
    with Hub({"org/tiny": folder, "org/words": words}) as hub:
        run(hub.url, "find_tokenizer('org/words')")
        assert set(hub.fetched) == {"tokenizer_config.json", "vocab.txt"}
        shown = run(hub.url, "pipeline(model='org/tiny', tokenizer='org/words', device=-1)")
        assert shown.startswith("QuestionAnsweringPipeline(Model('org/tiny', bert")
        assert hub.fetched.count("model.safetensors") == 1
        words.joinpath("vocab.txt").unlink()
        message = error(run(hub.url, "find_tokenizer('org/words')", HF_HOME="other"))
        assert "this model on the Hub has no tokenizer.json, vocab.txt, vocab.json or" in message


# --- a Hub that does not answer --------------------------------------------------------------


@pytest.mark.parametrize("ill", ["drops", "hangs", "refuses"])
def test_where_no_hub_answers_a_name_is_asked_for_once(folder, run, nobody, ill):
    with Hub({}, ill) as hub:
        url = nobody if ill == "refuses" else hub.url
        for call in ("load_model('org/tinny')", "find_tokenizer('org/tinny')"):
            hub.asked.clear()
            message = error(run(url, call, HF_HUB_ETAG_TIMEOUT="1"))
            assert "org/tinny: is not a folder here, is not in the Hub's cache" in message
            assert "the Hub cannot be reached (" in message
            assert len(hub.asked) == (0 if ill == "refuses" else 1)
    assert ("HF_HUB_ETAG_TIMEOUT" in message) == (ill == "hangs")


@pytest.mark.parametrize("ill", ["drops", "hangs", "refuses"])
def test_where_no_hub_answers_the_cache_is_used_at_once(folder, run, nobody, ill):
    with Hub({"org/tiny": folder}) as hub:
        run(hub.url, "load_model('org/tiny')")
        hub.ill, url = ill, nobody if ill == "refuses" else hub.url
        hub.asked.clear()
        assert "bert, 2 layers x 32" in run(url, "load_model('org/tiny')")
        assert len(hub.asked) == (0 if ill == "refuses" else 1)
        shutil.rmtree(folder.parent / "home" / "hub" / "models--org--tiny" / "snapshots")
        message = error(run(url, "load_model('org/tiny')", HF_HUB_ETAG_TIMEOUT="1"))
        assert "not in the Hub's cache" in message


def test_weights_that_are_not_in_the_cache_are_not_said_to_be_missing_on_the_hub(
    folder, run, nobody
):
    with Hub({"org/tiny": folder}) as hub:
        run(hub.url, "find_tokenizer('org/tiny')")
        run(hub.url, "load_model('org/tiny')")
    snapshots = folder.parent / "home" / "hub" / "models--org--tiny" / "snapshots"
    (weights,) = snapshots.glob("*/model.safetensors")
    weights.unlink()
    message = error(run(nobody, "load_model('org/tiny')"))
    assert "the Hub cannot be reached (" in message
    assert message.endswith("what its cache holds of this model has no model.safetensors")


def test_a_slow_hub_is_waited_for_where_the_cache_does_not_do(folder, run):
    with Hub({"org/tiny": folder}, "wakes") as hub:
        assert "2 layers" in run(hub.url, "load_model('org/tiny')")
        assert "model.safetensors" in hub.fetched
        hub.ill = "wakes"
        hub.asked.clear()
        assert "2 layers" in run(hub.url, "load_model('org/tiny')")
        assert len(hub.asked) == 1
        snapshots = folder.parent / "home" / "hub" / "models--org--tiny" / "snapshots"
        (weights,) = snapshots.glob("*/model.safetensors")
        weights.unlink()
        hub.ill = "wakes"
        assert "2 layers" in run(hub.url, "load_model('org/tiny')")


def test_offline_nothing_is_asked_for(folder, run):
    with Hub({"org/tiny": folder}) as hub:
        message = error(run(hub.url, "load_model('org/tiny')", HF_HUB_OFFLINE="1"))
        assert not hub.asked
    assert "the Hub cannot be reached (HF_HUB_OFFLINE is set)" in message


def test_a_hub_that_is_out_of_order_has_the_usual_retries(folder, run):
    with Hub({"org/tiny": folder}) as hub:
        run(hub.url, "load_model('org/tiny')")
        hub.ill = "fails"
        hub.asked.clear()
        assert "bert, 2 layers x 32" in run(hub.url, "load_model('org/tiny')")
        assert {file for _, file in hub.asked} == {"config.json"}  # the rest is in the cache
        message = error(run(hub.url, "load_model('org/tinny')"))
    assert "the Hub cannot be reached (" in message
    assert "503" in message
