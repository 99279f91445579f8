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
    return ResolvedModel("bi-encoder", name, name, folder, "hub", "1", name)


def in_directory(folder: Path) -> ResolvedModel:
    return ResolvedModel("bi-encoder", str(folder), str(folder), folder, "directory", "1", "f")


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


@pytest.mark.parametrize(
    ("folder", "query"),
    [
        ("models/multilingual-e5-large", "query: "),
        ("e5_models/sbert_large_nlu_ru", ""),
        ("my/e5-experiments/LaBSE-en-ru", ""),
        ("hub/models--intfloat--multilingual-e5-base/snapshots/0123456789abcdef", "query: "),
        ("e5-hub/models--cointegrated--LaBSE-en-ru/snapshots/0123456789abcdef", ""),
    ],
)
def test_folders_above_a_model_say_nothing_of_it(tmp_path: Path, folder: str, query: str) -> None:
    assert choose_prefixes(in_directory(tmp_path / folder), None, None).query == query


def test_prompts_of_other_names(tmp_path: Path) -> None:
    own = {"search_query": "q: ", "search_document": "d: ", "clustering": "c: "}
    assert choose_prefixes(model(tmp_path, "someone/encoder", own), None, None) == Prefixes("q: ", "d: ")
    strange = model(tmp_path, "someone/encoder", {"clustering": "c: ", "s2s_query": "s: "})
    found = choose_prefixes(strange, None, None)
    assert (found.query, found.document) == ("", "")
    assert found.warnings == (
        "ENCODERS: someone/encoder was trained with prompts (clustering, s2s_query), but none is known to be for "
        "questions or passages: no prefix is used. Set query_prefix and document_prefix",
    )
    assert choose_prefixes(strange, "s: ", "") == Prefixes("s: ", "")


def test_a_wrong_or_missing_prefix_is_named(tmp_path: Path) -> None:
    found = choose_prefixes(model(tmp_path, "intfloat/multilingual-e5-large"), "", "passage: ")
    assert (found.query, found.document) == ("", "passage: ")
    assert len(found.warnings) == 1
    assert "query_prefix '' of intfloat/multilingual-e5-large" in found.warnings[0]
    assert "'query: ' (the rule of the e5 family)" in found.warnings[0]
    # Nothing is known of this model, so nothing is wrong.
    assert choose_prefixes(model(tmp_path, "someone/encoder"), "q: ", "d: ") == Prefixes("q: ", "d: ")
