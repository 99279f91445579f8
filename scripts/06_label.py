"""Label questions in the terminal: the pages of several runs, blind and shuffled; answers go to the labels file."""

import argparse
import logging
from collections.abc import Sequence

from _cli import PROJECT_ROOT, add_data_flags, main, positive_integer

from _inputs import Inputs, choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import encoder_plans, model_resolver
from _runs import find_run, read_run
from config import Settings
from src.core.errors import UserError
from src.core.types import Corpus, Queries, Run
from src.insight.label_app import LabelApp, run_in_terminal
from src.pipeline import SEARCH_COMMAND
from src.quality.labels import LabelStore, choose_questions, disagreement, main_run, make_task, progress_line

log = logging.getLogger("search")

NONE_FILE = "labels-none.csv"


def _parser(settings: Settings) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="06_label.py", description=__doc__)
    add_data_flags(parser, settings)
    add = parser.add_argument
    add(
        "runs", nargs="*", metavar="RUN",
        help="name of a run in <data folder>/runs (rerank-off), or its .parquet (default: all that belong to this "
        "corpus and these questions)",
    )  # fmt: skip
    add("--depth", type=positive_integer, metavar="N", default=10, help="pages of each run in the pool (default: 10)")
    add("--count", type=positive_integer, metavar="N", default=100, help="questions of this session (default: 100)")
    add(
        "--order", choices=["disagreement", "random"], default="disagreement",
        help="disagreement: those on which the runs differ most come first; random: a fair sample of the "
        "questions (default: disagreement)",
    )  # fmt: skip
    add("--seed", type=int, metavar="N", default=0, help="of the random sample (default: 0)")
    add("--limit", type=positive_integer, metavar="N", help="only the first N questions (default: all)")
    return parser


def _all_runs(inputs: Inputs, corpus: Corpus, queries: Queries, command: str) -> list[Run]:
    runs = []
    for path in sorted(inputs.data.runs.glob("*.parquet")):
        try:
            runs.append(read_run(path, corpus, queries, command)[0])
        except UserError as error:
            log.info("Left out: %s", error)
    if not runs:
        raise UserError(f"{inputs.data.runs}: no run over this corpus and these questions. Run: {command}")
    return runs


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Pool the runs, ask, and keep every answer."""
    flags = _parser(settings).parse_args(arguments)
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    path = inputs.data.raw / settings.labels_file
    if flags.labels is not None and flags.labels.resolve() != path.resolve():
        raise UserError(f"--labels {flags.labels}: answers are kept in {path}. Copy the file there, or leave it out.")
    resolver = model_resolver(settings)
    corpus, _ = prepared_corpus(inputs, settings, encoder_plans(settings, resolver))
    every_query, qrels = load_queries(inputs, settings, corpus)
    queries = every_query.head(flags.limit)
    command = SEARCH_COMMAND + inputs.command + (f" --limit {flags.limit}" if flags.limit else "")
    if flags.runs:
        paths = [find_run(text, inputs.data.runs, command) for text in dict.fromkeys(flags.runs)]
        runs = [read_run(found, corpus, queries, command)[0] for found in paths]
    else:
        runs = _all_runs(inputs, corpus, queries, command)
    log.info("Runs: %s; the first %d pages of each.", ", ".join(found.name for found in runs), flags.depth)

    columns = settings.labels_columns.model_dump()
    store = LabelStore.open(path, path.with_name(NONE_FILE), columns, every_query, corpus, qrels)
    answered = store.answered | (frozenset(qrels.relevant) if qrels is not None else frozenset())
    scores = disagreement(runs) if flags.order == "disagreement" else None
    places = choose_questions(queries.query_ids, answered, flags.count, scores, flags.seed)
    if not places:
        log.info("All %d questions have an answer (%s): nothing to ask.", len(queries), inputs.labels or path)
        return
    main_one = main_run(runs)
    tasks = [make_task(runs, corpus, queries, place, flags.depth) for place in places]
    app = LabelApp(tasks, store, lambda: progress_line(main_one, corpus, store.relevant, store.none))
    run_in_terminal(app)

    log.info("%s", progress_line(main_one, corpus, store.relevant, store.none))
    if scores is not None:
        log.info(
            "Questions on which the runs differ come first, and are harder than most: until all are labelled, this "
            "Hit@5 is not that of all questions. --order random asks a fair sample."
        )
    if path.is_file():
        found_alone = choose_inputs(flags, settings, PROJECT_ROOT).labels
        named = found_alone is not None and found_alone.resolve() == path.resolve()
        log.info("Labels: %s. Measure: %s%s", path, command, "" if named else f" --labels {path}")


if __name__ == "__main__":
    main(run)
