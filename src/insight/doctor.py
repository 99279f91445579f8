"""What a machine has, what a run needs, and how long it may take: findings, one line each."""

import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import psutil
import torch

import faiss  # isort: skip

from src.core.errors import ModelUnavailableError, UserError
from src.engine.devices import pick_device
from src.engine.driver import nvidia_driver, why_no_gpu
from src.engine.encoder import SentenceEncoder
from src.engine.pair_scorer import PairScorer
from src.models.resolve import ModelResolver, ResolvedModel, Role, hub_answers, shaping_files

Level = Literal["ok", "note", "FAIL"]

_GIB = 1 << 30
_SAMPLE = 256
_CGROUP = Path("/sys/fs/cgroup")
_MEMORY_LIMITS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_NOT_HERE = "not in the local hub cache"  # in the resolver's errors of models that it would have to download


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        level: ``ok``; ``note``: worth knowing, the run works; ``FAIL``: the run would end with an error.
        what: what was looked at.
        detail: what was found, and the fix where one is needed.
    """

    level: Level
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what:<22} {self.detail}"


def machine_findings(wanted: str) -> Iterator[Finding]:
    """Python, torch, CUDA, driver and faiss build.

    Args:
        wanted: device of the settings.
    """
    yield Finding("ok", "Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    seen = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU that torch can use"
    yield Finding("ok", "torch", f"{torch.__version__}, {cuda}; {seen}; {torch.get_num_threads()} CPU threads")
    driver = nvidia_driver()
    if driver is not None:
        usable = torch.cuda.is_available()
        yield Finding("ok" if usable else "note", "GPU driver", driver.text if usable else why_no_gpu(driver))
    gpu_build = hasattr(faiss, "StandardGpuResources")
    yield Finding("ok", "faiss", f"{faiss.__version__}, {'GPU' if gpu_build else 'CPU'} build")
    try:
        yield Finding("ok", "device", pick_device(wanted))
    except UserError as error:
        yield Finding("FAIL", "device", str(error))


def space_findings(folder: Path, disk_bytes: int, memory_bytes: int) -> Iterator[Finding]:
    """Free disk and memory against what the run needs.

    Args:
        folder: the data folder; the nearest parent that exists is asked.
    """
    place = folder
    while not place.exists():
        place = place.parent
    for what, need, free in (
        ("disk", disk_bytes, shutil.disk_usage(place).free),
        ("memory", memory_bytes, free_memory()),
    ):
        enough = free >= need
        fix = "" if enough else ". Free some, or lower LATE_INTERACTION_GB and the search depths"
        line = f"about {need / _GIB:.1f} GiB needed, {free / _GIB:.1f} GiB free{fix}"
        yield Finding("ok" if enough else "FAIL", what, line)


class NotHereYetError(UserError):
    """A model that is not on this machine, and that a run would download.

    Attributes:
        model: its name.
    """

    def __init__(self, model: str) -> None:
        super().__init__(f"{model}: not here; the hub has it, the run would download it")
        self.model = model


class LocalModels(ModelResolver):
    """Finds what a run would use, and downloads nothing; nothing stands in for a model that would be downloaded.

    Args:
        models_dir, root, when_unavailable, allow_remote_code: of the resolver of the run.
    """

    def __init__(
        self,
        models_dir: Path,
        root: Path,
        when_unavailable: Literal["embedded", "fail"],
        allow_remote_code: bool | Sequence[str],
    ) -> None:
        super().__init__(models_dir, root, "fail", allow_remote_code, may_download=False)
        self.as_the_run = ModelResolver(models_dir, root, when_unavailable, allow_remote_code, may_download=False)

    def resolve(self, name: str, role: Role, pooling: str | None = None) -> ResolvedModel:
        """Find a model: directory, local hub cache, embedded.

        Raises:
            NotHereYetError: where the run would download it.
            ModelUnavailableError: where the run would end with that.
        """
        try:
            return super().resolve(name, role, pooling)
        except ModelUnavailableError as error:
            if _NOT_HERE not in str(error):
                raise
            if hub_answers(name):
                raise NotHereYetError(name) from error
        return self.as_the_run.resolve(name, role, pooling)


@dataclass(frozen=True)
class Speed:
    """A measured rate.

    Attributes:
        units_per_second: such as tokens.
        seconds: how long was measured.
    """

    units_per_second: float
    seconds: float


def measure(
    work: Callable[[npt.NDArray[np.int64]], None],
    sizes: Sequence[int],
    batch: int,
    seconds: float,
    seed: int = 0,
    warm_up: bool = True,
) -> Speed:
    """How many units (tokens) a second ``work`` gets through.

    Calls begin with one item and double, so that a slow model is known after few of them. The rate is that of the
    calls with the most items.

    Args:
        work: does the items of the given numbers.
        sizes: units of each item; at least one.
        batch: most items per call.
        seconds: no call begins when they are over; one call is made in any case.
        warm_up: one item more goes first, which no clock sees: for work that loads its model when it is first called.
    """
    order = np.random.default_rng(seed).permutation(len(sizes))
    if warm_up:
        work(order[:1])
    begin, place, items, counted = time.perf_counter(), 0, 1, 0
    while True:
        rows = np.take(order, range(place, place + items), mode="wrap")
        start = time.perf_counter()
        work(rows)
        now = time.perf_counter()
        if items > counted:
            counted, done, taken = items, 0, 0.0
        done += int(sum(sizes[row] for row in rows.tolist()))
        taken += now - start
        if now - begin >= seconds:
            return Speed(done / taken, taken)
        place += items
        items = min(2 * items, batch, len(order))


def mean_tokens(model: SentenceEncoder, texts: Sequence[str], role: Literal["query", "document"]) -> float:
    """Tokens of a text with its prefix, as counted on some of at least one."""
    return float(model.token_counts(_some(texts), role).mean()) + 2


def tokens_per_second(
    model: SentenceEncoder, texts: Sequence[str], role: Literal["query", "document"], batch_size: int, seconds: float
) -> float:
    """How many tokens a second a bi-encoder encodes, from a measurement on some texts.

    Args:
        texts: at least one, without prefix.
        batch_size: texts per forward pass.
        seconds: budget of the measurement; see :func:`measure`.
    """
    chosen = _some(texts)
    counts = model.token_counts(chosen, role) + 2

    def encode(rows: npt.NDArray[np.int64]) -> None:
        model.encode([chosen[row] for row in rows.tolist()], role, batch_size)

    return measure(encode, counts.tolist(), 2 * batch_size, seconds, warm_up=False).units_per_second


def _some(texts: Sequence[str]) -> list[str]:
    return [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:_SAMPLE].tolist()]


def pairs_per_second(
    scorer: PairScorer, questions: Sequence[str], passages: Sequence[str], batch_size: int, seconds: float
) -> float:
    """How many pairs a cross-encoder scores, from a measurement on questions and passages drawn at random.

    Args:
        questions, passages: at least one each.
        batch_size: pairs per forward pass.
        seconds: budget of the measurement; see :func:`measure`.

    Raises:
        UserError: where the model cannot be loaded, or a question is too long for it.
    """
    scorer.load()
    generator = np.random.default_rng(0)
    read = [passages[i] for i in generator.integers(len(passages), size=_SAMPLE).tolist()]
    asked = scorer.tokenize([questions[i] for i in generator.integers(len(questions), size=_SAMPLE).tolist()])
    tokens = scorer.tokenize(read)
    pairs = np.stack([np.arange(_SAMPLE), np.arange(_SAMPLE)], axis=1).astype(np.int32)
    lengths = scorer.pair_lengths(asked, tokens, pairs)

    def score(rows: npt.NDArray[np.int64]) -> None:
        if scorer.joint:
            scorer.score(asked, tokens, pairs[rows])
            return
        # Such a model keeps what it has read, so every passage must be new to it here.
        new = np.stack([pairs[rows, 0], np.arange(len(rows), dtype=np.int32)], axis=1)
        scorer.score(asked, scorer.tokenize([read[row] for row in rows.tolist()]), new)

    speed = measure(score, lengths.tolist(), 2 * batch_size, seconds, warm_up=False)
    return speed.units_per_second / float(lengths.mean())


def duration(seconds: float) -> str:
    """``45 s``, ``6 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def model_bytes(directory: Path) -> int:
    """Bytes of what is loaded of a model's directory; other formats of the same weights are not."""
    return sum(path.stat().st_size for path in shaping_files(directory))


def free_memory() -> int:
    """Bytes of memory that this process may still take: the machine's, or less where a container's limit is lower.

    Limits are those of cgroup v2 and v1; the cache of files, which gives way, does not count as taken.
    """
    free = int(psutil.virtual_memory().available)
    for folder, limit, taken, cache in _MEMORY_LIMITS:
        place = _CGROUP / folder
        try:
            most, used = (int((place / name).read_text()) for name in (limit, taken))
            found = re.search(rf"^{cache} (\d+)$", (place / "memory.stat").read_text(), re.MULTILINE)
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
        free = min(free, max(0, most - used + (int(found[1]) if found else 0)))
    return free
