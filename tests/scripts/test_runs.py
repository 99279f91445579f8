from _runs import differing_settings


def test_settings_that_differ_besides_reranking_are_named() -> None:
    off = {"ENABLE_CROSS_ENCODER_RERANKING": False, "SEARCH_PRESET": "fast", "RRF_K": 60}
    on = {"ENABLE_CROSS_ENCODER_RERANKING": True, "SEARCH_PRESET": "embedded", "RRF_K": 60}
    assert differing_settings({"rerank-off": off, "rerank-on": on}) == [
        "rerank-off and rerank-on differ in more than reranking: SEARCH_PRESET ('fast', 'embedded')"
    ]
    assert differing_settings({"rerank-off": {**off, "SEARCH_PRESET": "embedded"}, "rerank-on": on}) == []
