"""Run mypy over minibert and kernels/ as the one package that users import.

mypy does not know the package-dir mapping of pyproject.toml, so this links both folders into a
temporary one, the way an installed wheel has them.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def link_package(site: Path) -> None:
    """Lay out minibert with minibert/kernels in `site`, as links into the checkout."""
    package = site / "minibert"
    package.mkdir()
    for source in (ROOT / "minibert").iterdir():
        (package / source.name).symlink_to(source)
    (package / "kernels").symlink_to(ROOT / "kernels")


def main() -> int:
    """Type-check and return mypy's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        link_package(Path(folder))
        config = f"--config-file={ROOT / 'pyproject.toml'}"
        done = subprocess.run(
            [sys.executable, "-m", "mypy", config, "-p", "minibert"],
            cwd=folder,
            env={**os.environ, "MYPYPATH": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
    print(done.stdout.replace("minibert/kernels/", "kernels/"), end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
