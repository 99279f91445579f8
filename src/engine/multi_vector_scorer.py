"""Late-interaction rerankers (ColBERT and its kin), run by sentence-transformers.

Question and passage are encoded apart, a vector a token; the score is MaxSim (Khattab & Zaharia 2020, "ColBERT"). A
passage is encoded once, however many questions meet it.
"""

import json
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from src.core.errors import UserError
from src.engine.devices import explain_loading
from src.engine.memory_limit import PairTooLargeError
from src.engine.text_scorer import Pairs, Scores, TextScorer, TextTable, checked, text_tables
from src.engine.tokens import TokenTable, usable_positions

KEPT_BYTES = 1 << 29  # of passages' vectors, in the memory of the device
_TYPES = {"MultiVectorEncoder", "ColBERT"}  # the second one is PyLate's
_SIMILARITIES = {"maxsim", "meanmaxsim"}
_NO_LIMIT = 1_000_000  # some tokenizers say 1e30 where the model has none
_STANFORD = "HF_ColBERT"


def _files(directory: Path) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Configuration of the transformer, of sentence-transformers, and its modules."""
    found = []
    for name, nothing in (("config.json", {}), ("config_sentence_transformers.json", {}), ("modules.json", [])):
        path = directory / name
        found.append(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else nothing)
    return found[0], found[1], found[2]


def is_multi_vector(directory: Path) -> bool:
    """Whether a model's files say that it gives a vector per token, to be compared by MaxSim."""
    config, library, modules = _files(directory)
    return (
        library.get("model_type") in _TYPES
        or str(library.get("similarity_fn_name")).lower() in _SIMILARITIES
        or "query_prefix" in library
        or _STANFORD in (config.get("architectures") or ())
        or any(str(module.get("type")).startswith("pylate.") for module in modules)
    )


@contextmanager
def _as_it_was_trained(directory: Path) -> Iterator[Path]:
    """The directory; of Stanford's format without a list of modules that stands beside it: such lists are of other
    libraries, and leave out the projection, the normalisation or the marks of question and document.
    """
    config, library, _ = _files(directory)
    stanford = _STANFORD in (config.get("architectures") or ()) and (directory / "artifact.metadata").is_file()
    if not stanford or library.get("model_type") in _TYPES:
        yield directory
        return
    with tempfile.TemporaryDirectory() as name:
        for path in directory.iterdir():
            if path.name not in {"modules.json", "config_sentence_transformers.json"}:
                (Path(name) / path.name).symlink_to(path.resolve())
        yield Path(name)


