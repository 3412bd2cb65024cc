"""Attack minibert with files and arguments that are nearly right.

    python tools/fuzz.py --cases 2000
    python tools/fuzz.py --kinds pickles,squad --seed 7 --cases 100000 --jobs 2 --save failures
    python tools/fuzz.py --kinds pickles --seed 7 --only 1234

Each case is a small model, or another file, in which something is changed, or a call with odd
arguments; case k of a kind depends on the seed, the kind and k alone.  Good are those that are
answered rightly and those that are refused with a MinibertError; everything else fails.
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

os.environ["HF_HUB_OFFLINE"] = "1"  # no case may reach the network
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from fuzzing.kinds import KINDS, make_case
from fuzzing.running import OUTCOMES, load_all
from fuzzing.workers import run_all


def main(argv: Sequence[str] | None = None) -> int:
    """Run cases.

    Returns:
        0 if all are good, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, metavar="N", help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the random numbers (default: 0)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which, as pickles,squad (default: all)")
    parser.add_argument("--only", type=int, metavar="K", help="only case K of each kind")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (default: 1)")
    args = parser.parse_args(argv)
    kinds = args.kinds.split(",")
    orders = [(kinds[k % len(kinds)], k) for k in range(args.cases)]
    if args.only is not None:
        orders = [(kind, args.only) for kind in kinds]
    counts = {kind: Counter() for kind in kinds}
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        load_all(Path(folder))
        begin = time.perf_counter()
        for done, ((kind, number), verdict) in enumerate(
            run_all(orders, lambda order: make_case(args.seed, *order), args.jobs), 1
        ):
            counts[kind][verdict.outcome] += 1
            if not verdict.good:
                key = (kind, verdict.outcome, verdict.where)
                if key not in seen:
                    print(f"\n== {kind} {number}: {verdict.outcome} {verdict.where}\n{verdict.detail[-1500:]}")
                seen.setdefault(key, []).append(number)
            elif args.only is not None:
                print(verdict)
            if done % 50 == 0 or done == len(orders):
                rate = done / (time.perf_counter() - begin)
                print(f"\r{done} of {len(orders)}, {rate:.0f} a second, {sum(map(len,seen.values()))} failures", end="", file=sys.stderr)
    print(file=sys.stderr)
    for kind in kinds:
        print(kind, {name: counts[kind][name] for name in OUTCOMES if counts[kind][name]})
    for key, numbers in seen.items():
        print(*key, len(numbers), numbers[:5])
    return int(bool(seen))


if __name__ == "__main__":
    sys.exit(main())
