import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForSequenceClassification

from src.engine import peak
from src.engine.bert_forward import BertPairForward, PaddedLayout
from src.engine.devices import settled_precision
from src.engine.peak import ModelShape, last_layer_is_short, measured_peak


def test_flops_by_hand() -> None:
    # 2 layers, H 4, F 8, texts of 3 and 1 tokens: matrices 2 (4 * 16 + 2 * 32) = 256 a token, attention 16 n^2.
    assert ModelShape(2, 4, 8).flops(4, 9 + 1) == 2 * (256 * 4 + 16 * (9 + 1))


def test_flops_of_minilm_as_published() -> None:
    # 3.54 M n + 1536 n^2 per layer for H 384 and F 1536.
    assert ModelShape(1, 384, 1536).flops(100, 100**2) == pytest.approx(3.54e6 * 100 + 1536 * 100**2, rel=1e-3)


def test_flops_of_a_short_last_layer_by_hand() -> None:
    # The texts of above. The first layer has 256 * 4 + 16 * 10 = 1184. The last one: keys and values 2 * 2 * 16 = 64 a
    # token; query and output as many, and the feed-forward 2 * 2 * 32 = 128, a text; attention 16 n.
    assert ModelShape(2, 4, 8).flops(4, 9 + 1, texts=2) == 1184 + 64 * 4 + (64 + 128) * 2 + 16 * (3 + 1)


def test_flops_of_a_short_last_layer_are_those_that_torch_counts() -> None:
    model = BertForSequenceClassification(tiny_config(50, num_labels=1)).eval()
    ids, mask = torch.ones(3, 10, dtype=torch.long), torch.ones(3, 10, dtype=torch.bool)
    counter = FlopCounterMode(display=False)
    with counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        BertPairForward(model)(ids, torch.arange(10)[None], torch.zeros_like(ids), PaddedLayout(mask))
    head = 2 * 3 * (32 * 32 + 32)
    assert counter.get_total_flops() == ModelShape(2, 32, 64).flops(30, 300, texts=3) + head


def test_a_short_last_layer_is_seven_percent_less_of_twelve() -> None:
    shape = ModelShape(12, 384, 1536)
    assert shape.flops(189, 189**2, texts=1) / shape.flops(189, 189**2) == pytest.approx(0.93, abs=0.005)


@pytest.mark.parametrize(
    ("backend", "short"),
    [("OpenVINO", True), ("torch, packed", True), ("torch, packed on 2 devices", True), ("torch", False),
     ("torch on 2 devices", False), ("sentence-transformers", False)],
)  # fmt: skip
def test_which_backends_shorten_the_last_layer(backend: str, short: bool, cross_encoder: Path) -> None:
    assert last_layer_is_short(cross_encoder, backend) is short


def test_the_last_layer_of_another_family_is_not_shortened(electra_cross_encoder: Path) -> None:
    assert not last_layer_is_short(electra_cross_encoder, "OpenVINO")


@pytest.mark.parametrize(("device", "waits"), [("mps", ["mps"]), ("cuda:1", ["cuda:1"]), ("cpu", [])])
def test_a_product_is_measured_to_its_end(device: str, waits: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *size, device: real(*size))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: done.append("mps"))
    monkeypatch.setattr(torch.cuda, "synchronize", done.append)
    monkeypatch.setattr(peak, "_SIZE_GPU", 4)
    monkeypatch.setattr(peak, "_SIZE_CPU", 4)
    work, operations = peak._torch_product(device, "float32")
    assert (done, operations) == ([], 128.0)
    work()
    assert done == waits


def test_shape_is_read_from_the_configuration(tmp_path: Path) -> None:
    config = {"num_hidden_layers": 12, "hidden_size": 384, "intermediate_size": 1536}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ModelShape.of(tmp_path) == ModelShape(12, 384, 1536)
    del config["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert ModelShape.of(tmp_path) is None


def test_no_library_is_faster_than_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"torch": 3.0, "openvino": 5.0}
    monkeypatch.setattr("src.engine.peak._torch_product", lambda device, kind: ("torch", 1.0))
    monkeypatch.setattr("src.engine.peak._openvino_product", lambda kind, threads: ("openvino", 1.0))
    monkeypatch.setattr("src.engine.peak._best", lambda work, operations, seconds: rates[work])
    assert measured_peak("cpu", "float32", 2) == 5.0
    assert measured_peak("cuda:0", "float16", 2) == 3.0


@pytest.mark.parametrize(
    ("asked", "device", "settled"),
    [("auto", "cpu", "exact"), ("auto", "mps", "exact"), ("auto", "cuda:1", "fast"), ("fast", "cpu", "fast"),
     ("exact", "cuda", "exact")],
)  # fmt: skip
def test_auto_is_sixteen_bits_on_a_gpu_alone(asked: str, device: str, settled: str) -> None:
    assert settled_precision(asked, device) == settled  # type: ignore[arg-type]
