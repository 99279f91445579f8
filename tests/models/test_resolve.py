import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import COMMIT, lay_out_hub_cache

from src.core.errors import DiskFullError, ModelUnavailableError
from src.models import resolve
from src.models.resolve import EMBEDDED, ModelResolver, ResolvedModel

PROJECT = Path(__file__).resolve().parents[2]
NAME = "cross-encoder/ms-marco-MiniLM-L-12-v2"
ENCODER = "nobody/encoder"


class FakeHub:
    """A hub that holds one model, puts what a snapshot lacks of it there, and counts its downloads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, snapshot: Path, model: Path) -> None:
        self.sha = COMMIT
        self.siblings = [SimpleNamespace(rfilename=str(file.relative_to(model))) for file in model.rglob("*.*")]
        self.downloads = 0

        def download(name: str, **options: object) -> str:
            self.downloads += 1
            shutil.copytree(model, snapshot, dirs_exist_ok=True)
            return str(snapshot)

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda api, name, **_: self)
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)


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


def sharded(model: Path, folder: Path) -> Path:
    """A copy whose weights are two shards behind an index."""
    shutil.copytree(model, folder)
    (folder / "model.safetensors").unlink()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1], "c": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


def test_every_shard_of_an_index_must_be_there(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str]
) -> None:
    model = sharded(cross_encoder, tmp_path / "sharded")
    snapshot = lay_out_hub_cache(hub_cache, NAME, model)
    assert resolver(tmp_path).resolve(NAME, "cross-encoder").source == "local hub cache"
    assert not no_network
    for folder in (snapshot, model):
        (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelUnavailableError, match=r"as a whole \(no model-00002-of-00002\.safetensors\)"):
        resolver(tmp_path).resolve(NAME, "cross-encoder")
    with pytest.raises(ModelUnavailableError, match=r"sharded has no model-00002-of-00002\.safetensors\. Copy"):
        resolver(tmp_path).resolve("sharded", "cross-encoder")
    (model / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelUnavailableError, match="has a damaged index"):
        resolver(tmp_path).resolve("sharded", "cross-encoder")


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "qwen.tiktoken"])
def test_a_model_without_a_tokenizer_is_not_taken(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str], name: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(cross_encoder, model)
    (model / "tokenizer.json").unlink()
    snapshot = lay_out_hub_cache(hub_cache, NAME, model)
    with pytest.raises(ModelUnavailableError, match=r"as a whole \(no tokenizer: none of tokenizer\.json, vocab\.txt,"):
        resolver(tmp_path).resolve(NAME, "cross-encoder")
    with pytest.raises(ModelUnavailableError, match=r"model has no tokenizer: none of .*\. Copy the whole"):
        resolver(tmp_path).resolve("model", "cross-encoder")
    for folder in (snapshot, model):
        (folder / name).write_text("{}", encoding="utf-8")
    assert resolver(tmp_path).resolve(NAME, "cross-encoder").source == "local hub cache"
    assert resolver(tmp_path).resolve("model", "cross-encoder").source == "directory"


def test_the_tokenizer_of_a_bi_encoder_lies_beside_its_transformer(bi_encoder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(bi_encoder, model)
    modules = json.loads((model / "modules.json").read_text(encoding="utf-8"))
    assert modules[0]["type"].endswith(".Transformer")
    modules[0]["path"] = "0_Transformer"
    (model / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    with pytest.raises(ModelUnavailableError, match="has no tokenizer"):
        resolver(tmp_path).resolve("model", "bi-encoder")
    (model / "0_Transformer").mkdir()
    (model / "tokenizer.json").rename(model / "0_Transformer" / "tokenizer.json")
    assert resolver(tmp_path).resolve("model", "bi-encoder").directory == model


def with_dense(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules, dense]), encoding="utf-8")
    (folder / "3_Dense").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "3_Dense" / name).write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "3_Dense/model.safetensors"])
def test_a_bi_encoder_without_all_of_its_modules_is_not_taken(
    bi_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str], name: str
) -> None:
    snapshot = lay_out_hub_cache(hub_cache, ENCODER, with_dense(bi_encoder, tmp_path / "dense"))
    assert resolver(tmp_path).resolve(ENCODER, "bi-encoder").source == "local hub cache"
    assert not no_network
    (snapshot / name).unlink()
    with pytest.raises(ModelUnavailableError, match=rf"not in the local hub cache as a whole \(no {name}.*no route"):
        resolver(tmp_path).resolve(ENCODER, "bi-encoder")
    assert no_network == [ENCODER]


def bare_copy(model: Path, folder: Path) -> Path:
    """What transformers' AutoModel and AutoTokenizer fetch of a bi-encoder."""
    shutil.copytree(model, folder)
    (folder / "modules.json").unlink()
    shutil.rmtree(folder / "1_Pooling")
    return folder


