"""What import-linter cannot see: who imports the native module."""

from __future__ import annotations

import ast
from pathlib import Path

import finback

PACKAGE = Path(finback.__file__).parent


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_only_the_kernels_package_sees_the_native_module() -> None:
    importers = {path for path in PACKAGE.rglob("*.py") if "finback._native" in imported(path)}
    assert importers
    assert all(PACKAGE / "kernels" in path.parents for path in importers)
