"""LoRA adapters (Hu et al. 2021): put around a model, read from a folder and written to one."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model

from src.core.artifacts import atomic_path
from src.core.errors import UserError
from src.models.embedded_reranker import ADAPTER_WEIGHTS
from src.quality.training import TrainingSettings

ENCODER_LINEARS = r".*encoder\.layer\.\d+\..*\.(query|key|value|dense)"
_LAYER_NUMBER = re.compile(r"encoder\.layer\.(\d+)\.")


def wrap_with_lora(model: torch.nn.Module, settings: TrainingSettings) -> Any:
    """Add LoRA to every encoder layer; pooler and classifier are trained whole, as no base model ships them."""
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=ENCODER_LINEARS,
        modules_to_save=["pooler", "classifier"],
    )
    return get_peft_model(model, config)


def read_recipe(folder: Path) -> dict[str, Any]:
    """The recipe of an adapter that :func:`save_adapter` wrote.

    Raises:
        UserError: where ``folder`` holds no such adapter.
    """
    for name in ("recipe.json", ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing. Give a folder that a training has written.")
    recipe: dict[str, Any] = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    return recipe


def load_adapter(model: Any, folder: Path, base: str, settings: TrainingSettings) -> None:
    """Give a model from :func:`wrap_with_lora` the weights of an adapter that :func:`save_adapter` wrote.

    The adapter may have layers that the model lacks: they are left out.

    Raises:
        UserError: where ``folder`` holds no adapter, or one of another base or rank, or without one of the layers.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    recipe = read_recipe(folder)
    theirs, kept = (recipe["base"], recipe["settings"]["rank"]), recipe["settings"]["layers"]
    if theirs != (base, settings.rank) or not set(settings.layers) <= set(kept):
        raise UserError(
            f"{folder}: an adapter of base and rank {theirs} with layers {kept}; this training has "
            f"{(base, settings.rank)} with layers {list(settings.layers)}. Give --base, --rank and --layers to fit."
        )
    place = {kept.index(layer): i for i, layer in enumerate(settings.layers)}
    state = {}
    for name, value in load_file(folder / ADAPTER_WEIGHTS).items():
        found = _LAYER_NUMBER.search(name)
        if found is None:
            state[name] = value
        elif int(found[1]) in place:
            state[_LAYER_NUMBER.sub(f"encoder.layer.{place[int(found[1])]}.", name)] = value
    set_peft_model_state_dict(model, state)


def save_adapter(
    model: Any, folder: Path, settings: TrainingSettings, base: str, history: Sequence[Any], data: Sequence[Any] = ()
) -> None:
    """Write the adapter as float16 safetensors with its configuration and recipe.

    Args:
        base: name of the base model, such as ``embedded:multilingual-e5-small``; no machine path is kept.
        data: what it was trained on, for the recipe.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    with atomic_path(folder / ADAPTER_WEIGHTS) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = base
    config["inference_mode"] = True
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    with atomic_path(folder / "adapter_config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2, default=str, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_path(folder / "recipe.json") as temporary:
        recipe = {"base": base, "settings": asdict(settings), "data": list(data), "history": list(history)}
        temporary.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
