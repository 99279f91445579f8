"""Python code that comes with a model, in its own repository or in another one."""

import json
from collections.abc import Iterator
from pathlib import Path

SEPARATOR = "--"  # between a repository and a module of it, in auto_map


def has_own_code(directory: Path) -> bool:
    """Whether a model's configuration names Python code to load it with."""
    return next(_named(directory), None) is not None


def foreign_code(directory: Path) -> dict[str, str]:
    """Repositories other than the model's own whose code it names -> one file of that code.

    ``auto_map`` writes them as ``owner/name--module.Class`` (transformers, "Sharing custom models").
    """
    found: dict[str, str] = {}
    for text in _named(directory):
        repository, separator, place = text.partition(SEPARATOR)
        if separator:
            found.setdefault(repository, f"{place.split('.')[0]}.py")
    return found


def code_revision(repository: str, file: str) -> str | None:
    """The commit of a repository's code in the local hub cache; ``None`` where it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found).parent.name if isinstance(found, str) else None


def fetch_code(repository: str, timeout: float) -> None:
    """Download the Python files of a repository into the hub cache."""
    from huggingface_hub import snapshot_download

    snapshot_download(repository, allow_patterns=["*.py"], etag_timeout=timeout)


def _named(directory: Path) -> Iterator[str]:
    try:
        places = dict(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("auto_map") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return
    for value in places.values():
        yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
