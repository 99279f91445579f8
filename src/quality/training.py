"""Fine-tuning a cross-encoder: pairs with mined hard negatives, listwise loss, a small LoRA adapter.

The loss is the softmax cross-entropy over one positive and n negatives of a question (the listwise loss with one
relevant item; Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach"). LoRA: Hu et al. 2021.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import LoraConfig, TaskType, get_peft_model

from src.core.artifacts import atomic_path
from src.core.errors import UserError

log = logging.getLogger(__name__)

ENCODER_LINEARS = r".*encoder\.layer\.\d+\..*\.(query|key|value|dense)"


@dataclass(frozen=True)
class Example:
    """One question with one relevant passage and its mined negatives, best first."""

    question: str
    positive: str
    negatives: tuple[str, ...]


@dataclass(frozen=True)
class TrainingSettings:
    """What shapes a fine-tuning run; kept with the adapter.

    Attributes:
        layers: encoder layers kept, from the bottom.
        rank, alpha, dropout: of LoRA, on query, key, value and dense of every kept layer.
        learning_rate: peak, after ``warmup_steps`` of linear warm-up, then linear decay to zero.
        steps, questions_per_step, negatives_per_question: size of the run; one question is 1 + n pairs.
        max_tokens: longest pair; the passage is cut, never the question.
        seed: of sampling and initialisation.
    """

    layers: int = 6
    rank: int = 32
    alpha: int = 64
    dropout: float = 0.0
    learning_rate: float = 3e-4
    warmup_steps: int = 40
    steps: int = 1500
    questions_per_step: int = 8
    negatives_per_question: int = 3
    max_tokens: int = 112
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Read (question, passage) pairs from JSON lines ``{"question": ..., "passage": ...}``.

    Raises:
        UserError: where the file is missing or empty, or a line has not both fields.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file of training pairs. Give --pairs a JSON-lines file.")
    pairs: list[tuple[str, str]] = []
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                pairs.append((str(record["question"]).strip(), str(record["passage"]).strip()))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f'{path}, line {number}: expected {{"question": "...", "passage": "..."}} ({error!r}).'
                ) from error
    if not pairs:
        raise UserError(f"{path}: empty: no training pairs.")
    return pairs


def mine_negatives(
    questions: Sequence[str],
    positive_rows: Sequence[frozenset[int]],
    passages: Sequence[str],
    dense_scores: Callable[[int, int], npt.NDArray[np.float32]],
    lexical_top: Callable[[str, int], Sequence[int]],
    dense_depth: int = 30,
    lexical_depth: int = 10,
    margin: float = 0.03,
    block: int = 256,
) -> list[tuple[int, ...]]:
    """Hard negatives per question: near in vectors or in words, yet not (nearly) a right answer.

    A candidate is among the ``dense_depth`` nearest by cosine or the ``lexical_depth`` best by BM25. It is dropped
    where it is a positive, repeats a positive's text, or lies nearer to the question than the best positive plus
    ``margin`` (probably an unlabelled right answer).

    Args:
        questions: Q texts.
        positive_rows: for each question the rows of its relevant passages.
        passages: N texts.
        dense_scores: (first question, last + 1) -> cosine float32 [block, N].
        lexical_top: (question, depth) -> rows of the best passages by BM25.

    Returns:
        For each question the rows of its negatives, nearest first (may be empty).
    """
    negatives: list[tuple[int, ...]] = []
    for start in range(0, len(questions), block):
        stop = min(start + block, len(questions))
        cosines = dense_scores(start, stop)
        for offset in range(stop - start):
            positives = positive_rows[start + offset]
            row = cosines[offset]
            bound = max(float(row[p]) for p in positives) + margin
            texts = {passages[p].casefold() for p in positives}
            depth = min(dense_depth + len(positives), len(row))
            near = np.argpartition(-row, depth - 1)[:depth]
            candidates = dict.fromkeys(int(i) for i in near[np.argsort(-row[near], kind="stable")])
            candidates.update(dict.fromkeys(int(i) for i in lexical_top(questions[start + offset], lexical_depth)))
            negatives.append(
                tuple(
                    i
                    for i in candidates
                    if i not in positives and row[i] < bound and passages[i].casefold() not in texts
                )
            )
    return negatives


def draw_batches(
    examples: Sequence[Example],
    settings: TrainingSettings,
    augment: Callable[[Example, random.Random], Example] | None = None,
) -> Iterator[list[tuple[str, list[str]]]]:
    """Endless batches of (question, [positive, negative, ...]); every example comes once before any comes twice."""
    generator = random.Random(settings.seed)
    usable = [e for e in examples if len(e.negatives) >= settings.negatives_per_question]
    if len(usable) < settings.questions_per_step:
        raise UserError(
            f"only {len(usable)} questions have {settings.negatives_per_question} mined negatives, at least "
            f"{settings.questions_per_step} are needed. Give more pairs, or lower --negatives."
        )
    while True:
        order = list(range(len(usable)))
        generator.shuffle(order)
        for start in range(0, len(order) - settings.questions_per_step + 1, settings.questions_per_step):
            batch = []
            for index in order[start : start + settings.questions_per_step]:
                example = usable[index]
                if augment is not None:
                    example = augment(example, generator)
                drawn = generator.sample(example.negatives, settings.negatives_per_question)
                batch.append((example.question, [example.positive, *drawn]))
            yield batch


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then linear decay to zero at the end."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return max(0.0, (settings.steps - step) / max(1, settings.steps - settings.warmup_steps))


def wrap_with_lora(model: torch.nn.Module, settings: TrainingSettings) -> Any:
    """Add LoRA to every encoder layer; pooler and classifier are trained whole, as no base model ships them."""
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=ENCODER_LINEARS,
        modules_to_save=["pooler", "classifier"],
    )
    return get_peft_model(model, config)


def train(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    settings: TrainingSettings,
    save: Callable[[Any, int], None],
    augment: Callable[[Example, random.Random], Example] | None = None,
    device: str = "cpu",
    save_every: int = 100,
    evaluate: Callable[[Any], str] | None = None,
) -> list[dict[str, float]]:
    """Train in place.

    Args:
        model: a PEFT model with one logit.
        tokenizer: its tokenizer.
        examples: questions with positives and negatives.
        save: called with the model and the step, every ``save_every`` steps and at the end.
        augment: changes an example before it is drawn.
        evaluate: called after each save; its line is logged.

    Returns:
        One record per 20 steps: step, loss, accuracy (the positive scores highest), seconds.

    Raises:
        UserError: where the loss is no longer finite.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    log.info("trainable parameters: %s", f"{sum(p.numel() for p in trainable):,}")
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
    model.to(device).train()
    history: list[dict[str, float]] = []
    losses: list[float] = []
    hits: list[float] = []
    started = time.monotonic()
    width = 1 + settings.negatives_per_question
    for step, batch in enumerate(draw_batches(examples, settings, augment), start=1):
        logits = _score_batch(model, tokenizer, batch, settings, device).view(len(batch), width)
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(batch), dtype=torch.long, device=device))
        if not torch.isfinite(loss):
            raise UserError(f"training diverged at step {step} (loss {loss.item()}). Lower --learning-rate.")
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(trainable, settings.clip_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.item()))
        hits.append(float((logits.argmax(dim=1) == 0).float().mean().item()))
        if step % 20 == 0 or step == settings.steps:
            record = {
                "step": float(step),
                "loss": float(np.mean(losses)),
                "accuracy": float(np.mean(hits)),
                "seconds": time.monotonic() - started,
            }
            history.append(record)
            log.info(
                "step %d/%d  loss %.3f  accuracy %.3f  %.2f s/step",
                step, settings.steps, record["loss"], record["accuracy"], record["seconds"] / step,
            )  # fmt: skip
            losses, hits = [], []
        if step % save_every == 0 or step == settings.steps:
            save(model, step)
            if evaluate is not None:
                model.eval()
                log.info("step %d  %s", step, evaluate(model))
                model.train()
        if step == settings.steps:
            break
    return history


