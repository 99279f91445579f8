import json
from pathlib import Path

import pytest

from src.engine.devices import settled_precision
from src.engine.peak import ModelShape, measured_peak


def test_flops_by_hand() -> None:
    # 2 layers, H 4, F 8, texts of 3 and 1 tokens: matrices 2 (4 * 16 + 2 * 32) = 256 a token, attention 16 n^2.
    assert ModelShape(2, 4, 8).flops(4, 9 + 1) == 2 * (256 * 4 + 16 * (9 + 1))


def test_flops_of_minilm_as_published() -> None:
    # 3.54 M n + 1536 n^2 per layer for H 384 and F 1536.
    assert ModelShape(1, 384, 1536).flops(100, 100**2) == pytest.approx(3.54e6 * 100 + 1536 * 100**2, rel=1e-3)


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
