from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from src.engine.devices import half_precision, pick_device
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


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_named_device_is_kept(device: str) -> None:
    assert pick_device(device) == device


def test_half_precision_by_device() -> None:
    assert half_precision("cuda:1") == torch.float16
    assert half_precision("mps") is None
    assert half_precision("cpu") in {None, torch.bfloat16}
