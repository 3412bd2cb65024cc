"""minibert doctor: what runs on this machine, and whether it is right; and what a model is."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
import time
from typing import Any

from minibert import __version__
from minibert.commands.options import dump, examples, file_name
from minibert.errors import BackendError, CheckpointError, InputError, MinibertError
from minibert.progress import harmless

Findings = dict[str, dict[str, str]]

PACKAGES = ("numpy", "numba", "llvmlite", "safetensors", "tokenizers")

# Largest difference from the definition's logits on the embedded model, for one question.  The
# embedded model's logits reach about 10; measured here: 1e-5, 0.1 and 0.3.
LIMITS = {"float32": 1e-4, "bfloat16": 0.5, "int8": 1.5}
CUDA_LIMITS = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.5}

QUESTION = "Who wrote the first program?"
TEXT = "Ada Lovelace wrote the first program in 1843. It was never run."


def add_command(commands: Any) -> None:
    """Describe the command and its options."""
    doctor = commands.add_parser(
        "doctor",
        help="say what runs here, and check that it computes the right numbers",
        description="Print versions, the processor and the kernels that it gets, and run the "
        "embedded model in each dtype beside the definition in NumPy. The status is 1 if they "
        "differ. With --model, say instead what that model is, how its files are understood, and "
        "what keeps it from running. The status is then 1 if it does not run.",
        **examples(
            "minibert doctor --model my_folder",
            "minibert doctor --json > findings.json",
        ),
    )
    doctor.set_defaults(run=command_doctor)
    doctor.add_argument(
        "--model",
        type=file_name,
        help="folder, weights file, or name on the Hugging Face Hub to look at; 'embedded' for the "
        "model that comes along",
    )
    doctor.add_argument("--revision", help="branch, tag or commit on the Hub")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of prose")


def command_doctor(args: argparse.Namespace) -> None:
    """Run `minibert doctor`."""
    if sys.stdout is None:
        raise InputError("standard output is closed, and there is nothing else that is written")
    if args.model is not None:
        from minibert.checkpoints.examination import examine_model

        found, problems = examine_model(args.model, args.revision)
        show(found | {"problems": problems or {"none": "it runs"}}, args.json)
        if problems:
            raise CheckpointError(f"{args.model} does not run: see its problems above")
        return
    findings = examine()
    show(findings, args.json)
    bad = [name for name, fact in findings["check"].items() if not fact.startswith("ok")]
    if bad:
        raise BackendError(f"the check of {', '.join(bad)} did not go well, see above")


def show(findings: Findings, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        print(dump(findings))
        return
    for title, facts in findings.items():
        print(title)
        width = max(map(len, facts))
        for name, fact in facts.items():
            first, *rest = harmless(fact, sys.stdout).split("\n")
            print(f"  {name:{width}}  {first}")
            for line in rest:
                print(f"  {'':{width}}  {line}")


def examine() -> Findings:
    """Everything worth knowing when something is slow or wrong, by title and name."""
    from minibert.kernels.cache import cache_folder, read_cache
    from minibert.kernels.cpu.compiler import cache_name
    from minibert.kernels.cpu.targets import find_target

    target = find_target()
    folder = cache_folder()
    return {
        "versions": {
            "minibert": __version__,
            "Python": f"{platform.python_version()}, {platform.system()} {platform.machine()}",
            **{name: version(name) for name in PACKAGES},
        },
        "processor": examine_processor(),
        "multiplies": {
            "float32": "fused multiply-add" if target.fma else "multiply, then add",
            "bfloat16": "dot products of pairs (vdpbf16ps)"
            if target.bfloat16 == "dot"
            else "rounded, but multiplied as float32: right, but no faster than float32",
            "int8": {
                "vnni": "dot products of fours (vpdpbusd)",
                "maddubs": "products of pairs (vpmaddubsw), activations of 7 bits",
                "sdot": "dot products of fours (sdot)",
                "widened": "kept in 16 bits, multiplied in 32: right, but no faster",
            }[target.int8],
        },
        "compiled kernels": {
            "folder": str(folder),
            **{
                dtype: "there"
                if read_cache(folder / cache_name(dtype, target)) is not None
                else "not yet; `minibert warmup` compiles them"
                for dtype in LIMITS
            },
        },
        "CUDA": examine_cuda(),
        "check": {dtype: check("cpu", dtype) for dtype in LIMITS} | check_cuda(),
    }


def examine_processor() -> dict[str, str]:
    """The processor, how many of its cores work on a batch, and the kernels that it gets."""
    from minibert.kernels.cpu.pool import available_cores, default_threads
    from minibert.kernels.cpu.targets import find_target, host_targets

    cores, threads = available_cores(), default_threads()
    others = (each.name for each in host_targets() if each != find_target())
    return {
        "name": processor_name(),
        "cores": str(cores),
        "threads": str(threads)
        + (f" (OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']})" if threads < cores else ""),
        "kernels": find_target().name,
        "others it can run": f"{', '.join(others)} (MINIBERT_CPU=NAME chooses)",
    }


def examine_cuda() -> dict[str, str]:
    """The driver, the GPUs, the packages that compile for them, and what is missing."""
    from minibert.kernels.cuda.detect import find_gpus, why_not
    from minibert.kernels.cuda.recipes import COMPILERS

    found = find_gpus()
    facts = {"driver": f"for CUDA {found.driver_version}" if found.driver_version else "none"}
    for gpu in found.gpus:
        facts[f"GPU {gpu.index}"] = (
            f"{gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}, "
            f"{gpu.multiprocessors} multiprocessors, {gpu.memory_size / 2**30:.0f} GiB"
        )
    facts |= {name: version(name) for name in COMPILERS}
    problem = why_not(found)
    facts["device 'cuda'"] = f"cannot be used: {problem}" if problem else "can be used"
    return facts


def check_cuda() -> dict[str, str]:
    """The check on the first GPU, in each dtype that it can compute in; nothing without one."""
    from minibert.kernels.cuda.detect import find_gpus, why_not
    from minibert.kernels.cuda.recipes import LEAST_CAPABILITY

    found = find_gpus()
    if why_not(found):
        return {}
    able = [x for x, least in LEAST_CAPABILITY.items() if found.gpus[0].capability >= least]
    return {f"cuda {dtype}": check("cuda", dtype) for dtype in able}


def version(package: str) -> str:
    """Installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def processor_name() -> str:
    """The processor's name as its maker writes it, if the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def check(device: str, dtype: str) -> str:
    """Run the embedded model and compare its logits with the definition's; 'ok, ...' if close."""
    import numpy as np

    from minibert.model import load_model

    truth = load_model(device="reference")
    windows = truth.windows(QUESTION, [TEXT])
    try:
        ours = load_model(device=device, dtype=dtype)
        begin = time.perf_counter()
        logits = ours.logits(windows)
        seconds = time.perf_counter() - begin
    except MinibertError as error:
        return f"failed: {error}"
    pairs = zip(np.concatenate(logits[0]), np.concatenate(truth.logits(windows)[0]), strict=True)
    off = max(abs(a - b) for a, b in pairs)
    limits = CUDA_LIMITS if device == "cuda" else LIMITS
    if not off <= limits[dtype]:  # not: NaN is not close either
        return f"wrong: logits differ by {off:.2g} from the definition"
    return f"ok, logits within {off:.1g} of the definition; first run {seconds:.2f} s"
