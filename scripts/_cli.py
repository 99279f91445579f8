"""What the numbered scripts share: flags, logging, errors to exit codes."""

# ruff: noqa: E402 (the hook for a Python that cannot run this comes before the imports that need one that can)

import argparse
import errno
import fcntl
import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parent.parent
EXIT_USER_ERROR = 2
_IS_TYPED = Path(sys.argv[0]).resolve().parent == PROJECT_ROOT / "scripts"  # not where another program imports this


def _explain_python(kind: Any, error: Any, trace: Any) -> None:
    """In place of the traceback where this Python cannot run the scripts. Python 3.9 must be able to read it."""
    name = getattr(error, "name", None) or ""
    if sys.version_info < (3, 11):  # noqa: UP036
        trouble = f"Python {sys.version.split()[0]} is too old, 3.11 or later is needed"
    elif isinstance(error, ModuleNotFoundError) and not _is_own(name):
        trouble = f"package {name!r} is not installed for {sys.executable}"
    else:
        sys.__excepthook__(kind, error, trace)
        return
    advice = "Run ./run_cross_encoder_search.sh once, or: pip install -r requirements.txt"
    environment = PROJECT_ROOT / ".venv"
    if (environment / "bin" / "python").exists() and Path(sys.prefix).resolve() != environment.resolve():
        shown = environment.name if Path.cwd() == PROJECT_ROOT else str(environment)
        advice = f"Type: source {shown}/bin/activate (or give the command as: {shown}/bin/python {sys.argv[0]})"
    sys.stderr.write(f"ERROR: {trouble}. {advice}\n")
    sys.exit(EXIT_USER_ERROR)


def _is_own(module: str) -> bool:
    return module.startswith("_") or module.split(".")[0] in {"config", "src"}


if _IS_TYPED:
    sys.excepthook = _explain_python

from _signals import EXIT_INTERRUPTED, STOPPED, Stopped, leave_on_signals, stop_on_signals

if _IS_TYPED:
    leave_on_signals()  # until main begins
sys.path.insert(0, str(PROJECT_ROOT))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from config import Settings, load_settings
from src.core.atomic import remove_dead_temporaries
from src.core.errors import UserError
from src.core.memory import first_line, means_out_of_memory

LOG_NAME = "search_cross_encoder.log"
_DISK_TROUBLE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
_CLEARER = {
    errno.EEXIST: "not a folder, and a folder is needed there",
    errno.ENOTDIR: "a part of this path is not a folder",
}

log = logging.getLogger("search")


def add_data_flags(parser: argparse.ArgumentParser, settings: Settings) -> None:
    """Flags that every numbered script takes."""
    default = "<data folder>/raw/%s, else the prepared data, else data/sample"
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
        help="fit RERANKER_BLEND_WEIGHT on the labels by cross-validation; used where its gain is shown (default: off)",
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
    add_safety_flags(parser)
    if "--if-stale" in sys.argv:
        add_search_flags(parser, settings)
    return parser


def add_safety_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of 01, 02 and 03 that say what they trust, and whom they wait for."""
    parser.add_argument(
        "--fresh", action="store_true",
        help="make everything anew: kept preparation, embeddings, indices and pair scores are replaced (default: off)",
    )  # fmt: skip
    parser.add_argument(
        "--verify", action="store_true",
        help="check the full hash of every artefact, not its size and header alone (default: off)",
    )  # fmt: skip
    add_wait_flag(parser)


def add_wait_flag(parser: argparse.ArgumentParser) -> None:
    """Flag of every script that writes into a data folder."""
    parser.add_argument(
        "--wait", action="store_true", help="wait where another run holds the data folder (default: stop)"
    )


def positive_integer(text: str) -> int:
    """A flag's value: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def require_writable(output: Path) -> None:
    """Find out before the work, not at its end, whether ``--output`` can be written; leaves nothing behind.

    Raises:
        UserError: as :func:`why_not_writable` says.
    """
    reason = why_not_writable(output)
    if reason is not None:
        raise UserError(f"--output {reason}. Give another path.")


def why_not_writable(output: Path) -> str | None:
    """Why the folder of a file, or the nearest one above that is there, takes no file of its name; else ``None``."""
    folder = output.absolute().parent
    try:
        while not (folder.exists() or folder.is_symlink()):
            folder = folder.parent
        # The kind of name that the submission has until it is whole.
        with tempfile.NamedTemporaryFile(prefix=f"{output.name}.tmp-{os.getpid()}-", dir=folder):
            pass
    except OSError as error:
        return f"{output}: no file can be written in {folder}: {error.strerror}"
    return None


