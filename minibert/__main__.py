"""The program: `minibert`, and `python -m minibert`.

It loads next to nothing before it is ready for signals, because the rest takes a while to load.
"""

import os
import sys


def run() -> int:
    """Run the command line; the status to end with."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:  # it is closed, so the next file would take its number
            os.open(os.devnull, os.O_RDWR)
    from minibert import signals

    signals.heed()
    try:
        from minibert.cli import main

        return main()
    except KeyboardInterrupt as stop:  # before or after what `main` looks after
        from minibert.progress import say

        say("minibert: interrupted\n")
        return signals.STATUS.get(type(stop), 130)
    finally:
        signals.let_go()


if __name__ == "__main__":
    try:
        sys.exit(run())
    except KeyboardInterrupt:
        os._exit(130)
