import json
from pathlib import Path

import pytest

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    atomic_directory,
    atomic_path,
    describe_files,
    fingerprint_strings,
    require_current,
    save_manifest,
)
from src.core.errors import StaleArtifactError


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    folder = tmp_path / "thing"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"0123456789")
    manifest = Manifest("thing", {"corpus": "abc"}, {"k1": 1.2}, files=describe_files(folder, ["data.bin"]))
    save_manifest(folder / MANIFEST_NAME, manifest)
    return folder


def check(folder: Path, corpus: str = "abc", k1: float = 1.2, kind: str = "thing") -> Manifest:
    return require_current(folder, kind, {"corpus": corpus}, {"k1": k1}, fix="make it")


def test_current_artefact_is_accepted(artefact: Path) -> None:
    assert check(artefact).files["data.bin"]["bytes"] == 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"corpus": "xyz"}, 'corpus is "abc" there, but this run needs "xyz". Run: make it'),
        ({"k1": 1.5}, "k1 is 1.2 there, but this run needs 1.5"),
        ({"kind": "other"}, 'kind is "thing" there, but this run needs "other"'),
    ],
)
def test_foreign_artefact_is_refused(artefact: Path, changes: dict[str, str], complaint: str) -> None:
    with pytest.raises(StaleArtifactError) as error:
        check(artefact, **changes)  # type: ignore[arg-type]
    assert complaint in str(error.value)


def test_truncated_missing_and_absent(artefact: Path) -> None:
    (artefact / "data.bin").write_bytes(b"0123")
    with pytest.raises(StaleArtifactError, match=r"4 bytes, the manifest says 10 bytes\. Run: make it"):
        check(artefact)
    (artefact / "data.bin").unlink()
    with pytest.raises(StaleArtifactError, match="missing, the manifest says 10 bytes"):
        check(artefact)
    with pytest.raises(StaleArtifactError, match="not prepared yet"):
        check(artefact.parent / "nothing")


def test_damaged_manifest(artefact: Path) -> None:
    (artefact / MANIFEST_NAME).write_text("{")
    with pytest.raises(StaleArtifactError, match="damaged manifest"):
        check(artefact)


def test_manifest_cannot_name_files_outside(artefact: Path) -> None:
    path = artefact / MANIFEST_NAME
    values = json.loads(path.read_text())
    values["files"] = {"../secret": {"bytes": 1, "sha256": ""}}
    path.write_text(json.dumps(values))
    with pytest.raises(StaleArtifactError, match="outside the folder"):
        check(artefact)


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text("old")

    def fail_half_way() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.csv"]


def test_failed_directory_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    with atomic_directory(folder) as temporary:
        (temporary / "a").write_text("1")

    def fail_half_way() -> None:
        with atomic_directory(folder) as temporary:
            (temporary / "b").write_text("2")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert [p.name for p in folder.iterdir()] == ["a"]
    with atomic_directory(folder) as temporary:
        (temporary / "c").write_text("3")
    assert [p.name for p in folder.iterdir()] == ["c"]
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_fingerprint_strings_separates_items() -> None:
    assert fingerprint_strings(["ab", "c"]) != fingerprint_strings(["a", "bc"])
    assert fingerprint_strings(["a"], ["b"]) != fingerprint_strings(["a", "b"])
