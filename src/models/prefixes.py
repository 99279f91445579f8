"""What a bi-encoder wants before a question and before a passage: its own configuration, else its family's rule."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from src.models.resolve import ResolvedModel

log = logging.getLogger(__name__)

_WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"

# Names that models give the prompt of a question and that of a passage.
_QUERY_PROMPTS = ("query", "search_query")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus", "search_document")

# Family -> pattern of the model's name, prefix of a question, prefix of a passage; as the models' cards give them.
FAMILIES: tuple[tuple[str, str, str, str], ...] = (
    ("e5-instruct", r"e5.*instruct", f"{_WEB_SEARCH} ", ""),
    ("e5", r"(^|[/:_-])e5[_-]", "query: ", "passage: "),
    ("bge-m3", r"bge-m3", "", ""),
    ("bge-zh", r"bge-.*-zh", "为这个句子生成表示以用于检索相关文章：", ""),
    ("bge", r"bge-.*-en", "Represent this sentence for searching relevant passages: ", ""),
    ("gte-qwen2", r"gte-qwen2", f"{_WEB_SEARCH} ", ""),
    ("gte", r"(^|[/_-])gte-", "", ""),
    ("labse", r"labse", "", ""),
    ("qwen3-embedding", r"qwen3-embedding", _WEB_SEARCH, ""),
    ("frida", r"(^|/)frida", "search_query: ", "search_document: "),
)


@dataclass(frozen=True)
class Prefixes:
    """What is put before a text.

    Attributes:
        query, document: the prefixes, ``""`` for none.
        warnings: where the settings ask for another prefix than the model was trained with.
    """

    query: str
    document: str
    warnings: tuple[str, ...] = ()


def family_of(name: str) -> tuple[str, str, str] | None:
    """Family, question prefix and passage prefix by a model's name; ``None`` where no rule knows it."""
    for family, pattern, query, document in FAMILIES:
        if re.search(pattern, name, re.IGNORECASE):
            return family, query, document
    return None


def own_prompts(directory: Path) -> dict[str, str]:
    """The prompts of a sentence-transformers directory that are not empty, by their names."""
    path = directory / "config_sentence_transformers.json"
    if not path.is_file():
        return {}
    try:
        prompts = json.loads(path.read_text(encoding="utf-8")).get("prompts") or {}
        return {name: prompt for name, prompt in prompts.items() if prompt}
    except (ValueError, AttributeError):
        # The library says what is wrong with it when the model is loaded.
        return {}


def _name_of(directory: Path) -> str:
    """What a directory says of its model: its last name, in a hub cache that of the model; never a folder above it."""
    return directory.parent.parent.name if directory.parent.name == "snapshots" else directory.name


def _first(prompts: Mapping[str, str], names: Sequence[str]) -> str:
    return next((prompts[name] for name in names if name in prompts), "")


def choose_prefixes(model: ResolvedModel, query: str | None, document: str | None) -> Prefixes:
    """Prefixes to use: those of the settings, else the model's own prompts, else the rule of its family.

    Args:
        query, document: from the settings; ``None`` leaves the choice to the model.
    """
    prompts = own_prompts(model.directory)
    own_query, own_document = _first(prompts, _QUERY_PROMPTS), _first(prompts, _DOCUMENT_PROMPTS)
    family = family_of(_name_of(model.directory) if model.source == "directory" else model.used)
    source = "the model's own configuration"
    if not own_query and not own_document and family is not None:
        source, own_query, own_document = f"the rule of the {family[0]} family", family[1], family[2]
    warnings = []
    if prompts and not own_query and not own_document and family is None and query is None and document is None:
        warnings.append(
            f"ENCODERS: {model.used} was trained with prompts ({', '.join(prompts)}), but none is known to be for "
            "questions or passages: no prefix is used. Set query_prefix and document_prefix"
        )
    known = bool(own_query or own_document or family)
    for what, given, expected in (("query_prefix", query, own_query), ("document_prefix", document, own_document)):
        if known and given is not None and given != expected:
            warnings.append(
                f"ENCODERS: {what} {given!r} of {model.used} is not the one that it was trained with, {expected!r} "
                f"({source})"
            )
    return Prefixes(
        own_query if query is None else query, own_document if document is None else document, tuple(warnings)
    )
