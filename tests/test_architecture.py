"""Imports run one way: ops -> layers -> models -> pipelines and trackers -> training -> cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pyposeext

PACKAGE = Path(pyposeext.__file__).parent
SIDE = {"errors", "structures", "skeletons"}  # imported by everyone
STANDING_ASIDE = {"datasets", "metrics", "io", "viz"}
MAY_IMPORT = {
    "errors": set(),
    "structures": {"errors"},
    "skeletons": {"errors", "structures"},
    "ops": SIDE,
    "layers": SIDE | {"ops"},
    "models": SIDE | {"ops", "layers", "io"},
    "trackers": SIDE | {"ops", "metrics"},
    "pipelines": SIDE | STANDING_ASIDE | {"ops", "layers", "models", "trackers"},
    "training": SIDE | STANDING_ASIDE | {"ops", "layers", "models", "pipelines", "trackers"},
    "cli": SIDE | STANDING_ASIDE | {"ops", "layers", "models", "pipelines", "trackers", "training"},
    **dict.fromkeys(STANDING_ASIDE, SIDE | STANDING_ASIDE),
}


def imported_parts(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in the file it does."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom):
            pytest.fail(f"{path.name} uses a relative import: write the whole name, so that it can be searched for")
        parts |= {name.split(".")[1] for name in names if name.startswith("pyposeext.")}
    return {part for part in parts if (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()}


@pytest.mark.parametrize("part", sorted(MAY_IMPORT))
def test_no_import_runs_upward(part: str) -> None:
    files = sorted((PACKAGE / part).rglob("*.py")) or [PACKAGE / f"{part}.py"]
    for path in files:
        upward = imported_parts(path) - MAY_IMPORT[part] - {part, "weights"}
        assert not upward, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(upward))}"


def test_every_part_has_its_place() -> None:
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__", "__main__"} <= set(MAY_IMPORT) | {"weights"}


def test_importing_the_package_imports_neither_torch_nor_opencv() -> None:
    code = "import sys, pyposeext; sys.exit(any(name in sys.modules for name in ('torch', 'cv2', 'scipy', 'av')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names_exist() -> None:
    for name in pyposeext.__all__:
        assert getattr(pyposeext, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        pyposeext.nonsense  # noqa: B018
