from _runs import differing_settings


def test_settings_that_differ_besides_reranking_are_named() -> None:
    off = {"ENABLE_CROSS_ENCODER_RERANKING": False, "SEARCH_PRESET": "fast", "RRF_K": 60}
    on = {"ENABLE_CROSS_ENCODER_RERANKING": True, "SEARCH_PRESET": "embedded", "RRF_K": 60}
    assert differing_settings([("rerank-off", off), ("rerank-on", on)]) == [
        "rerank-off and rerank-on were made with different settings: SEARCH_PRESET ('fast', 'embedded')"
    ]
    assert differing_settings([("rerank-off", {**off, "SEARCH_PRESET": "embedded"}), ("rerank-on", on)]) == []


def test_runs_of_the_same_name_are_compared_too() -> None:
    runs = [("rerank-on", {"RRF_K": 60}), ("rerank-on", {"RRF_K": 10})]
    assert differing_settings(runs) == ["rerank-on and rerank-on were made with different settings: RRF_K (60, 10)"]
