"""Fixtures: tiny models made on the spot, and small corpora on disk. Nothing is downloaded."""

import gc
import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraForSequenceClassification,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from config import Settings, load_settings

# How long an example takes says more of the machine's load than of the code.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "scripts"))


def pytest_collection_finish() -> None:
    """What is imported by now is never looked through for garbage again, which every script does several times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts draw no pictures, which take most of a small run's time; the report has tests of its own."""
    if request.path.parent.name == "scripts" and request.path.name != "test_explain_script.py":
        monkeypatch.setattr("src.insight.report_plots._data_uri", lambda figure: "data:,")


ALPHABET = "abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрстуфхцчшщъыьэюя0123456789.,?!-%"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over single letters, joined as BERT joins pairs: [CLS] A [SEP] B [SEP], types 0 and 1."""
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *ALPHABET, *(f"##{c}" for c in ALPHABET)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def xlmr_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram over single letters, joined as XLM-R joins pairs: <s> A </s></s> B </s>, no types."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(c, -3.0) for c in ALPHABET]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_input_names=["input_ids", "attention_mask"],
    )


TINY_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}


def tiny_config(vocabulary: int, **changes: int) -> BertConfig:
    return BertConfig(vocab_size=vocabulary, **TINY_SIZES, **changes)


def save_cross_encoder(folder: Path, labels: int = 1) -> Path:
    torch.manual_seed(7)
    tokenizer = bert_tokenizer()
    model = BertForSequenceClassification(tiny_config(len(tokenizer), num_labels=labels))
    with torch.no_grad():
        model.classifier.weight.mul_(50)  # spread the scores of an untrained model
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "cross-encoder")


@pytest.fixture(scope="session")
def xlmr_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp("models") / "xlmr-cross-encoder"
    tokenizer = xlmr_tokenizer()
    # RoBERTa's positions begin at 2.
    sizes = TINY_SIZES | {"max_position_embeddings": 130}
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), **sizes, pad_token_id=1, type_vocab_size=1, num_labels=1, initializer_range=0.3
    )
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def electra_cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture without a forward pass of our own."""
    torch.manual_seed(9)
    folder = tmp_path_factory.mktemp("models") / "electra-cross-encoder"
    tokenizer = bert_tokenizer()
    config = ElectraConfig(
        vocab_size=len(tokenizer), **TINY_SIZES, embedding_size=16, num_labels=1, initializer_range=0.3
    )
    ElectraForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def two_logit_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cross_encoder(tmp_path_factory.mktemp("models") / "two-logits", labels=2)


def save_bi_encoder(folder: Path, bare: Path) -> Path:
    """A sentence-transformers model in ``folder``; ``bare`` takes the model inside it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    torch.manual_seed(3)
    tokenizer = bert_tokenizer()
    BertModel(tiny_config(len(tokenizer)), add_pooling_layer=False).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    modules = [Transformer(str(bare), max_seq_length=128), Pooling(32, pooling_mode="mean"), Normalize()]
    model = SentenceTransformer(modules=modules, prompts={"query": "q: ", "document": "d: "}, device="cpu")
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def bi_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bi_encoder(tmp_path_factory.mktemp("models") / "bi-encoder", tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def narrowing_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bi-encoder with 16 dimensions per token and, after a dense layer, 8 per text."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(4)
    folder, bare = (tmp_path_factory.mktemp(name) for name in ("narrowing", "bare"))
    tokenizer = bert_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), **(TINY_SIZES | {"hidden_size": 16}))
    BertModel(config, add_pooling_layer=False).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    modules = [Transformer(str(bare), max_seq_length=128), Pooling(16), Dense(16, 8), Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    return folder


PAGES = {
    "10": ("Дебетовая карта", "Обслуживание карты бесплатно. Снятие наличных без комиссии до 100 000 рублей в месяц."),
    "9": ("Кредитная карта", "Льготный период 120 дней. Снятие наличных с кредитной карты стоит 3 % и 390 рублей."),
    "11": ("Вклад", "Ставка по вкладу 15 % годовых. Проценты выплачиваются в конце срока. Пополнять вклад нельзя."),
    "12": ("Ипотека", "Первый взнос от 20 %. Срок кредита до 30 лет. Можно использовать материнский капитал."),
    "13": ("", "Отделение в Казани работает с 9 до 19 часов. В субботу до 16 часов."),
    "14": ("Перевод по номеру телефона", "Переводы через СБП без комиссии до 100 000 рублей в месяц."),
    "15": ("Premium", "Free airport lounges and a personal manager for premium customers."),
}
QUESTIONS = {
    "q1": "сколько стоит снять наличку с кредитки",
    "q2": "какая ставка по вкладу",
    "q3": "до скольки работает отделение в казани",
    "q4": "airport lounge",
}
LABELS = {"q1": ["9"], "q2": ["11"], "q3": ["13"], "q4": ["15"]}


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lay_out_hub_cache(cache: Path, name: str, model: Path) -> Path:
    """A hub cache as huggingface_hub lays it out: blobs, a snapshot of links, a ref."""
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in model.rglob("*") if path.is_file())):
        blob = repository / "blobs" / f"{number:040d}"
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(blob)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Any look at the hub is recorded and fails at once."""
    asked: list[str] = []

    def refuse(self: object, name: str, **_: object) -> None:
        asked.append(name)
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    return asked


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(cache))
    return cache


def write_csv(path: Path, header: str, rows: list[str], encoding: str = "utf-8", newline: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((newline.join([header, *rows]) + newline).encode(encoding))
    return path


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A data folder with seven pages, four questions and labels in raw/."""
    raw = tmp_path / "bank" / "raw"
    pages = [f'{i},https://b.example/{i},faq,"{title}","{text}"' for i, (title, text) in PAGES.items()]
    write_csv(raw / "websites_updated.csv", "web_id,url,kind,title,text", pages)
    write_csv(raw / "questions_clean.csv", "q_id,query", [f'{q},"{text}"' for q, text in QUESTIONS.items()])
    write_csv(raw / "qrels.csv", "q_id,web_id", [f"{q},{doc}" for q, docs in LABELS.items() for doc in docs])
    return raw.parent


@pytest.fixture
def settings(bi_encoder: Path, cross_encoder: Path) -> Settings:
    """The project's settings with tiny models in place of the real ones."""
    values = load_settings().model_dump()
    values["encoders"] = [
        {"model": str(bi_encoder), "unit": "document", "weight": 1.0},
        {"model": str(bi_encoder), "unit": "chunk", "weight": 1.0},
    ]
    values.update(
        cross_encoder_model=str(cross_encoder),
        cross_encoder_model_multilingual=None,
        reranker_candidate_k=5,
        top_k=3,
        encoder_max_tokens=128,
        reranker_max_length=128,
        cpu_engine="torch",  # conversions would stay in the project's own data/models
        device="cpu",
    )
    return Settings(**values)


def load_script(name: str) -> ModuleType:
    """A numbered script as a module (its name is no identifier)."""
    path = PROJECT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"script_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
