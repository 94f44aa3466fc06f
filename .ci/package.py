"""Builds both distributions, installs each in a clean environment, and makes a picture with it against the stand-in.

    python .ci/package.py FOLDER

FOLDER must be new or empty. It gets the distributions in `dist`, and the source distribution, unpacked, in `source`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".git", "venv", "__pycache__", ".*_cache", "build", "dist", "*.egg-info", "out")  # of a working copy


def run(*command: object, folder: Path = ROOT) -> None:
    """Runs a command that must succeed."""
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=folder, check=True)


def build(folder: Path) -> list[Path]:
    """Builds the distributions from a copy, since building leaves files behind, and unpacks the one of the source."""
    shutil.copytree(ROOT, folder / "copy", ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "copy")
    [wheel] = (folder / "dist").glob("gpt_image_cli-*.whl")
    [source] = (folder / "dist").glob("gpt_image_cli-*.tar.gz")
    shutil.unpack_archive(source, folder)
    (folder / source.name[: -len(".tar.gz")]).rename(folder / "source")
    return [wheel, source]


def try_out(distribution: Path, folder: Path) -> None:
    """Installs a distribution in an environment of its own, and makes a picture with the command that it brings."""
    venv.create(folder, with_pip=True)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", distribution)
    run(programs / "python", "-m", "gpt_image", "--version", folder=folder)
    picture = folder / "lighthouse.png"
    words = ("generations", "A lighthouse at dusk", "--output", picture)
    run(sys.executable, "-m", "tests.gateway", "--", programs / "gpt-image", *words)
    if not picture.read_bytes().startswith(b"\x89PNG"):
        raise SystemExit(f"{distribution.name} made no picture")


def main() -> None:
    """Builds and tries both."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for number, distribution in enumerate(build(folder)):
        try_out(distribution, folder / f"environment-{number}")


if __name__ == "__main__":
    main()
