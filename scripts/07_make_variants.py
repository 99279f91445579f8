"""Make a file of query variants, which the search uses where it is there: by rules, or by a language model."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from _cli import PROJECT_ROOT, add_data_flags, add_wait_flag, main, positive_integer

from _inputs import choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import encoder_plans, model_resolver
from _variants import FILE_NAME
from config import Settings
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.core.storage import DataFolder
from src.core.types import Corpus, Queries
from src.insight.progress import progress_bar
from src.models.chat import ChatServer
from src.quality.query_llm import AnswerCache, ask_for_variants
from src.quality.query_rules import RulesMaker, read_abbreviations
from src.stages.variants import write_variants

KEY_VARIABLE = "LLM_API_KEY"
ANSWERS_FILE = "query_variants_answers.jsonl"

log = logging.getLogger("search")


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="07_make_variants.py", description=__doc__)
    add_data_flags(parser, settings)
    add_wait_flag(parser)
    add = parser.add_argument
    add(
        "--maker", choices=["rules", "llm"], required=True,
        help="rules: keyboard layout, transliteration, spelling against the corpus, abbreviations; no model. "
        f"llm: the model LLM_MODEL on LLM_URL, with the key in the environment variable {KEY_VARIABLE}",
    )  # fmt: skip
    add(
        "--output", type=Path, metavar="FILE",
        help=f"parquet file to write (default: <data folder>/processed/{FILE_NAME})",
    )  # fmt: skip
    add("--number", type=positive_integer, default=3, metavar="N", help="most variants per question (default: 3)")
    add("--abbreviations", type=Path, metavar="CSV", help="short,long: what the rules spell out (default: nothing)")
    add("--limit", type=positive_integer, metavar="N", help="only the first N questions (default: all)")
    return parser


def _by_rules(corpus: Corpus, queries: Queries, abbreviations: Path | None, number: int) -> list[Sequence[str]]:
    table = {} if abbreviations is None else read_abbreviations(abbreviations)
    maker = RulesMaker(corpus, table)
    made: list[Sequence[str]] = []
    with progress_bar("Making variants", len(queries)) as progress:
        for text in queries.texts:
            made.append(maker.variants(text, number))
            progress(1)
    log.info("Rules that changed a question: %s", ", ".join(f"{k} {v:,}" for k, v in maker.applied.items()) or "none")
    return made


def _by_model(settings: Settings, data: DataFolder, queries: Queries, number: int) -> Sequence[Sequence[str]]:
    if settings.llm_model is None:
        raise UserError("LLM_MODEL = None: name the model that the server at LLM_URL has, in config/settings.py.")
    server = ChatServer(
        settings.llm_url,
        settings.llm_model,
        os.environ.get(KEY_VARIABLE, "").strip() or None,
        settings.llm_timeout_seconds,
        settings.llm_concurrency,
    )
    cache = AnswerCache(data.root / "processed" / ANSWERS_FILE)
    log.info("Model: %s at %s. Answers are kept in %s", server.model, server.endpoint, cache.path)
    with progress_bar("Asking for variants", len(set(queries.texts))) as progress:
        result = ask_for_variants(queries.texts, number, server, cache, progress)
    log.info(
        "Questions: %s asked, %s answered before; %s malformed answers left out, %s without an answer",
        *(f"{count:,}" for count in (result.asked, result.kept, result.malformed, result.failed)),
    )
    if result.failed:
        log.warning(
            "WARNING: %d questions have no variants, as the server did not answer them (the last one: %s). "
            "The same command asks them again.",
            result.failed, result.last_failure,
        )  # fmt: skip
    return result.variants


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Make the variants and write the file."""
    flags = _parser(settings).parse_args(arguments)
    if flags.abbreviations is not None and flags.maker != "rules":
        raise UserError("--abbreviations is for --maker rules. Leave it out, or choose that maker.")
    with data_lock(flags.data_dir.resolve(), flags.wait):
        _run(settings, flags)


def _run(settings: Settings, flags: argparse.Namespace) -> None:
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    output = flags.output or inputs.data.root / "processed" / FILE_NAME
    if output.suffix != ".parquet":
        raise UserError(f"--output {output}: the file is written as parquet. Give a name that ends in .parquet.")
    log_inputs(inputs, PROJECT_ROOT)
    resolver = model_resolver(settings)
    corpus, _ = prepared_corpus(inputs, settings, encoder_plans(settings, resolver))
    queries = load_queries(inputs, settings, corpus)[0].head(flags.limit)
    if flags.maker == "rules":
        made: Sequence[Sequence[str]] = _by_rules(corpus, queries, flags.abbreviations, flags.number)
    else:
        made = _by_model(settings, inputs.data, queries, flags.number)
    write_variants(output, queries, made)
    log.info(
        "Query variants: %s for %s of %s questions. File: %s",
        *(f"{count:,}" for count in (sum(map(len, made)), sum(map(bool, made)), len(queries))), output,
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
