import json
from pathlib import Path

import pytest
import torch
from conftest import bert_tokenizer, tiny_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

from src.core.artifacts import MANIFEST_NAME, Manifest, save_manifest
from src.core.errors import ModelUnavailableError
from src.models.embedded_reranker import ADAPTER, ensure_merged, load_base_classifier
from src.quality.adapter import save_adapter, wrap_with_lora
from src.quality.training import TrainingSettings


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    torch.manual_seed(5)
    tokenizer = bert_tokenizer()
    BertModel(tiny_config(len(tokenizer)), add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_manifest(folder / MANIFEST_NAME, Manifest("model", {"package": "x 1"}, {}))
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """An adapter with random weights, and the logits of the unmerged model on two pairs."""
    torch.manual_seed(6)
    settings = TrainingSettings(layers=(1,), rank=4, alpha=8)
    model = wrap_with_lora(load_base_classifier(base, [1]), settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter).half())
    folder = tmp_path / "adapter"
    save_adapter(model, folder, settings, "embedded:base", [])
    inputs = bert_tokenizer()(["карта", "ab"], ["вклад под процент", "c"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        return folder, model.eval()(**inputs).logits


def test_merged_model_scores_as_the_adapter_does(
    base: Path, adapter: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, expected = adapter
    merged = ensure_merged(folder, base, tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(merged, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(merged, local_files_only=True)
    inputs = tokenizer(["карта", "ab"], ["вклад под процент", "c"], padding=True, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-4, rtol=1e-4)
    assert (model.config.num_hidden_layers, model.config.num_labels) == (1, 1)


def test_merged_once_and_anew_where_the_adapter_changed(
    base: Path, adapter: tuple[Path, torch.Tensor], tmp_path: Path
) -> None:
    folder, _ = adapter
    merged = ensure_merged(folder, base, tmp_path / "merged")
    first = (merged / MANIFEST_NAME).stat().st_mtime_ns
    ensure_merged(folder, base, merged)
    assert (merged / MANIFEST_NAME).stat().st_mtime_ns == first
    weights = folder / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    ensure_merged(folder, base, merged)
    assert (merged / MANIFEST_NAME).stat().st_mtime_ns != first


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "recipe.json"])
def test_a_missing_file_of_the_adapter(
    base: Path, adapter: tuple[Path, torch.Tensor], tmp_path: Path, name: str
) -> None:
    (adapter[0] / name).unlink()
    with pytest.raises(ModelUnavailableError, match=name):
        ensure_merged(adapter[0], base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_shipped_adapter_is_small_and_keeps_no_machine_path() -> None:
    assert (ADAPTER / "adapter_model.safetensors").stat().st_size < 8_000_000
    config = json.loads((ADAPTER / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "embedded:multilingual-e5-small"
    assert (ADAPTER / "README.md").is_file()
