from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from src.core.types import Corpus
from src.models.language_guard import Readability, choose_reranker, measure, sample_texts
from src.models.resolve import ModelResolver, ResolvedModel

RUSSIAN = ("Карта бесплатна.", "Снятие наличных без комиссии.")


def whole_words(*known: str) -> PreTrainedTokenizerFast:
    """One token per known word, else one token per letter (Latin whole, Cyrillic letter by letter, say)."""
    letters = [f"##{chr(code)}" for code in (*range(ord("а"), ord("я") + 1), *range(ord("a"), ord("z") + 1))]
    starts = [piece.removeprefix("##") for piece in letters]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(["[UNK]", *starts, *letters, *known, ".", ","]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")


def test_pieces_per_word_by_hand() -> None:
    # "карта" is known: 1 piece; "вклад" is spelt: 5 pieces; the full stop is a piece but no word: 7 pieces, 2 words.
    found = measure(whole_words("карта"), ["карта вклад."])
    assert found.corpus_pieces == pytest.approx(7 / 2)
    assert found.unknown_share == 0.0
    assert found.letters == pytest.approx(10 / 7)


def test_unknown_tokens_count() -> None:
    # "карта" is known, "日本" is one unknown token.
    assert measure(whole_words("карта"), ["карта 日本"]).unknown_share == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("corpus", "english", "unknown", "letters", "readable"),
    [
        (2.5, 1.0, 0.0, 1.0, True),
        (2.6, 1.0, 0.0, 1.5, False),
        (2.6, 1.0, 0.0, 1.6, True),  # long words in pieces of some letters, as byte-level BPE cuts Russian
        (1.2, 1.1, 0.06, 3.0, False),
        (2.9, 1.3, 0.05, 1.0, True),
    ],
)
def test_thresholds(corpus: float, english: float, unknown: float, letters: float, readable: bool) -> None:
    assert Readability(corpus, english, unknown, letters).readable is readable


def test_sample_is_spread_over_the_corpus() -> None:
    corpus = Corpus(("1", "2", "3", "4"), ("a", "b", "", "d"), ("x" * 900, "", "", "z"))
    assert sample_texts(corpus, count=2, characters=500) == ["x" * 500]
    assert sample_texts(corpus, count=4) == ["x" * 500, "b", "z"]


def _choose(tmp_path: Path, multilingual: str | None, readable: dict[str, bool]) -> tuple[ResolvedModel, list[str]]:
    names: list[str] = []
    for name, can in readable.items():
        folder = tmp_path / name
        tokenizer = whole_words(*(word for text in RUSSIAN for word in text.rstrip(".").split()) if can else ("карта",))
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "model.safetensors").write_bytes(b"")
        names.append(name)
    resolver = ModelResolver(tmp_path / "none", tmp_path, "fail")
    corpus = Corpus(("1", "2"), ("", ""), RUSSIAN)
    return choose_reranker(resolver, names[0], multilingual, corpus), names


@pytest.fixture
def english_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("src.models.language_guard.ENGLISH_REFERENCE", "a b c d e f")


@pytest.mark.usefixtures("english_is_whole")
def test_a_readable_model_is_kept(tmp_path: Path) -> None:
    chosen, _ = _choose(tmp_path, "other", {"russian": True})
    assert (chosen.used, chosen.warning) == ("russian", None)


@pytest.mark.usefixtures("english_is_whole")
def test_an_unreadable_one_is_replaced_and_both_figures_are_told(tmp_path: Path) -> None:
    chosen, _ = _choose(tmp_path, "russian", {"english": False, "russian": True})
    assert (chosen.requested, chosen.used) == ("english", "russian")
    assert chosen.warning is not None
    # 2 texts: "Карта бесплатна." and "Снятие наличных без комиссии.": 6 words and 2 full stops in whole words.
    assert "'russian' replaces it (1.33 pieces per word on this corpus, 1.00 on English" in chosen.warning
    assert "cannot read this corpus" in chosen.warning


@pytest.mark.usefixtures("english_is_whole")
def test_two_that_cannot_read_it(tmp_path: Path) -> None:
    chosen, _ = _choose(tmp_path, "another", {"english": False, "another": False})
    assert chosen.warning is not None
    assert chosen.warning.endswith("and cannot read it either: compare with --no-rerank")


@pytest.mark.usefixtures("english_is_whole")
def test_none_keeps_it_and_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chosen, _ = _choose(tmp_path, None, {"english": False})
    assert chosen.used == "english"
    assert chosen.warning is not None
    assert "names no other" in chosen.warning
    assert any(record.levelname == "WARNING" for record in caplog.records)
