"""A model name becomes a directory: a path, the local hub cache, the hub, or an embedded model; never in silence."""

import difflib
import hashlib
import json
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Literal

from src.core.artifacts import MANIFEST_NAME, atomic_path, file_sha256, fingerprint, read_manifest
from src.core.atomic import explain_full_disk
from src.core.errors import DiskFullError, ModelUnavailableError
from src.models import embedded_e5, embedded_reranker
from src.models.model_files import MODULES, lack_of
from src.models.remote_code import foreign_code, has_own_code, revision_of_code

Role = Literal["bi-encoder", "cross-encoder"]
Source = Literal["directory", "local hub cache", "hub", "embedded"]

EMBEDDED_PREFIX = "embedded:"
EMBEDDED: dict[Role, str] = {
    "bi-encoder": EMBEDDED_PREFIX + embedded_e5.NAME,
    "cross-encoder": EMBEDDED_PREFIX + embedded_reranker.NAME,
}
_hub_is_away = threading.Event()
CONNECT_TIMEOUT_SECONDS = 5.0
# What the fingerprint of a directory reads, and what in it no loader reads or only copies the weights.
_SHAPING = {".json", ".txt", ".model", ".spm", ".tiktoken", ".jinja", ".py", ".metadata", ".safetensors", ".bin"}
_SHAPELESS = {MANIFEST_NAME, "training_args.bin", "trainer_state.json"}
_SHAPELESS_FOLDERS = (".*", "onnx", "openvino", "checkpoint-*")
# The last one is of Stanford's ColBERT.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.metadata")

log = logging.getLogger(__name__)
_hashes: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True)
class ResolvedModel:
    """A model that can be loaded.

    Attributes:
        role: what it is used as.
        requested: the name in the settings.
        used: the name of what was found; differs from ``requested`` only with a ``warning``.
        directory: where it lies.
        source: where it came from.
        revision: commit of the hub, or the directory's name; for people.
        fingerprint: equal for equal models on any machine; artefacts made with the model carry it.
        warning: why another model stands in, to be repeated wherever results are shown.
        remote_code: whether the model's own Python code may run.
        assumed_pooling: of a bi-encoder without ``modules.json``, which says how its token vectors are pooled.
    """

    role: Role
    requested: str
    used: str
    directory: Path
    source: Source
    revision: str
    fingerprint: str
    warning: str | None = None
    remote_code: bool = False
    assumed_pooling: str | None = None

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.used} (from {self.source}, revision {self.revision})"

    def record(self) -> dict[str, str | None]:
        """What a manifest keeps: no machine paths."""
        return {
            "role": self.role,
            "requested": self.requested,
            "used": self.used,
            "source": self.source,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "warning": self.warning,
        }


