"""Attack minibert with files, texts and arguments that are nearly right.

    python tools/fuzz.py                                          2,000 cases of all kinds
    python tools/fuzz.py --kinds pickles,squad --seed 7 --cases 100000 --jobs 2
    python tools/fuzz.py --kinds pickles --seed 7 --only 1234     one case, and what came of it
    python tools/fuzz.py --case failures/pickles-1234             one that was saved

A case is a tiny model of some family, or another file, in which something is changed, or a call
with odd arguments.  Case K of a kind depends on the seed, the kind and K alone.  Those that are
answered rightly are good, and those that are refused with a MinibertError; of all others the
smallest that fails in the same way is kept in a folder, once for each cause.

A table of outcomes goes to stdout, progress and failures to stderr.  For Linux.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}  # before anything reads them

from fuzzing import seeds
from fuzzing.kinds import KINDS, Case, make_case
from fuzzing.running import load_all
from fuzzing.saving import load_case, save_case
from fuzzing.shrinking import shrink
from fuzzing.verdicts import BAD, GOOD, Verdict
from fuzzing.workers import Worker, run_all

Order = tuple[str, int]  # a kind, and the number of a case


def main(argv: Sequence[str] | None = None) -> int:
    """Run cases.

    Returns:
        0 if all are good; 1 if one is not; 130 if the run was interrupted, after what was found
        until then; wrong usage exits with 2.
    """
    args = parse(argv)
    with tempfile.TemporaryDirectory(prefix="minibert-fuzz-") as folder:
        load_all(Path(folder))
        if args.case is not None:
            return run_one(load_case(args.case))
        if args.only is not None:
            return max(run_one(make_case(args.seed, kind, args.only)) for kind in args.kinds)
        if not seeds.has_pyarrow():
            print("fuzz: no tables, for which pyarrow would have to be installed", file=sys.stderr)
        orders = [(args.kinds[k % len(args.kinds)], k) for k in range(args.cases)]
        return run_many(orders, args.seed, args.jobs, args.save)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Understand the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="how many (2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the cases (0)")
    parser.add_argument(
        "--kinds", type=kinds, default=list(KINDS), metavar="A,B", help=f"of {', '.join(KINDS)}"
    )
    parser.add_argument("--only", type=int, metavar="K", help="case K of each kind, and no other")
    parser.add_argument("--case", type=Path, metavar="FOLDER", help="one that was saved")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument(
        "--save", type=Path, default=Path("failures"), metavar="FOLDER", help="(failures)"
    )
    return parser.parse_args(argv)


def kinds(text: str) -> list[str]:
    """An argparse type: names of kinds."""
    if unknown := [name for name in text.split(",") if name not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return text.split(",")


def run_one(case: Case) -> int:
    """Run a case and say what came of it."""
    worker = Worker(as_it_is)
    verdict = worker.ask(case)
    worker.end()
    print(f"{case.kind}: {verdict.outcome} {verdict.where}\n{verdict.detail}".rstrip())
    return int(not verdict.good)


def as_it_is(case: Case) -> Case:
    """The case of an order that is a case."""
    return case


def run_many(orders: Sequence[Order], seed: int, jobs: int, save: Path) -> int:
    """Run cases, count outcomes, and keep what fails."""
    counts: Counter[tuple[str, str]] = Counter()
    causes: dict[tuple[str, ...], list[int]] = {}
    begin = time.perf_counter()
    status = 0
    try:
        for order, verdict in run_all(orders, lambda order: make_case(seed, *order), jobs):
            kind, number = order
            counts[kind, verdict.outcome] += 1
            if not verdict.good:
                status = 1
                numbers = causes.setdefault((kind, *verdict.cause), [])
                numbers.append(number)
                if len(numbers) == 1:
                    command = f"python tools/fuzz.py --seed {seed} --kinds {kind} --only {number}"
                    keep(make_case(seed, *order), verdict, save / f"{kind}-{number}", command)
            say_progress(counts, len(orders), time.perf_counter() - begin)
    except KeyboardInterrupt:
        status = 130
    print(file=sys.stderr)
    print(as_table(counts, time.perf_counter() - begin, seed))
    for (kind, outcome, where), numbers in sorted(causes.items()):
        shown = ", ".join(map(str, numbers[:5])) + " ..." * (len(numbers) > 5)
        print(f"\n{outcome}: {len(numbers)} of {kind}: {shown}: {where}")
    return status


def keep(case: Case, verdict: Verdict, save: Path, command: str) -> None:
    """Make a case that fails smaller, and save it with the command that it comes from."""
    worker = Worker(as_it_is)
    tries = {"hang": 0, "slow": 20, "memory": 100}.get(verdict.outcome, 600)
    smallest = shrink(case, lambda smaller: worker.ask(smaller).cause == verdict.cause, tries)
    worker.end()
    save_case(save, smallest, verdict, command)
    print(f"\n{save}: {verdict.outcome} {verdict.where}", file=sys.stderr)


def say_progress(counts: Counter[tuple[str, str]], total: int, seconds: float) -> None:
    """How far the run is, now and then."""
    done = sum(counts.values())
    if done % 50 and done != total:
        return
    bad = sum(count for (_, outcome), count in counts.items() if outcome in BAD)
    line = f"{done} of {total} cases, {done / seconds:.0f} a second, {bad} failed"
    print(f"\r{line}", end="", file=sys.stderr, flush=True)


def as_table(counts: Counter[tuple[str, str]], seconds: float, seed: int) -> str:
    """The outcomes of each kind, in Markdown."""
    done = sum(counts.values())
    shown = [*GOOD, *(name for name in BAD if any(outcome == name for _, outcome in counts))]
    rows = [["kind", *shown], ["---", *("--:" for _ in shown)]]
    for kind in KINDS:
        if any(name == kind for name, _ in counts):
            rows.append([kind, *(str(counts[kind, name]) for name in shown)])
    sums = [sum(n for (_, outcome), n in counts.items() if outcome == name) for name in shown]
    rows.append(["all", *map(str, sums)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    rate, bad = done / max(seconds, 1e-9), sum(sums[len(GOOD) :])
    figures = f"{done} cases of seed {seed} in {seconds:.0f} s, {rate:.0f} a second; {bad} failed"
    return f"{table}\n\n{figures}"


if __name__ == "__main__":
    sys.exit(main())
