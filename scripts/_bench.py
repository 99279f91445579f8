"""What the benchmark of the cross-encoder runs: made-up pairs of given lengths, peers, and measures of agreement."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import _cli  # noqa: F401  (puts the project's folder on the path)

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import spearmanr

from src.engine.devices import CpuEngine, Precision
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer, make_scorer
from src.engine.torch_backend import TorchBackend
from src.stages.chunk import sentence_spans

Floats = npt.NDArray[np.float32]
Score = Callable[[], Floats]

CANDIDATES = 100
TOP = 5
BATCH_SIZE = 32  # of every configuration, the users' default
MAX_LENGTH = 512


@dataclass(frozen=True)
class Work:
    """Pairs to score.

    Attributes:
        questions: Q questions.
        passages: distinct passages.
        pairs: int32 [Q * K, 2], rows of ``questions`` and ``passages``, question by question.
        candidates: K, passages per question.
    """

    questions: tuple[str, ...]
    passages: tuple[str, ...]
    pairs: npt.NDArray[np.int32]
    candidates: int

    def texts(self) -> list[tuple[str, str]]:
        """(question, passage) of every pair."""
        return [(self.questions[q], self.passages[p]) for q, p in self.pairs.tolist()]


def passage_lengths(kind: str, count: int, generator: random.Random) -> list[int]:
    """Target lengths of passages, in tokens.

    Args:
        kind: ``mixed``: log-normal with median 110, from 16 to 500, what chunks and short pages look like together;
            ``ru512``: all near 490; ``short``: 16 to 64.
    """
    if kind == "ru512":
        return [490] * count
    if kind == "short":
        return [generator.randint(16, 64) for _ in range(count)]
    return [min(500, max(16, round(generator.lognormvariate(4.7, 0.8)))) for _ in range(count)]


def make_work(sample: Path, tokenizer: Any, pairs: int, kind: str, seed: int = 0) -> Work:
    """Questions of the sample against passages put together from sentences of its pages, Russian and English.

    Args:
        sample: folder with the sample's CSV files.
        tokenizer: of the model, for the lengths.
        pairs: how many; rounded up to whole questions.
    """
    generator = random.Random(seed)
    pages = pd.read_csv(sample / "websites_updated.csv", dtype=str, keep_default_na=False)["text"]
    sentences = [text[start:end] for text in pages for start, end in sentence_spans(text)]
    sizes = [len(ids) for ids in tokenizer(sentences, add_special_tokens=False)["input_ids"]]
    questions = pd.read_csv(sample / "questions_clean.csv", dtype=str)["query"].tolist()
    candidates = min(CANDIDATES, pairs)
    chosen = [questions[i % len(questions)] for i in range(-(-pairs // candidates))]
    passages: dict[str, None] = {}
    targets = passage_lengths(kind, min(5000, max(candidates, pairs)), generator)
    for target in targets:
        parts: list[str] = []
        length, place = 0, generator.randrange(len(sentences))
        while length < target:
            parts.append(sentences[place % len(sentences)])
            length += sizes[place % len(sentences)]
            place += 1
        passages[" ".join(parts)] = None
    rows = [
        (q, p) for q in range(len(chosen)) for p in sorted(generator.sample(range(len(passages)), candidates))
    ]  # fmt: skip
    return Work(tuple(chosen), tuple(passages), np.array(rows, dtype=np.int32), candidates)


def our_scorers(directory: Path, fingerprint: str, device: str, kept: Path, threads: int) -> dict[str, Any]:
    """Scorers of this project, by the name of their configuration."""
    cpu = CpuEngine("auto", kept, threads)

    def made(precision: Precision) -> PairScorer:
        return make_scorer(directory, fingerprint, device, BATCH_SIZE, MAX_LENGTH, precision, cpu)

    return {
        "torch, sorted": CrossEncoderScorer(directory, TorchBackend(directory, device), BATCH_SIZE, MAX_LENGTH),
        "exact": made("exact"),
        "fast": made("fast"),
    }


def run_scorer(scorer: CrossEncoderScorer, work: Work) -> Score:
    """Tokenising included."""
    scorer.load()

    def score() -> Floats:
        return scorer.score(scorer.tokenize(work.questions), scorer.tokenize(work.passages), work.pairs)

    return score


def agreement(scores: Floats, reference: Floats, candidates: int) -> dict[str, float]:
    """How far scores are from the reference's: largest difference, Spearman, share of equal top-5 sets."""
    rows, right = scores.reshape(-1, candidates), reference.reshape(-1, candidates)
    tops = [np.argsort(-values, axis=1, kind="stable")[:, :TOP] for values in (rows, right)]
    same = [set(a) == set(b) for a, b in zip(*(top.tolist() for top in tops), strict=True)]
    return {
        "max_error": float(np.abs(scores - reference).max()),
        "spearman": float(spearmanr(scores, reference).statistic),
        "top5_agreement": float(np.mean(same)),
    }


def timed(score: Score) -> tuple[float, Floats]:
    """Seconds of one call, and its scores."""
    started = perf_counter()
    found = score()
    return perf_counter() - started, found


def ratios(seconds: Sequence[float], loop: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios to the loop, round by round."""
    values = [base / own for own, base in zip(seconds, loop, strict=True)]
    return float(np.median(values)), min(values), max(values)
