"""What variants made by rules change in stage one, on questions with slips and wrong keyboard layouts put into them.

A set is a folder with websites.csv, questions.csv and qrels.csv, or the sample. Each set is
prepared by the numbered scripts; then stage one answers the damaged questions with and without variants. With
--reranker, a cross-encoder then reads the question alone or its variants too (RERANKER_QUERY).
"""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from _cli import PROJECT_ROOT, add_data_flags, main, positive_integer, set_up_threads

import numpy as np

from _damage import damage
from _inputs import choose_inputs, load_queries, prepared_corpus
from _plans import encoder_plans, index_plan, model_resolver, search_plan
from bench_quality import FILES, call, draw_questions
from config import Settings
from src.core.artifacts import library_versions, write_json
from src.core.errors import UserError
from src.core.types import Queries
from src.engine.devices import pick_device
from src.insight.profile import Profiler
from src.insight.progress import progress_bar
from src.pipeline import candidate_scores
from src.quality.evaluate import per_question
from src.quality.query_rules import RulesMaker
from src.quality.statistics import bootstrap_mean, mcnemar, randomization
from src.retrieval import Retrieval, retrieve
from src.stages.rerank import blend
from src.stages.variants import ID_COLUMN, ORIGINAL_COLUMN, RerankerQuery, check_variants

METRICS = ("Recall@100", "Hit@5", "Hit@1")
DAMAGES = (0, 10, 30)
SAMPLE = "sample"

log = logging.getLogger("search")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_variants.py", description=__doc__)
    add = parser.add_argument
    add("--datasets", type=Path, metavar="DIR", help="folder that holds the folders of the sets (default: none)")
    add("--sets", nargs="+", default=[SAMPLE], metavar="NAME", help=f"folders, or {SAMPLE} (default: {SAMPLE})")
    add(
        "--questions", type=positive_integer, default=150, metavar="N",
        help="labelled questions drawn per set, always the same ones (default: 150)",
    )  # fmt: skip
    add(
        "--damage", nargs="+", type=float, default=list(DAMAGES), metavar="PERCENT",
        help="share of the questions that are damaged (default: 0 10 30)",
    )  # fmt: skip
    add("--number", type=positive_integer, default=3, metavar="N", help="variants per question (default: 3)")
    add("--reranker", metavar="MODEL", help="also measure what a cross-encoder should read (default: none)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw and of the damage (default: 0)")
    add(
        "--work-dir", type=Path, default=PROJECT_ROOT / "data" / "bench", metavar="DIR",
        help="where the sets are prepared; kept for the next time (default: data/bench)",
    )  # fmt: skip
    add("--name", help="name of the result under data/results (default: <date>-bench-variants)")
    return parser


def _flags_of_set(name: str, flags: argparse.Namespace, settings: Settings) -> list[str]:
    """Draw the questions of a set; the flags that the numbered scripts take for it."""
    work = flags.work_dir / name
    if name == SAMPLE:
        sample = PROJECT_ROOT / "data" / SAMPLE
        paths = [sample / settings.corpus_file, sample / settings.questions_file, sample / settings.labels_file]
    else:
        draw_questions(flags.datasets / name, work / "drawn", flags.questions, flags.seed)
        paths = [flags.datasets / name / FILES[0], work / "drawn" / FILES[1], work / "drawn" / FILES[2]]
    given = zip(("--corpus", "--questions", "--labels"), map(str, paths), strict=True)
    return ["--data-dir", str(work), *(part for pair in given for part in pair)]


