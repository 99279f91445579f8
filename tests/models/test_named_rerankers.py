"""Every reranker that users name, as a small random model of its kind in a hub cache under its own name.

Scores equal those of transformers, called by hand, and nothing is asked of a network.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, bert_tokenizer, lay_out_hub_cache, tiny_config, xlmr_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from src.engine.devices import CpuEngine
from src.engine.library_scorer import LibraryScorer
from src.engine.pair_scorer import CrossEncoderScorer, make_scorer
from src.models.resolve import ModelResolver

QUESTIONS = ["ставка по вкладу", "card"]
PASSAGES = ["Вклад под 15 % годовых.", "The card is free. " * 12, "Да"]
PAIRS = np.array([(q, p) for q in range(2) for p in range(3)], dtype=np.int32)
MAX_LENGTH = 80


def save_bert(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    BertForSequenceClassification(
        tiny_config(len(tokenizer), num_labels=1, initializer_range=0.3)  # type: ignore[arg-type]
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_xlmr(folder: Path, positions: int = 130) -> None:
    tokenizer = xlmr_tokenizer()
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), **TINY_SIZES | {"max_position_embeddings": positions}, pad_token_id=1,
        type_vocab_size=1, num_labels=1, initializer_range=0.3,
    )  # fmt: skip
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_long_xlmr(folder: Path) -> None:
    """8,192 positions and two more, as bge-reranker-v2-m3 has them."""
    save_xlmr(folder, 8194)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, with the marks of Qwen's chats and a template that knows nothing of pairs."""
    special = ["<|endoftext|>", "yes", "no", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", model_max_length=4096)
    fast.chat_template = '{% for m in messages %}{% if m.role == "user" %}{{ m.content }}{% endif %}{% endfor %}'
    return fast


def causal_sizes() -> dict[str, object]:
    sizes = {key: value for key, value in TINY_SIZES.items() if key != "max_position_embeddings"}
    return {**sizes, "num_key_value_heads": 2, "max_position_embeddings": 4096, "initializer_range": 0.3}


def save_qwen3(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), head_dim=16, **causal_sizes())).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_qwen2(folder: Path) -> None:
    tokenizer = byte_tokenizer()
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), **causal_sizes())).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


OWN_CODE = """
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

class OwnConfig(XLMRobertaConfig):
    model_type = "{kind}"

class OwnModel(XLMRobertaForSequenceClassification):
    config_class = OwnConfig
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = {factor} * output.logits
        return output
"""


