"""Rerankers off the fast path: scores equal those of transformers, called by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_SIZES, bert_tokenizer, lay_out_hub_cache, save_cross_encoder, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from src.core.errors import UserError
from src.engine.devices import CpuEngine
from src.engine.library_scorer import LibraryScorer
from src.engine.memory_limit import PairTooLargeError
from src.engine.pair_scorer import CrossEncoderScorer, PairScorer, make_scorer, needs_library
from src.models.resolve import ModelResolver

QUESTIONS = ["ставка по вкладу", "card"]
PASSAGES = ["Вклад под 15 % годовых.", "The card is free. " * 30, "Да"]
PAIRS = np.array([(q, p) for q in range(2) for p in range(3)], dtype=np.int32)

PAIR_TEMPLATE = (
    '{% for m in messages %}{% if m.role == "query" %}<q>{{ m.content }}{% endif %}'
    '{% if m.role == "document" %}<d>{{ m.content }}{% endif %}{% endfor %}<a>'
)
CHAT_TEMPLATE = '{% for m in messages %}{% if m.role == "user" %}{{ m.content }}{% endif %}{% endfor %}'


def scorer_of(folder: Path, max_length: int = 64, remote_code: bool = False) -> PairScorer:
    cpu = CpuEngine("torch", Path("unused"), 1)
    return make_scorer(folder, "f", "cpu", 2, max_length, "exact", cpu, remote_code)


def scores_of(scorer: PairScorer) -> np.ndarray:
    return scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)


def causal_tokenizer(template: str) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<q>", "<d>", "<a>", "yes", "no", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", model_max_length=1024)
    fast.chat_template = template
    return fast


def save_causal(folder: Path, template: str, with_modules: bool = True) -> Path:
    torch.manual_seed(5)
    tokenizer = causal_tokenizer(template)
    sizes = {key: value for key, value in TINY_SIZES.items() if key != "max_position_embeddings"}
    config = Qwen3Config(
        vocab_size=len(tokenizer), **sizes, num_key_value_heads=2, head_dim=16, max_position_embeddings=1024,
        initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if with_modules:
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.cross_encoder.modules import LogitScore

        transformer = Transformer(str(folder), transformer_task="text-generation")
        model = CrossEncoder(modules=[transformer, LogitScore(true_token_id=4, false_token_id=5)])
        model.save(str(folder), create_model_card=False)
    return folder


def by_hand(folder: Path, question: str, passage: str) -> float:
    """Log-odds of yes against no after the rendered pair."""
    tokenizer = causal_tokenizer(PAIR_TEMPLATE)
    model = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(f"<q>{question}<d>{passage}<a>", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0, -1]
    return float(logits[4] - logits[5])


def test_a_causal_model_scores_yes_against_no(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "causal", PAIR_TEMPLATE)
    assert needs_library(folder) == "a model of several modules"
    scorer = scorer_of(folder, max_length=80)
    assert isinstance(scorer, LibraryScorer)
    found = scores_of(scorer)
    # 80 tokens for both, a byte each: the long passage is cut, the question never.
    cut = {(q, p): PASSAGES[p].encode()[: 80 - len(QUESTIONS[q].encode())].decode() for q, p in PAIRS.tolist()}
    expected = [by_hand(folder, QUESTIONS[q], cut[q, p]) for q, p in PAIRS.tolist()]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found) > 0.01


def test_a_causal_model_without_a_template_for_pairs(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "chat", CHAT_TEMPLATE, with_modules=False)
    assert needs_library(folder) == "a causal language model"
    with pytest.raises(UserError, match=r"does not say how a pair is put to it.*modules\.json"):
        scorer_of(folder).load()


def test_a_long_question_may_use_the_models_own_limit(tmp_path: Path) -> None:
    folder = save_causal(tmp_path / "model", PAIR_TEMPLATE)
    short, long = scorer_of(folder, max_length=64), scorer_of(folder, max_length=768)
    assert short.longest_question == long.longest_question == 1024 - 256 - 1
    questions, passages = ["card " * 20, "card"], ["free " * 10]  # a token a byte: 100, 4 and 50
    pairs = np.array([(0, 0), (1, 0)], dtype=np.int32)
    found, whole = (
        scorer.score(scorer.tokenize(questions), scorer.tokenize(passages), pairs) for scorer in (short, long)
    )
    np.testing.assert_allclose(found, whole, atol=1e-6)
    tables = short.tokenize(questions), short.tokenize(passages)
    assert short.pair_lengths(*tables, pairs).tolist() == [150, 54]
    assert short.characters_read(questions[0], passages[0]) == 50
    assert short.characters_read("card", "free " * 20) == 60


def reference(model: Any, question: str, passage: str, max_length: int) -> torch.Tensor:
    tokenizer = bert_tokenizer()
    encoded = tokenizer(
        question, passage, truncation="only_second", max_length=max_length, return_tensors="pt"
    )  # fmt: skip
    with torch.inference_mode():
        return model(**encoded).logits[0]


def test_two_outputs_are_one_score(
    two_logit_model: Path, tmp_path: Path, hub_cache: Path, no_network: list[str]
) -> None:
    name = "nobody/two-outputs"
    lay_out_hub_cache(hub_cache, name, two_logit_model)
    directory = ModelResolver(tmp_path / "models", tmp_path, "fail").resolve(name, "cross-encoder").directory
    assert not no_network
    assert needs_library(directory) == "a classifier with two outputs"
    scorer = scorer_of(directory)
    found = scores_of(scorer)
    model = AutoModelForSequenceClassification.from_pretrained(two_logit_model).eval()
    # 64 tokens of text and 3 special ones.
    expected = [reference(model, QUESTIONS[q], PASSAGES[p], 67) for q, p in PAIRS.tolist()]
    np.testing.assert_allclose(found, [float(e[1] - e[0]) for e in expected], atol=1e-4)


def test_memory_that_runs_out(
    two_logit_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole = scores_of(scorer_of(two_logit_model))
    scorer = scorer_of(two_logit_model)
    assert isinstance(scorer, LibraryScorer)
    scorer.load()
    predict, most = scorer.model.predict, 1

    def failing(texts: list[tuple[str, str]], batch_size: int, **options: object) -> object:
        if batch_size > most:
            raise MemoryError("out of memory")
        return predict(texts, batch_size=batch_size, **options)

    monkeypatch.setattr(scorer.model, "predict", failing)
    np.testing.assert_allclose(scores_of(scorer), whole, atol=1e-5)
    assert "ran out of memory on cpu: 1 at a time from now on" in caplog.text
    most = 0
    with pytest.raises(PairTooLargeError) as error:
        scores_of(scorer)
    assert (error.value.question, error.value.passage) == (0, 1)


def test_three_outputs_are_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 3 outputs"):
        scorer_of(save_cross_encoder(tmp_path / "three", labels=3))


def test_a_bi_encoder_is_no_reranker(bi_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a bi-encoder .*score at random"):
        scorer_of(bi_encoder)
    # A bare model that claims to be a classifier.
    tokenizer = bert_tokenizer()
    BertModel(tiny_config(len(tokenizer)), add_pooling_layer=False).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config.update(architectures=["BertForSequenceClassification"], id2label={"0": "x"}, label2id={"x": 0})
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"no weights for .*score at random"):
        scorer_of(tmp_path).load()


def test_plain_cross_encoders_stay_on_the_fast_path(cross_encoder: Path, xlmr_cross_encoder: Path) -> None:
    for folder in (cross_encoder, xlmr_cross_encoder):
        assert needs_library(folder) is None
        assert isinstance(scorer_of(folder), CrossEncoderScorer)