def usable_cores() -> int:
    """Cores that this process may use: those of the machine, less what its affinity or a container's limit takes.

    A limit of part of a core (cgroup v2 ``cpu.max``, v1 ``cpu.cfs_quota_us``) is rounded up.
    """
    # joblib.cpu_count says 1 where semaphores are missing; threads need none.
    from joblib.externals.loky import cpu_count

    return int(cpu_count())


def set_up_threads(count: int) -> None:
    """The one place that decides on threads; 0 means one per core that this process may use."""
    import faiss
    import torch

    threads = count or usable_cores()
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


def log_error(message: str) -> None:
    """How scripts tell an error."""
    log.error("ERROR: %s", message)


def main(
    run: Callable[[Settings, Sequence[str]], None],
    keep_log: bool = False,
    error_code: int = EXIT_USER_ERROR,
    tell_error: Callable[[str], None] = log_error,
) -> None:
    """Run a script: plain log lines on standard output, user errors as one line and exit code ``error_code``.

    An interrupt (130) or SIGTERM (143) drops the block in hand; everything finished is on disk.

    Args:
        run: the script; gets the settings and the arguments.
        keep_log: also write the output to ``search_cross_encoder.log`` in the project folder. Where a shell script
            already keeps all output (``SEARCH_OUTPUT_IS_LOGGED``), it is not written twice. The file takes its name
            at the end, so that it may also be the target of a ``tee``.
        error_code: of user errors, settings that cannot be read among them.
        tell_error: says what a user error is.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    stop_on_signals()
    try:
        settings = load_settings()
        _quieten_libraries()
        # What is imported stays: collections, which give back the memory of models, need not look through it.
        gc.freeze()
        if not keep_log or os.environ.get("SEARCH_OUTPUT_IS_LOGGED"):
            run(settings, sys.argv[1:])
        else:
            _run_logged(run, settings, PROJECT_ROOT / LOG_NAME)
    except KeyboardInterrupt as interrupt:
        code = interrupt.code if isinstance(interrupt, Stopped) else EXIT_INTERRUPTED
        log.error("%s", STOPPED)
        sys.exit(code)
    except (UserError, OSError, MemoryError, RuntimeError) as error:
        message = _in_one_line(error)
        if message is None:
            raise
        tell_error(message)
        sys.exit(error_code)


def _in_one_line(error: Exception) -> str | None:
    """What to tell the user; ``None`` where the error is a defect of the code."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_TROUBLE:
        return f"{error.filename or 'a file'}: {_reason(error)}. Mend that, then give the same command again."
    advice = "or halve ENCODER_BATCH_SIZE and RERANKER_BATCH_SIZE in config/settings.py."
    if isinstance(error, MemoryError):
        return f"out of memory: {first_line(error)}. Close other programs, {advice}"
    if isinstance(error, RuntimeError) and means_out_of_memory(error):
        return f"out of memory on the device: {first_line(error)}. Free it, {advice}"
    return None


def _reason(error: OSError) -> str:
    return _CLEARER.get(error.errno or 0) or error.strerror or str(error)


class _Tee:
    """Standard output that is also written to a file."""

    def __init__(self, path: Path) -> None:
        self.screen = sys.stdout
        self.file = path.open("w", encoding="utf-8", buffering=1)

    def write(self, text: str) -> int:
        self.keep(text)
        return self.screen.write(text)

    def keep(self, text: str) -> None:
        """Write to the file alone."""
        # A full disk must not take the screen's output with it; the error that follows names the disk.
        with suppress(OSError):
            self.file.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.file.flush()
        self.screen.flush()

    def isatty(self) -> bool:
        return self.screen.isatty()


def _run_logged(run: Callable[[Settings, Sequence[str]], None], settings: Settings, path: Path) -> None:
    if {"-h", "--help"} & set(sys.argv):
        run(settings, sys.argv[1:])
        return
    remove_dead_temporaries(path)
    partial = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    tee = _Tee(partial)
    sys.stdout = tee
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=tee, force=True)
    try:
        run(settings, sys.argv[1:])
    except UserError as error:
        tee.keep(f"ERROR: {error}\n")
        raise
    except KeyboardInterrupt:
        tee.keep(f"{STOPPED}\n")
        raise
    finally:
        sys.stdout = tee.screen
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
        with suppress(OSError):
            tee.file.close()
        name = _free_log(path)
        partial.replace(name)
        if name != path:
            log.info("Another run is writing %s; the log of this one is %s.", path.name, name.name)


def _free_log(path: Path) -> Path:
    """``path``, or the first of ``NAME-2.log``, ... that no run of the shell script is writing to."""
    for name in (path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, 10))):
        if not name.exists():
            return name
        with name.open("a") as handle, suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return name
    return path.with_stem(f"{path.stem}-{os.getpid()}")
