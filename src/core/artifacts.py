"""Atomic files, fingerprints and manifests.

Every artefact is plain data (npy, parquet, faiss, json, safetensors; never pickle) in a folder with one
``manifest.json``. The manifest says what the artefact was made from; loading compares it with what the caller
expects and refuses a stale, foreign or truncated artefact. Paths in a manifest are relative to its folder, so that
folders can be copied between machines.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from src.core.errors import StaleArtifactError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "faiss-gpu", "bm25s", "rank-bm25", "numpy")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` when the block ends without an error.

    The file that was there before stays untouched until the rename, and for good where the block fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.tmp-", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    umask = os.umask(0)
    os.umask(umask)
    try:
        yield temporary
        # mkstemp (and some writers) make the file private; a result is readable by whom the umask allows.
        temporary.chmod(0o666 & ~umask)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside ``path``; swap it in for ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{path.name}.tmp-", dir=path.parent))
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)
    old = temporary.with_name(temporary.name + "-old")
    try:
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def fingerprint(value: object) -> str:
    """SHA-256 (first 16 hex digits) of the canonical JSON of ``value``."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint_strings(*columns: Iterable[str]) -> str:
    """SHA-256 (first 16 hex digits) of columns of strings; lengths are hashed too, so borders cannot move."""
    digest = hashlib.sha256()
    for column in columns:
        digest.update(b"column")
        for item in column:
            data = item.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the installed libraries that shape results."""
    versions: dict[str, str] = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class Manifest:
    """What an artefact is and what it was made from.

    Attributes:
        kind: what the folder holds, such as ``"processed"`` or ``"embeddings"``.
        inputs: fingerprints of everything that shaped it; compared when it is loaded.
        settings: the settings that shaped it; compared when it is loaded.
        files: name relative to the folder -> ``{"bytes": int, "sha256": hex}``.
        counts: row counts and the like, for people.
        extra: anything else for people (models, where they came from, warnings).
        libraries: versions of the libraries that wrote it.
        created: UTC time, ISO 8601.
        format_version: layout of the folder.
    """

    kind: str
    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    libraries: Mapping[str, str] = field(default_factory=library_versions)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    format_version: int = FORMAT_VERSION

    @property
    def identity(self) -> str:
        """Fingerprint of kind, inputs and settings: equal for two artefacts that may stand in for each other."""
        return fingerprint([self.kind, dict(self.inputs), dict(self.settings), self.format_version])


def describe_files(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Size and checksum of each named file of ``folder``, as a manifest keeps them."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in sorted(names)
    }


def save_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest`` to ``path`` (a file), atomically."""
    write_json(path, asdict(manifest))


def read_manifest(path: Path, fix: str) -> Manifest:
    """Read a manifest.

    Raises:
        StaleArtifactError: where it is missing or is not a manifest. ``fix`` names the command that mends it.
    """
    if not path.is_file():
        raise StaleArtifactError(f"{path.parent}: not prepared yet (no {path.name}). Run: {fix}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Manifest(**values)
    except (ValueError, TypeError) as error:
        raise StaleArtifactError(f"{path}: damaged manifest ({error}). Run: {fix}") from error


def require_current(
    folder: Path, kind: str, inputs: Mapping[str, str], settings: Mapping[str, Any], fix: str
) -> Manifest:
    """Check that ``folder`` holds the artefact that the caller expects, whole.

    Args:
        folder: where the artefact lies.
        kind: the kind it must be.
        inputs: fingerprints it must have been made from.
        settings: settings it must have been made with.
        fix: the command that makes it anew, for the message.

    Returns:
        Its manifest.

    Raises:
        StaleArtifactError: missing, of another kind or layout, made from other inputs or settings, or truncated.
            The message says what differs, both values, and ``fix``.
    """
    manifest = read_manifest(folder / MANIFEST_NAME, fix)
    found: dict[str, Any] = {"kind": manifest.kind, "format_version": manifest.format_version}
    wanted: dict[str, Any] = {"kind": kind, "format_version": FORMAT_VERSION}
    found.update(manifest.inputs)
    wanted.update(inputs)
    found.update(manifest.settings)
    wanted.update(json.loads(json.dumps(dict(settings))))
    for key in sorted(found.keys() | wanted.keys()):
        if found.get(key) != wanted.get(key):
            raise StaleArtifactError(
                f"{folder}: out of date: {key} is {_short(found.get(key))} there, but this run needs "
                f"{_short(wanted.get(key))}. Run: {fix}"
            )
    for name, expected in manifest.files.items():
        path = folder / name
        if folder.resolve() not in path.resolve().parents:
            raise StaleArtifactError(f"{folder}: its manifest names a file outside the folder ({name}). Run: {fix}")
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"]:
            what = "missing" if size is None else f"{size} bytes"
            raise StaleArtifactError(
                f"{path}: damaged or half-copied: {what}, the manifest says {expected['bytes']} bytes. Run: {fix}"
            )
    return manifest


def _short(value: object, limit: int = 120) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."
