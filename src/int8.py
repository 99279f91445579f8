"""Reranking in 8 bits: tried on questions of the run first, and refused where it changes their answers.

Rounding to 8 bits moves every score. Whether that matters is seen by comparing what is handed out: the first documents
of a sample of the run's own questions, in the final order, with those that float32 gives.
"""

from collections.abc import Callable, Sequence

import numpy as np

from src.core.errors import UserError
from src.core.types import PAD, Floats, Queries, Rows, Run
from src.engine.int8_backend import Int8Backend, require_library
from src.engine.openvino_backend import OpenVinoBackend
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer
from src.stages.rerank import CandidateScorer, PassageTexts, blend

LEAST_AGREEMENT = 0.99
SAMPLE_QUESTIONS = 100
CALIBRATION_PAIRS = 300
_OTHERS = "Set it to 'exact' or 'fast'."


def sampled(count: int, most: int = SAMPLE_QUESTIONS) -> list[int]:
    """At most ``most`` of ``count`` rows, spread evenly."""
    rows: list[int] = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist()
    return rows


def require_int8(scorer: PairScorer, name: str) -> CrossEncoderScorer:
    """A float32 scorer that can be quantised: the same one.

    Args:
        name: of the model, for the message.

    Raises:
        UserError: where something else than OpenVINO runs the model, or the library is missing.
    """
    if not isinstance(scorer, CrossEncoderScorer) or not isinstance(scorer.backend, OpenVinoBackend):
        raise UserError(
            "RERANKER_PRECISION = 'int8' is for cross-encoders that OpenVINO runs on a CPU; here "
            f"{scorer.backend_name} runs {name}. {_OTHERS}"
        )
    require_library()
    return scorer


def int8_backend(exact: CrossEncoderScorer, texts: str) -> Int8Backend:
    """The quantised model of a scorer for which :func:`require_int8` holds, made or not.

    Args:
        texts: fingerprint of the corpus.
    """
    assert isinstance(exact.backend, OpenVinoBackend)
    return Int8Backend(exact.backend, texts)


def quantise(
    exact: CrossEncoderScorer, name: str, texts: str, queries: Queries, passages: Callable[[], PassageTexts]
) -> None:
    """Quantise a cross-encoder on pairs of some questions; nothing is done where as many pairs have made it before.

    Args:
        exact: in float32; loaded, and converted where it has not been.
        name: of the model, for messages.
        texts: fingerprint of the corpus.
        queries: the questions.
        passages: what is read of each candidate.

    Raises:
        UserError: where that cannot be done.
    """
    exact.load()
    backend = int8_backend(require_int8(exact, name), texts)  # loading may have found that OpenVINO cannot run it
    if backend.pairs >= CALIBRATION_PAIRS:
        return
    read = passages()
    pairs = spread_pairs(read.rows(range(len(queries))))
    if backend.pairs < len(pairs):
        tables = CandidateScorer(exact, read).tokenize(queries)
        backend.make(exact.batches(*tables, pairs), len(pairs))


def spread_pairs(texts: Rows) -> Rows:
    """At most :data:`CALIBRATION_PAIRS` pairs, int32 [P, 2] (question, passage), spread evenly.

    Args:
        texts: int32 [Q, K, m], passages of the candidates of each question; -1 where there is none.
    """
    question, *_ = places = np.nonzero(texts != PAD)
    every = np.stack([question, texts[places]], axis=1)
    found: Rows = every[sampled(len(every), CALIBRATION_PAIRS)].astype(np.int32)
    return found


def in_int8(exact: CrossEncoderScorer, texts: str, command: str) -> CrossEncoderScorer:
    """The quantised scorer that a run has made.

    Args:
        texts: fingerprint of the corpus.
        command: makes it, as it is to be typed.

    Raises:
        UserError: where none has.
    """
    backend = int8_backend(exact, texts)
    if not backend.pairs:
        raise UserError(
            f"RERANKER_PRECISION = 'int8': no run has quantised {backend.directory.name} for this corpus, or its "
            f"answers changed too much. Run: {command}, or set it to 'exact' or 'fast'."
        )
    return CrossEncoderScorer(backend.directory, backend, exact.batch_size, exact.max_length)


def same_answers(candidates: Run, exact: Floats, rounded: Floats, weight: float, top_k: int) -> int:
    """How many questions keep their first ``top_k`` documents, in whatever order.

    Args:
        candidates: [Q, K], of stage one.
        exact, rounded: float32 [Q, K], two scores of each.
        weight: of the cross-encoder in the blend.
    """
    runs = [blend(candidates, scores, weight, "tried").cut(top_k) for scores in (exact, rounded)]
    return sum(set(a) == set(b) for a, b in zip(*(run.doc_rows.tolist() for run in runs), strict=True))


def judge(candidates: Run, exact: Floats, rounded: Floats, weights: Sequence[float], top_k: int) -> str:
    """What the log says of a trial that went well, by the weight at which it went worst.

    Raises:
        UserError: where fewer than :data:`LEAST_AGREEMENT` of the questions keep their documents.
    """
    asked = len(candidates.query_ids)
    same, weight = min((same_answers(candidates, exact, rounded, weight, top_k), weight) for weight in weights)
    found = (
        f"{same} of {asked} sampled questions have the same first {top_k} documents as in float32 (blend weight "
        f"{weight:g}; {LEAST_AGREEMENT:.0%} are asked)"
    )
    if same < LEAST_AGREEMENT * asked:
        raise UserError(f"RERANKER_PRECISION = 'int8': {found}. {_OTHERS}")
    return f"int8: {found}"
