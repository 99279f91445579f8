"""Step 2: documents and chunks become embeddings, FAISS and BM25 indices in <data folder>/embeddings and indices."""

import logging
from argparse import Namespace
from collections.abc import Sequence

from _cli import PROJECT_ROOT, main, preparation_parser, set_up_threads

from _inputs import choose_inputs, log_inputs, prepared_corpus
from _plans import encoder_plans, index_plan, model_resolver
from config import Settings
from src.core.artifacts import full_check
from src.core.data_lock import data_lock
from src.engine.devices import pick_device
from src.indexing import build_indices, drop_unfinished, indices_current
from src.insight.progress import progress_bar

log = logging.getLogger("search")


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Build what is missing or stale; what is up to date is kept."""
    parser = preparation_parser("02_build_indices.py", __doc__ or "", settings)
    flags = parser.parse_args(arguments)
    set_up_threads(settings.cpu_threads)
    with data_lock(flags.data_dir.resolve(), flags.wait), full_check(flags.verify):
        _run(settings, flags)


def _run(settings: Settings, flags: Namespace) -> None:
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    if not flags.if_stale:
        log_inputs(inputs, PROJECT_ROOT)
    resolver = model_resolver(settings)
    encoders = encoder_plans(settings, resolver)
    corpus, chunks = prepared_corpus(inputs, settings, encoders)
    plan = index_plan(settings, encoders, pick_device(settings.device))
    if not flags.fresh and indices_current(inputs.data, corpus, chunks, plan):
        drop_unfinished(inputs.data, plan)
        log.info("Indices: up to date.")
        return
    log.info("Building indices over %d documents and %d chunks on %s", len(corpus), len(chunks), plan.device)
    build_indices(inputs.data, corpus, chunks, plan, progress_bar, flags.fresh)
    log.info("Indices: done.")


if __name__ == "__main__":
    main(run)
