"""What each constant of ``config/settings.py`` may be, and a loader that refuses anything else."""

import difflib
import math
import runpy
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from config.presets import PRESETS, effective
from src.core.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parent.parent
SETTINGS_FILE = PROJECT_ROOT / "config" / "settings.py"

Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0.0)]
Name = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class EncoderSettings(_Strict):
    """One entry of ``ENCODERS``."""

    model: Name
    unit: Literal["document", "chunk"]
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    query_prefix: str | None = None
    document_prefix: str | None = None
    pooling: Literal["mean", "cls", "max", "lasttoken", "weightedmean"] | None = None


class RerankerSettings(_Strict):
    """One entry of ``RERANKERS``."""

    model: Name
    weight: Annotated[float, Field(gt=0.0)] = 1.0


class CorpusColumns(_Strict):
    """Column names of the corpus file."""

    id: Name
    title: Name
    text: Name


class QuestionsColumns(_Strict):
    """Column names of the questions file."""

    id: Name
    query: Name


class LabelsColumns(_Strict):
    """Column names of the labels file."""

    query_id: Name
    doc_id: Name


_PARTS: dict[str, type[_Strict]] = {
    "encoders": EncoderSettings,
    "rerankers": RerankerSettings,
    "corpus_columns": CorpusColumns,
    "questions_columns": QuestionsColumns,
    "labels_columns": LabelsColumns,
}


class Settings(_Strict):
    """All settings; each field is the constant of the same name in ``config/settings.py``, in lower case."""

    search_preset: Literal["embedded", "winning", "fast"]
    preset_overrides: dict[str, Any]
    enable_cross_encoder_reranking: bool
    cross_encoder_model: Name
    reranker_candidate_k: Positive
    reranker_batch_size: Positive
    top_k: Positive
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    cpu_threads: Annotated[int, Field(ge=0)]
    cross_encoder_model_multilingual: Name | None
    rerankers: list[RerankerSettings]
    allow_remote_code: bool | list[Name]
    when_model_unavailable: Literal["embedded", "fail"]
    encoders: list[EncoderSettings]
    encoder_batch_size: Positive
    encoder_max_tokens: Annotated[int, Field(ge=16)]
    enable_chunks: bool
    chunk_unit: Literal["tokens", "characters"]
    chunk_tokens: Annotated[int, Field(ge=16)]
    chunk_overlap_tokens: Annotated[int, Field(ge=0)]
    chunk_characters: Annotated[int, Field(ge=50)]
    chunk_overlap_characters: Annotated[int, Field(ge=0)]
    chunk_min_characters: Annotated[int, Field(ge=0)]
    bm25_backend: Literal["bm25s", "rank_bm25"]
    bm25_k1: Annotated[float, Field(gt=0.0)]
    bm25_b: Annotated[float, Field(ge=0.0, le=1.0)]
    bm25_document_weight: Weight
    bm25_chunk_weight: Weight
    fusion_method: Literal["convex", "rrf"]
    rrf_k: Positive
    search_depth_documents: Positive
    search_depth_bm25: Positive
    search_depth_chunks: Positive
    reranker_precision: Literal["auto", "exact", "fast", "int8"]
    cpu_engine: Literal["auto", "openvino", "torch"]
    reranker_blend_weight: Annotated[float, Field(ge=0.0, le=1.0)]
    reranker_passages_per_document: Positive
    reranker_passage_choice: Literal["best", "first"]
    query_variants: Name | None
    query_variant_weight: Annotated[float, Field(gt=0.0)]
    reranker_query: Literal["original", "max", "mean"]
    llm_url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")]
    llm_model: Name | None
    llm_concurrency: Positive
    llm_timeout_seconds: Annotated[float, Field(gt=0)]
    late_interaction_weight: Annotated[float, Field(ge=0.0, le=1.0)]
    late_interaction_gb: Annotated[float, Field(gt=0)]
    reranker_max_length: Annotated[int, Field(ge=32)]
    corpus_file: Name
    questions_file: Name
    labels_file: Name
    corpus_columns: CorpusColumns
    questions_columns: QuestionsColumns
    labels_columns: LabelsColumns
    data_dir: Name
    output_file: Name

    @field_validator("encoders")
    @classmethod
    def _distinct_encoders(cls, encoders: list[EncoderSettings]) -> list[EncoderSettings]:
        keys = [(e.model, e.unit, e.query_prefix, e.document_prefix, e.pooling) for e in encoders]
        if len(set(keys)) != len(keys):
            raise ValueError("the same model, unit, prefixes and pooling stand twice in the list")
        return encoders

    @field_validator("rerankers")
    @classmethod
    def _distinct_rerankers(cls, rerankers: list[RerankerSettings]) -> list[RerankerSettings]:
        if len({r.model for r in rerankers}) != len(rerankers):
            raise ValueError("the same model stands twice in the list")
        return rerankers

    @model_validator(mode="after")
    def _consistent(self) -> "Settings":
        if self.chunk_overlap_tokens >= self.chunk_tokens:
            raise ValueError(
                f"CHUNK_OVERLAP_TOKENS = {self.chunk_overlap_tokens} must be below CHUNK_TOKENS = {self.chunk_tokens}"
            )
        if self.chunk_overlap_characters >= self.chunk_characters:
            raise ValueError(
                f"CHUNK_OVERLAP_CHARACTERS = {self.chunk_overlap_characters} must be below CHUNK_CHARACTERS = "
                f"{self.chunk_characters}"
            )
        if self.chunk_min_characters > self.chunk_characters:
            raise ValueError(
                f"CHUNK_MIN_CHARACTERS = {self.chunk_min_characters} must not be above CHUNK_CHARACTERS = "
                f"{self.chunk_characters}"
            )
        if self.reranker_candidate_k < self.top_k:
            raise ValueError(
                f"RERANKER_CANDIDATE_K = {self.reranker_candidate_k} must not be below TOP_K = {self.top_k}"
            )
        encoders = [e for e in self.encoders if self.enable_chunks or e.unit == "document"]
        if not encoders and self.bm25_document_weight == 0 and (self.bm25_chunk_weight == 0 or not self.enable_chunks):
            without = "" if self.enable_chunks else " without chunks (ENABLE_CHUNKS = False)"
            raise ValueError(f"ENCODERS is empty and both BM25 weights are 0{without}: nothing is left to search with")
        return self

    def snapshot(self) -> dict[str, Any]:
        """Constant name -> plain value, as kept with every run."""
        return {name.upper(): value for name, value in self.model_dump(mode="json").items()}


