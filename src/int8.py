"""Reranking in 8 bits: tried on questions of the run first, and refused where it changes their answers.

Rounding to 8 bits moves every score. Whether that matters is seen by comparing what is handed out: the first documents
of a sample of the run's own questions, in the final order, with those that float32 gives.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from src.core.errors import UserError
from src.core.pair_scores import PairScores
from src.core.types import PAD, Floats, Queries, Rows, Run
from src.engine.int8_backend import Int8Backend, require_library
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer
from src.indexing import Bars
from src.stages.rerank import CandidateScorer, PassageTexts, blend

LEAST_AGREEMENT = 0.99
SAMPLE_QUESTIONS = 100
CALIBRATION_PAIRS = 300

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """Questions of a run on which 8 bits are tried, with all their candidates.

    Attributes:
        candidates: [Q, K], of stage one.
        passages: what is read of each candidate.
        top_k, blend_weight: of the run.
    """

    queries: Queries
    candidates: Run
    passages: PassageTexts
    top_k: int
    blend_weight: float

    @property
    def pairs(self) -> Rows:
        """Some of the pairs, int32 [P, 2] (question, passage), spread evenly."""
        texts = self.passages.rows(range(len(self.queries)))
        question, *_ = places = np.nonzero(texts != PAD)
        every = np.stack([question, texts[places]], axis=1)
        found: Rows = every[sampled(len(every), CALIBRATION_PAIRS)].astype(np.int32)
        return found

    def agreement(self, one: Floats, other: Floats) -> float:
        """Share of the questions whose first ``top_k`` documents are the same by two scores of the candidates."""
        runs = [blend(self.candidates, scores, self.blend_weight, "sample").cut(self.top_k) for scores in (one, other)]
        same = [set(a) == set(b) for a, b in zip(*(run.doc_rows.tolist() for run in runs), strict=True)]
        return float(np.mean(same))


def sampled(count: int, most: int = SAMPLE_QUESTIONS) -> list[int]:
    """At most ``most`` of ``count`` rows, spread evenly."""
    rows: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    return rows


def require_int8(scorer: PairScorer) -> OpenVinoBackend:
    """The float32 backend of a scorer that can be quantised.

    Raises:
        UserError: where something else than OpenVINO runs the model, or the library is missing.
    """
    if not isinstance(scorer, CrossEncoderScorer) or not isinstance(scorer.backend, OpenVinoBackend):
        raise UserError(
            "RERANKER_PRECISION = 'int8' is for cross-encoders that OpenVINO runs on a CPU; here "
            f"{scorer.backend_name} runs the model. Set it to 'exact' or 'fast'."
        )
    require_library()
    return scorer.backend


def int8_scorer(
    exact: PairScorer,
    texts: str,
    sample: Sample | None,
    kept: Callable[[PairScorer], PairScores],
    bars: Bars,
) -> PairScorer:
    """The same cross-encoder in 8 bits.

    Args:
        exact: the cross-encoder in float32.
        texts: fingerprint of the corpus.
        sample: what to try it on; ``None`` takes a quantised model that a run has made and tried.
        kept: the kept scores of a scorer; those of the sample are used again by the run, whatever comes of it.

    Raises:
        UserError: where the model cannot be quantised here, or fewer than :data:`LEAST_AGREEMENT` of the sampled
            questions keep their documents.
    """
    backend = require_int8(exact)
    if sample is not None:
        exact.load()
        backend = require_int8(exact)  # loading may have found that OpenVINO cannot run it
    assert isinstance(exact, CrossEncoderScorer)
    rounded_backend = Int8Backend(backend, texts)
    rounded = CrossEncoderScorer(backend.directory, rounded_backend, exact.batch_size, exact.max_length)
    if sample is None:
        if not rounded_backend.made:
            raise UserError(
                "RERANKER_PRECISION = 'int8': no run has quantised the cross-encoder for this corpus yet. Run: "
                "python scripts/03_run_search.py, or set it to 'exact' or 'fast'."
            )
        return rounded
    tables = exact.tokenize(sample.queries.texts), exact.tokenize(sample.passages.texts)
    rounded_backend.make(exact.batches(*tables, sample.pairs))
    scores = []
    for scorer in (exact, rounded):
        with bars(f"Trying {scorer.arithmetic.split(',')[0]}", len(sample.queries)) as progress:
            reranker = CandidateScorer(scorer, sample.passages, kept(scorer))
            scores.append(reranker.pair_scores(sample.queries, sample.candidates, progress, tables))
    share = sample.agreement(*scores)
    found = (
        f"the first {sample.top_k} documents of {share:.1%} of {len(sample.queries)} sampled questions are those of "
        f"float32, {LEAST_AGREEMENT:.0%} are asked"
    )
    if share < LEAST_AGREEMENT:
        raise UserError(f"RERANKER_PRECISION = 'int8': {found}. Set it to 'exact' or 'fast'.")
    log.info("int8: %s", found)
    return rounded
