"""Checks what the built sdist and wheel hold: `python -m tests.distribution dist`, which `make dist` runs."""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "fastvid_kernels"
IN_SDIST = ("README.md", "CHANGELOG.md", "LICENSE", "Makefile", "docs/operator.md", "reference/pipeline.py")


def check_wheel(path: Path) -> None:
    """Check that the wheel holds all of the package and nothing else.

    Raises:
        SystemExit: a file is missing, or does not belong there.
    """
    names = set(zipfile.ZipFile(path).namelist())
    metadata = {name for name in names if ".dist-info/" in name}
    sources = {str(file.relative_to(ROOT)) for kind in ("*.py", "*.html") for file in (ROOT / PACKAGE).rglob(kind)}
    expected = sources | {f"{PACKAGE}/py.typed"}
    _complain(path, "lacks", expected - names)
    _complain(path, "should not hold", names - metadata - expected)
    _complain(path, "lacks", {"a licence"} if not any(name.endswith("LICENSE") for name in metadata) else set())


def check_sdist(path: Path) -> None:
    """Check that the sdist holds what building, testing and reading need.

    Raises:
        SystemExit: something is missing.
    """
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {str(file.relative_to(ROOT)) for file in (ROOT / "tests").rglob("*.py")}
    _complain(path, "lacks", {*IN_SDIST, *tests} - names)


def _complain(path: Path, what: str, names: set[str]) -> None:
    if names:
        raise SystemExit(f"{path.name} {what} {', '.join(sorted(names))}")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    print(f"{wheel.name} and {sdist.name} hold what they should")
