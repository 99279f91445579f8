"""Blocks: the same bytes, whenever a run was killed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from src.core.vector_parts import TokenFile, VectorParts
from src.engine.encoder import SentenceEncoder
from src.stages import embed
from src.stages.embed import encode_in_blocks, text_blocks

TEXTS = [f"{'слово ' * (i % 7)}{i % 11}" for i in range(60)]


@contextmanager
def bars(_: str, __: int) -> Iterator[Callable[[int], None]]:
    yield lambda _: None


def test_blocks_hold_every_text_once_longest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "BLOCK_TEXTS", 3)
    monkeypatch.setattr(embed, "BLOCK_CHARACTERS", 8)
    assert list(text_blocks(["a", "bbbb", "cc", "a", "dd", "e" * 20, "fff", ""])) == [
        ["e" * 20], ["bbbb", "fff"], ["cc", "dd", "a"], [""],
    ]  # fmt: skip
    assert list(text_blocks([])) == []


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("survived", [0, 1, 4])
def test_a_killed_run_ends_in_the_same_bytes(
    bi_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    with_tokens: bool, survived: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(embed, "BLOCK_TEXTS", 8)
    caplog.set_level("INFO")
    encoder = SentenceEncoder(bi_encoder)

    def run(folder: Path, die_after: int | None) -> tuple[np.ndarray | None, bytes]:
        parts = VectorParts(folder, {"units": "u"}, {})
        counts = encoder.token_counts(TEXTS, "document")
        tokens = TokenFile(folder / "tokens.npy", counts, encoder.token_dimension) if with_tokens else None
        encode, done = encoder.encode, []

        def dying(*arguments: object, **rest: object) -> np.ndarray:
            if die_after is not None and len(done) == die_after:
                raise KeyboardInterrupt
            done.append(1)
            return encode(*arguments, **rest)  # type: ignore[arg-type]

        monkeypatch.setattr(encoder, "encode", dying)
        try:
            vectors = encode_in_blocks(encoder, TEXTS, 3, bars, "Encoding", parts, tokens, save_seconds=0.0)
        except KeyboardInterrupt:
            vectors = None
        finally:
            monkeypatch.setattr(encoder, "encode", encode)
        return vectors, (folder / "tokens.npy").read_bytes() if with_tokens else b""

    expected, expected_tokens = run(tmp_path / "whole", None)
    assert expected is not None
    assert "reused" not in caplog.text
    assert run(tmp_path / "killed", survived)[0] is None
    found, found_tokens = run(tmp_path / "killed", None)
    assert found is not None
    assert found.tobytes() == expected.tobytes()
    assert found_tokens == expected_tokens
    np.testing.assert_allclose(found, encoder.encode(TEXTS, "document", 3), atol=1e-5)
    assert ("reused from an interrupted run" in caplog.text) == (survived > 0)
