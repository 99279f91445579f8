from pathlib import Path

import numpy as np
import pytest

from src.core.errors import DiskFullError
from src.core.vector_parts import TokenFile, VectorParts

INPUTS = {"units": "u", "model": "m"}
TEXTS = ["карта", "вклад"]
VECTORS = np.array([[1, 2], [3, 4]], dtype=np.float32)
COUNTS = np.array([2, 0, 1], dtype=np.int64)


def parts(folder: Path, model: str = "m", fresh: bool = False) -> VectorParts:
    return VectorParts(folder, {**INPUTS, "model": model}, {"max_tokens": 8}, fresh)


def saved(folder: Path) -> VectorParts:
    made = parts(folder)
    made.add(TEXTS, VECTORS, None, [])
    made.add(["долго"], VECTORS[:1] * 5, None, [])
    made.save(None)
    return made


def test_a_block_is_found_by_its_texts(tmp_path: Path) -> None:
    folder = tmp_path / "x.parts"
    saved(folder)
    found = parts(folder)
    assert len(found) == 2
    vectors = found.find(TEXTS, None, [])
    assert vectors is not None
    assert vectors.tolist() == [[1, 2], [3, 4]]
    assert vectors.dtype == np.float32
    assert found.find(TEXTS[::-1], None, []) is None
    assert found.find(["долго"], None, []) is not None


@pytest.mark.parametrize(("model", "fresh"), [("another", False), ("m", True)])
def test_blocks_of_another_embedding_are_dropped(tmp_path: Path, model: str, fresh: bool) -> None:
    folder = tmp_path / "x.parts"
    saved(folder)
    assert parts(folder, model, fresh).find(TEXTS, None, []) is None
    assert not folder.exists()


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "x.parts"
    saved(folder)
    path = folder / "000001.npz"
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        found = parts(folder).find(TEXTS, None, []) if path.exists() else None
        # A byte that says nothing (a date in the zip header) may change; a vector may not.
        assert found is None or found.tolist() == [[1, 2], [3, 4]], place
        path.write_bytes(data)


def token_file(folder: Path) -> TokenFile:
    return TokenFile(folder / "tokens.npy", COUNTS, 2)


def test_token_vectors_are_vouched_for(tmp_path: Path) -> None:
    folder = tmp_path / "x.parts"
    made, tokens = parts(folder), token_file(folder)
    tokens.write(0, np.array([[1, 0], [0, 1]], np.float32))
    tokens.write(2, np.array([[0.5, 0.25]], np.float32))
    made.add(TEXTS, VECTORS, tokens, [0, 2])
    made.add(["пусто"], VECTORS[:1], None, [])
    made.save(tokens)
    tokens.close()
    assert np.load(tokens.path).tolist() == [[1, 0], [0, 1], [0.5, 0.25]]
    assert np.load(tokens.path).dtype == np.float16
    again, same = parts(folder), token_file(folder)
    assert again.find(TEXTS, same, [0, 2]) is not None
    assert again.find(["пусто"], same, [1]) is None  # it was kept without token vectors
    same.write(2, np.array([[0.5, 0.26]], np.float32))
    assert again.find(TEXTS, same, [0, 2]) is None
    assert again.find(TEXTS, None, []) is not None
    same.close()


def test_a_token_file_of_another_shape_is_made_anew(tmp_path: Path) -> None:
    tokens = token_file(tmp_path)
    tokens.write(0, np.ones((2, 2), np.float32))
    tokens.close()
    for counts, dimension in ((COUNTS[:2], 2), (COUNTS, 3)):
        other = TokenFile(tokens.path, counts, dimension)
        other.close()
        assert np.load(tokens.path).shape == (int(counts.sum()), dimension)
        assert not np.load(tokens.path).any()


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 2), (4,)])
def test_token_vectors_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tokens = token_file(tmp_path)
    with pytest.raises(ValueError, match=r"token vectors of text 0 are of shape .*, not \(2, 2\)"):
        tokens.write(0, np.ones(shape, np.float32))
    tokens.close()
    assert not np.load(tokens.path).any()


def test_a_full_disk_names_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = token_file(tmp_path)

    class Full:
        def seek(self, _: int) -> None: ...

        def write(self, _: memoryview) -> int:
            raise OSError(28, "No space left on device")

    tokens.close()
    tokens.handle = Full()  # type: ignore[assignment]
    with pytest.raises(DiskFullError, match=r"tokens\.npy: the disk is full: 12 bytes are needed"):
        tokens.write(0, np.ones((2, 2), np.float32))