def _score_batch(
    model: Any, tokenizer: Any, batch: list[tuple[str, list[str]]], settings: TrainingSettings, device: str
) -> torch.Tensor:
    """Logits [questions * width]; the pairs run in two halves by length, which saves most of the padding."""
    pairs = [(question, passage) for question, passages in batch for passage in passages]
    encoded = tokenizer(
        [q for q, _ in pairs], [p for _, p in pairs], truncation="only_second", max_length=settings.max_tokens
    )["input_ids"]
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i]))
    parts = []
    for half in (order[: len(order) // 2], order[len(order) // 2 :]):
        inputs = tokenizer.pad({"input_ids": [encoded[i] for i in half]}, return_tensors="pt").to(device)
        parts.append(model(**inputs).logits[:, 0].float())
    inverse = torch.empty(len(order), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(parts)[inverse.to(device)]


def save_adapter(model: Any, folder: Path, settings: TrainingSettings, base: str, history: Sequence[Any]) -> None:
    """Write the adapter as float16 safetensors with its configuration and recipe.

    Args:
        base: name of the base model, such as ``embedded:multilingual-e5-small``; no machine path is kept.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().cpu().contiguous() for name, value in get_peft_model_state_dict(model).items()}
    with atomic_path(folder / "adapter_model.safetensors") as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config["base_model_name_or_path"] = base
    config["inference_mode"] = True
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    with atomic_path(folder / "adapter_config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2, default=str, sort_keys=True) + "\n", encoding="utf-8")
    with atomic_path(folder / "recipe.json") as temporary:
        recipe = {"base": base, "settings": asdict(settings), "history": list(history)}
        temporary.write_text(json.dumps(recipe, indent=1) + "\n", encoding="utf-8")
