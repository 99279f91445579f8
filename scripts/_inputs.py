"""Which corpus, questions and labels a command works on, and whether the prepared data still fits them."""

import logging
import shlex
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cli  # noqa: F401  (puts the project's folder on the path)

from config import Settings
from src.core.artifacts import MANIFEST_NAME, file_sha256, fingerprint, read_manifest, require_current
from src.core.errors import StaleArtifactError, UserError
from src.core.storage import DataFolder, load_corpus, load_questions
from src.core.types import Chunks, Corpus, Qrels, Queries
from src.indexing import EncoderPlan
from src.models.resolve import EMBEDDED, ModelResolver
from src.stages.chunk import RULES, Chunking
from src.stages.preprocess import read_qrels, read_queries

SAMPLE_NAME = "sample"
PREPROCESS_COMMAND = "python scripts/01_preprocess.py"

log = logging.getLogger("search")


@dataclass(frozen=True)
class Inputs:
    """The files of a command.

    Attributes:
        data: the data folder.
        corpus, questions, labels: CSV files; ``None`` where the prepared copy is used (or there are no labels).
        origin: ``flags``, ``raw``, ``prepared`` or ``sample``: where the corpus comes from.
        no_labels: why there are no labels, for the log.
        command: flags to repeat in the advice of an error.
    """

    data: DataFolder
    corpus: Path | None
    questions: Path | None
    labels: Path | None
    origin: str
    no_labels: str
    command: str


def choose_inputs(flags: Namespace, settings: Settings, project: Path) -> Inputs:
    """Flags first; then ``<data folder>/raw``; then what is prepared in the data folder; then the sample.

    Raises:
        UserError: where a file named by a flag does not exist, or a corpus comes without questions, or own questions
            without a corpus.
    """
    data = DataFolder(flags.data_dir.resolve())
    for flag in ("corpus", "questions", "labels"):
        path = getattr(flags, flag)
        if path is not None and not path.is_file():
            raise UserError(f"--{flag} {path}: no such file. Give the path of an existing CSV file.")
    raw = {"corpus": settings.corpus_file, "questions": settings.questions_file, "labels": settings.labels_file}
    files = {key: data.raw / name for key, name in raw.items()}
    # Part of the project, wherever DATA_DIR is.
    sample = {key: project / "data" / SAMPLE_NAME / name for key, name in raw.items()}

    if flags.corpus is not None:
        origin, corpus = "flags", flags.corpus
    elif files["corpus"].is_file():
        origin, corpus = "raw", files["corpus"]
    elif _prepared_origin(data) not in (None, SAMPLE_NAME):
        origin, corpus = "prepared", None
    else:
        origin, corpus = "sample", sample["corpus"]

    questions, labels, why = flags.questions, flags.labels, ""
    if origin == "sample" and questions is not None and questions.resolve() != sample["questions"].resolve():
        raise UserError(
            f"--questions {questions}: there is no corpus to answer them from ({files['corpus']}: no such file). Put "
            "the corpus there, or give it with --corpus FILE."
        )
    if questions is None:
        questions, own_labels = _default_questions(origin, files, sample, data)
        if labels is None:
            labels = own_labels
    elif labels is None and questions.resolve() == files["questions"].resolve() and files["labels"].is_file():
        labels = files["labels"]
    elif labels is None:
        why = "--questions was given without --labels"
    if labels is None and not why:
        why = str(_shown(files["labels"], project))
    return Inputs(data, corpus, questions, labels, origin, why, _repeat(flags, project, settings))


def _default_questions(
    origin: str, files: dict[str, Path], sample: dict[str, Path], data: DataFolder
) -> tuple[Path | None, Path | None]:
    """Questions and labels where no flag names the questions; ``None`` means the prepared copy.

    The prepared questions belong to the prepared corpus: beside another corpus they would be searched in silence.
    """
    if origin == "sample" and files["questions"].is_file():
        raise UserError(
            f"{files['corpus']}: no such file, but there are questions in {files['questions']}. Put the corpus there "
            "too, give it with --corpus FILE, or move the questions away to search the sample."
        )
    if origin == "sample":
        return sample["questions"], sample["labels"] if sample["labels"].is_file() else None
    if files["questions"].is_file():
        return files["questions"], files["labels"] if files["labels"].is_file() else None
    if origin == "prepared" and (data.questions / MANIFEST_NAME).is_file():
        return None, files["labels"] if files["labels"].is_file() else None
    raise UserError(f"{files['questions']}: no such file. Put the questions there, or give them with --questions FILE.")


def _prepared_origin(data: DataFolder) -> str | None:
    path = data.corpus / MANIFEST_NAME
    if not path.is_file():
        return None
    # Asked only where no file is at hand: a damaged copy must not be taken for none, and give way to the sample.
    origin = read_manifest(path, _without_files(data)).extra.get("origin")
    return str(origin) if origin else None


def _without_files(data: DataFolder) -> str:
    """What mends a prepared copy that has no files beside it."""
    folder = shlex.quote(str(data.root))
    return f"{PREPROCESS_COMMAND} --data-dir {folder} --corpus FILE --questions FILE (or copy the folder anew)"


def _shown(path: Path, project: Path) -> Path:
    try:
        return path.resolve().relative_to(project)
    except ValueError:
        return path


def _repeat(flags: Namespace, project: Path, settings: Settings) -> str:
    given = {name: getattr(flags, name) for name in ("corpus", "questions", "labels")}
    if flags.data_dir.resolve() != (project / settings.data_dir).resolve():
        given["data-dir"] = flags.data_dir
    return "".join(f" --{name} {shlex.quote(str(path))}" for name, path in given.items() if path is not None)