class ModelResolver:
    """Finds models.

    Args:
        models_dir: where embedded models are unpacked (the project's ``data/models``).
        root: relative model paths are relative to it.
        when_unavailable: ``embedded`` puts the embedded model in place of one that cannot be had, with a warning;
            ``fail`` raises.
        allow_remote_code: models whose own Python code may run: all, none, or those of these names.
        may_download: whether the hub is asked for a model that is not here; without it, such a model cannot be had.
    """

    def __init__(
        self,
        models_dir: Path,
        root: Path,
        when_unavailable: Literal["embedded", "fail"],
        allow_remote_code: bool | Sequence[str] = False,
        may_download: bool = True,
    ) -> None:
        self.models_dir = models_dir
        self.root = root
        self.when_unavailable = when_unavailable
        self.allow_remote_code = allow_remote_code
        self.may_download = may_download

    def resolve(self, name: str, role: Role, pooling: str | None = None) -> ResolvedModel:
        """Find a model: directory, local hub cache, hub, embedded.

        Args:
            pooling: that the settings give a bi-encoder; one in the cache then needs no ``modules.json``.

        Raises:
            ModelUnavailableError: unknown embedded name, a path that is not there, or a model that cannot be had
                while ``when_unavailable`` is ``fail``.
        """
        if name.startswith(EMBEDDED_PREFIX):
            return self._embedded(name, name, role, None)
        directory = (self.root / Path(name).expanduser()).resolve()
        if directory.is_dir():
            _require_model(name, directory)
            return self._found(name, role, directory, "directory", _content(directory), pooling)
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ModelUnavailableError(
                f"model {name!r}: no directory {directory}. Give an existing one or a hub name."
            )
        cached, lack = _from_cache(name, needs_modules=role == "bi-encoder" and pooling is None)
        if cached is not None and lack is None:
            return self._found(name, role, cached, "local hub cache", f"{name}@{cached.name}", pooling)
        why = "it is not in the local hub cache" + ("" if lack is None else f" as a whole ({lack})")
        try:
            if not self.may_download:
                raise ModelUnavailableError(why)
            downloaded = _from_hub(name, why, self._may_run_code_of(name))
        except ModelUnavailableError as error:
            how = (
                f"To get it: run `hf download {name}` on a machine with a network and copy its hub cache "
                f"(~/.cache/huggingface), or set the model's name to a directory."
            )
            if self.when_unavailable == "fail":
                raise ModelUnavailableError(f"{role} {name!r}: {error}. {how}") from error
            stand_in = EMBEDDED[role]
            warning = f"{role} {name!r} could not be had ({error}); {stand_in!r} stands in for it"
            log.warning("WARNING: %s. %s", warning, how)
            return self._embedded(name, stand_in, role, warning)
        return self._found(name, role, downloaded, "hub", f"{name}@{downloaded.name}", pooling)

    def _may_run_code_of(self, name: str) -> bool:
        allowed = self.allow_remote_code
        return allowed if isinstance(allowed, bool) else name in allowed

    def _found(
        self, name: str, role: Role, directory: Path, source: Source, content: str, pooling: str | None
    ) -> ResolvedModel:
        allowed = self._may_run_code_of(name)
        if not allowed and has_own_code(directory):
            # Loaded without its code it may take its weights for those of another architecture.
            raise ModelUnavailableError(
                f"{role} {name!r} is made of Python code of its own (auto_map in {directory / 'config.json'}), which "
                f'does not run unless the settings name it: ALLOW_REMOTE_CODE = ["{name}"]. Read that code first, or '
                "name another model."
            )
        if allowed and has_own_code(directory):
            log.warning("WARNING: %s %r runs Python code of its own (ALLOW_REMOTE_CODE)", role, name)
            content += self._foreign_code(role, name, directory)
        assumed = None
        if role == "bi-encoder" and not (directory / MODULES).is_file():
            assumed = _assumed_pooling(directory)
            # The same commit with its modules is another model.
            content += f" without {MODULES}"
            if pooling is None:
                log.warning(
                    "WARNING: bi-encoder %r has no %s: %s pooling is assumed. Where it was trained with another one, "
                    'set "pooling" in its entry of ENCODERS.', name, MODULES, assumed,
                )  # fmt: skip
        return ResolvedModel(
            role, name, name, directory, source, directory.name, content, remote_code=allowed, assumed_pooling=assumed
        )

    def _foreign_code(self, role: Role, name: str, directory: Path) -> str:
        """Which commits of other repositories' code a model runs, for its fingerprint; fetched where not here."""
        used = ""
        for repository, file in foreign_code(directory).items():
            if not self._may_run_code_of(repository):
                raise ModelUnavailableError(
                    f"{role} {name!r} runs Python code of another repository, {repository}, which the settings do not "
                    f'name: ALLOW_REMOTE_CODE = ["{name}", "{repository}"]. Read that code first, or name another '
                    "model."
                )
            try:
                revision = revision_of_code(repository, file, self.may_download, CONNECT_TIMEOUT_SECONDS)
            except ModelUnavailableError as error:
                raise ModelUnavailableError(f"{role} {name!r} runs Python code of {error}") from error
            used += f" code {repository}@{revision}"
        return used

    def _embedded(self, requested: str, name: str, role: Role, warning: str | None) -> ResolvedModel:
        if name != EMBEDDED[role]:
            near = difflib.get_close_matches(name, EMBEDDED.values(), n=1, cutoff=0.0)
            raise ModelUnavailableError(
                f"unknown embedded {role} {name!r}; there is {EMBEDDED[role]!r}."
                + (f" {name!r} is the embedded {_other(role)}." if near and near[0] == name else "")
            )
        directory = embedded_e5.ensure_embedded_e5(self.models_dir)
        if role == "cross-encoder":
            directory = embedded_reranker.ensure_embedded_reranker(self.models_dir, directory)
        # What the files were made from, not their bytes: library versions differ between machines.
        inputs = read_manifest(directory / MANIFEST_NAME, fix="automatic").inputs
        origin = fingerprint([name, dict(inputs)])
        return ResolvedModel(role, requested, name, directory, "embedded", origin, f"{name}@{origin}", warning)


def _other(role: Role) -> Role:
    return "cross-encoder" if role == "bi-encoder" else "bi-encoder"


