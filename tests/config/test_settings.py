from pathlib import Path

import pytest

from config import PRESETS, differences, in_place_of_shipped, load_settings
from config.schema import SETTINGS_FILE
from src.core.errors import UserError


def changed(tmp_path: Path, old: str, new: str) -> Path:
    source = SETTINGS_FILE.read_text(encoding="utf-8")
    assert source.count(old) == 1
    path = tmp_path / "settings.py"
    path.write_text(source.replace(old, new), encoding="utf-8")
    return path


def test_contract_defaults() -> None:
    settings = load_settings()
    assert settings.enable_cross_encoder_reranking is True
    assert settings.cross_encoder_model == "cross-encoder/ms-marco-MiniLM-L-12-v2"
    assert settings.cross_encoder_model_multilingual == "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1"
    assert (settings.reranker_candidate_k, settings.reranker_batch_size, settings.top_k) == (100, 32, 5)
    assert settings.when_model_unavailable == "embedded"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("TOP_K = 5", "TOP_K = '5'", "TOP_K = '5' is not valid"),
        ("TOP_K = 5", "TOP_K = 0", "TOP_K = 0 is not valid"),
        ("TOP_K = 5", "TOP_K = True", "TOP_K = True is not valid"),
        ("TOP_K = 5", "TOPK = 5", "unknown setting TOPK. Did you mean TOP_K?"),
        ("TOP_K = 5", "top_k = 5", "unknown setting top_k. Did you mean TOP_K?"),
        ("TOP_K = 5", "", "setting TOP_K is missing"),
        ("TOP_K = 5", "TOP_K = 5 +", "cannot be read: SyntaxError"),
        ("RERANKER_CANDIDATE_K = 100", "RERANKER_CANDIDATE_K = 3", "CANDIDATE_K = 3 must not be below TOP_K = 5"),
        ("RERANKER_BLEND_WEIGHT = ", "RERANKER_BLEND_WEIGHT = 1 + ", "RERANKER_BLEND_WEIGHT = 1."),
        ("RERANKING = True", 'RERANKING = "no"', "ENABLE_CROSS_ENCODER_RERANKING = 'no'"),
        ("ENCODER_RERANKING = ", "ENCODER_RERANK = ", "Did you mean ENABLE_CROSS_ENCODER_RERANKING?"),
        ('DEVICE = "auto"', 'DEVICE = "gpu"', "DEVICE = 'gpu' is not valid"),
        ('FUSION_METHOD = "', 'FUSION_METHOD = "x', "FUSION_METHOD = 'x"),
        ("BM25_B = ", "BM25_B = 1 + ", "BM25_B = 1."),
        ('"unit": "document", "weight"', '"unit": "document", "wieght"', "Did you mean weight?"),
        ('"unit": "document"', '"unit": "page"', "ENCODERS[0]['unit'] = 'page' is not valid"),
        ('QUERY_VARIANTS = "auto"', "QUERY_VARIANTS = True", "QUERY_VARIANTS = True is not valid"),
        ("QUERY_VARIANT_WEIGHT = 0.7", "QUERY_VARIANT_WEIGHT = 0", "QUERY_VARIANT_WEIGHT = 0.0 is not valid"),
        ('RERANKER_QUERY = "original"', 'RERANKER_QUERY = "best"', "RERANKER_QUERY = 'best' is not valid"),
        ('LLM_URL = "http://', 'LLM_URL = "http://name:key@', "LLM_URL = 'http://name:key@127"),
        ("LLM_TIMEOUT_SECONDS = 120", "LLM_TIMEOUT_SECONDS = -1", "LLM_TIMEOUT_SECONDS = -1.0 is not valid"),
        ("CHUNK_OVERLAP_TOKENS = ", "CHUNK_OVERLAP_TOKENS = 500 + ", "must be below CHUNK_TOKENS"),
    ],
)  # fmt: skip
def test_invalid_settings_are_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(UserError) as error:
        load_settings(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_nothing_to_search_with(tmp_path: Path) -> None:
    source = SETTINGS_FILE.read_text(encoding="utf-8")
    path = tmp_path / "settings.py"
    path.write_text(source + "\nENCODERS = []\nBM25_DOCUMENT_WEIGHT = 0\nBM25_CHUNK_WEIGHT = 0\n", encoding="utf-8")
    with pytest.raises(UserError, match="nothing is left to search with"):
        load_settings(path)


def test_the_same_encoder_twice(tmp_path: Path) -> None:
    source = SETTINGS_FILE.read_text(encoding="utf-8")
    path = tmp_path / "settings.py"
    path.write_text(source + '\nENCODERS = [{"model": "m", "unit": "chunk", "weight": 1}] * 2\n', encoding="utf-8")
    with pytest.raises(UserError, match="stand twice"):
        load_settings(path)


def test_whole_numbers_where_fractions_are_meant(tmp_path: Path) -> None:
    source = SETTINGS_FILE.read_text(encoding="utf-8")
    path = tmp_path / "settings.py"
    path.write_text(source + "\nBM25_K1 = 2\nRERANKER_BLEND_WEIGHT = 1\nBM25_CHUNK_WEIGHT = 0\n", encoding="utf-8")
    settings = load_settings(path)
    assert (settings.bm25_k1, settings.reranker_blend_weight, settings.bm25_chunk_weight) == (2.0, 1.0, 0.0)


def test_snapshot_names_every_constant() -> None:
    snapshot = load_settings().snapshot()
    assert snapshot["TOP_K"] == 5
    assert snapshot["ENCODERS"][0]["unit"] == "document"


def with_lines(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "settings.py"
    path.write_text(SETTINGS_FILE.read_text(encoding="utf-8") + "\n".join(["", *lines, ""]), encoding="utf-8")
    return path


def test_shipped_constants_are_those_of_the_shipped_preset() -> None:
    shipped = load_settings().snapshot()
    assert shipped["SEARCH_PRESET"] == "embedded"
    assert differences(shipped) == []
    assert in_place_of_shipped(shipped) == []
    for preset in PRESETS.values():
        assert set(preset) <= set(PRESETS["embedded"])


def test_the_winning_preset(tmp_path: Path) -> None:
    settings = load_settings(with_lines(tmp_path, 'SEARCH_PRESET = "winning"'))
    assert [(e.model, e.unit, e.weight) for e in settings.encoders] == [
        ("intfloat/multilingual-e5-large", "document", 2.5),
        ("ai-forever/sbert_large_nlu_ru", "document", 2.0),
        ("sentence-transformers/paraphrase-multilingual-mpnet-base-v2", "document", 1.8),
        ("cointegrated/LaBSE-en-ru", "document", 1.8),
        ("intfloat/multilingual-e5-large", "chunk", 2.0),
    ]
    assert (settings.fusion_method, settings.rrf_k) == ("rrf", 70)
    assert (settings.search_depth_documents, settings.search_depth_bm25, settings.search_depth_chunks) == (
        200,
        250,
        150,
    )
    assert (settings.chunk_unit, settings.chunk_characters, settings.chunk_overlap_characters) == (
        "characters",
        250,
        60,
    )
    assert (settings.bm25_document_weight, settings.bm25_chunk_weight) == (2.5, 2.0)
    assert (settings.bm25_k1, settings.bm25_b, settings.chunk_min_characters) == (1.5, 0.65, 50)
    assert settings.enable_chunks
    assert differences(settings.snapshot()) == []
    instead = in_place_of_shipped(settings.snapshot())
    assert instead[:2] == ["CHUNK_UNIT = 'characters'", "BM25_K1 = 1.5"]
    assert "LATE_INTERACTION_WEIGHT = 0.0" in instead
    # What the preset does not name is compared with what is shipped.
    edited = load_settings(with_lines(tmp_path, 'SEARCH_PRESET = "winning"', "RERANKER_MAX_LENGTH = 512"))
    assert differences(edited.snapshot()) == ["RERANKER_MAX_LENGTH = 512 (preset: 160)"]


def test_an_edited_constant_overrides_the_preset(tmp_path: Path) -> None:
    path = with_lines(tmp_path, 'SEARCH_PRESET = "fast"', "RERANKER_CANDIDATE_K = 20")
    settings = load_settings(path)
    assert settings.reranker_candidate_k == 20
    assert settings.cross_encoder_model == "cross-encoder/ms-marco-MiniLM-L-6-v2"
    assert differences(settings.snapshot()) == ["RERANKER_CANDIDATE_K = 20 (preset: 50)"]
    # The shipped value itself under another preset needs to be asked for.
    path = with_lines(tmp_path, 'SEARCH_PRESET = "fast"', 'PRESET_OVERRIDES = {"RERANKER_CANDIDATE_K": 100}')
    assert differences(load_settings(path).snapshot()) == ["RERANKER_CANDIDATE_K = 100 (preset: 50)"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('SEARCH_PRESET = "wining"', "SEARCH_PRESET = 'wining' is not valid: .*Did you mean winning"),
        ('PRESET_OVERRIDES = {"RRFK": 3}', "PRESET_OVERRIDES: unknown setting RRFK. Did you mean RRF_K"),
        ("PRESET_OVERRIDES = 3", "PRESET_OVERRIDES = 3 is not valid"),
        ('RERANKERS = [{"model": "a"}, {"model": "a"}]', "the same model stands twice"),
        ('RERANKERS = [{"modle": "a"}]', "Did you mean model"),
        ('CORPUS_COLUMNS = {"id": "a", "titel": "b", "text": "c"}', r"CORPUS_COLUMNS\['titel'\].*Did you mean title\?"),
        ('QUESTIONS_COLUMNS = {"id": "a", "qwery": "b"}', r"QUESTIONS_COLUMNS\['qwery'\].*Did you mean query\?"),
        ('LABELS_COLUMNS = {"query_id": "a", "docid": "b"}', r"LABELS_COLUMNS\['docid'\].*Did you mean doc_id\?"),
        ("CHUNK_OVERLAP_CHARACTERS = 300", "must be below CHUNK_CHARACTERS = 250"),
        ("CHUNK_MIN_CHARACTERS = 300", "must not be above CHUNK_CHARACTERS = 250"),
    ],
)
def test_invalid_presets_are_named(tmp_path: Path, line: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_settings(with_lines(tmp_path, line))


@pytest.mark.parametrize("number", ['float("inf")', 'float("nan")', "10**400"])
@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("BM25_K1 = NUMBER", "BM25_K1"),
        ("QUERY_VARIANT_WEIGHT = NUMBER", "QUERY_VARIANT_WEIGHT"),
        ("LATE_INTERACTION_GB = NUMBER", "LATE_INTERACTION_GB"),
        ('RERANKERS = [{"model": "a", "weight": NUMBER}]', r"RERANKERS\[0\]\['weight'\]"),
        ('PRESET_OVERRIDES = {"BM25_CHUNK_WEIGHT": NUMBER}', "BM25_CHUNK_WEIGHT"),
    ],
)
def test_numbers_are_finite(tmp_path: Path, line: str, name: str, number: str) -> None:
    with pytest.raises(UserError, match=rf"{name} = (inf|nan) is not valid: Input should be a finite number"):
        load_settings(with_lines(tmp_path, line.replace("NUMBER", number)))