def log_inputs(inputs: Inputs, project: Path) -> None:
    """First lines of every script: what it works on."""
    if inputs.origin == "sample":
        log.info("No data in %s: this run uses the sample in data/sample (a fictional bank).", inputs.data.raw)
    elif inputs.origin == "prepared":
        log.info("No corpus file in %s: this run uses the corpus prepared in %s.", inputs.data.raw, inputs.data.corpus)
    log.info("Data folder: %s", _shown(inputs.data.root, project))


def chunk_tokenizer_directory(encoders: tuple[EncoderPlan, ...], resolver: ModelResolver) -> Path:
    """Directory of the tokenizer that measures chunks: that of the first bi-encoder, else of the embedded one."""
    if encoders:
        return encoders[0].model.directory
    return resolver.resolve(EMBEDDED["bi-encoder"], "bi-encoder").directory


def chunking(settings: Settings) -> Chunking:
    """How documents are cut."""
    if not settings.enable_chunks:
        return Chunking("whole")
    if settings.chunk_unit == "characters":
        return Chunking(
            "characters", settings.chunk_characters, settings.chunk_overlap_characters, settings.chunk_min_characters
        )
    return Chunking("tokens", settings.chunk_tokens, settings.chunk_overlap_tokens)


def corpus_identity(
    inputs: Inputs, settings: Settings, encoders: tuple[EncoderPlan, ...]
) -> tuple[dict[str, str], dict[str, Any]]:
    """What the prepared corpus must have been made from and with.

    Where there is no corpus file (a folder copied from another machine), the prepared one is taken at its word.
    """
    cutting = chunking(settings)
    tokenizer = "none"
    if cutting.unit == "tokens":
        tokenizer = encoders[0].model.fingerprint if encoders else EMBEDDED["bi-encoder"]
    if inputs.corpus is not None:
        corpus_file = file_sha256(inputs.corpus)
    else:
        manifest = read_manifest(inputs.data.corpus / MANIFEST_NAME, _without_files(inputs.data))
        corpus_file = manifest.inputs["corpus_file"]
    names = {"tokens": ("CHUNK_TOKENS", "CHUNK_OVERLAP_TOKENS", ""), "whole": ("", "", "")}.get(
        cutting.unit, ("CHUNK_CHARACTERS", "CHUNK_OVERLAP_CHARACTERS", "CHUNK_MIN_CHARACTERS")
    )
    sizes = dict(zip(names, (cutting.limit, cutting.overlap, cutting.minimum), strict=True))
    shaping: dict[str, Any] = {"columns": settings.corpus_columns.model_dump(), "CHUNK_UNIT": cutting.unit}
    shaping.update((name, size) for name, size in sizes.items() if name)
    shaping.update({} if cutting.unit == "whole" else {"rules of cutting": RULES})
    return {"corpus_file": corpus_file, "tokenizer": tokenizer}, shaping


def questions_identity(inputs: Inputs, settings: Settings, corpus_fingerprint: str) -> dict[str, str]:
    """What the prepared questions must have been made from.

    Where there is no questions file, the prepared ones are taken at their word, but for the corpus that they belong to.
    """
    if inputs.questions is None:
        kept = read_manifest(inputs.data.questions / MANIFEST_NAME, _without_files(inputs.data)).inputs
        return {**kept, "corpus": corpus_fingerprint}
    columns = [settings.questions_columns.model_dump(), settings.labels_columns.model_dump()]
    return {
        "questions_file": file_sha256(inputs.questions),
        "labels_file": file_sha256(inputs.labels) if inputs.labels is not None else "none",
        "corpus": corpus_fingerprint,
        "columns": fingerprint(columns),
    }


def prepared_corpus(inputs: Inputs, settings: Settings, encoders: tuple[EncoderPlan, ...]) -> tuple[Corpus, Chunks]:
    """The prepared corpus, checked.

    Raises:
        StaleArtifactError: where it is missing, damaged, or was made from another file or with other settings.
    """
    fix = _without_files(inputs.data) if inputs.corpus is None else PREPROCESS_COMMAND + inputs.command
    require_current(inputs.data.corpus, "corpus", *corpus_identity(inputs, settings, encoders), fix=fix)
    return load_corpus(inputs.data.corpus, fix)


def load_queries(inputs: Inputs, settings: Settings, corpus: Corpus) -> tuple[Queries, Qrels | None]:
    """Questions and labels, from their files or the prepared copy."""
    if inputs.questions is None:
        fix = _without_files(inputs.data)
        require_current(
            inputs.data.questions, "questions", questions_identity(inputs, settings, corpus.fingerprint), {}, fix=fix
        )
        queries, qrels = load_questions(inputs.data.questions, fix)
        if inputs.labels is None:
            return queries, qrels
    else:
        queries = read_queries(inputs.questions, settings.questions_columns.model_dump())
    if inputs.labels is None:
        return queries, None
    return queries, read_qrels(inputs.labels, settings.labels_columns.model_dump(), queries, corpus)


def questions_current(inputs: Inputs, settings: Settings, corpus_fingerprint: str) -> bool:
    """Whether the prepared questions are those of the files."""
    try:
        identity = questions_identity(inputs, settings, corpus_fingerprint)
        require_current(inputs.data.questions, "questions", identity, {}, fix=PREPROCESS_COMMAND)
    except StaleArtifactError:
        return False
    return True
