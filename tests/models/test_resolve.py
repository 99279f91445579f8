import os
import shutil
from pathlib import Path

import pytest

from src.core.errors import ModelUnavailableError
from src.models import resolve
from src.models.resolve import EMBEDDED, ModelResolver, ResolvedModel

PROJECT = Path(__file__).resolve().parents[2]
NAME = "cross-encoder/ms-marco-MiniLM-L-12-v2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def lay_out_hub_cache(cache: Path, name: str, model: Path) -> Path:
    """A hub cache as huggingface_hub lays it out: blobs, a snapshot of links, a ref."""
    repository = cache / ("models--" + name.replace("/", "--"))
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        blob = repository / "blobs" / f"{number:040d}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
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


def resolver(root: Path, when: str = "fail") -> ModelResolver:
    return ModelResolver(PROJECT / "data" / "models", root, when)  # type: ignore[arg-type]


def test_a_directory_comes_first(cross_encoder: Path, hub_cache: Path, no_network: list[str]) -> None:
    found = resolver(cross_encoder.parent).resolve(cross_encoder.name, "cross-encoder")
    assert (found.source, found.directory) == ("directory", cross_encoder)
    assert found.warning is None
    assert not no_network


def test_a_directory_without_weights(cross_encoder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(cross_encoder, broken)
    (broken / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match="has no weights"):
        resolver(tmp_path).resolve("broken", "cross-encoder")
    (broken / "tokenizer_config.json").unlink()
    with pytest.raises(ModelUnavailableError, match=r"has no tokenizer_config\.json"):
        resolver(tmp_path).resolve(str(broken), "cross-encoder")


def test_a_path_that_is_not_there_is_never_looked_up(tmp_path: Path, no_network: list[str]) -> None:
    with pytest.raises(ModelUnavailableError, match="no directory"):
        resolver(tmp_path, "embedded").resolve("./models/mine", "cross-encoder")
    assert not no_network


def test_the_local_cache_needs_no_network(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str]
) -> None:
    snapshot = lay_out_hub_cache(hub_cache, NAME, cross_encoder)
    found = resolver(tmp_path).resolve(NAME, "cross-encoder")
    assert found == ResolvedModel(
        "cross-encoder", NAME, NAME, snapshot, "local hub cache", COMMIT, f"{NAME}@{COMMIT}", None
    )
    assert not no_network


def test_a_half_downloaded_model_is_not_taken(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str]
) -> None:
    snapshot = lay_out_hub_cache(hub_cache, NAME, cross_encoder)
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match=f"hf download {NAME}"):
        resolver(tmp_path).resolve(NAME, "cross-encoder")
    assert no_network == [NAME]


def test_offline_is_obeyed(
    hub_cache: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelUnavailableError, match="HF_HUB_OFFLINE is set"):
        resolver(tmp_path).resolve(NAME, "cross-encoder")
    assert not no_network


def test_a_download_is_pinned_to_the_revision_that_was_looked_up(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Info:
        sha = COMMIT
        siblings = ()

    calls: list[dict[str, object]] = []

    def download(name: str, **options: object) -> str:
        calls.append({"name": name, **options})
        return str(lay_out_hub_cache(hub_cache, NAME, cross_encoder))

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, timeout: Info())
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolver(tmp_path).resolve(NAME, "cross-encoder")
    assert (found.source, found.revision) == ("hub", COMMIT)
    assert calls[0]["revision"] == COMMIT


