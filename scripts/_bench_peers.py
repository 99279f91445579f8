"""Other people's rerankers on the same model and the same pairs; each is told as left out where it cannot run."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import BATCH_SIZE, Floats, Ranker, Work

HALF_LOOP = "loop, float16"  # on a card, which is many times faster in it
OPENVINO_BACKEND = "predict, OpenVINO backend"  # multiplies in bfloat16 wherever the CPU can, unasked
_ONNX_FILE = "model.onnx"


def peers(directory: Path, device: str, max_length: int, work: Work) -> tuple[dict[str, Ranker], dict[str, str]]:
    """Functions that score all pairs by name, and why a peer is left out.

    ``loop``, what the others are measured against, is one ``predict`` call per question, in float32.

    Args:
        device: torch device, one card; some peers run on a CPU alone.
        work: whose first pairs are tried.
    """
    model = _cross_encoder(directory, device, max_length)
    rankers: dict[str, Ranker] = {"loop": _loop(model), "predict": lambda some: _predict(model, some.texts())}
    missing: dict[str, str] = {}
    optional: dict[str, Callable[[], Ranker]] = {"rerankers": lambda: _rerankers(directory, device)}
    if device.startswith("cuda"):
        optional[HALF_LOOP] = lambda: _loop(_cross_encoder(directory, device, max_length, torch.float16))
    if device == "cpu":
        optional[OPENVINO_BACKEND] = lambda: _openvino_backend(directory, max_length)
        optional["FlashRank"] = lambda: _flashrank(directory, max_length)
        optional["fastembed"] = lambda: _fastembed(directory)
    few = Work(work.questions, work.passages, work.pairs[:2], 2)
    for name, make in optional.items():
        try:
            rankers[name] = make()
            rankers[name](few)
        except Exception as error:  # whatever stops an optional peer is told
            rankers.pop(name, None)
            missing[name] = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return rankers, missing


def _cross_encoder(directory: Path, device: str, max_length: int, dtype: torch.dtype = torch.float32) -> Any:
    from sentence_transformers import CrossEncoder

    return CrossEncoder(
        str(directory), device=device, max_length=max_length, local_files_only=True, model_kwargs={"dtype": dtype}
    )


def _loop(model: Any) -> Ranker:
    return _by_question(lambda question, passages: _predict(model, [(question, text) for text in passages]))


def _predict(model: Any, texts: list[tuple[str, str]]) -> Floats:
    found = model.predict(texts, batch_size=BATCH_SIZE, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    return np.asarray(found, dtype=np.float32)


def _by_question(score: Callable[[str, list[str]], Floats]) -> Ranker:
    """All pairs, one call per question."""

    def run(work: Work) -> Floats:
        texts, size = work.texts(), work.candidates
        parts = [texts[start : start + size] for start in range(0, len(texts), size)]
        return np.concatenate([score(part[0][0], [passage for _, passage in part]) for part in parts])

    return run


def _openvino_backend(directory: Path, max_length: int) -> Ranker:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(directory), backend="openvino", max_length=max_length, local_files_only=True)
    return lambda work: _predict(model, work.texts())


def _rerankers(directory: Path, device: str) -> Ranker:
    from rerankers import Reranker

    ranker = Reranker(str(directory), model_type="cross-encoder", device=device, batch_size=BATCH_SIZE, verbose=0)

    def score(question: str, passages: list[str]) -> Floats:
        ranked = ranker.rank(question, passages, doc_ids=list(range(len(passages))))
        scores = {int(result.document.doc_id): float(result.score) for result in ranked.results}
        return np.array([scores[place] for place in range(len(passages))], dtype=np.float32)

    return _by_question(score)


def _flashrank(directory: Path, max_length: int) -> Ranker:
    import flashrank
    import flashrank.Config

    folder = _exported(directory)
    flashrank.Config.model_file_map[folder.name] = _ONNX_FILE
    ranker = flashrank.Ranker(folder.name, str(folder.parent), max_length, "ERROR")

    def score(question: str, passages: list[str]) -> Floats:
        request = flashrank.RerankRequest(question, [{"id": i, "text": text} for i, text in enumerate(passages)])
        scores = {row["id"]: float(row["score"]) for row in ranker.rerank(request)}
        # It gives sigmoids; logits are what the others give.
        near = np.clip([scores[place] for place in range(len(passages))], 1e-7, 1 - 1e-7)
        logits: Floats = np.log(near / (1 - near)).astype(np.float32)
        return logits

    return _by_question(score)


def _fastembed(directory: Path) -> Ranker:
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    folder = _exported(directory)
    TextCrossEncoder.add_custom_model(
        model=folder.name, sources=ModelSource(hf=folder.name), model_file=_ONNX_FILE, size_in_gb=0.5
    )
    model = TextCrossEncoder(folder.name, specific_model_path=str(folder))
    return lambda work: np.array(list(model.rerank_pairs(work.texts(), batch_size=BATCH_SIZE)), dtype=np.float32)


@cache
def _temporary() -> "tempfile.TemporaryDirectory[str]":
    """Gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="bench-onnx-")


@cache
def _exported(directory: Path) -> Path:
    """A folder with the model as ONNX and the files of its tokenizer, made once per process."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(_temporary().name) / directory.name
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True).eval()
    tokenizer.save_pretrained(folder)
    model.config.save_pretrained(folder)
    special = folder / "special_tokens_map.json"
    if not special.is_file():
        special.write_text(json.dumps(tokenizer.special_tokens_map), encoding="utf-8")
    names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in tokenizer.model_input_names]
    sample = tokenizer([("a b", "c d e"), ("f", "g")], return_tensors="pt", padding=True)
    axes = {0: torch.export.Dim("pairs"), 1: torch.export.Dim("tokens")}

    class Logits(torch.nn.Module):
        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(**dict(zip(names, inputs, strict=True))).logits
            return logits

    torch.onnx.export(
        Logits(),
        tuple(sample[name] for name in names),
        str(folder / _ONNX_FILE),
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=(tuple(axes for _ in names),),
        external_data=False,
        verbose=False,
    )
    return folder
