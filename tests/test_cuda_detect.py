"""Which GPUs there are, and why none can be used: one reason, and what to do about it."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
from emulated_gpu import EmulatedGpu

from minibert.cli import main
from minibert.commands.doctor import examine_cuda
from minibert.errors import BackendError
from minibert.kernels.cuda import detect, driver
from minibert.kernels.cuda.recipes import COMPILERS


@pytest.fixture
def plug_in(monkeypatch):
    """plug_in(gpu, compiler=True): a computer with this GPU, with or without numba-cuda."""

    def plug(gpu, compiler=True):
        monkeypatch.setattr(driver, "find_library", lambda: gpu)
        known = importlib.metadata.version

        def version(name):
            if name in COMPILERS:
                if not compiler:
                    raise importlib.metadata.PackageNotFoundError(name)
                return "0.30.4"
            if name == "nvidia-nvjitlink":
                return "13.0.88"
            return known(name)

        monkeypatch.setattr(importlib.metadata, "version", version)
        detect.opened.cache_clear()

    yield plug
    detect.opened.cache_clear()


def answers(gpu, **codes):
    """The same library, with functions that return error codes."""
    for name, code in codes.items():
        getattr(gpu, name).function = lambda *_, code=code: code
    return gpu


def of_version(number):
    gpu = EmulatedGpu()

    def version(out):
        out._obj.value = number

    gpu.cuDriverGetVersion.function = version
    return gpu


def test_a_gpu_is_described(plug_in):
    plug_in(EmulatedGpu(capability=(8, 6), multiprocessors=82, memory_size=24 << 30))
    found = detect.find_gpus()
    assert found.driver_version == "13.0"
    assert found.gpus == (driver.Gpu(0, "Emulated GPU", (8, 6), 24 << 30, 82, 232448),)
    assert detect.why_not(found) == ""


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (
            answers(EmulatedGpu(), cuInit=100),
            "cuInit failed with CUDA error 100.*the driver sees no GPU.*CUDA_VISIBLE",
        ),
        (EmulatedGpu(count=0), "driver works, but the driver sees no GPU"),
        (answers(EmulatedGpu(), cuInit=803), "error 803.*restart the computer"),
        (answers(EmulatedGpu(), cuInit=804), "error 804.*install the newer driver"),
        (answers(EmulatedGpu(), cuInit=999), "error 999.*nvidia_uvm"),
        (answers(EmulatedGpu(), cuInit=3), "error 3 .*forked from one that used CUDA"),
        (answers(EmulatedGpu(), cuInit=34), "error 34.*stubs"),
        (answers(EmulatedGpu(), cuInit=802), "error 802.*fabric manager"),
        (answers(EmulatedGpu(), cuInit=719), "error 719.*documentation of CUresult"),
        (
            answers(EmulatedGpu(), cuDeviceGetCount=101),
            "cuDeviceGetCount failed with CUDA error 101",
        ),
        (answers(EmulatedGpu(), cuDeviceGet=101), "cuDeviceGet failed with CUDA error 101"),
        (object(), "NVIDIA's driver library lacks cuInit: it is too old, or no driver at all"),
        (of_version(11040), "driver is for CUDA 11.4, and minibert needs 12.0.*Update the driver"),
        (
            of_version(12080),
            "compiler is for CUDA 13, .*CUDA 12. In a fresh environment .*extra cuda12",
        ),
        (EmulatedGpu(capability=(7, 0)), "capability 7.0, and minibert needs 7.5"),
    ],
)
def test_the_one_reason_and_the_remedy_are_named(plug_in, gpu, said):
    plug_in(gpu)
    with pytest.raises(BackendError, match=f"device 'cuda' cannot be used: .*{said}"):
        detect.open_device(0)


def test_without_a_driver_the_reason_is_named(no_gpu):
    with pytest.raises(BackendError, match=r"there is no NVIDIA driver \(libcuda.*Install"):
        detect.open_device(0)


def test_without_numba_cuda_the_extra_is_named(plug_in):
    plug_in(EmulatedGpu(), compiler=False)
    with pytest.raises(BackendError, match=r"numba-cuda is missing.*numba-cuda\[cu13\]"):
        detect.open_device(0)


def test_a_gpu_too_far_is_refused(plug_in):
    plug_in(EmulatedGpu())
    with pytest.raises(BackendError, match="no GPU 1 here: only 0"):
        detect.open_device(1)
    plug_in(EmulatedGpu(count=2))
    with pytest.raises(BackendError, match="no GPU 2 here: 0 to 1"):
        detect.open_device(2)


def test_a_gpu_is_opened_once(plug_in):
    plug_in(EmulatedGpu())
    assert detect.open_device(0) is detect.open_device(0)


def test_looking_for_a_gpu_imports_nothing_heavy():
    code = (
        "import sys; from minibert.kernels.cuda.detect import find_gpus, why_not; "
        "why_not(find_gpus()); print(sys.modules.keys() & {'numba', 'llvmlite', 'cuda'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# ---------------------------------------------------------------- minibert doctor and warmup


def test_the_doctor_names_the_gpu(plug_in):
    plug_in(EmulatedGpu(memory_size=80 << 30, multiprocessors=132))
    facts = examine_cuda()
    assert facts["driver"] == "for CUDA 13.0"
    assert facts["GPU 0"] == ("Emulated GPU, compute capability 9.0, 132 multiprocessors, 80 GiB")
    assert facts["numba-cuda"] == "0.30.4"
    assert facts["device 'cuda'"] == "can be used"


@pytest.mark.slow
def test_the_doctor_says_why_there_is_none(no_gpu, capsys):
    assert main(["doctor", "--json"]) == 0  # no GPU is no fault
    facts = json.loads(capsys.readouterr().out)
    assert facts["CUDA"]["driver"] == "none"
    assert facts["CUDA"]["device 'cuda'"].startswith("cannot be used: there is no NVIDIA driver")
    assert not [name for name in facts["check"] if "cuda" in name]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--device", "cuda"], 1, "no GPU says what to compile for: there is no NVIDIA driver"),
        (["--device", "cuda", "--arch", "9"], 2, "must be a compute capability such as 8.6"),
        (["--device", "cuda", "--dtype", "int8"], 1, "'cuda' computes in float32, float16"),
        (
            ["--device", "cuda", "--arch", "7.5", "--dtype", "float16"],
            1,
            "needs compute capability 8.0",
        ),
        (["--device", "cuda", "--arch", "٩.٠"], 2, "must be a compute capability"),
        (["--dtype", "float16"], 1, "'cpu' computes in float32, bfloat16, int8 only"),
        (["--arch", "9.0"], 1, "--model and --arch are for --device cuda"),
        (["--device", "cuda", "--arch", "9.0", "--model", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_warmup_refuses_what_makes_no_sense(no_gpu, capsys, arguments, status, said):
    try:
        assert main(["warmup", *arguments]) == status
    except SystemExit as error:
        assert error.code == status
    assert said in capsys.readouterr().err
