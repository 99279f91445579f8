"""Fingerprints and manifests (and, for those who write artefacts, the atomic files of :mod:`src.core.atomic`).

Every artefact is plain data (npy, parquet, faiss, json, safetensors; never pickle) in a folder with one
``manifest.json``. The manifest says what the artefact was made from; loading compares it with what the caller
expects and refuses a stale, foreign or truncated artefact. Paths in a manifest are relative to its folder, so that
folders can be copied between machines.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from src.core.atomic import atomic_directory as atomic_directory
from src.core.atomic import atomic_path as atomic_path
from src.core.errors import StaleArtifactError

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1
_LIBRARIES = ("torch", "transformers", "sentence-transformers", "faiss-cpu", "faiss-gpu", "bm25s", "rank-bm25", "numpy")
# What each kind of artefact is shaped by: another version of these may have made other bytes of the same input.
_SHAPED_BY = {
    "embeddings": ("torch", "transformers", "sentence-transformers"),
    "token vectors": ("torch", "transformers", "sentence-transformers"),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "bm25": ("bm25s", "rank-bm25"),
}

log = logging.getLogger(__name__)

_full_check: ContextVar[dict[tuple[str, int, int], str] | None] = ContextVar("full_check", default=None)
_told_of: set[str] = set()


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


@cache
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
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(getattr(manifest, name), dict) for name in ("inputs", "settings", "files", "extra")):
            raise TypeError("a part of it is no mapping")
        for name, entry in manifest.files.items():
            if not isinstance(entry["bytes"], int) or not isinstance(entry["sha256"], str):
                raise TypeError(f"no size and checksum of {name}")
        return manifest
    except (ValueError, TypeError, KeyError) as error:
        raise StaleArtifactError(f"{path}: damaged manifest ({error}). Run: {fix}") from error


@contextmanager
def full_check(wanted: bool = True) -> Iterator[None]:
    """Within the block every artefact that is loaded is checked by its full hash too, each file once."""
    token = _full_check.set({} if wanted else None)
    try:
        yield
    finally:
        _full_check.reset(token)


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
        StaleArtifactError: missing, of another kind or layout, made from other inputs or settings, or truncated;
            within :func:`full_check` also where a byte differs. The message says what differs, both values, and
            ``fix``.
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
    check_files(folder, manifest, fix)
    _tell_of_versions(folder, manifest)
    return manifest


def check_files(folder: Path, manifest: Manifest, fix: str) -> None:
    """Check the files of a manifest: their sizes, and within :func:`full_check` every byte.

    Raises:
        StaleArtifactError: where one is missing, of another size, damaged, or outside ``folder``.
    """
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
        _check_hash(path, expected["sha256"], fix)


def _check_hash(path: Path, expected: str, fix: str) -> None:
    hashes = _full_check.get()
    if hashes is None:
        return
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in hashes:
        hashes[key] = file_sha256(path)
    if hashes[key] != expected:
        # Without --verify the command that makes it would look at the size alone and keep it.
        raise StaleArtifactError(
            f"{path}: damaged: its bytes have the SHA-256 {hashes[key][:16]}, the manifest says {expected[:16]}. "
            f"Run: {fix}{'' if fix == 'automatic' else ' --verify'}"
        )


def _tell_of_versions(folder: Path, manifest: Manifest) -> None:
    """Warn, once per artefact, of libraries whose major version is not the one that made it."""
    for name in _SHAPED_BY.get(manifest.kind, ()):
        made, here = str(manifest.libraries.get(name, "")), library_versions().get(name, "")
        if made and here and _major(made) != _major(here) and f"{folder}/{name}" not in _told_of:
            _told_of.add(f"{folder}/{name}")
            log.warning(
                "WARNING: %s was made with %s %s, here is %s: used as it is; --fresh makes it anew.",
                folder, name, made, here,
            )  # fmt: skip


def _major(version: str) -> str:
    """The part of a version whose change may break things: the first number, in 0.x versions the second too."""
    parts = version.split(".")
    return ".".join(parts[:2]) if parts[0] == "0" else parts[0]


def _short(value: object, limit: int = 120) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."
