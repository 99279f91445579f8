"""Imports go one way: a room uses the rooms above it, a stage never another stage, the library never the scripts."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src"
ROOMS = ["core", "models", "engine", "stages", "quality", "insight", "indexing", "int8", "retrieval", "pipeline"]
FILES = sorted(path for path in SRC.rglob("*.py") if path.name != "__init__.py")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return names


def room_of(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_point_upwards(path: Path) -> None:
    own = path.relative_to(SRC).parts[0].removesuffix(".py")
    for module in imported(path):
        assert module.split(".")[0] not in {"config", "scripts", "_cli", "_inputs", "_plans", "_runs"}, module
        if module.startswith("src.") and room_of(module) != own:
            assert ROOMS.index(room_of(module)) < ROOMS.index(own), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", sorted((SRC / "stages").glob("*.py")), ids=lambda p: p.name)
def test_stages_do_not_know_each_other(path: Path) -> None:
    assert not [module for module in imported(path) if module.startswith("src.stages")]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_nothing_is_unpickled(path: Path) -> None:
    assert not imported(path) & {"pickle", "joblib", "dill"}


SCRIPTS = {path.stem: path for path in (SRC.parent / "scripts").glob("*.py")}


def first_own_import(path: Path) -> str | None:
    """The first module of the project that a script imports."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.split(".")[0] in {"src", "config", *SCRIPTS}:
                return name
    return None


@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"_cli"}))
def test_a_script_finds_the_project_before_it_imports_from_it(name: str) -> None:
    # _cli puts the project's folder on the path: without it `python scripts/...` works from nowhere.
    first = first_own_import(SCRIPTS[name])
    while first not in {None, "_cli"}:
        assert first in SCRIPTS, f"{name}: {first} is imported before _cli"
        first = first_own_import(SCRIPTS[str(first)])
