"""Can a cross-encoder read the corpus? Counts into how many pieces its tokenizer breaks a word."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from src.core.text import words
from src.core.types import Corpus
from src.models.resolve import ModelResolver, ResolvedModel

log = logging.getLogger(__name__)

# Measured on Russian: English uncased WordPiece has ratios of 4.2 to 5.5 and 1.03 to 1.06 letters per piece, XLM-R
# 1.4 to 1.9 and 2.8 to 3.4, Qwen's byte-level BPE, which was trained on Russian, 2.2 to 2.7 and 2.0.
MAX_RATIO = 2.5
MIN_LETTERS = 1.6

ENGLISH_REFERENCE = (
    "You can order a new card in the mobile application or at any branch of the bank. "
    "Delivery takes three to five working days, and the courier will call before the visit. "
    "The monthly fee is not charged while the balance of your accounts stays above the limit. "
    "If the card is lost or stolen, block it at once and call our support line, which works day and night. "
    "Money that was taken without your consent is returned after the claim has been examined."
)


@dataclass(frozen=True)
class Readability:
    """What the guard measured.

    Attributes:
        corpus_pieces: tokens per word on a sample of the corpus.
        english_pieces: tokens per word on an English reference text.
        unknown_share: share of unknown tokens on the sample.
        letters: letters and digits of the sample's words per token.
    """

    corpus_pieces: float
    english_pieces: float
    unknown_share: float
    letters: float

    @property
    def ratio(self) -> float:
        """How many times more pieces a word of the corpus takes than an English one."""
        return self.corpus_pieces / self.english_pieces

    @property
    def readable(self) -> bool:
        """Whether the model may be trusted with this corpus: its words are known, and not merely spelt."""
        return self.unknown_share <= 0.05 and (self.ratio <= MAX_RATIO or self.letters >= MIN_LETTERS)

    def __str__(self) -> str:
        return (
            f"{self.corpus_pieces:.2f} pieces per word on this corpus, {self.english_pieces:.2f} on English "
            f"(ratio {self.ratio:.2f}, {self.letters:.2f} letters per piece; a ratio of at most {MAX_RATIO} or "
            f"{MIN_LETTERS} letters is readable; unknown tokens {self.unknown_share:.1%})"
        )


def sample_texts(corpus: Corpus, count: int = 200, characters: int = 500) -> list[str]:
    """Beginnings of ``count`` documents spread evenly over the corpus; documents without text give their titles."""
    step = max(1, len(corpus) // count)
    texts = [(corpus.texts[row] or corpus.titles[row])[:characters] for row in range(0, len(corpus), step)]
    return [text for text in texts if text]


def measure(tokenizer: Any, texts: Sequence[str]) -> Readability:
    """Pieces per word on ``texts`` and on English."""
    found, tokens, unknown, letters = _counts(tokenizer, texts)
    english, english_tokens, _, _ = _counts(tokenizer, [ENGLISH_REFERENCE])
    return Readability(
        tokens / max(1, found), english_tokens / max(1, english), unknown / max(1, tokens), letters / max(1, tokens)
    )


def _counts(tokenizer: Any, texts: Sequence[str]) -> tuple[int, int, int, int]:
    """Words, tokens, unknown tokens, letters of the words."""
    found = [word for text in texts for word in words(text)]
    ids = [
        token
        for text in texts
        for token in tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    ]
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    return len(found), len(ids), unknown, sum(map(len, found))


def choose_reranker(resolver: ModelResolver, name: str, multilingual: str | None, corpus: Corpus) -> ResolvedModel:
    """The configured cross-encoder, or the multilingual one where it cannot read the corpus.

    Args:
        name: ``CROSS_ENCODER_MODEL``.
        multilingual: ``CROSS_ENCODER_MODEL_MULTILINGUAL``; ``None`` keeps the configured model and only warns.

    Returns:
        The model to use; its ``warning`` says what was replaced and why.
    """
    chosen = resolver.resolve(name, "cross-encoder")
    texts = sample_texts(corpus)
    found = _measure_model(chosen, texts)
    log.info("Language guard: %s: %s", chosen.used, found)
    if found.readable:
        return chosen
    reason = f"cross-encoder {chosen.used!r} cannot read this corpus: {found}"
    if multilingual is None or multilingual == chosen.used:
        warning = f"{reason}; it is kept, as CROSS_ENCODER_MODEL_MULTILINGUAL names no other"
        log.warning("WARNING: %s", warning)
        return replace(chosen, warning=_joined(chosen.warning, warning))
    other = resolver.resolve(multilingual, "cross-encoder")
    found_other = _measure_model(other, texts)
    warning = f"{reason}; {other.used!r} replaces it ({found_other})"
    if not found_other.readable:
        warning += ", and cannot read it either: compare with --no-rerank"
    log.warning("WARNING: %s", warning)
    return replace(other, requested=name, warning=_joined(other.warning, warning))


def _measure_model(model: ResolvedModel, texts: Sequence[str]) -> Readability:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        model.directory, local_files_only=True, trust_remote_code=model.remote_code
    )
    return measure(tokenizer, texts)


def _joined(first: str | None, second: str) -> str:
    return f"{first}; {second}" if first else second
