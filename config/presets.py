"""Presets: whole configurations under one name (``SEARCH_PRESET``). One plain table; the first is what is shipped.

A constant of ``config/settings.py`` that stands as it was shipped follows the preset; an edited one overrides it.
"""

from typing import Any

SHIPPED = "embedded"

_E5_SMALL = "embedded:multilingual-e5-small"
_E5_LARGE = "intfloat/multilingual-e5-large"

PRESETS: dict[str, dict[str, Any]] = {
    # Runs anywhere: nothing is downloaded for stage one.
    SHIPPED: {
        "ENCODERS": [
            {"model": _E5_SMALL, "unit": "document", "weight": 0.35},
            {"model": _E5_SMALL, "unit": "chunk", "weight": 0.35},
        ],
        "ENCODER_MAX_TOKENS": 512,
        "ENABLE_CROSS_ENCODER_RERANKING": True,
        "CROSS_ENCODER_MODEL": "cross-encoder/ms-marco-MiniLM-L-12-v2",
        "RERANKERS": [],
        "RERANKER_CANDIDATE_K": 100,
        "RERANKER_PRECISION": "auto",
        "RERANKER_BLEND_WEIGHT": 0.5,
        "RERANKER_PASSAGES_PER_DOCUMENT": 1,
        "RERANKER_PASSAGE_CHOICE": "best",
        "RERANKER_MAX_LENGTH": 160,
        "RERANKER_QUERY": "original",
        "QUERY_VARIANT_WEIGHT": 0.7,
        "ENABLE_CHUNKS": True,
        "CHUNK_UNIT": "tokens",
        "CHUNK_TOKENS": 96,
        "CHUNK_OVERLAP_TOKENS": 20,
        "CHUNK_CHARACTERS": 250,
        "CHUNK_OVERLAP_CHARACTERS": 60,
        "CHUNK_MIN_CHARACTERS": 50,
        "BM25_K1": 1.2,
        "BM25_B": 0.75,
        "BM25_DOCUMENT_WEIGHT": 0.15,
        "BM25_CHUNK_WEIGHT": 0.15,
        "FUSION_METHOD": "convex",
        "RRF_K": 60,
        "SEARCH_DEPTH_DOCUMENTS": 200,
        "SEARCH_DEPTH_BM25": 200,
        "SEARCH_DEPTH_CHUNKS": 600,
        "LATE_INTERACTION_WEIGHT": 0.15,
    },
    # Stage one that won on Russian bank questions: four encoders over documents, one over chunks, BM25 over both.
    "winning": {
        "ENCODERS": [
            {"model": _E5_LARGE, "unit": "document", "weight": 2.5},
            {"model": "ai-forever/sbert_large_nlu_ru", "unit": "document", "weight": 2.0, "pooling": "mean"},
            {"model": "sentence-transformers/paraphrase-multilingual-mpnet-base-v2", "unit": "document", "weight": 1.8},
            {"model": "cointegrated/LaBSE-en-ru", "unit": "document", "weight": 1.8},
            {"model": _E5_LARGE, "unit": "chunk", "weight": 2.0},
        ],
        "CROSS_ENCODER_MODEL": "cross-encoder/ms-marco-MiniLM-L-12-v2",
        "RERANKER_CANDIDATE_K": 100,
        "ENABLE_CHUNKS": True,
        "CHUNK_UNIT": "characters",
        "CHUNK_CHARACTERS": 250,
        "CHUNK_OVERLAP_CHARACTERS": 60,
        "CHUNK_MIN_CHARACTERS": 50,
        "BM25_K1": 1.5,
        "BM25_B": 0.65,
        "BM25_DOCUMENT_WEIGHT": 2.5,
        "BM25_CHUNK_WEIGHT": 2.0,
        "FUSION_METHOD": "rrf",
        "RRF_K": 70,
        "SEARCH_DEPTH_DOCUMENTS": 200,
        "SEARCH_DEPTH_BM25": 250,
        "SEARCH_DEPTH_CHUNKS": 150,
        "LATE_INTERACTION_WEIGHT": 0.0,
    },
    # For a first look or a slow machine: BM25 and one encoder, half the candidates, a cross-encoder of 6 layers.
    "fast": {
        "ENCODERS": [{"model": _E5_SMALL, "unit": "chunk", "weight": 0.7}],
        "CROSS_ENCODER_MODEL": "cross-encoder/ms-marco-MiniLM-L-6-v2",
        "RERANKER_CANDIDATE_K": 50,
        "RERANKER_PRECISION": "fast",
        "ENABLE_CHUNKS": True,
        "CHUNK_UNIT": "tokens",
        "CHUNK_TOKENS": 96,
        "CHUNK_OVERLAP_TOKENS": 20,
        "BM25_DOCUMENT_WEIGHT": 0.15,
        "BM25_CHUNK_WEIGHT": 0.15,
        "FUSION_METHOD": "convex",
        "SEARCH_DEPTH_DOCUMENTS": 100,
        "SEARCH_DEPTH_BM25": 100,
        "SEARCH_DEPTH_CHUNKS": 300,
        "LATE_INTERACTION_WEIGHT": 0.0,
    },
}


def effective(constants: dict[str, Any]) -> dict[str, Any]:
    """The constants with the preset in force.

    Args:
        constants: those of the settings file, ``SEARCH_PRESET`` (a name of the table) and ``PRESET_OVERRIDES`` among
            them.
    """
    shipped, preset = PRESETS[SHIPPED], PRESETS[constants["SEARCH_PRESET"]]
    followed = {name: value for name, value in preset.items() if constants.get(name) == shipped[name]}
    return {**constants, **followed, **constants["PRESET_OVERRIDES"]}


def differences(constants: dict[str, Any]) -> list[str]:
    """One line for each effective constant that is not that of the preset: ``NAME = value (preset: value)``.

    A constant that the preset does not name is compared with what is shipped.

    Args:
        constants: the effective constants as plain values; entries of ``ENCODERS`` may hold more keys than the table,
            where these are None.
    """
    found = []
    for name, expected in {**PRESETS[SHIPPED], **PRESETS[constants["SEARCH_PRESET"]]}.items():
        value = constants[name]
        if name == "ENCODERS":
            value = [{key: item for key, item in entry.items() if item is not None} for entry in value]
        if value != expected:
            found.append(f"{name} = {value!r} (preset: {expected!r})")
    return found


def in_place_of_shipped(constants: dict[str, Any]) -> list[str]:
    """``NAME = value`` for each constant but ``ENCODERS`` that the preset sets in the place of the shipped one."""
    shipped, preset = PRESETS[SHIPPED], PRESETS[constants["SEARCH_PRESET"]]
    return [
        f"{name} = {value!r}"
        for name, value in preset.items()
        if name != "ENCODERS" and value != shipped[name] and constants[name] == value
    ]
