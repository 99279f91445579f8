import json
from pathlib import Path

import pytest

from src.models.prefixes import Prefixes, choose_prefixes
from src.models.resolve import ResolvedModel

WEB_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"


def model(folder: Path, name: str, prompts: dict[str, str] | None = None) -> ResolvedModel:
    if prompts is not None:
        text = json.dumps({"prompts": prompts})
        (folder / "config_sentence_transformers.json").write_text(text, encoding="utf-8")
    return ResolvedModel("bi-encoder", name, name, folder, "directory", "1", name)


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("intfloat/multilingual-e5-large", "query: ", "passage: "),
        ("embedded:multilingual-e5-small", "query: ", "passage: "),
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", WEB_SEARCH + " ", ""),
        ("BAAI/bge-m3", "", ""),
        ("BAAI/bge-base-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("Alibaba-NLP/gte-multilingual-base", "", ""),
        ("cointegrated/LaBSE-en-ru", "", ""),
        ("Qwen/Qwen3-Embedding-0.6B", WEB_SEARCH, ""),
        ("ai-forever/sbert_large_nlu_ru", "", ""),
    ],
)
def test_families(tmp_path: Path, name: str, query: str, document: str) -> None:
    assert choose_prefixes(model(tmp_path, name), None, None) == Prefixes(query, document)


def test_the_models_own_prompts_come_first(tmp_path: Path) -> None:
    own = {"query": "вопрос: ", "passage": "текст: "}
    assert choose_prefixes(model(tmp_path, "x/e5-ru", own), None, None) == Prefixes("вопрос: ", "текст: ")
    # sentence-transformers writes empty prompts where a model has none: the family's rule holds.
    empty = {"query": "", "document": ""}
    assert choose_prefixes(model(tmp_path, "intfloat/e5-large", empty), None, None) == Prefixes("query: ", "passage: ")


def test_a_wrong_or_missing_prefix_is_named(tmp_path: Path) -> None:
    found = choose_prefixes(model(tmp_path, "intfloat/multilingual-e5-large"), "", "passage: ")
    assert (found.query, found.document) == ("", "passage: ")
    assert len(found.warnings) == 1
    assert "query_prefix '' of intfloat/multilingual-e5-large" in found.warnings[0]
    assert "'query: ' (the rule of the e5 family)" in found.warnings[0]
    # Nothing is known of this model, so nothing is wrong.
    assert choose_prefixes(model(tmp_path, "someone/encoder"), "q: ", "d: ") == Prefixes("q: ", "d: ")
