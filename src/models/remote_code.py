"""Python code that comes with a model, in its own repository or in another one."""

import json
from collections.abc import Iterator
from pathlib import Path

from src.core.errors import ModelUnavailableError
from src.core.memory import first_line

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


def revision_of_code(repository: str, file: str, download: bool, timeout: float) -> str:
    """The commit of a repository's code in the local hub cache.

    Args:
        file: one file of the code.
        download: whether to fetch its Python files where they are not there.
        timeout: seconds until the hub must have answered.

    Raises:
        ModelUnavailableError: where the code is not there; its text begins with the repository.
    """
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    found, reason = try_to_load_from_cache(repository, file), ""
    if not isinstance(found, str) and download:
        try:
            snapshot_download(repository, allow_patterns=["*.py"], etag_timeout=timeout)
        except Exception as error:  # every way in which a hub can fail means: it is not here
            reason = f" ({type(error).__name__}: {first_line(error)})"
        found = try_to_load_from_cache(repository, file)
    if not isinstance(found, str):
        raise ModelUnavailableError(
            f"{repository}, which is not in the local hub cache{reason}. Run `hf download {repository}` "
            "on a machine with a network and copy its hub cache."
        )
    return Path(found).parent.name


def _named(directory: Path) -> Iterator[str]:
    try:
        places = dict(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("auto_map") or {})
    except (OSError, ValueError, TypeError, AttributeError):
        return
    for value in places.values():
        yield from (text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
