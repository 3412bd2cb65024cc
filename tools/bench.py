"""Measure minibert next to its peers, the same way and in the same interleaved run.

    python tools/bench.py startup --peer-python /path/to/env/bin/python
    python tools/bench.py startup --install
    python tools/bench.py cpu --quick
    python tools/bench.py cpu --roofline roofline.svg
    python tools/bench.py cpu --peers none --against /path/of/older/env/bin/python
    python tools/bench.py squad --data dev-v2.0.json.xz
    python tools/bench.py train --data train-v2.0.json --profile
    python tools/bench.py serve --keep folder
    python tools/bench.py scale --python env/bin/python,other/bin/python
    python tools/bench.py cuda --seconds 540 --json cuda.json

Results go to stdout as Markdown, progress to stderr.  Peers that are not installed are left out,
and a line says so; `pip install 'minibert-qa[bench]'` brings those of `cpu`,
`squad` and `train`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmark import cpu, cuda, scale, serve, squad, startup, train
from benchmark.processes import BenchError

COMMANDS = (startup, cpu, squad, train, serve, scale, cuda)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 if a measurement could not be made or results differ; 130 if it was interrupted, after
        what was measured until then was printed; wrong usage exits with 2.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_command(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except BenchError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
