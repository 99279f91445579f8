import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling

from src.core.errors import UserError
from src.core.memory import free_models
from src.engine.devices import CpuEngine, Engine, half_precision
from src.engine.encoder import SentenceEncoder

TEXTS = ["карта", "вклад под 15 %", "карта", "a much longer english text about lounges"]


def test_vectors_equal_sentence_transformers_with_prompts(bi_encoder: Path) -> None:
    found = SentenceEncoder(bi_encoder).encode(TEXTS, "query", batch_size=2)
    peer = SentenceTransformer(str(bi_encoder), device="cpu")
    expected = peer.encode([f"q: {t}" for t in TEXTS], normalize_embeddings=True, show_progress_bar=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    assert (found[0] == found[2]).all()


def test_an_encoder_that_nobody_uses_is_gone(bi_encoder: Path) -> None:
    encoder = SentenceEncoder(bi_encoder)
    weights = weakref.ref(next(encoder.model.parameters()))
    del encoder
    free_models()
    assert weights() is None


def openvino_encoder(directory: Path, kept: Path, engine: Engine = "openvino", **changes: Any) -> SentenceEncoder:
    return SentenceEncoder(directory, cpu=CpuEngine(engine, kept, 2), fingerprint="0123456789abcdef00", **changes)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_openvino_vectors_equal_sentence_transformers(bi_encoder: Path, tmp_path: Path, pooling: str) -> None:
    peer = SentenceTransformer(str(bi_encoder), device="cpu")
    peer[1] = Pooling(32, pooling_mode=pooling)
    peer.save(str(tmp_path / "model"), create_model_card=False)
    texts = [*TEXTS, "  пробелы по краям ", "долго " * 200, "a", ""]
    encoder = openvino_encoder(tmp_path / "model", tmp_path / "kept", max_tokens=64)
    peer.max_seq_length = 64
    expected = peer.encode([f"d: {t}" for t in texts], normalize_embeddings=True, show_progress_bar=False)
    found = encoder.encode(texts, "document", batch_size=3)
    assert encoder.backend == "OpenVINO"
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert (found * expected).sum(axis=1).min() >= 0.9999


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_token_vectors_are_the_last_layers_without_special_tokens(
    bi_encoder: Path, tmp_path: Path, engine: Engine
) -> None:
    encoder = openvino_encoder(bi_encoder, tmp_path, engine)
    texts = ["карта", "a longer text", "карта"]
    vectors, tokens = encoder.encode_tokens(texts, "query", batch_size=2)
    np.testing.assert_allclose(vectors, encoder.encode(texts, "query"), atol=1e-5)
    peer = SentenceTransformer(str(bi_encoder), device="cpu")
    for i, text in enumerate(texts):
        expected = peer.encode(f"q: {text}", output_value="token_embeddings", convert_to_numpy=False)
        inner = torch.nn.functional.normalize(expected[1:-1], dim=1).cpu().numpy()
        np.testing.assert_allclose(tokens[i].astype(np.float32), inner, atol=1e-3)
        assert len(tokens[i]) == encoder.token_counts([text], "query")[0]


def test_torch_encodes_where_openvino_cannot(
    bi_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unconvertible(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("openvino.convert_model", unconvertible)
    assert openvino_encoder(bi_encoder, tmp_path, "auto").backend == "torch"
    assert "OpenVINO cannot run the bi-encoder bi-encoder (conversion failed: no such operator): torch" in caplog.text
    with pytest.raises(UserError, match="OpenVINO cannot run the bi-encoder bi-encoder: conversion failed"):
        openvino_encoder(bi_encoder, tmp_path)
    assert openvino_encoder(bi_encoder, tmp_path, "torch").backend == "torch"


def test_roles_and_given_prefixes(bi_encoder: Path) -> None:
    own = SentenceEncoder(bi_encoder)
    assert own.prefixes == {"query": "q: ", "document": "d: "}
    given = SentenceEncoder(bi_encoder, query_prefix="", document_prefix="x ")
    assert given.prefixes == {"query": "", "document": "x "}
    assert not np.allclose(own.encode(["карта"], "query"), own.encode(["карта"], "document"), atol=1e-3)


def test_progress_counts_every_text(bi_encoder: Path) -> None:
    done: list[int] = []
    SentenceEncoder(bi_encoder).encode(TEXTS, "document", batch_size=1, progress=done.append)
    assert sum(done) == 4


def test_no_texts(bi_encoder: Path) -> None:
    assert SentenceEncoder(bi_encoder).encode([], "query").shape == (0, 32)


def test_half_precision_by_device() -> None:
    assert half_precision("cuda:1") == torch.float16
    assert half_precision("mps") is None
    assert half_precision("cpu") in {None, torch.bfloat16}


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_dense_layer_changes_the_vectors_of_texts_alone(
    narrowing_encoder: Path, tmp_path: Path, engine: Engine
) -> None:
    encoder = openvino_encoder(narrowing_encoder, tmp_path, engine)
    vectors, tokens = encoder.encode_tokens(["карта", "a longer text"], "query")
    assert (encoder.dimension, encoder.token_dimension) == (8, 16)
    assert vectors.shape == (2, 8)
    peer = SentenceTransformer(str(narrowing_encoder), device="cpu")
    expected = peer.encode("a longer text", output_value="token_embeddings", convert_to_numpy=False)[1:-1]
    inner = torch.nn.functional.normalize(expected, dim=1).cpu().numpy()
    np.testing.assert_allclose(tokens[1].astype(np.float32), inner, atol=1e-3)