def _content(directory: Path) -> str:
    """Fingerprint of a model directory: names and whole bytes of every file that can shape the model."""
    lines = [f"{path.relative_to(directory).as_posix()} {_sha256(path)}\n" for path in shaping_files(directory)]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def shaping_files(directory: Path) -> list[Path]:
    """The files of a model's directory that can shape it; of weights in two formats those that loaders take."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, names in os.walk(directory, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in _SHAPELESS_FOLDERS)]
        # Every loader takes safetensors where both are there.
        safe = any(fnmatch(name, "model*.safetensors") for name in names)
        found.extend(
            Path(folder) / name
            for name in names
            if Path(name).suffix in _SHAPING
            and name not in _SHAPELESS
            and not (safe and fnmatch(name, "pytorch_model*.bin*"))
        )
    return sorted(path for path in found if path.is_file())


def _sha256(path: Path) -> str:
    """SHA-256 of a file; read once per process for as long as size, time and inode stay (weights are large)."""
    status = path.stat()
    key = (str(path), status.st_size, status.st_mtime_ns, status.st_ino)
    if key not in _hashes:
        _hashes[key] = file_sha256(path)
    return _hashes[key]


def _assumed_pooling(directory: Path) -> str:
    """What sentence-transformers puts on a transformer that comes without modules."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        causal = config["architectures"][0].endswith("ForCausalLM") and config.get("is_causal", True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        causal = False
    return "lasttoken" if causal else "mean"


def _require_model(name: str, directory: Path) -> None:
    for part in ("config.json", "tokenizer_config.json"):
        if not (directory / part).is_file():
            raise ModelUnavailableError(f"model {name!r}: {directory} has no {part}. Copy the whole model directory.")
    lack = lack_of(directory)
    if lack is not None:
        raise ModelUnavailableError(f"model {name!r}: {directory} has {lack}. Copy the whole model directory.")


def _from_cache(name: str, needs_modules: bool) -> tuple[Path | None, str | None]:
    """Snapshot in the local hub cache, and what it lacks; no network is touched.

    Args:
        needs_modules: whether ``modules.json`` must be there, or be known not to be on the hub.
    """
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return None, None
    snapshot = Path(config).parent
    lack = lack_of(snapshot)
    if lack is None and needs_modules and try_to_load_from_cache(name, MODULES) is None:
        lack = f'no {MODULES}; where the model has none, set "pooling" in its entry of ENCODERS'
    return snapshot, lack


def _remember(snapshot: Path, files: Sequence[str]) -> None:
    """Put into the hub cache what a download of a commit leaves out: that it is the latest, and has no modules."""
    repository = snapshot.parents[1]
    latest = repository / "refs" / "main"
    with atomic_path(latest) as temporary:
        temporary.write_text(snapshot.name, encoding="utf-8")
    if MODULES not in files:
        nothing = repository / ".no_exist" / snapshot.name / MODULES
        nothing.parent.mkdir(parents=True, exist_ok=True)
        nothing.touch()


@cache
def hub_answers(name: str) -> bool:
    """Whether the hub can be reached from here and has a model, at a short look; ``HF_HUB_OFFLINE`` is obeyed."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE or _hub_is_away.is_set():
        return False
    try:
        HfApi().model_info(name, timeout=CONNECT_TIMEOUT_SECONDS)
    except HfHubHTTPError:
        return False
    except Exception:
        # Every way in which a hub can fail means the same. The next model need not wait for that again.
        _hub_is_away.set()
        return False
    return True


def _from_hub(name: str, why: str, with_code: bool) -> Path:
    """Download a model; one short look first, so that a machine without a network learns it within seconds.

    Args:
        why: it is not taken from the cache, for the message.
        with_code: whether its Python code is fetched too.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise ModelUnavailableError(f"{why}, and HF_HUB_OFFLINE is set")
    log.info("Looking for %s on the hub ...", name)
    try:
        info = HfApi().model_info(name, files_metadata=True, timeout=CONNECT_TIMEOUT_SECONDS)
        files = [sibling.rfilename for sibling in info.siblings or []]
        safe = any(file.endswith(".safetensors") and "/" not in file for file in files)
        patterns = [*_SMALL_FILES, *(["*.py"] if with_code else []), "*.safetensors" if safe else "pytorch_model*.bin"]
        log.info("Downloading %s, revision %s ...", name, info.sha)
        wanted = [s for s in info.siblings or [] if any(fnmatch(s.rfilename, pattern) for pattern in patterns)]
        size = sum(getattr(sibling, "size", None) or 0 for sibling in wanted)
        with explain_full_disk(Path(constants.HF_HUB_CACHE), size):
            snapshot = Path(
                snapshot_download(
                    name,
                    revision=info.sha,
                    allow_patterns=patterns,
                    ignore_patterns=["onnx/*", "openvino/*"],
                    etag_timeout=CONNECT_TIMEOUT_SECONDS,
                )
            )
        _remember(snapshot, files)
    except DiskFullError:
        # No reason to search with another model.
        raise
    except Exception as error:
        # Every other way in which a hub can fail (no route, TLS, 401, 404) means: it cannot be had now.
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ModelUnavailableError(f"{why}; hub: {type(error).__name__}: {reason}") from error
    lack = lack_of(snapshot)
    if lack is not None:
        raise ModelUnavailableError(f"what the hub has of it cannot be loaded: {lack}")
    return snapshot
