"""Runs on disk, checked against the corpus and the questions that a command works on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _cli  # noqa: F401  (puts the project's folder on the path)

from src.core.artifacts import check_files, full_check, read_manifest
from src.core.errors import UserError
from src.core.storage import load_run
from src.core.types import Corpus, Queries, Run


def find_run(text: str, folder: Path, command: str) -> Path:
    """Path of a run: a ``.parquet``, or a name in ``<data folder>/runs``.

    Args:
        command: makes runs, as it is to be typed.

    Raises:
        UserError: where there is none; it names those that are there.
    """
    path = Path(text) if text.endswith(".parquet") else folder / f"{text}.parquet"
    if not path.is_file():
        have = sorted(found.stem for found in folder.glob("*.parquet"))
        raise UserError(f"{path}: no such run. There are: {', '.join(have) or 'none'}. Make it: {command}")
    return path


def read_run(path: Path, corpus: Corpus, queries: Queries, command: str) -> tuple[Run, Mapping[str, Any]]:
    """A run and the record of how it was made: ``settings``, ``warnings`` and the like.

    Args:
        command: makes it anew, as it is to be typed.

    Raises:
        UserError: where it was made over another corpus or other questions; both fingerprints are named.
    """
    manifest = read_manifest(path.with_name(f"{path.stem}.manifest.json"), command)
    with full_check():  # runs are small
        check_files(path.parent, manifest, command)
    wanted = {"corpus": corpus.fingerprint, "questions": queries.fingerprint}
    found = {"corpus": manifest.inputs.get("corpus"), "questions": manifest.extra.get("questions")}
    for what, fingerprint in wanted.items():
        if found[what] != fingerprint:
            made_over = manifest.counts.get("questions", 0)
            if what == "questions" and queries.head(made_over).fingerprint == found[what]:
                raise UserError(
                    f"{path}: made over the first {made_over} of these {len(queries)} questions ({found[what]}, all: "
                    f"{fingerprint}). Add --limit {made_over}, or make it anew: {command}"
                )
            raise UserError(
                f"{path}: made over the {what} {found[what]} ({made_over} questions), here "
                f"they are {fingerprint} ({len(queries)} questions). Only runs over the same "
                f"corpus and questions go together: name its own (--data-dir, --questions, --limit), or make it anew: "
                f"{command}"
            )
    return load_run(path, corpus, queries.query_ids), manifest.extra


def differing_settings(made_with: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """A line for every run that was made with other settings than the first one; reranking may be on or off.

    Args:
        made_with: name and settings of each run; two runs of other folders may have the same name.
    """
    lines = []
    (first, base), *others = made_with
    for name, settings in others:
        differ = [key for key in {**base, **settings} if base.get(key) != settings.get(key)]
        differ = [key for key in differ if key != "ENABLE_CROSS_ENCODER_RERANKING"]
        if differ:
            listed = ", ".join(f"{key} ({base.get(key)!r}, {settings.get(key)!r})"[:120] for key in differ)
            lines.append(f"{first} and {name} were made with different settings: {listed}")
    return lines
