"""The embedded cross-encoder: a LoRA adapter of this project, merged into the embedded bi-encoder's weights."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from src.core.artifacts import (
    MANIFEST_NAME,
    Manifest,
    atomic_directory,
    describe_files,
    file_sha256,
    fingerprint,
    read_manifest,
    require_current,
    save_manifest,
)
from src.core.errors import ModelUnavailableError, StaleArtifactError, UserError

NAME = "e5-small-reranker"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER = Path(__file__).resolve().parent / "adapters" / NAME

log = logging.getLogger(__name__)


def load_base_classifier(base: Path, layers: Sequence[int] | None = None) -> Any:
    """A model as a sequence classifier with one logit, untrained where ``base`` is a bi-encoder.

    Args:
        layers: encoder layers to keep, from 0, rising; ``None`` keeps all.

    Raises:
        UserError: where the model has no such layer.
    """
    from torch.nn import ModuleList
    from transformers import AutoModelForSequenceClassification

    # Trained without dropout: the runs are short, and the merged model must score as the trained one does.
    classifier = AutoModelForSequenceClassification.from_pretrained(
        base,
        num_labels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        local_files_only=True,
        trust_remote_code=False,
    )
    if layers is not None:
        encoder = classifier.base_model.encoder
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= len(encoder.layer):
            raise UserError(
                f"layers {list(layers)}: {base.name} has layers 0 to {len(encoder.layer) - 1}. "
                "Name those to keep, in rising order."
            )
        encoder.layer = ModuleList(encoder.layer[i] for i in layers)
        classifier.config.num_hidden_layers = len(layers)
    return classifier


def merge_adapter(base: Path, adapter: Path, folder: Path) -> None:
    """Merge an adapter into its base and save a plain classifier with its tokenizer into ``folder``.

    Raises:
        ModelUnavailableError: where a file of the adapter is missing.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    for name in ("adapter_config.json", ADAPTER_WEIGHTS, "recipe.json"):
        if not (adapter / name).is_file():
            raise ModelUnavailableError(f"{adapter / name}: missing. Get the project's files anew (git checkout).")
    recipe = json.loads((adapter / "recipe.json").read_text(encoding="utf-8"))
    classifier = load_base_classifier(base, recipe["settings"]["layers"])
    merged = PeftModel.from_pretrained(classifier, str(adapter)).merge_and_unload()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(folder)


def ensure_merged(adapter: Path, base: Path, folder: Path) -> Path:
    """Directory of the merged cross-encoder; made once, and anew where the adapter or its base changed."""
    weights = adapter / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise ModelUnavailableError(f"{weights}: missing. Get the project's files anew (git checkout).")
    base_manifest = read_manifest(base / MANIFEST_NAME, fix="automatic")
    inputs = {"adapter": file_sha256(weights), "base": fingerprint(dict(base_manifest.inputs))}
    try:
        require_current(folder, "model", inputs, {}, fix="automatic")
        return folder
    except StaleArtifactError:
        log.info("Merging the adapter %s into %s (once) ...", adapter.name, base.name)
    with atomic_directory(folder) as temporary:
        merge_adapter(base, adapter, temporary)
        names = [str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file()]
        manifest = Manifest(
            kind="model", inputs=inputs, settings={}, files=describe_files(temporary, names), extra={"base": base.name}
        )
        save_manifest(temporary / MANIFEST_NAME, manifest)
    return folder


def ensure_embedded_reranker(models_dir: Path, base: Path) -> Path:
    """Directory of the embedded cross-encoder. ``base`` is the unpacked embedded bi-encoder."""
    return ensure_merged(ADAPTER, base, models_dir / NAME)
