"""A copy of the project with tiny models and a small corpus, and processes that run its scripts."""

import os
import random
import re
import resource
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
STEPS = ("01_preprocess", "02_build_indices", "03_run_search")
TIMEOUT = 300.0
WORDS = (
    *("карта", "вклад", "кредит", "ипотека", "перевод", "счёт", "ставка", "рубль", "банкомат", "отделение", "лимит"),
    *("комиссия", "договор", "заявка", "пароль", "приложение", "телефон", "паспорт", "страховка", "процент", "срок"),
    *("платёж", "наличные", "валюта", "выписка", "бонус", "возврат", "штраф", "график", "адрес"),
)


@dataclass(frozen=True)
class Ended:
    """How a script ended: exit code (negative: the signal that killed it), its output, and how long it took."""

    code: int
    output: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of the output."""
        return (self.output.strip().splitlines() or [""])[-1]


class Process:
    """A script in a process of its own, forked from this one, which has imported the libraries and nothing else.

    Args:
        arguments: of the script.
        limit: most bytes in a file that it may write.
    """

    def __init__(self, root: Path, script: str, arguments: Sequence[str], log: Path, limit: int | None = None) -> None:
        self.log = log
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            _become(root / "scripts" / f"{script}.py", arguments, log, limit)

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait(self, patience: float = TIMEOUT) -> Ended:
        """Wait for its end; a process that takes longer than ``patience`` seconds is killed."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Ended(os.waitstatus_to_exitcode(status), self.output(), time.monotonic() - self.started)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise TimeoutError(f"still running after {patience:g} s: {self.output()[-500:]}")


def _become(script: Path, arguments: Sequence[str], log: Path, limit: int | None) -> None:
    """Turn a forked child into a run of ``script``; never returns."""
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", buffering=1)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", buffering=1)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.chdir(script.parent.parent)
        sys.argv = [str(script), *arguments]
        sys.path[:0] = [str(script.parent)]
        try:
            runpy.run_path(str(script), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def import_libraries() -> None:
    """What every step imports first and what takes seconds; nothing of the project itself."""
    import bm25s  # noqa: F401
    import faiss  # noqa: F401
    import ir_measures  # noqa: F401
    import openvino  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import sentence_transformers  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


def make_project(root: Path, documents: int, questions: int, seed: int) -> None:
    """Copy the product to ``root``, with tiny models, settings that name them, and a corpus in ``raw``."""
    sys.path.insert(0, str(PROJECT / "tests"))
    child = os.fork()
    if child == 0:  # the tiny models need torch at work, which no later fork may inherit
        code = 1
        os.dup2(os.open(root / "models.log", os.O_WRONLY | os.O_CREAT), 2)
        try:
            from conftest import save_bi_encoder, save_cross_encoder

            save_bi_encoder(root / "models" / "bi", root / "models" / "bare")
            save_cross_encoder(root / "models" / "cross")
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("the tiny models could not be made")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "scripts", "config"):
        shutil.copytree(PROJECT / name, root / name, ignore=ignored)
    encoders = [{"model": str(root / "models" / "bi"), "unit": unit} for unit in ("document", "chunk")]
    changes = {
        "ENCODERS": encoders,
        "CROSS_ENCODER_MODEL": str(root / "models" / "cross"),
        "CROSS_ENCODER_MODEL_MULTILINGUAL": None,
        "CPU_ENGINE": "torch",
        "CPU_THREADS": 1,
        "DEVICE": "cpu",
        # One at a time: so slow that a kill lands inside the work.
        "ENCODER_BATCH_SIZE": 1,
        "RERANKER_BATCH_SIZE": 1,
        "RERANKER_CANDIDATE_K": 20,
        "ENCODER_MAX_TOKENS": 128,
        "RERANKER_MAX_LENGTH": 128,
    }
    _set(root / "config" / "settings.py", changes)
    _write_corpus(root / "raw", documents, questions, random.Random(seed))


def _set(path: Path, changes: Mapping[str, object]) -> None:
    text = path.read_text(encoding="utf-8")
    for name, value in changes.items():
        text, count = re.subn(
            rf"^{name} = (\[.*?^\]|[^\n]*)", lambda _, n=name, v=value: f"{n} = {v!r}", text, flags=re.M | re.S
        )
        if count != 1:
            raise RuntimeError(f"{name} is not in {path}")
    path.write_text(text, encoding="utf-8")


def _write_corpus(raw: Path, documents: int, questions: int, chance: random.Random) -> None:
    raw.mkdir()

    def sentence(words: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(words)).capitalize() + "."

    pages = [
        f'{i},"{sentence(3)}","{" ".join(sentence(8) for _ in range(chance.randint(3, 8)))}"' for i in range(documents)
    ]
    # Every twentieth page has no text: its passage is the title, as a document and as a chunk.
    pages[::20] = [f'{i},"{sentence(4)}",' for i in range(0, documents, 20)]
    asked = [f'q{i:04d},"{sentence(chance.randint(3, 6))}"' for i in range(questions)]
    labels = [f"q{i:04d},{chance.randrange(documents)}" for i in range(0, questions, 2)]
    for name, header, rows in (
        ("websites_updated.csv", "web_id,title,text", pages),
        ("questions_clean.csv", "q_id,query", asked),
        ("qrels.csv", "q_id,web_id", labels),
    ):
        (raw / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