def load_settings(path: Path = SETTINGS_FILE) -> Settings:
    """Read and check the constants of a settings file.

    Raises:
        UserError: where the file cannot be read, or a constant is missing, misspelt, of the wrong type or out of
            range; the message names the constant, its value, and for an unknown one the nearest valid name.
    """
    try:
        values = runpy.run_path(str(path))
    except Exception as error:
        raise UserError(f"{path}: cannot be read: {type(error).__name__}: {error}. Mend the line it names.") from error
    constants = {name: value for name, value in values.items() if name.isupper() and not name.startswith("_")}
    known = {name.upper() for name in Settings.model_fields}
    for name in constants:
        if name not in known:
            raise UserError(f"{path}: unknown setting {name}.{_nearest(name, known)}")
    for name in values:
        # `Top_K = 10` or `top_k = 10` would otherwise be dropped without a word.
        if (
            name not in constants
            and not name.startswith("_")
            and name.upper() in known | {_closest(name.upper(), known)}
        ):
            raise UserError(f"{path}: unknown setting {name}.{_nearest(name.upper(), known)}")
    missing = sorted(known - set(constants))
    if missing:
        raise UserError(f"{path}: setting {missing[0]} is missing. Put it back, as in the project's own settings.py.")
    constants = _with_preset(path, constants, known)
    try:
        return Settings.model_validate({name.lower(): _as_float(name, value) for name, value in constants.items()})
    except ValidationError as error:
        # A misspelt name is what explains that the right one is missing.
        first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        where = [str(part) for part in first["loc"]]
        message = first["msg"].removeprefix("Value error, ")
        if not where:
            raise UserError(f"{path}: {message}.") from error
        name = where[0].upper() + "".join(f"[{part!r}]" if not part.isdigit() else f"[{part}]" for part in where[1:])
        hint = ""
        if first["type"] == "extra_forbidden":
            hint = _nearest(where[-1], set(_PARTS[where[0]].model_fields))
        raise UserError(f"{path}: {name} = {first['input']!r} is not valid: {message}.{hint}") from error


def _with_preset(path: Path, constants: dict[str, Any], known: set[str]) -> dict[str, Any]:
    name, overrides = constants["SEARCH_PRESET"], constants["PRESET_OVERRIDES"]
    if not isinstance(name, str) or name not in PRESETS:
        hint = _nearest(str(name), set(PRESETS))
        raise UserError(f"{path}: SEARCH_PRESET = {name!r} is not valid: there are {', '.join(PRESETS)}.{hint}")
    if not isinstance(overrides, dict):
        raise UserError(f'{path}: PRESET_OVERRIDES = {overrides!r} is not valid: a table such as {{"RRF_K": 60}}.')
    for key in overrides:
        if key not in known - {"SEARCH_PRESET", "PRESET_OVERRIDES"}:
            raise UserError(f"{path}: PRESET_OVERRIDES: unknown setting {key}.{_nearest(str(key), known)}")
    return effective(constants)


def _as_float(name: str, value: object) -> object:
    """A whole number where a fraction is meant (``BM25_B = 1``) is what users type; a bool is not."""
    field = Settings.model_fields[name.lower()]
    if field.annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return _float(value)
    if name in {"ENCODERS", "RERANKERS"} and isinstance(value, (list, tuple)):
        return [
            {k: _float(v) if k == "weight" and type(v) is int else v for k, v in entry.items()}
            if isinstance(entry, dict)
            else entry
            for entry in value
        ]
    return value


def _float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # refused as every infinity is


def _closest(name: str, known: set[str]) -> str | None:
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return matches[0] if matches else None


def _nearest(name: str, known: set[str]) -> str:
    matches = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.4)
    return f" Did you mean {matches[0]}?" if matches else ""
