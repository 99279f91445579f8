"""Make a file of query variants, which the search uses where it is there: by rules, or by a language model."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _cli import PROJECT_ROOT, add_data_flags, add_wait_flag, main, positive_integer

from _inputs import choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import encoder_plans, model_resolver
from _variants import FILE_NAME, automatic_files
from config import Settings
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.core.storage import DataFolder
from src.core.types import Corpus, Queries
from src.insight.progress import progress_bar
from src.models.chat import ChatServer
from src.quality.query_llm import MAX_TOKENS, AnswerCache, ask_for_variants
from src.quality.query_rules import RulesMaker, read_abbreviations
from src.stages.variants import VariantRows, is_own_file, read_parquet, with_earlier_rows, write_variants

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
    add(
        "--overwrite", action="store_true",
        help="replace the file even where this script did not write it, and with --limit all of its rows",
    )  # fmt: skip
    add("--number", type=positive_integer, default=3, metavar="N", help="most variants per question (default: 3)")
    add("--abbreviations", type=Path, metavar="CSV", help="short,long: what the rules spell out (default: nothing)")
    add(
        "--max-tokens", type=positive_integer, metavar="N",
        help=f"most tokens of an answer of the model, its thinking included (default: {MAX_TOKENS})",
    )  # fmt: skip
    add(
        "--limit", type=positive_integer, metavar="N",
        help="only the first N questions (default: all); a file of this script keeps its rows of other questions",
    )  # fmt: skip
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


def _by_model(
    settings: Settings, data: DataFolder, queries: Queries, number: int, max_tokens: int
) -> Sequence[Sequence[str]]:
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
        result = ask_for_variants(queries.texts, number, server, cache, progress, max_tokens)
    log.info(
        "Questions: %s asked, %s answered before; %s malformed answers left out, %s without an answer, %s cut short",
        *(f"{count:,}" for count in (result.asked, result.kept, result.malformed, result.failed, result.cut)),
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
    if flags.max_tokens is not None and flags.maker != "llm":
        raise UserError("--max-tokens is for --maker llm. Leave it out, or choose that maker.")
    with data_lock(flags.data_dir.resolve(), flags.wait):
        _run(settings, flags)


def _require_free(output: Path, data: DataFolder, overwrite: bool) -> None:
    """Refuse to replace a file of the user, and to write beside one where the search would then stop.

    Raises:
        UserError: there is such a file.
    """
    parquet, table = automatic_files(data)
    if table.is_file() and output.resolve() == parquet.resolve():
        raise UserError(
            f"{table} is there, and the search takes no second file beside it. Move or delete it (--overwrite does "
            "not), or write elsewhere with --output and name that file in QUERY_VARIANTS."
        )
    if output.exists() and not overwrite and not is_own_file(output):
        raise UserError(
            f"{output} was not written by this script, or was changed since (it lacks the script's mark). Move it, "
            "write elsewhere with --output, or replace it with --overwrite."
        )


def _rows(
    made: Queries, variants: Sequence[Sequence[str]], earlier: Mapping[str, Sequence[Any]] | None, every_query: Queries
) -> VariantRows:
    if earlier is None:
        return VariantRows(made, variants, 0)
    rows = with_earlier_rows(made, variants, earlier, every_query)
    log.info(
        "Kept of the file that was there: the rows of %s other questions; %s left out that read otherwise now",
        *(f"{count:,}" for count in (len(rows.queries) - len(made), rows.differing)),
    )
    return rows


def _run(settings: Settings, flags: argparse.Namespace) -> None:
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    output = flags.output or automatic_files(inputs.data)[0]
    if output.suffix != ".parquet":
        raise UserError(f"--output {output}: the file is written as parquet. Give a name that ends in .parquet.")
    _require_free(output, inputs.data, flags.overwrite)
    keep = flags.limit is not None and output.exists() and not flags.overwrite
    earlier = read_parquet(output) if keep else None
    log_inputs(inputs, PROJECT_ROOT)
    resolver = model_resolver(settings)
    corpus, _ = prepared_corpus(inputs, settings, encoder_plans(settings, resolver))
    every_query = load_queries(inputs, settings, corpus)[0]
    queries = every_query.head(flags.limit)
    if flags.maker == "rules":
        made: Sequence[Sequence[str]] = _by_rules(corpus, queries, flags.abbreviations, flags.number)
    else:
        made = _by_model(settings, inputs.data, queries, flags.number, flags.max_tokens or MAX_TOKENS)
    rows = _rows(queries, made, earlier, every_query)
    write_variants(output, rows.queries, rows.variants)
    log.info(
        "Query variants: %s for %s of %s questions. File: %s",
        *(f"{count:,}" for count in (sum(map(len, made)), sum(map(bool, made)), len(queries))), output,
    )  # fmt: skip


if __name__ == "__main__":
    main(run)
