"""Whether a model directory is whole: the files that its loaders need, and those that others in it name."""

import json
from pathlib import Path

MODULES = "modules.json"  # what sentence-transformers puts around a transformer: pooling, layers
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# Without any of them transformers makes a tokenizer that knows no word, and says nothing.
_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def lack_of(directory: Path) -> str | None:
    """What a model directory lacks, for people; ``None`` where it is whole."""
    weights = next((name for name in _WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        return f"no weights ({' or '.join(_WEIGHTS[::2])})"
    named: list[str] = []
    transformer = directory
    try:
        if weights.endswith(".index.json"):
            named += json.loads((directory / weights).read_text(encoding="utf-8"))["weight_map"].values()
        if (directory / MODULES).is_file():
            modules = json.loads((directory / MODULES).read_text(encoding="utf-8"))
            layers = [m["path"] for m in modules if m["type"].endswith((".Pooling", ".Dense"))]
            named += [f"{layer}/config.json" for layer in layers]
            for dense in (m["path"] for m in modules if m["type"].endswith(".Dense")):
                if not (directory / dense / "pytorch_model.bin").is_file():
                    named.append(f"{dense}/model.safetensors")
            transformer /= next((m["path"] for m in modules if m["type"].endswith(".Transformer")), "")
        elif (directory / "config.json").is_file():
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
            if "HF_ColBERT" in (config.get("architectures") or ()):
                named.append("artifact.metadata")  # lengths and marks of questions and documents
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"a damaged index or {MODULES}: {type(error).__name__}: {error}"
    missing = sorted(name for name in set(named) if not (directory / name).is_file())
    if missing:
        return f"no {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    return None if _has_tokenizer(transformer) else f"no tokenizer: none of {', '.join(_TOKENIZERS)}"


def _has_tokenizer(folder: Path) -> bool:
    return any(path.is_file() for pattern in _TOKENIZERS for path in folder.glob(pattern))
