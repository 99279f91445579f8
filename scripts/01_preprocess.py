"""Step 1: raw CSV files become cleaned documents, chunks, questions and labels in <data folder>/processed."""

import logging
from argparse import Namespace
from collections.abc import Sequence

from _cli import PROJECT_ROOT, main, preparation_parser

from transformers import AutoTokenizer

from _inputs import (
    Inputs,
    choose_inputs,
    chunk_tokenizer_directory,
    chunking,
    corpus_identity,
    load_queries,
    log_inputs,
    prepared_corpus,
    questions_current,
    questions_identity,
)
from _plans import encoder_plans, model_resolver, preset_lines
from config import Settings
from src.core.artifacts import full_check
from src.core.data_lock import data_lock
from src.core.errors import StaleArtifactError
from src.core.storage import save_corpus, save_questions
from src.core.types import Chunks, Corpus
from src.engine.devices import explain_loading
from src.indexing import EncoderPlan
from src.insight.progress import progress_bar
from src.models.resolve import ModelResolver
from src.stages.chunk import chunk_corpus
from src.stages.preprocess import read_corpus, summarize

log = logging.getLogger("search")


def _prepare(inputs: Inputs, settings: Settings, encoders: tuple[EncoderPlan, ...], resolver: ModelResolver) -> None:
    assert inputs.corpus is not None
    corpus = read_corpus(inputs.corpus, settings.corpus_columns.model_dump())
    # Questions and labels are read before anything is written: one bad row there must not leave half a preparation.
    queries, qrels = load_queries(inputs, settings, corpus)
    cutting, tokenizer = chunking(settings), None
    if cutting.unit == "tokens":
        directory = chunk_tokenizer_directory(encoders, resolver)
        with explain_loading("ENCODERS", directory):
            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    with progress_bar("Cutting documents into chunks", len(corpus)) as progress:
        chunks = chunk_corpus(corpus, cutting, tokenizer, progress)
    identity = corpus_identity(inputs, settings, encoders)
    extra = {"origin": inputs.origin, "corpus_file_name": inputs.corpus.name}
    save_corpus(inputs.data.corpus, corpus, chunks, *identity, extra=extra)
    save_questions(
        inputs.data.questions,
        queries,
        qrels,
        questions_identity(inputs, settings, corpus.fingerprint),
        extra={"origin": inputs.origin},
    )
    for label, value in summarize(corpus, chunks, queries, qrels).rows():
        log.info("  %-28s %s", label, value)


def _current(inputs: Inputs, settings: Settings, encoders: tuple[EncoderPlan, ...]) -> tuple[Corpus, Chunks] | None:
    try:
        found = prepared_corpus(inputs, settings, encoders)
    except StaleArtifactError as reason:
        log.info("Preparing: %s", str(reason).rsplit(" Run: ", 1)[0])
        return None
    return found if questions_current(inputs, settings, found[0].fingerprint) else None


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Preprocess, or with ``--if-stale`` only where that is needed."""
    parser = preparation_parser("01_preprocess.py", __doc__ or "", settings)
    flags = parser.parse_args(arguments)
    with data_lock(flags.data_dir.resolve(), flags.wait), full_check(flags.verify):
        _run(settings, flags)


def _run(settings: Settings, flags: Namespace) -> None:
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    for line in preset_lines(settings):
        log.info("%s", line)
    resolver = model_resolver(settings)
    encoders = encoder_plans(settings, resolver)
    if inputs.corpus is None or (flags.if_stale and not flags.fresh and _current(inputs, settings, encoders)):
        corpus, _ = prepared_corpus(inputs, settings, encoders)
        log.info("Preprocessing: up to date (%d documents).", len(corpus))
        return
    _prepare(inputs, settings, encoders, resolver)
    log.info("Preprocessing: done.")


if __name__ == "__main__":
    main(run)
