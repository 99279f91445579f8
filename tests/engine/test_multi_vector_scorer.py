"""Late-interaction rerankers: scores equal MaxSim computed by hand from transformers' own vectors."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import bert_tokenizer, lay_out_hub_cache, tiny_config
from safetensors.torch import load_file, save_file
from transformers import BertModel, PreTrainedTokenizerFast

from src.core.errors import UserError
from src.engine import multi_vector_scorer
from src.engine.devices import CpuEngine
from src.engine.memory_limit import PairTooLargeError
from src.engine.multi_vector_scorer import MultiVectorScorer, is_multi_vector
from src.engine.pair_scorer import make_scorer
from src.models.resolve import ModelResolver

LONG = "ставка по вкладу " * 6
QUESTIONS = ["ставка по вкладу", "card", LONG]
PASSAGES = ["Вклад под 15 % годовых.", "The card is free. " * 30, "Да, можно!", "..."]
PAIRS = np.array([(q, p) for q in range(3) for p in range(4)], dtype=np.int32)
QUERY_TOKENS, DOCUMENT_TOKENS, SIZE = 12, 20, 16


def colbert_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = bert_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]", "additional_special_tokens": ["[Q]", "[D]"]})
    return tokenizer


def tiny_bert() -> tuple[BertModel, torch.Tensor]:
    torch.manual_seed(3)
    model = BertModel(tiny_config(len(colbert_tokenizer())), add_pooling_layer=False).eval()
    return model, torch.randn(SIZE, model.config.hidden_size)


@pytest.fixture
def stanford(tmp_path: Path) -> Path:
    """Files as colbert-ir/colbertv2.0 has them."""
    folder = tmp_path / "colbert"
    model, projection = tiny_bert()
    model.save_pretrained(folder)
    weights = {f"bert.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file({**weights, "linear.weight": projection}, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}), encoding="utf-8")
    colbert_tokenizer().save_pretrained(folder)
    metadata = {
        "query_maxlen": QUERY_TOKENS, "doc_maxlen": DOCUMENT_TOKENS, "query_token_id": "[Q]", "doc_token_id": "[D]",
        "attend_to_mask_tokens": False, "mask_punctuation": True,
    }  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(metadata), encoding="utf-8")
    return folder


def scorer_of(folder: Path) -> MultiVectorScorer:
    scorer = make_scorer(folder, "f", "cpu", 2, 64, "exact", CpuEngine("torch", Path("unused"), 1))
    assert isinstance(scorer, MultiVectorScorer)
    return scorer


def vectors_by_hand(text: str, query: bool) -> torch.Tensor:
    model, projection = tiny_bert()
    tokenizer = colbert_tokenizer()
    mark = "[Q] " if query else "[D] "
    whole = tokenizer(mark + text)["input_ids"]
    ids = whole if query or len(whole) <= DOCUMENT_TOKENS else [*whole[: DOCUMENT_TOKENS - 1], whole[-1]]
    attended = len(ids)
    if query and len(ids) < QUERY_TOKENS:
        ids = ids + [tokenizer.mask_token_id] * (QUERY_TOKENS - len(ids))
    mask = [1] * attended + [0] * (len(ids) - attended)
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), attention_mask=torch.tensor([mask])).last_hidden_state[0]
    vectors = torch.nn.functional.normalize(states @ projection.T, dim=1)
    skipped = set() if query else set(tokenizer.convert_tokens_to_ids(list(string.punctuation)))
    skipped -= {tokenizer.unk_token_id}
    return vectors[[i for i, token in enumerate(ids) if token not in skipped]]


def test_maxsim_by_hand(stanford: Path, tmp_path: Path, hub_cache: Path, no_network: list[str]) -> None:
    name = "colbert-ir/colbertv2.0"
    lay_out_hub_cache(hub_cache, name, stanford)
    directory = ModelResolver(tmp_path / "models", tmp_path, "fail").resolve(name, "cross-encoder").directory
    assert not no_network
    assert is_multi_vector(directory)
    scorer = scorer_of(directory)
    found = scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)
    expected = [
        float((vectors_by_hand(QUESTIONS[q], True) @ vectors_by_hand(PASSAGES[p], False).T).max(dim=1).values.sum())
        for q, p in PAIRS.tolist()
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.ptp(found) > 0.1


def test_a_passage_is_encoded_once(stanford: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of(stanford)
    questions, passages = scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES)
    whole = scorer.score(questions, passages, PAIRS)
    encoded: list[str] = []
    encode = scorer.model.encode_document

    def counting(texts: list[str], **options: object) -> object:
        encoded.extend(texts)
        return encode(texts, **options)

    monkeypatch.setattr(scorer.model, "encode_document", counting)
    parts = [scorer.score(questions, passages, PAIRS[rows : rows + 4]) for rows in (0, 4, 8)]
    assert encoded == []
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)
    # Room for the last two: they stay, the others are encoded again.
    last = sum(vectors.nbytes for vectors in list(scorer._kept.values())[-2:])
    monkeypatch.setattr(multi_vector_scorer, "KEPT_BYTES", last)
    tight = [scorer.score(questions, passages, PAIRS[rows : rows + 4]) for rows in (0, 4, 8)]
    assert len(encoded) == 4
    assert list(scorer._kept) == [2, 3]
    np.testing.assert_allclose(np.concatenate(tight), whole, atol=1e-5)


def test_a_list_of_modules_beside_stanfords_format(stanford: Path) -> None:
    scorer = scorer_of(stanford)
    whole = scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (stanford / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    scorer = scorer_of(stanford)
    found = scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)
    np.testing.assert_allclose(found, whole, atol=1e-6)


def test_files_of_sentence_transformers_and_pylate(stanford: Path, tmp_path: Path) -> None:
    scorer = scorer_of(stanford)
    whole = scorer.score(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS)
    folder = tmp_path / "native"
    scorer.model.save(str(folder), create_model_card=False)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}), encoding="utf-8")
    native = scorer_of(folder)
    found = native.score(native.tokenize(QUESTIONS), native.tokenize(PASSAGES), PAIRS)
    np.testing.assert_allclose(found, whole, atol=1e-4)
    # What lacks a module that the scores need is refused, whoever saved it.
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kept = [module for module in modules if not module["type"].endswith(("Mask", "Normalize"))]
    (folder / "modules.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(UserError, match="names no MultiVectorMask and no Normalize: its scores would mean nothing"):
        scorer_of(folder).load()
    library = json.loads((folder / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    del library["model_type"]
    for marker in ({"similarity_fn_name": "MaxSim"}, {"query_prefix": "[Q] "}):
        old = {name: value for name, value in library.items() if name != "similarity_fn_name"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps({**old, **marker}), encoding="utf-8")
        assert is_multi_vector(folder)
    (folder / "config_sentence_transformers.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="has a Dense module"):
        make_scorer(folder, "f", "cpu", 2, 64, "exact", CpuEngine("torch", Path("unused"), 1))


def test_a_question_that_the_model_cannot_read_whole(stanford: Path) -> None:
    scorer = scorer_of(stanford)
    asked = ["ставка по вкладу " * 20]
    assert scorer.longest_question == 128 - 3
    with pytest.raises(UserError, match=r"has 283 tokens; .* reads at most 128"):
        scorer.score(scorer.tokenize(asked), scorer.tokenize(PASSAGES), PAIRS[:1])


def test_what_is_read(stanford: Path) -> None:
    scorer = scorer_of(stanford)
    read = PASSAGES[1][: scorer.characters_read("card", PASSAGES[1])]
    assert (
        len(bert_tokenizer()(read, add_special_tokens=False)["input_ids"]) == DOCUMENT_TOKENS - 3
    )  # [CLS], [D] and [SEP]
    assert scorer.characters_read("card", PASSAGES[2]) == len(PASSAGES[2])
    assert not scorer.joint
    assert scorer.pair_lengths(scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES), PAIRS).tolist() == [1] * 12


def test_memory_that_runs_out(
    stanford: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scorer = scorer_of(stanford)
    questions, passages = scorer.tokenize(QUESTIONS), scorer.tokenize(PASSAGES)
    whole = scorer.score(questions, passages, PAIRS)
    other = scorer_of(stanford)
    other.load()
    encode = other.model.encode_document

    def failing(texts: list[str], batch_size: int, **options: object) -> object:
        if batch_size > 1:
            raise MemoryError("out of memory")
        return encode(texts, batch_size=batch_size, **options)

    monkeypatch.setattr(other.model, "encode_document", failing)
    np.testing.assert_allclose(other.score(questions, passages, PAIRS), whole, atol=1e-5)
    assert "ran out of memory on cpu: 1 at a time from now on" in caplog.text

    def hopeless(texts: list[str], **options: object) -> object:
        raise MemoryError("out of memory")

    monkeypatch.setattr(other.model, "encode_document", hopeless)
    with pytest.raises(PairTooLargeError) as error:
        other.score(questions, other.tokenize(PASSAGES), PAIRS)
    assert (error.value.question, error.value.passage) == (0, 1)
