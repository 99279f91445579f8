"""What the numbered scripts share: flags, logging, errors to exit codes."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    from config import Settings, load_settings
    from src.core.errors import UserError
except ModuleNotFoundError as missing:
    sys.exit(
        f"ERROR: package {missing.name!r} is not installed. Run ./run_cross_encoder_search.sh once, or: "
        "pip install -r requirements.txt"
    )

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

log = logging.getLogger("search")


def add_data_flags(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Flags that every numbered script takes."""
    default = f"<data folder>/raw/%s, else the prepared data, else {settings.data_dir}/sample"
    parser.add_argument(
        "--corpus", type=Path, metavar="CSV", help=f"documents (default: {default % settings.corpus_file})"
    )
    parser.add_argument(
        "--questions", type=Path, metavar="CSV", help=f"questions (default: {default % settings.questions_file})"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="CSV", help=f"relevance labels (default: {default % settings.labels_file})"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        default=PROJECT_ROOT / settings.data_dir,
        help=f"data folder of this corpus (default: {settings.data_dir})",
    )


def add_search_flags(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Flags of the search."""
    parser.add_argument(
        "--output",
        type=Path,
        metavar="CSV",
        default=PROJECT_ROOT / settings.output_file,
        help=f"submission to write (default: {settings.output_file})",
    )
    parser.add_argument("--limit", type=positive_integer, metavar="N", help="only the first N questions (default: all)")
    parser.add_argument(
        "--top-k",
        type=positive_integer,
        metavar="N",
        default=settings.top_k,
        help=f"documents per question (default: TOP_K = {settings.top_k})",
    )
    parser.add_argument(
        "--rerank",
        action=argparse.BooleanOptionalAction,
        default=settings.enable_cross_encoder_reranking,
        help=f"(default: ENABLE_CROSS_ENCODER_RERANKING = {settings.enable_cross_encoder_reranking})",
    )
    parser.add_argument(
        "--fit-blend",
        action="store_true",
        help="fit RERANKER_BLEND_WEIGHT on the labels by cross-validation and report the held-out gain (default: off)",
    )
    parser.add_argument(
        "--fit-fusion",
        action="store_true",
        help="fit stage one's FUSION_METHOD and weights on the labels in the same way (default: off)",
    )
    parser.add_argument(
        "--enable-profiling",
        action="store_true",
        help="table of time, throughput and memory per stage, also as JSON in data/runs (default: off)",
    )


def preparation_parser(prog: str, description: str, settings: Settings) -> argparse.ArgumentParser:
    """Parser of 01 and 02. With ``--if-stale`` they also take the flags of the search, and ignore them."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    add_data_flags(parser, settings)
    parser.add_argument(
        "--if-stale", action="store_true", help="do nothing where the result is up to date (default: off)"
    )
    if "--if-stale" in sys.argv:
        add_search_flags(parser, settings)
    return parser


def positive_integer(text: str) -> int:
    """A flag's value: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def set_up_threads(count: int) -> None:
    """The one place that decides on threads; 0 means one per core."""
    import faiss
    import torch

    threads = count or os.cpu_count() or 1
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)


def _quieten_libraries() -> None:
    # transformers 5 warns of a name that peft still uses.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    for name in ("httpx", "httpx2", "huggingface_hub", "sentence_transformers", "bm25s", "faiss", "pymorphy3"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from transformers.utils import logging as transformers_logging

    # Its warnings speak of weights that this project never uses (the pooler of a bi-encoder).
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def main(run: Callable[[Settings, Sequence[str]], None], keep_log: bool = False) -> None:
    """Run a script: plain log lines on standard output, user errors as one line and exit code 2.

    Args:
        run: the script; gets the settings and the arguments.
        keep_log: also write the output to ``LOG_FILE`` in the project folder. Where a shell script already keeps all
            output (``SEARCH_OUTPUT_IS_LOGGED``), it is not written twice. The file takes its name at the end, so
            that it may also be the target of a ``tee``.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    try:
        settings = load_settings()
        _quieten_libraries()
        if not keep_log or os.environ.get("SEARCH_OUTPUT_IS_LOGGED"):
            run(settings, sys.argv[1:])
        else:
            _run_logged(run, settings, PROJECT_ROOT / settings.log_file)
    except UserError as error:
        log.error("ERROR: %s", error)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        log.error("Interrupted. Nothing was half-written; the same command starts again.")
        sys.exit(EXIT_INTERRUPTED)


class _Tee:
    """Standard output that is also written to a file."""

    def __init__(self, path: Path) -> None:
        self.screen = sys.stdout
        self.file = path.open("w", encoding="utf-8", buffering=1)

    def write(self, text: str) -> int:
        self.file.write(text)
        return self.screen.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.screen.flush()

    def isatty(self) -> bool:
        return self.screen.isatty()


def _run_logged(run: Callable[[Settings, Sequence[str]], None], settings: Settings, path: Path) -> None:
    if {"-h", "--help"} & set(sys.argv):
        run(settings, sys.argv[1:])
        return
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    tee = _Tee(partial)
    sys.stdout = tee
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=tee, force=True)
    try:
        run(settings, sys.argv[1:])
    except UserError as error:
        tee.file.write(f"ERROR: {error}\n")
        raise
    finally:
        sys.stdout = tee.screen
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        tee.file.close()
        partial.replace(path)
