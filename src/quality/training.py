"""Fine-tuning a cross-encoder: listwise loss over mined hard negatives, a small LoRA adapter.

The loss is the softmax cross-entropy over one positive and n negatives of a question (the listwise loss with one
relevant item; Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach"). A part of the target
may come from a teacher, the bi-encoder (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network").
"""

import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from src.core.artifacts import atomic_path, fingerprint_strings
from src.core.errors import UserError
from src.core.types import Progress
from src.engine.devices import half_precision
from src.quality.mining import Example

_STATE_FILE = "training_state.pt"
# What e5 models are trained with (Wang et al. 2024, "Multilingual E5 Text Embeddings").
TEACHER_TEMPERATURE = 0.01

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSettings:
    """What shapes a fine-tuning run; kept with the adapter.

    Attributes:
        layers: encoder layers of the base that are kept, from 0, rising.
        rank, alpha: of LoRA, on query, key, value and dense of every kept layer.
        learning_rate: peak, after ``warmup_steps`` of linear warm-up, then linear decay to zero.
        steps, questions_per_step, negatives_per_question: size of the run; one question is 1 + n pairs.
        max_tokens: longest pair; the passage is cut, never the question.
        teacher_share: share of the target that is the teacher's, see :func:`targets`.
        seed: of sampling and initialisation.
    """

    layers: tuple[int, ...] = (0, 2, 4, 6, 8, 10)
    rank: int = 32
    alpha: int = 64
    learning_rate: float = 3e-4
    warmup_steps: int = 40
    steps: int = 2000
    questions_per_step: int = 6
    negatives_per_question: int = 5
    max_tokens: int = 128
    teacher_share: float = 0.0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """Training examples of one kind.

    Attributes:
        name: for the log and the recipe.
        examples: those without enough negatives are never drawn.
        share: relative chance that a question is drawn from here.
        rewrite: changes an example each time it is drawn; ``None`` leaves it.
    """

    name: str
    examples: Sequence[Example]
    share: float = 1.0
    rewrite: Callable[[Example, random.Random], Example] | None = None


def draw(sources: Sequence[Source], settings: TrainingSettings) -> Iterator[list[Example]]:
    """Endless batches of examples with exactly ``negatives_per_question`` negatives.

    Sources are drawn by their share; within one, every example comes once before any comes twice.

    Raises:
        UserError: where no source has an example with enough negatives.
    """
    generator = random.Random(settings.seed)
    usable = {s.name: [e for e in s.examples if len(e.negatives) >= settings.negatives_per_question] for s in sources}
    filled = [source for source in sources if usable[source.name] and source.share > 0]
    if not filled:
        raise UserError(
            f"no question has {settings.negatives_per_question} mined negatives. Give more pairs, or lower --negatives."
        )
    waiting: dict[str, list[Example]] = {source.name: [] for source in filled}
    while True:
        batch = []
        for source in generator.choices(
            filled, weights=[source.share for source in filled], k=settings.questions_per_step
        ):
            if not waiting[source.name]:
                waiting[source.name] = generator.sample(usable[source.name], len(usable[source.name]))
            example = waiting[source.name].pop()
            chosen = generator.sample(range(len(example.negatives)), settings.negatives_per_question)
            similarities = example.similarities and tuple(
                example.similarities[i] for i in (0, *(j + 1 for j in chosen))
            )
            negatives = tuple(example.negatives[i] for i in chosen)
            example = replace(example, negatives=negatives, similarities=similarities)
            batch.append(source.rewrite(example, generator) if source.rewrite is not None else example)
        yield batch


def targets(batch: Sequence[Example], teacher_share: float) -> torch.Tensor:
    """What the softmax over a question's passages shall be, float32 [questions, 1 + negatives], the positive first.

    All of it is the positive's, but for ``teacher_share`` that the softmax of the similarities divides. A question that
    has none, or whose teacher has another passage first, is left to its label.
    """
    found = torch.zeros(len(batch), 1 + len(batch[0].negatives))
    found[:, 0] = 1.0
    if teacher_share > 0:
        for row, example in zip(found, batch, strict=True):
            if example.similarities and max(example.similarities) == example.similarities[0]:
                taught = torch.softmax(torch.tensor(example.similarities) / TEACHER_TEMPERATURE, dim=0)
                row.mul_(1 - teacher_share).add_(taught, alpha=teacher_share)
    return found


