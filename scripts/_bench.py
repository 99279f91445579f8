"""What the benchmark of the cross-encoder runs: made-up pairs of given lengths, peers, and measures of agreement."""

import os
import platform
import random
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import _cli  # noqa: F401  (puts the project's folder on the path)

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import spearmanr

from src.core.errors import UserError
from src.engine.devices import CpuEngine, Precision, pick_device
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer, make_scorer
from src.engine.torch_backend import TorchBackend
from src.stages.chunk import sentence_spans

Floats = npt.NDArray[np.float32]

CANDIDATES = 100
TOP = 5
BATCH_SIZE = 32  # of every configuration, the users' default
MAX_LENGTH = 512
REFERENCE_PAIRS = 2000  # float32 scores of many more would take hours, and say little more
WARM_UP_PAIRS = 500
SHORTEST = 16  # tokens of a passage


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


Ranker = Callable[[Work], Floats]


def pick_devices(wanted: str) -> tuple[str, str]:
    """Devices of our engines and of the peers.

    The peers use one card, so ours use the same one; only ``cuda:all`` gives ours every card.

    Raises:
        UserError: where this machine has not the device that is named.
    """
    if wanted == "cuda:all":
        return pick_device("cuda"), "cuda:0"
    device = pick_device(wanted)
    device = "cuda:0" if device == "cuda" else device
    return device, device


def machine(device: str) -> dict[str, Any]:
    """What the work ran on: processor, cores, device with its name, and the number of cards that torch sees."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {
        "processor": _processor(), "cores": os.cpu_count(), "device": device, "device_name": name, "cards": cards,
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit(folder: Path) -> str | None:
    """The commit that is checked out there; ``None`` where the folder is not the root of a git repository."""
    command = ["git", "rev-parse", "--show-toplevel", "HEAD"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    root, _, found = done.stdout.strip().rpartition("\n")
    # An unpacked archive may lie in a repository that it is no part of.
    return found if done.returncode == 0 and Path(root).resolve() == folder.resolve() else None


def passage_lengths(kind: str, count: int, generator: random.Random) -> list[int]:
    """Target lengths of passages, in tokens.

    Args:
        kind: ``mixed``: log-normal with median 110, from 16 to 500, what chunks and short pages look like together;
            ``ru512``: all near 490; ``short``: 16 to 64.
    """
    if kind == "ru512":
        return [490] * count
    if kind == "short":
        return [generator.randint(SHORTEST, 64) for _ in range(count)]
    return [min(500, max(SHORTEST, round(generator.lognormvariate(4.7, 0.8)))) for _ in range(count)]


def make_work(sample: Path, tokenizer: Any, pairs: int, kind: str, seed: int = 0, tokens: int | None = None) -> Work:
    """Questions of the sample against passages put together from sentences of its pages, Russian and English.

    Args:
        sample: folder with the sample's CSV files.
        tokenizer: of the model, for the lengths.
        pairs: how many; rounded up to whole questions.
        tokens: about how many each pair shall have, with its special tokens; in place of ``kind``.

    Raises:
        UserError: where that many tokens leave too few to the passage.
    """
    generator = random.Random(seed)
    pages = pd.read_csv(sample / "websites_updated.csv", dtype=str, keep_default_na=False)["text"]
    pieces = [text[start:end] for text in pages for start, end in sentence_spans(text)]
    if tokens is not None:  # words come nearer to a length than sentences do
        pieces = " ".join(pieces).split()
    sizes = [len(ids) for ids in tokenizer(pieces, add_special_tokens=False)["input_ids"]]
    questions = pd.read_csv(sample / "questions_clean.csv", dtype=str)["query"].tolist()
    candidates = min(CANDIDATES, pairs)
    chosen = [questions[i % len(questions)] for i in range(-(-pairs // candidates))]
    count = min(5000, max(candidates, pairs))
    if tokens is None:
        targets = passage_lengths(kind, count, generator)
    else:
        targets = [_passage_tokens(tokenizer, chosen, tokens)] * count
    passages: dict[str, None] = {}
    for target in targets:
        parts: list[str] = []
        length, place = 0, generator.randrange(len(pieces))
        while length < target:
            parts.append(pieces[place % len(pieces)])
            length += sizes[place % len(pieces)]
            place += 1
        passages[" ".join(parts)] = None
    rows = [
        (q, p) for q in range(len(chosen)) for p in sorted(generator.sample(range(len(passages)), candidates))
    ]  # fmt: skip
    return Work(tuple(chosen), tuple(passages), np.array(rows, dtype=np.int32), candidates)


def _passage_tokens(tokenizer: Any, questions: Sequence[str], tokens: int) -> int:
    """What pairs of so many tokens leave to the passage, beside a question of median length."""
    sizes = [len(ids) for ids in tokenizer(list(questions), add_special_tokens=False)["input_ids"]]
    other = round(float(np.median(sizes))) + int(tokenizer.num_special_tokens_to_add(pair=True))
    if tokens - other < SHORTEST:
        raise UserError(f"--tokens {tokens}: a question takes about {other} of them. Give {other + SHORTEST} or more.")
    return tokens - other


def sample_of(work: Work, most: int, seed: int = 0) -> tuple[Work, npt.NDArray[np.int64]]:
    """Whole questions drawn at random, at least one, and the rows of their pairs in ``work``, int64 [P].

    Args:
        most: pairs.
    """
    count = len(work.pairs) // work.candidates
    drawn = sorted(random.Random(seed).sample(range(count), min(count, max(1, most // work.candidates))))
    rows = (np.array(drawn, dtype=np.int64)[:, None] * work.candidates + np.arange(work.candidates)).ravel()
    return Work(work.questions, work.passages, work.pairs[rows], work.candidates), rows


def our_scorers(directory: Path, fingerprint: str, device: str, kept: Path, threads: int) -> dict[str, Any]:
    """Scorers of this project, by the name of their configuration; the first one is float32 torch on one device."""
    cpu = CpuEngine("auto", kept, threads)

    def made(precision: Precision) -> PairScorer:
        return make_scorer(directory, fingerprint, device, BATCH_SIZE, MAX_LENGTH, precision, cpu)

    return {
        "torch, sorted": CrossEncoderScorer(directory, TorchBackend(directory, device), BATCH_SIZE, MAX_LENGTH),
        "exact": made("exact"),
        "fast": made("fast"),
    }


def cards_of(scorer: Any) -> int:
    """Devices that a scorer works on side by side."""
    return len(getattr(getattr(scorer, "backend", None), "backends", ())) or 1


def run_scorer(scorer: CrossEncoderScorer) -> Ranker:
    """Tokenising included."""
    scorer.load()

    def score(work: Work) -> Floats:
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


def timed(score: Ranker, work: Work) -> tuple[float, Floats]:
    """Seconds of one call, and its scores."""
    started = perf_counter()
    found = score(work)
    return perf_counter() - started, found


def ratios(seconds: Sequence[float], loop: Sequence[float]) -> tuple[float, float, float]:
    """Median, lowest and highest of the ratios to the loop, round by round."""
    values = [base / own for own, base in zip(seconds, loop, strict=True)]
    return float(np.median(values)), min(values), max(values)
