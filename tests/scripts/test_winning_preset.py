"""The winning preset end to end: five encoders over four models out of a hub cache, or one in all their places."""

import json
from pathlib import Path

import pytest
from conftest import lay_out_hub_cache, load_script

from config import Settings, load_settings
from config.presets import PRESETS
from config.schema import SETTINGS_FILE

NAMES = list(dict.fromkeys(entry["model"] for entry in PRESETS["winning"]["ENCODERS"]))
RERANKER = PRESETS["winning"]["CROSS_ENCODER_MODEL"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def winning(tmp_path: Path) -> Settings:
    path = tmp_path / "settings.py"
    text = SETTINGS_FILE.read_text(encoding="utf-8")
    path.write_text(text + '\nSEARCH_PRESET = "winning"\n', encoding="utf-8")
    # Small limits for small models; everything else as the preset has it.
    small = {"top_k": 3, "reranker_max_length": 128, "encoder_max_tokens": 128, "cpu_engine": "torch", "device": "cpu"}
    return load_settings(path).model_copy(update=small)


def lines_of(caplog: pytest.LogCaptureFixture, settings: Settings, data: Path) -> list[str]:
    caplog.set_level("INFO")
    for script in ("01_preprocess", "02_build_indices", "03_run_search"):
        arguments = ["--data-dir", str(data)]
        if script == "03_run_search":
            arguments += ["--output", str(data / "submission.csv")]
        load_script(script).run(settings, arguments)
    return [record.getMessage() for record in caplog.records]


def test_models_from_a_hub_cache(
    hub_cache: Path, winning: Settings, bank: Path, bi_encoder: Path, cross_encoder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for name in NAMES:
        lay_out_hub_cache(hub_cache, name, bi_encoder)
    lay_out_hub_cache(hub_cache, RERANKER, cross_encoder)
    # The tiny model breaks words into letters in every language, so the guard has nothing against it.
    lines = lines_of(caplog, winning, bank)
    assert "Preset: winning" in "\n".join(lines)
    assert "Fusion: rrf, k 70. Device: cpu." in lines
    used = [line for line in lines if line.startswith("Bi-encoder over ")]
    assert len(used) == 5
    assert "Bi-encoder over documents: intfloat/multilingual-e5-large (from local hub cache" in used[0]
    assert used[0].endswith("weight 2.5")
    folders = sorted(path.name for path in (bank / "embeddings").iterdir())
    assert len(folders) == 5
    manifest = json.loads((bank / "runs" / "rerank-on.manifest.json").read_text(encoding="utf-8"))
    assert [model["source"] for model in manifest["extra"]["models"]] == ["local hub cache"] * 6
    assert not manifest["extra"]["warnings"]
    assert len((bank / "submission.csv").read_text(encoding="utf-8").splitlines()) == 5


@pytest.mark.slow
def test_the_embedded_model_in_all_four_places(
    hub_cache: Path, winning: Settings, bank: Path, cross_encoder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lay_out_hub_cache(hub_cache, RERANKER, cross_encoder)
    lines = lines_of(caplog, winning, bank)
    used = [line for line in lines if line.startswith("Bi-encoder over ")]
    assert len(used) == 2
    assert used[0].endswith("weight 8.1")  # 2.5 + 2.0 + 1.8 + 1.8
    beside = "\n".join(lines[[line.startswith("Hit@5: ") for line in lines].index(True) :])
    for name in NAMES:
        assert f"bi-encoder '{name}' could not be had" in beside