def with_code(folder: Path, kind: str, place: str) -> None:
    save_xlmr(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["model_type"] = kind
    config["auto_map"] = {
        "AutoConfig": f"{place}.OwnConfig",
        "AutoModelForSequenceClassification": f"{place}.OwnModel",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def resolved(tmp_path: Path, hub_cache: Path, no_network: list[str]) -> Callable[..., Path]:
    """Save a model, put it into the hub cache under a name, and find it by that name alone."""

    def find(name: str, save: Callable[[Path], None], *allowed: str) -> Path:
        torch.manual_seed(len(name))
        folder = tmp_path / "model"
        save(folder)
        lay_out_hub_cache(hub_cache, name, folder)
        found = ModelResolver(tmp_path / "models", tmp_path, "fail", allowed).resolve(name, "cross-encoder")
        assert (found.used, found.source, no_network) == (name, "local hub cache", [])
        return found.directory

    return find


def scorer_of(directory: Path, engine: str, tmp_path: Path, remote_code: bool = False) -> CrossEncoderScorer:
    cpu = CpuEngine(engine, tmp_path / "openvino", 1)  # type: ignore[arg-type]
    return make_scorer(directory, "f", "cpu", 4, MAX_LENGTH, "exact", cpu, remote_code)  # type: ignore[return-value]


def scores_of(scorer: CrossEncoderScorer) -> np.ndarray:
    return scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)


def by_classifier(directory: Path, tokenizer: PreTrainedTokenizerFast, max_length: int = MAX_LENGTH) -> np.ndarray:
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    found = []
    for question, passage in PAIRS.tolist():
        encoded = tokenizer(
            QUESTIONS[question], PASSAGES[passage], truncation="only_second", max_length=max_length, return_tensors="pt"
        )
        with torch.inference_mode():
            found.append(float(model(**encoded).logits[0, 0]))
    return np.array(found)


@pytest.mark.parametrize(
    ("name", "save", "tokenizer", "engine"),
    [
        ("cross-encoder/ms-marco-MiniLM-L-6-v2", save_bert, bert_tokenizer, "openvino"),
        ("cross-encoder/ms-marco-MiniLM-L-12-v2", save_bert, bert_tokenizer, "torch"),
        ("DiTy/cross-encoder-russian-msmarco", save_bert, bert_tokenizer, "torch"),
        ("cross-encoder/mmarco-mMiniLMv2-L12-H384-v1", save_xlmr, xlmr_tokenizer, "torch"),
        ("BAAI/bge-reranker-base", save_xlmr, xlmr_tokenizer, "openvino"),
        ("BAAI/bge-reranker-large", save_xlmr, xlmr_tokenizer, "torch"),
        ("BAAI/bge-reranker-v2-m3", save_long_xlmr, xlmr_tokenizer, "openvino"),
    ],
)
def test_classifiers(
    resolved: Callable[..., Path],
    tmp_path: Path,
    engine: str,
    name: str,
    save: Callable[[Path], None],
    tokenizer: Callable[[], PreTrainedTokenizerFast],
) -> None:
    directory = resolved(name, save)
    scorer = scorer_of(directory, engine, tmp_path)
    assert isinstance(scorer, CrossEncoderScorer)
    found = scores_of(scorer)
    np.testing.assert_allclose(found, by_classifier(directory, tokenizer()), atol=1e-4)
    assert np.ptp(found) > 0.01


def test_jinas_code_lies_in_its_own_repository(resolved: Callable[..., Path], tmp_path: Path) -> None:
    name = "jinaai/jina-reranker-v2-base-multilingual"

    def save(folder: Path) -> None:
        with_code(folder, "jina-tiny", "modeling_own")
        (folder / "modeling_own.py").write_text(OWN_CODE.format(kind="jina-tiny", factor=2), encoding="utf-8")

    found = scores_of(scorer_of(resolved(name, save, name), "torch", tmp_path, remote_code=True))
    save_plain(tmp_path, len(name))
    # The library counts the text alone against the limit: four special tokens come on top.
    expected = 2 * by_classifier(tmp_path / "plain", xlmr_tokenizer(), MAX_LENGTH + 4)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_gtes_code_lies_in_another_repository(resolved: Callable[..., Path], tmp_path: Path, hub_cache: Path) -> None:
    name, code = "Alibaba-NLP/gte-multilingual-reranker-base", "Alibaba-NLP/new-impl"
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "modeling.py").write_text(OWN_CODE.format(kind="gte-tiny", factor=3), encoding="utf-8")
    lay_out_hub_cache(hub_cache, code, tmp_path / "code")
    directory = resolved(name, lambda folder: with_code(folder, "gte-tiny", f"{code}--modeling"), name, code)
    found = scores_of(scorer_of(directory, "torch", tmp_path, remote_code=True))
    save_plain(tmp_path, len(name))
    expected = 3 * by_classifier(tmp_path / "plain", xlmr_tokenizer(), MAX_LENGTH + 4)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def save_plain(tmp_path: Path, seed: int) -> None:
    """The same weights as a model of transformers' own."""
    torch.manual_seed(seed)
    save_xlmr(tmp_path / "plain")


QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {question}\n<Document>: {passage}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nquery: {question}\ndocument: {passage}\n"
    "You are a search relevance expert who evaluates how well documents match search queries. For each query-document "
    "pair, carefully analyze the semantic relationship between them, then provide your binary relevance judgment "
    "(0 for not relevant, 1 for relevant).\nRelevance:<|im_end|>\n<|im_start|>assistant\n"
)


@pytest.mark.parametrize(
    ("name", "save", "architecture", "prompt", "answers"),
    [
        ("Qwen/Qwen3-Reranker-0.6B", save_qwen3, Qwen3ForCausalLM, QWEN3, ("yes", "no")),
        ("mixedbread-ai/mxbai-rerank-base-v2", save_qwen2, Qwen2ForCausalLM, MXBAI, ("1", "0")),
    ],
)
def test_causal_models_without_a_template_for_pairs(
    resolved: Callable[..., Path],
    tmp_path: Path,
    name: str,
    save: Callable[[Path], None],
    architecture: type[Qwen2ForCausalLM],
    prompt: str,
    answers: tuple[str, str],
) -> None:
    directory = resolved(name, save)
    scorer = scorer_of(directory, "torch", tmp_path)
    assert isinstance(scorer, LibraryScorer)
    found = scores_of(scorer)
    tokenizer = byte_tokenizer()
    model = architecture.from_pretrained(directory, dtype=torch.float32).eval()
    true_token, false_token = tokenizer.convert_tokens_to_ids(list(answers))
    for score, (question, passage) in zip(found, PAIRS.tolist(), strict=True):
        # 80 tokens for both, a byte each: the passage is cut, the question never.
        room = MAX_LENGTH - len(QUESTIONS[question].encode())
        text = prompt.format(question=QUESTIONS[question], passage=PASSAGES[passage].encode()[:room].decode())
        with torch.inference_mode():
            logits = model(input_ids=tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
        assert score == pytest.approx(float(logits[true_token] - logits[false_token]), abs=1e-4)
    assert np.ptp(found) > 0.01