def test_a_hub_completes_a_part_of_a_bi_encoder(
    bi_encoder: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str]
) -> None:
    part = lay_out_hub_cache(hub_cache, ENCODER, bare_copy(bi_encoder, tmp_path / "bare"))
    hub = FakeHub(monkeypatch, part, bi_encoder)
    for source in ("hub", "local hub cache"):
        found = resolver(tmp_path).resolve(ENCODER, "bi-encoder")
        assert (hub.downloads, found.source, found.assumed_pooling) == (1, source, None)
        assert found.fingerprint == f"{ENCODER}@{COMMIT}"


def test_a_bi_encoder_that_has_no_modules_on_the_hub(
    bi_encoder: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bare = bare_copy(bi_encoder, tmp_path / "bare")
    hub = FakeHub(monkeypatch, lay_out_hub_cache(hub_cache, ENCODER, bare), bare)
    for source in ("hub", "local hub cache"):  # the hub is asked once
        found = resolver(tmp_path).resolve(ENCODER, "bi-encoder")
        assert (hub.downloads, found.source, found.assumed_pooling) == (1, source, "mean")
        assert found.fingerprint == f"{ENCODER}@{COMMIT} without modules.json"
        assert found.warning is None
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert f"bi-encoder '{ENCODER}' has no modules.json: mean pooling is assumed" in warnings[0]
    assert 'set "pooling" in its entry of ENCODERS' in warnings[0]


def test_pooling_of_the_settings_stands_for_missing_modules(
    bi_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    lay_out_hub_cache(hub_cache, ENCODER, bare_copy(bi_encoder, tmp_path / "bare"))
    found = resolver(tmp_path).resolve(ENCODER, "bi-encoder", pooling="cls")
    assert (found.source, no_network, caplog.records) == ("local hub cache", [], [])


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, "mean"), ({"architectures": ["Qwen3ForCausalLM"]}, "lasttoken"),
     ({"architectures": ["LlamaForCausalLM"], "is_causal": False}, "mean")],
)  # fmt: skip
def test_assumed_pooling(bi_encoder: Path, tmp_path: Path, change: dict[str, object], expected: str) -> None:
    bare = bare_copy(bi_encoder, tmp_path / "bare")
    config = json.loads((bare / "config.json").read_text(encoding="utf-8"))
    (bare / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    assert resolver(tmp_path).resolve("bare", "bi-encoder").assumed_pooling == expected


def test_a_download_is_found_again_without_a_network(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = lay_out_hub_cache(hub_cache, NAME, cross_encoder)
    # The download of a commit leaves no ref behind.
    shutil.rmtree(snapshot.parents[1] / "refs")
    hub = FakeHub(monkeypatch, snapshot, cross_encoder)
    assert resolver(tmp_path).resolve(NAME, "cross-encoder").source == "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolver(tmp_path).resolve(NAME, "cross-encoder").source == "local hub cache"
    assert hub.downloads == 1


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

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda self, name, **_: Info())
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolver(tmp_path).resolve(NAME, "cross-encoder")
    assert (found.source, found.revision) == ("hub", COMMIT)
    assert calls[0]["revision"] == COMMIT
    assert {"*.json", "*.txt", "*.model", "*.tiktoken"} <= set(calls[0]["allow_patterns"])  # type: ignore[call-overload]


def test_a_full_disk_is_no_reason_for_another_model(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(monkeypatch, tmp_path / "snapshot", cross_encoder)
    hub.siblings = [
        SimpleNamespace(rfilename="model.safetensors", size=5000),
        SimpleNamespace(rfilename="x.onnx", size=9),
    ]

    def download(name: str, **options: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(DiskFullError, match=r"hub: the disk is full: 5,000 bytes are needed"):
        resolver(tmp_path, "embedded").resolve(NAME, "cross-encoder")


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


def test_code_of_another_repository(
    cross_encoder: Path, hub_cache: Path, tmp_path: Path, no_network: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(cross_encoder, model)
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoConfig": "other/code--impl.Config", "AutoModel": ["other/code--impl.Model", None]}
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lay_out_hub_cache(hub_cache, NAME, model)

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)

    def resolve_with(*allowed: str) -> ResolvedModel:
        return ModelResolver(tmp_path / "models", tmp_path, "fail", allowed).resolve(NAME, "cross-encoder")

    with pytest.raises(ModelUnavailableError, match=rf'ALLOW_REMOTE_CODE = \["{NAME}", "other/code"\]'):
        resolve_with(NAME)
    with pytest.raises(ModelUnavailableError, match=r"code of other/code, which .* \(ConnectionError: no route"):
        resolve_with(NAME, "other/code")
    code = tmp_path / "code"
    code.mkdir()
    (code / "impl.py").write_text("class Config: ...", encoding="utf-8")

    def download(name: str, **options: object) -> str:
        assert (name, options["allow_patterns"]) == ("other/code", ["*.py"])
        return str(lay_out_hub_cache(hub_cache, name, code))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolve_with(NAME, "other/code")
    assert found.fingerprint.endswith(f" code other/code@{COMMIT}")