def test_the_stand_in_is_loud(
    hub_cache: Path, tmp_path: Path, no_network: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = resolver(tmp_path, "embedded").resolve(NAME, "cross-encoder")
    assert (found.requested, found.used, found.source) == (NAME, EMBEDDED["cross-encoder"], "embedded")
    assert found.warning is not None
    assert NAME in found.warning
    assert EMBEDDED["cross-encoder"] in found.warning
    assert [record.levelname for record in caplog.records if "stands in" in record.message] == ["WARNING"]
    assert found.record()["warning"] == found.warning
    assert str(PROJECT) not in str(found.record())


def test_embedded_names_are_picked_outright(tmp_path: Path, no_network: list[str]) -> None:
    found = resolver(tmp_path).resolve(EMBEDDED["bi-encoder"], "bi-encoder")
    assert (found.source, found.warning) == ("embedded", None)
    assert not no_network


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("embedded:e5-smal-reranker", "there is 'embedded:e5-small-reranker'"),
        (EMBEDDED["bi-encoder"], "is the embedded bi-encoder"),
    ],
)
def test_unknown_embedded_names(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(ModelUnavailableError, match=complaint):
        resolver(tmp_path).resolve(name, "cross-encoder")


WEIGHTS_BYTES = 5 << 20


@pytest.fixture
def whole_model(bi_encoder: Path, tmp_path: Path) -> Path:
    """A model directory with every kind of file, and weights of 5 MiB in a shard."""
    folder = tmp_path / "whole"
    shutil.copytree(bi_encoder, folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text('{"in_features": 32, "out_features": 8}')
    (folder / "2_Dense" / "model.safetensors").write_bytes(bytes(64))
    (folder / "model-00001-of-00002.safetensors").write_bytes(bytes(WEIGHTS_BYTES))
    for name in ("sentence_bert_config.json", "vocab.txt", "spiece.model", "modeling_own.py", "chat_template.jinja"):
        (folder / name).write_text("0")
    (folder / "onnx").mkdir()
    (folder / ".cache").mkdir()
    for name in ("README.md", "onnx/config.json", ".cache/download.json", "manifest.json", "pytorch_model.bin"):
        (folder / name).write_text("0")
    return folder


def altered(model: Path, name: str, place: int) -> Path:
    """A copy that differs in one byte of one file."""
    copy = model.parent / "altered"
    shutil.copytree(model, copy)
    data = bytearray((copy / name).read_bytes())
    data[place] ^= 1
    (copy / name).write_bytes(bytes(data))
    return copy


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("config.json", 0),
        ("modules.json", 0),
        ("1_Pooling/config.json", -1),
        ("2_Dense/config.json", -3),
        ("2_Dense/model.safetensors", 32),
        ("sentence_bert_config.json", 0),
        ("config_sentence_transformers.json", 0),
        ("tokenizer.json", 100),
        ("tokenizer_config.json", 0),
        ("vocab.txt", 0),
        ("spiece.model", 0),
        ("modeling_own.py", 0),
        ("chat_template.jinja", 0),
        ("model.safetensors", -1),
        ("model-00001-of-00002.safetensors", WEIGHTS_BYTES // 2),
    ],
)
def test_fingerprint_follows_every_file_that_shapes_the_model(whole_model: Path, name: str, place: int) -> None:
    assert resolve._content(altered(whole_model, name, place)) != resolve._content(whole_model)


@pytest.mark.parametrize(
    "name", ["README.md", "onnx/config.json", ".cache/download.json", "manifest.json", "pytorch_model.bin"]
)
def test_fingerprint_leaves_out_what_no_loader_reads(whole_model: Path, name: str) -> None:
    assert resolve._content(altered(whole_model, name, 0)) == resolve._content(whole_model)


def test_fingerprint_follows_the_name_of_a_file(whole_model: Path) -> None:
    before = resolve._content(whole_model)
    (whole_model / "2_Dense").rename(whole_model / "3_Dense")
    assert resolve._content(whole_model) != before


def test_fingerprint_reads_through_links_and_ends_at_a_link_back(whole_model: Path, tmp_path: Path) -> None:
    before = resolve._content(whole_model)
    (whole_model / "2_Dense").rename(tmp_path / "elsewhere")
    (whole_model / "2_Dense").symlink_to(tmp_path / "elsewhere")
    (whole_model / "self").symlink_to(whole_model)
    assert resolve._content(whole_model) == before


def test_a_file_is_hashed_once_per_process(whole_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve._content(whole_model)
    read: list[str] = []
    monkeypatch.setattr(resolve, "file_sha256", lambda path: read.append(path.name) or "0")
    resolve._content(whole_model)
    assert read == []
    os.utime(whole_model / "vocab.txt", ns=(1, 1))
    resolve._content(whole_model)
    assert read == ["vocab.txt"]


def test_code_of_its_own_runs_only_by_name(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(cross_encoder, model)
    config = model / "config.json"
    text = config.read_text(encoding="utf-8")
    config.write_text(text.replace("{", '{"auto_map": {"AutoConfig": "a.B"},', 1), encoding="utf-8")
    name = "jinaai/jina-reranker-v2-base-multilingual"
    lay_out_hub_cache(hub_cache, name, model)
    # Even where another model may stand in: this one is there, and only the user can decide.
    for allowed in (False, ["someone/else"]):
        chooser = ModelResolver(PROJECT / "data" / "models", tmp_path, "embedded", allowed)
        with pytest.raises(ModelUnavailableError, match=rf'ALLOW_REMOTE_CODE = \["{name}"\]'):
            chooser.resolve(name, "cross-encoder")
    for allowed in (True, [name]):
        found = ModelResolver(PROJECT / "data" / "models", tmp_path, "embedded", allowed).resolve(name, "cross-encoder")
        assert found.remote_code
        assert found.source == "local hub cache"
    assert not no_network