def learning_rate_factor(step: int, settings: TrainingSettings) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then linear decay to zero at the end."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return max(0.0, (settings.steps - step) / max(1, settings.steps - settings.warmup_steps))


def describe_sources(sources: Sequence[Source]) -> dict[str, str]:
    """What a training draws from, one line per source with a fingerprint of its examples; equal only where they are."""
    found = {}
    for number, source in enumerate(sources, start=1):
        texts = (text for e in source.examples for text in (e.question, e.positive, *e.negatives))
        content = fingerprint_strings(texts, (str(len(e.negatives)) for e in source.examples))
        found[f"source {number}"] = (
            f"{source.name}, {len(source.examples)} examples, share {source.share}, fingerprint {content}"
        )
    return found


class Trainer:
    """Trains a LoRA model in place.

    The model runs in bfloat16 where the device is fast at it (CUDA, CPUs with AVX512-BF16); the trained weights have
    float32 masters, so that small updates are not rounded away.

    Args:
        model: a PEFT model with one logit, see :func:`~src.quality.adapter.wrap_with_lora`.
        tokenizer: its tokenizer.
        folder: where checkpoints go; a training that was interrupted there goes on from its last one.
        start: name -> value of what ``model`` was made from, with fingerprints; a checkpoint of another start is
            refused.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        settings: TrainingSettings,
        folder: Path,
        device: str,
        start: Mapping[str, str],
    ) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.folder = folder
        self.device = device
        self.made_from = dict(start)
        # bfloat16 on CUDA too: its range needs no loss scaling.
        dtype = torch.float32 if half_precision(device) is None else torch.bfloat16
        self.model = model.to(device=device, dtype=dtype)
        if device == "cpu":
            # The backward pass of torch's fused attention takes longer there than all the rest of a step.
            self.model.set_attn_implementation("eager")
        self.live = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.masters = [parameter.detach().float().clone() for parameter in self.live]
        self.optimizer = torch.optim.AdamW(self.masters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        self.history: list[dict[str, float]] = []

    def train(
        self,
        sources: Sequence[Source],
        bars: Callable[[str, int], AbstractContextManager[Progress]],
        save_every: int = 200,
        evaluate: Callable[["Trainer"], float] | None = None,
        patience: int | None = None,
    ) -> None:
        """Train; leaves the best model where ``evaluate`` is given, else the last.

        Args:
            sources: what to draw questions from.
            save_every: steps between checkpoints (and evaluations).
            evaluate: higher is better.
            patience: stop after this many evaluations without a better one.

        Raises:
            UserError: where the loss is no longer finite, or the checkpoint in the folder is of a training with other
                settings, of another start or on other examples.
        """
        self.made_from.update(describe_sources(sources))
        first, best, best_masters, worse = self._resume()
        with bars("Training", self.settings.steps) as progress:
            progress(first)
            losses: list[float] = []
            hits: list[float] = []
            started = time.monotonic()
            for step, batch in enumerate(draw(sources, self.settings)):
                if step < first:
                    continue
                if step >= self.settings.steps:
                    break
                loss, hit = self._step(batch, step)
                losses.append(loss)
                hits.append(hit)
                progress(1)
                done = step + 1
                if done % save_every and done != self.settings.steps:
                    continue
                record = {"step": float(done), "loss": float(np.mean(losses)), "accuracy": float(np.mean(hits))}
                if evaluate is not None:
                    self.model.eval()
                    record["held_out"] = evaluate(self)
                    self.model.train()
                self.history.append(record)
                log.info(
                    "step %d: %s, %.2f s/step",
                    done,
                    ", ".join(f"{key} {value:.4f}" for key, value in record.items() if key != "step"),
                    (time.monotonic() - started) / (done - first),
                )
                losses, hits = [], []
                if evaluate is None or record["held_out"] > best:
                    best, worse = record.get("held_out", 0.0), 0
                    best_masters = [master.clone() for master in self.masters]
                else:
                    worse += 1
                self._checkpoint(done, best, best_masters, worse)
                if patience is not None and worse >= patience:
                    log.info("Stopped early: no better held-out figure for %d evaluations.", worse)
                    break
        if best_masters is not None:
            for master, kept in zip(self.masters, best_masters, strict=True):
                master.copy_(kept)
        # What is saved are the masters, not their roundings.
        self.model.to(torch.float32).eval()
        self._publish()

    def _step(self, batch: Sequence[Example], step: int) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * learning_rate_factor(step, self.settings)
        self.model.train()
        pairs = [(example.question, text) for example in batch for text in (example.positive, *example.negatives)]
        logits = self.logits(pairs).view(len(batch), -1)
        right = targets(batch, self.settings.teacher_share).to(logits.device)
        loss = torch.nn.functional.cross_entropy(logits, right)
        if not torch.isfinite(loss):
            raise UserError(f"training diverged at step {step} (loss {loss.item()}). Lower --learning-rate.")
        torch.autograd.backward(loss)
        for master, parameter in zip(self.masters, self.live, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, self.settings.clip_norm)
        self.optimizer.step()
        self._publish()
        return float(loss.item()), float((logits.argmax(dim=1) == 0).float().mean().item())

    def _publish(self) -> None:
        with torch.no_grad():
            for master, parameter in zip(self.masters, self.live, strict=True):
                parameter.copy_(master)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
        """Scores of pairs, float32 [P], as the model is now."""
        self.model.eval()
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = self.logits(pairs).cpu().numpy()
        return found

    def logits(self, pairs: Sequence[tuple[str, str]], per_batch: int = 12) -> torch.Tensor:
        """Logits of pairs, float32 [P]; sorted by length and run in parts, which saves most of the padding."""
        encoded = self.tokenizer(
            [question for question, _ in pairs],
            [passage for _, passage in pairs],
            truncation="only_second",
            max_length=self.settings.max_tokens,
        )
        # As in the search: types go with the ids, unless the model has a single one.
        typed = "token_type_ids" in encoded and getattr(self.model.config, "type_vocab_size", 0) > 1
        names = ["input_ids", "token_type_ids"] if typed else ["input_ids"]
        order = sorted(range(len(pairs)), key=lambda i: len(encoded["input_ids"][i]))
        parts = []
        for start in range(0, len(order), per_batch):
            part = {name: [encoded[name][i] for i in order[start : start + per_batch]] for name in names}
            # Few distinct widths: kernels are made once per shape on a CPU.
            inputs = self.tokenizer.pad(part, return_tensors="pt", pad_to_multiple_of=16)
            parts.append(self.model(**inputs.to(self.device)).logits[:, 0].float())
        inverse = torch.empty(len(order), dtype=torch.long)
        inverse[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[inverse.to(parts[0].device)]

    def _checkpoint(self, step: int, best: float, best_masters: Sequence[torch.Tensor] | None, worse: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": asdict(self.settings),
            "made_from": self.made_from,
            "step": step,
            "best": best,
            "worse": worse,
            "masters": self.masters,
            "best_masters": best_masters,
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
        }
        with atomic_path(self.folder / _STATE_FILE) as temporary:
            torch.save(state, temporary)

    def _resume(self) -> tuple[int, float, list[torch.Tensor] | None, int]:
        path = self.folder / _STATE_FILE
        if not path.is_file():
            return 0, float("-inf"), None, 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise UserError(
                f"{path}: an interrupted training with other settings lies there. Remove it, or repeat those settings."
            )
        theirs, ours = state.get("made_from", {}), self.made_from
        changed = [
            f"{name}: {theirs.get(name, 'none')} there, {ours.get(name, 'none')} here"
            for name in sorted({*theirs, *ours})
            if theirs.get(name) != ours.get(name)
        ]
        if changed:
            raise UserError(
                f"{path}: an interrupted training of another origin lies there ({'; '.join(changed)}). "
                "Take another --name, remove the checkpoints, or repeat the command of that training."
            )
        for master, kept in zip(self.masters, state["masters"], strict=True):
            master.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = list(state["history"])
        self._publish()
        log.info("Going on from step %d of an interrupted training in %s.", state["step"], self.folder)
        return int(state["step"]), float(state["best"]), state["best_masters"], int(state["worse"])


def held_out_accuracy(trainer: Trainer, examples: Sequence[Example], negatives: int = 10) -> float:
    """Share of held-out examples whose positive scores above all of its nearest ``negatives`` (Hit@1)."""
    hits = 0
    with torch.inference_mode():
        for example in examples:
            texts = (example.positive, *example.negatives[:negatives])
            scores = trainer.logits([(example.question, text) for text in texts])
            hits += int(bool((scores[1:] < scores[0]).all()))
    return hits / max(1, len(examples))
