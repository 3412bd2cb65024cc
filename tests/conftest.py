"""Shared fixtures.  Also keeps the repository root off sys.path.

The root holds a folder named `kernels`.  With the root on sys.path (`python -m pytest` puts it
there) it hides Hugging Face's package `kernels`, which transformers looks for, and `./minibert`
hides the installed package.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

import launcher  # noqa: E402

launcher.settle()

import pytest  # noqa: E402
from builders import dense, normal  # noqa: E402
from hypothesis import settings  # noqa: E402
from random_models import write_model  # noqa: E402

from minibert.cli import main  # noqa: E402
from minibert.kernels.backend import get_backend  # noqa: E402
from minibert.kernels.cache import cache_folder  # noqa: E402
from minibert.kernels.cuda import detect, driver  # noqa: E402
from minibert.kernels.training import get_training_kernels  # noqa: E402
from minibert.model import load_model  # noqa: E402

# Some examples compile or load a model, so hypothesis must not time them.
settings.register_profile("minibert", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("minibert")
launcher.keep_compiled(cache_folder())


def pytest_collection_modifyitems(items):
    """Skip what needs a GPU where there is none, and say why."""
    if reason := detect.why_not(detect.find_gpus()):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=f"no GPU: {reason}"))


@pytest.fixture(scope="session")
def compiled_before():
    """Compile what programs run by default: one that has to do it itself says so."""
    cpu = get_backend("cpu")
    cpu.linear(normal(0, 1, 1), cpu.prepare_dense(dense(0, 1, 1)))


@pytest.fixture
def no_gpu(monkeypatch):
    """A computer without NVIDIA's driver."""

    def find_library():
        raise OSError("libcuda.so.1: no such file")

    monkeypatch.setattr(driver, "find_library", find_library)
    detect.opened.cache_clear()
    yield
    detect.opened.cache_clear()


@pytest.fixture(scope="session", params=["reference", "cpu"])
def processor(request):
    """Each device without a GPU in turn, in float32."""
    return get_backend(request.param)


@pytest.fixture(
    scope="session",
    params=["reference", "cpu", pytest.param("cuda", marks=pytest.mark.gpu)],
)
def backend(request):
    """Each device in turn, in float32."""
    return get_backend(request.param)


@pytest.fixture(scope="session", params=["reference", "cpu"])
def trainer(request):
    """The training kernels of each device in turn, in float32."""
    return get_training_kernels(request.param)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder with a tiny random model.  Tests may not change it."""
    return write_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The tiny random model, loaded."""
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def embedded():
    """The embedded model, loaded."""
    return load_model()


@pytest.fixture
def run(capsys, tiny_folder):
    """Run `minibert answer` with the tiny model: run(*arguments) -> (exit code, stdout, stderr)."""

    def run(*arguments):
        options = ["--model", str(tiny_folder), "--device", "reference"]
        try:
            code = main(["answer", *arguments, *options])
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def fails(run):
    """As `run`, for bad input: the message."""

    def fails(*arguments):
        code, out, err = run(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("minibert: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        return err

    return fails


@pytest.fixture
def stdin(monkeypatch, tmp_path):
    """Put bytes on standard input."""
    path = tmp_path / "stdin"
    opened = []

    def put(content):
        path.write_bytes(content)
        opened.append(path.open(encoding="utf-8"))
        monkeypatch.setattr(sys, "stdin", opened[-1])

    yield put
    for file in opened:
        file.close()
