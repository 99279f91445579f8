"""What fine-tuning gains on questions that it has not seen: k-fold cross-validation over questions."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.core.artifacts import atomic_path, fingerprint
from src.core.errors import UserError
from src.core.types import PAD, Corpus, Floats, Qrels, Queries, Rows, Run
from src.quality.mining import Example, labelled_examples

ScorePairs = Callable[[Sequence[tuple[str, str]]], Floats]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledCandidates:
    """Labelled questions with stage one's candidates and what the cross-encoder reads of them.

    Attributes:
        queries, qrels: Q questions and their labels.
        candidates: run of stage one, [Q, K].
        corpus: what the run's rows index.
        texts: distinct passages.
        rows: int32 [Q, K, m], rows of ``texts``; -1 where there is none. The first one of each candidate is read.
    """

    queries: Queries
    qrels: Qrels
    candidates: Run
    corpus: Corpus
    texts: Sequence[str]
    rows: Rows

    @property
    def labelled(self) -> tuple[str, ...]:
        """Ids of the labelled questions, in their order."""
        return tuple(query_id for query_id in self.queries.query_ids if query_id in self.qrels.relevant)

    def examples(self, query_ids: Collection[str]) -> list[Example]:
        """Training examples of some of the labelled questions."""
        chosen = {query_id: self.qrels.relevant[query_id] for query_id in self.labelled if query_id in query_ids}
        return labelled_examples(self.queries, Qrels(chosen), self.candidates, self.corpus, self.texts, self.rows)

    def score(self, place: int, score_pairs: ScorePairs) -> Floats:
        """Scores of one question's candidates, float32 [K]; one without a passage takes the row's lowest."""
        rows = self.rows[place, : self.candidates.depth, 0]
        read = (rows != PAD) & (self.candidates.doc_rows[place] != PAD)
        scores = np.zeros(self.candidates.depth, dtype=np.float32)
        if read.any():
            found = score_pairs([(self.queries.texts[place], self.texts[row]) for row in rows[read].tolist()])
            scores[:] = found.min()
            scores[read] = found
        return scores


def split_folds(query_ids: Sequence[str], count: int, seed: int) -> list[frozenset[str]]:
    """Split questions at random into ``count`` parts whose sizes differ by at most one.

    Raises:
        UserError: where there are fewer questions than parts, or fewer than two parts.
    """
    if count < 2 or len(query_ids) < count:
        raise UserError(
            f"--folds {count}: {len(query_ids)} questions are labelled; at least 2 folds and one question in each "
            "are needed. Label more, or give --folds 0 to train without a measured gain."
        )
    order = np.random.default_rng(seed).permutation(len(query_ids))
    return [frozenset(query_ids[i] for i in order[part::count].tolist()) for part in range(count)]


def out_of_fold_scores(
    labelled: LabelledCandidates,
    folds: Sequence[frozenset[str]],
    train: Callable[[int, list[Example]], ScorePairs],
    kept: Path,
    key: str,
) -> Floats:
    """Score every labelled question by a model that was trained without it.

    Args:
        folds: from :func:`split_folds`.
        train: (number of the fold, examples of all other folds) -> the trained model.
        kept: folder of the scores of finished folds, so that an interrupted run goes on after them.
        key: fingerprint of everything else that shapes the scores.

    Returns:
        float32 [Q, K]; rows of unlabelled questions are 0.
    """
    place_of = {query_id: place for place, query_id in enumerate(labelled.queries.query_ids)}
    data = [labelled.queries.fingerprint, labelled.candidates.corpus_fingerprint, labelled.candidates.doc_rows.tolist()]
    labels = [[query_id, sorted(labelled.qrels.relevant[query_id])] for query_id in labelled.labelled]
    shape = fingerprint([key, data, labels, list(labelled.texts), [sorted(fold) for fold in folds]])
    scores = np.zeros(labelled.candidates.doc_rows.shape, dtype=np.float32)
    for number, fold in enumerate(folds):
        places = sorted(place_of[query_id] for query_id in fold)
        path = kept / f"fold-{number}-{shape}.npy"
        if path.is_file():
            log.info("Fold %d of %d: kept from an interrupted run", number + 1, len(folds))
            scores[places] = np.load(path, allow_pickle=False)
            continue
        rest = frozenset().union(*folds) - fold
        log.info("Fold %d of %d: %d questions to train on, %d to test", number + 1, len(folds), len(rest), len(fold))
        score_pairs = train(number, labelled.examples(rest))
        scores[places] = [labelled.score(place, score_pairs) for place in places]
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as handle:
            np.save(handle, scores[places])
    return scores