def measure(name: str, flags: argparse.Namespace, settings: Settings) -> list[dict[str, Any]]:
    """One row per share of damaged questions."""
    arguments = _flags_of_set(name, flags, settings)
    for script in ("01_preprocess.py", "02_build_indices.py"):
        call(script, *arguments, "--if-stale")
    parser = argparse.ArgumentParser()
    add_data_flags(parser, settings)
    inputs = choose_inputs(parser.parse_args(arguments), settings, PROJECT_ROOT)
    resolver = model_resolver(settings)
    encoders = encoder_plans(settings, resolver)
    corpus, chunks = prepared_corpus(inputs, settings, encoders)
    queries, qrels = load_queries(inputs, settings, corpus)
    if qrels is None:
        raise UserError(f"no labels at {inputs.no_labels}: nothing can be measured.")
    indices = index_plan(settings, encoders, pick_device(settings.device))
    plan = replace(search_plan(settings, argparse.Namespace(top_k=settings.top_k), ()), candidate_k=100)
    rows = []
    for percent in flags.damage:
        texts, kinds = damage(queries.texts, percent, flags.seed)
        asked = Queries(queries.query_ids, tuple(texts))
        maker = RulesMaker(corpus)
        made = [maker.variants(text, flags.number) for text in texts]
        columns = {f"variant_{n + 1}": [v[n] if n < len(v) else None for v in made] for n in range(flags.number)}
        table: dict[str, Sequence[Any]] = {ID_COLUMN: list(asked.query_ids), ORIGINAL_COLUMN: texts, **columns}
        variants = check_variants(table, asked, Path(name))
        found = {
            arm: retrieve(
                inputs.data, corpus, chunks, asked, indices, plan, Profiler(), progress_bar, None, used
            )
            for arm, used in (("before", None), ("after", variants))
        }  # fmt: skip
        ids, before = per_question(found["before"].fused.cut(100), corpus, qrels)
        _, after = per_question(found["after"].fused.cut(100), corpus, qrels)
        row: dict[str, Any] = {
            "set": name, "documents": len(corpus), "questions": len(ids), "damaged_percent": percent,
            "slips": kinds.count("slips"), "wrong_layout": kinds.count("layout"),
            "with_variants": variants.questions, "undamaged_with_variants": _undamaged(made, kinds),
            "rules": dict(maker.applied), "metrics": {}, "reranked": {},
        }  # fmt: skip
        if flags.reranker:
            model = resolver.resolve(flags.reranker, "cross-encoder")
            arms: list[tuple[str, Retrieval, RerankerQuery]] = [("without variants", found["before"], "original")]
            arms += [(choice, found["after"], choice) for choice in get_args(RerankerQuery)]
            for arm, candidates, choice in arms:
                reading = replace(plan, rerankers=((model, 1.0),), reranker_query=choice)
                scores = candidate_scores(
                    inputs.data, corpus, chunks, asked, candidates, reading, indices.device, Profiler(), progress_bar,
                    load_first=False,
                )  # fmt: skip
                reranked = blend(candidates.fused.cut(100), scores, plan.blend_weight, arm)
                values = per_question(reranked, corpus, qrels)[1]
                row["reranked"][arm] = {metric: float(values[metric].mean()) for metric in ("Hit@5", "Hit@1")}
            log.info("%s, %g %% damaged, reranked: %s", name, percent, row["reranked"])
        for metric in METRICS:
            test = mcnemar if metric.startswith("Hit@") else randomization
            row["metrics"][metric] = {
                "before": float(before[metric].mean()),
                "after": float(after[metric].mean()),
                "change": asdict(bootstrap_mean(after[metric] - before[metric])),
                "wins": int(np.sum(after[metric] > before[metric])),
                "losses": int(np.sum(after[metric] < before[metric])),
                "p": test(before[metric], after[metric]),
            }
        log.info("%s", table_row(row))
        rows.append(row)
    return rows


def _undamaged(made: Sequence[Sequence[str]], kinds: Sequence[str]) -> int:
    return sum(bool(variants) and not kind for variants, kind in zip(made, kinds, strict=True))


HEADER = "| set | questions | damaged | with variants (undamaged ones) | " + " | ".join(
    f"{metric} before -> after (points)" for metric in METRICS
)


def table_row(row: dict[str, Any]) -> str:
    """One line of the table."""
    cells = [row["set"], str(row["questions"]), f"{row['damaged_percent']:g} %"]
    cells.append(f"{row['with_variants']} ({row['undamaged_with_variants']})")
    for metric in METRICS:
        found = row["metrics"][metric]
        points = 100 * (found["after"] - found["before"])
        cells.append(f"{found['before']:.4f} -> {found['after']:.4f} ({points:+.1f})")
    return "| " + " | ".join(cells) + " |"


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Measure every set, print the table and save it as JSON."""
    flags = _parser().parse_args(arguments)
    set_up_threads(settings.cpu_threads)
    for name in flags.sets:
        if name == SAMPLE:
            continue
        if flags.datasets is None:
            raise UserError(f"--sets {name}: give the folder that holds it with --datasets DIR.")
        missing = [file for file in FILES if not (flags.datasets / name / file).is_file()]
        if missing:
            raise UserError(f"{flags.datasets / name / missing[0]}: no such set. A set holds {', '.join(FILES)}.")
    path = PROJECT_ROOT / "data" / "results" / f"{flags.name or f'{datetime.now(UTC):%Y-%m-%d}-bench-variants'}.json"
    rows: list[dict[str, Any]] = []
    for name in flags.sets:
        rows += measure(name, flags, settings)
        record = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"), "seed": flags.seed, "number": flags.number,
            "settings": settings.snapshot(), "libraries": library_versions(), "rows": rows,
        }  # fmt: skip
        # What is done is on disk before the next set starts.
        write_json(path, record)
    for line in (HEADER + " |", "|---" * (4 + len(METRICS)) + "|", *map(table_row, rows)):
        log.info("%s", line)
    log.info("Saved: %s", path)


if __name__ == "__main__":
    main(run)
