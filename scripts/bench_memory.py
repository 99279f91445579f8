"""Peak memory of a search by the number of questions: each number in a process of its own, over made-up data."""

import argparse
import json
import logging
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from _cli import PROJECT_ROOT, main, positive_integer

from config import Settings
from src.core.artifacts import write_json
from src.core.errors import UserError
from src.insight.comparison import save_png

log = logging.getLogger("search")

_WORDS = ("карта", "вклад", "кредит", "ипотека", "перевод", "счёт", "ставка", "рубль", "банкомат", "лимит", "срок")
# The child reads the settings of this project, but searches with the bi-encoder and the K that are asked for.
_CHILD = """
import json, resource, runpy, sys
sys.path.insert(0, {scripts!r})
import _cli
import config
values = config.load_settings().model_dump()
values.update(json.loads({changes!r}))
settings = config.Settings(**values)
script = runpy.run_path({script!r})
script["run"](settings, json.loads({arguments!r}))
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench_memory.py", description=__doc__)
    add = parser.add_argument
    add("--questions", nargs="+", type=positive_integer, default=[1000, 10_000, 100_000], metavar="N")
    add("--documents", type=positive_integer, default=1000, metavar="N", help="of the corpus (default: 1000)")
    add("--encoder", metavar="MODEL", help="bi-encoder (default: none, BM25 alone)")
    add("--candidates", type=positive_integer, default=20, metavar="K", help="(default: 20)")
    add(
        "--rerank", action="store_true",
        help="also rerank, with a random cross-encoder of one narrow layer, made for this (default: stage one alone)",
    )  # fmt: skip
    add("--depth", type=positive_integer, default=50, metavar="N", help="documents and chunks per index (default: 50)")
    add("--name", help="file under data/results (default: <date>-bench-memory)")
    return parser


def _write_csv(folder: Path, documents: int, questions: int) -> None:
    chance = random.Random(0)

    def words(count: int) -> str:
        return " ".join(chance.choices(_WORDS, k=count)) + f" {chance.randrange(1000)}"

    pages = [f"{i},{words(3)},{words(40)}" for i in range(documents)]
    asked = [f"q{i},{words(4)}" for i in range(questions)]
    (folder / "corpus.csv").write_text("\n".join(["web_id,title,text", *pages]) + "\n", encoding="utf-8")
    (folder / "questions.csv").write_text("\n".join(["q_id,query", *asked]) + "\n", encoding="utf-8")


def _write_cross_encoder(folder: Path) -> None:
    """A model so small that millions of pairs take minutes; what is kept per pair does not depend on its size."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    torch.manual_seed(0)
    vocabulary = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *_WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)


def _peak(script: str, arguments: Sequence[str], changes: dict[str, object]) -> float:
    """Peak resident memory of a script in GB."""
    scripts = PROJECT_ROOT / "scripts"
    code = _CHILD.format(
        scripts=str(scripts), script=str(scripts / f"{script}.py"), changes=json.dumps(changes),
        arguments=json.dumps(list(arguments)),
    )  # fmt: skip
    code += "\nprint('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=PROJECT_ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("PEAK ")]
    if done.returncode != 0 or not lines:
        raise UserError(f"{script} failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    unit = 1 if platform.system() == "Darwin" else 1024
    return int(lines[0].split()[1]) * unit / 1e9


def _plot(path: Path, rows: Sequence[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx([row["questions"] for row in rows], [row["peak_gb"] for row in rows], "o-", color="#4878a8")
    axes.set_ylim(0, 1.15 * max(row["peak_gb"] for row in rows))
    axes.set_xlabel("questions")
    axes.set_ylabel("peak memory of the search, GB")
    axes.grid(alpha=0.3)
    save_png(figure, path)


def run(_settings: Settings, arguments: Sequence[str]) -> None:
    """Measure, print a table, and save the figures."""
    flags = _parser().parse_args(arguments)
    changes: dict[str, object] = {
        "encoders": [{"model": flags.encoder, "unit": "document", "weight": 0.5}] if flags.encoder else [],
        "late_interaction_weight": 0.0,
        "search_depth_documents": flags.depth, "search_depth_chunks": flags.depth,
        "reranker_candidate_k": flags.candidates, "reranker_precision": "exact",
    }  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if flags.rerank:
            _write_cross_encoder(folder / "cross-encoder")
            changes |= {"cross_encoder_model": str(folder / "cross-encoder"), "cross_encoder_model_multilingual": None}
        for questions in flags.questions:
            _write_csv(folder, flags.documents, questions)
            common = ["--data-dir", str(folder / "data"), "--corpus", str(folder / "corpus.csv")]
            common += ["--questions", str(folder / "questions.csv")]
            _peak("01_preprocess", common, changes)
            _peak("02_build_indices", common, changes)
            output = ["--output", str(folder / "s.csv"), "--rerank" if flags.rerank else "--no-rerank"]
            rows.append(
                {"questions": questions, "peak_gb": round(_peak("03_run_search", [*common, *output], changes), 3)}
            )
            log.info("%9s questions: peak %.3f GB", f"{questions:,}", rows[-1]["peak_gb"])
    now = datetime.now(UTC)
    path = PROJECT_ROOT / "data" / "results" / f"{flags.name or f'{now:%Y-%m-%d}-bench-memory'}.json"
    machine = {"python": platform.python_version(), "system": platform.platform()}
    shape = {
        "documents": flags.documents,
        "candidates": flags.candidates,
        "depth": flags.depth,
        "encoder": flags.encoder,
        "reranked": flags.rerank,
    }
    _plot(path.with_suffix(".png"), rows)
    write_json(path, {"created": now.isoformat(timespec="seconds"), "machine": machine, "shape": shape, "peaks": rows})
    log.info("Saved: %s", path)


if __name__ == "__main__":
    main(run)