class MultiVectorScorer(TextScorer):
    """Scores by ``sentence_transformers.MultiVectorEncoder``; see :class:`~src.engine.text_scorer.TextScorer`.

    A passage is read up to the model's own limit or ``max_length``, whichever is lower. A question is never cut: one
    that is longer than the model pads questions to is read as it is, without padding.
    """

    backend_name = "sentence-transformers (MaxSim)"
    joint = False

    def load(self) -> None:
        """Load the weights, once.

        Raises:
            UserError: where that fails, or the files lack a part that the model was trained with.
        """
        if self.model is not None:
            return
        from sentence_transformers import MultiVectorEncoder

        with explain_loading("CROSS_ENCODER_MODEL", self.directory), _as_it_was_trained(self.directory) as folder:
            model = MultiVectorEncoder(
                str(folder),
                device=self.device,
                trust_remote_code=self.remote_code,
                local_files_only=True,
                model_kwargs={"dtype": self.half or torch.float32},
            )
            transformer: Any = model[0]
            kinds = {type(module).__name__ for module in model}
        missing = sorted({"Transformer", "MultiVectorMask"} - kinds)
        if "Normalize" not in kinds and getattr(transformer, "transformer_task", "") != "retrieval":
            missing.append("Normalize")
        if missing:
            raise UserError(
                f"CROSS_ENCODER_MODEL: {self.directory} is a late-interaction model whose modules.json names no "
                f"{' and no '.join(missing)}: its scores would mean nothing. Take a revision that was saved by "
                "sentence-transformers 6 or PyLate, or name another model."
            )
        self._transformer = transformer
        self._whole = self._limit(transformer)
        transformer.document_length = min(transformer.document_length or self._whole, self.max_length, self._whole)
        self._table: TokenTable | None = None
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._kept_bytes = 0
        self.model = model

    @staticmethod
    def _limit(transformer: Any) -> int:
        """Most tokens of a text with its marks."""
        limit = int(min(transformer.max_seq_length or _NO_LIMIT, _NO_LIMIT))
        return min(limit, usable_positions(getattr(transformer.model, "config", None), limit))

    @property
    def longest_question(self) -> int:
        """Most tokens that a question may have."""
        self.load()
        return self._whole - self._marks("query")

    def pair_lengths(
        self,
        questions: TokenTable,  # noqa: ARG002
        passages: TokenTable,  # noqa: ARG002
        pairs: Pairs,
    ) -> npt.NDArray[np.int64]:
        """One for each pair, int64 [P]: a passage is read once, and a pair costs next to nothing beyond that."""
        return np.ones(len(pairs), dtype=np.int64)

    def characters_read(self, question: str, passage: str) -> int:  # noqa: ARG002
        """Characters of a passage that the model reads; what follows them is never read."""
        self.load()
        room = self._transformer.document_length - self._marks("document")
        if self._tokens(passage) <= room or not self.tokenizer.is_fast:
            return len(passage)
        end: int = self.token_ends(passage)[room - 1]
        return end

    def _tokens(self, text: str) -> int:
        return len(self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _marks(self, task: str) -> int:
        """Tokens that the model adds to a text."""
        with self._without_query_limit():
            features = self.model.preprocess(["a"], prompt=self.model.prompts.get(task) or "", task=task)
        return int(features["input_ids"].shape[-1]) - self._tokens("a")

    def score(self, questions: TokenTable, passages: TokenTable, pairs: Pairs) -> Scores:
        """Score pairs; see :class:`src.engine.pair_scorer.PairScorer`.

        Returns:
            float32 [P]: MaxSim, by the model's own rule (a sum or a mean over the question's tokens); 0 for a passage
            without a token that counts.

        Raises:
            PairTooLargeError: where memory does not hold one text.
            UserError: where the model cannot read a question whole, or a score is not finite.
        """
        questions, passages = text_tables(questions, passages)
        scores = np.zeros(len(pairs), dtype=np.float32)
        if not len(pairs):
            return scores
        self.load()
        asked, owners = np.unique(pairs[:, 0], return_inverse=True)
        encoded = self._of_questions(questions, asked.tolist(), int(pairs[0, 1]))
        if self._table is not passages:
            self._table, self._kept_bytes = passages, 0
            self._kept.clear()
        for number, question in enumerate(encoded):
            own = np.flatnonzero(owners == number)
            read = self._of_passages(passages, pairs[own, 1].tolist(), int(asked[number]))
            filled = np.array([len(vectors) > 0 for vectors in read])
            with torch.inference_mode():
                near = self.model.similarity([question], [vectors for vectors in read if len(vectors)])
            scores[own[filled]] = near[0].float().cpu().numpy()
        return checked(scores)

    def _of_questions(self, table: TextTable, rows: Sequence[int], passage: int) -> list[torch.Tensor]:
        transformer, marks = self._transformer, self._marks("query")
        room = (transformer.query_expansion or {}).get("length") or transformer.query_length or self._whole
        lengths = {row: self._tokens(table.texts[row]) + marks for row in rows}
        longest = max(lengths, key=lambda row: lengths[row])
        if lengths[longest] > self._whole:
            raise UserError(
                f"the question {table.texts[longest][:60]!r} has {lengths[longest]} tokens; {self.directory} reads at "
                f"most {self._whole}. Shorten it, or run with --no-rerank."
            )
        found: dict[int, torch.Tensor] = {}
        for is_long in (False, True):
            chosen = [row for row in rows if (lengths[row] >= room) == is_long]
            error = PairTooLargeError(longest, passage, lengths[longest], self.device)
            with self._without_query_limit() if is_long else nullcontext():
                found.update(
                    zip(chosen, self._encode([table.texts[row] for row in chosen], "query", error), strict=True)
                )
        return [found[row] for row in rows]

    @contextmanager
    def _without_query_limit(self) -> Iterator[None]:
        """Read questions as they are: no padding with mask tokens, no cut below the model's own limit."""
        transformer = self._transformer
        expansion, length = transformer.query_expansion, transformer.query_length
        transformer.query_expansion, transformer.query_length = None, self._whole
        try:
            yield
        finally:
            transformer.query_length, transformer.query_expansion = length, expansion

    def _of_passages(self, table: TextTable, rows: Sequence[int], question: int) -> list[torch.Tensor]:
        """Vectors of passages; those of the last ones stay in memory for the next questions."""
        missing = [row for row in dict.fromkeys(rows) if row not in self._kept]
        if missing:
            longest = max(missing, key=lambda row: int(table.lengths[row]))
            error = PairTooLargeError(question, longest, int(table.lengths[longest]), self.device)
            texts = [table.texts[row] for row in missing]
            for row, vectors in zip(missing, self._encode(texts, "document", error), strict=True):
                self._kept[row] = vectors
                self._kept_bytes += vectors.nbytes
        for row in rows:
            self._kept.move_to_end(row)
        found = [self._kept[row] for row in rows]
        while self._kept_bytes > KEPT_BYTES and self._kept:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def _encode(self, texts: Sequence[str], task: str, error: PairTooLargeError) -> list[torch.Tensor]:
        if not texts:
            return []
        encode = self.model.encode_query if task == "query" else self.model.encode_document
        found: list[torch.Tensor] = self.halving(
            lambda: encode(list(texts), batch_size=self.batch_size, show_progress_bar=False), error
        )
        return found
