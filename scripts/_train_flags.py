"""Flags of 04_train_reranker.py, and what is wrong with them before any work is done."""

import argparse
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _cli import add_data_flags, add_wait_flag, positive_integer

from config import Settings
from src.core.errors import UserError
from src.core.memory import first_line, means_out_of_memory
from src.models.resolve import EMBEDDED
from src.quality.adapter import read_recipe
from src.quality.training import TrainingSettings

PairFile = tuple[Path, float, int | None]

DESCRIPTION = "Fine-tune the cross-encoder on labels or pairs; the result is a model directory for CROSS_ENCODER_MODEL."
# What the project itself keeps under data/models.
_TAKEN = {"mined", "openvino", *(name.removeprefix("embedded:") for name in EMBEDDED.values())}


def training_parser(settings: Settings) -> argparse.ArgumentParser:
    """Flags of the training."""
    defaults = TrainingSettings()
    parser = argparse.ArgumentParser(prog="04_train_reranker.py", description=DESCRIPTION)
    add_data_flags(parser, settings)
    add = parser.add_argument
    add(
        "--pairs", nargs="*", default=[], metavar="FILE[=SHARE[:N]]",
        help="JSON lines {question, passage} or {questions: [...], passage}; share of the questions drawn, most pairs "
        "to use (default: none)",
    )  # fmt: skip
    add(
        "--fully-labelled", nargs="*", default=[], type=Path, metavar="FILE",
        help="those of --pairs that give every right passage of a question; elsewhere a passage nearer to the "
        "question than its right one is taken for another right one, and left out (default: none)",
    )  # fmt: skip
    add(
        "--rule-pairs", type=int, default=0, metavar="N",
        help="also N pairs made by rules from the prepared corpus, no labels needed (default: 0)",
    )  # fmt: skip
    add("--rule-share", type=float, default=1.0, metavar="X", help="share of those beside --pairs (default: 1)")
    add(
        "--use-labels", action=argparse.BooleanOptionalAction, default=None,
        help="train on the labels of the data folder (default: yes, unless other pairs are given)",
    )  # fmt: skip
    add("--name", default="my-reranker", help="name of the model under data/models (default: my-reranker)")
    add(
        "--base", default=EMBEDDED["cross-encoder"], metavar="MODEL",
        help=f"model to start from (default: {EMBEDDED['cross-encoder']}; a bi-encoder starts from scratch)",
    )  # fmt: skip
    add(
        "--continue-from", type=Path, metavar="DIR",
        help="adapter of the same base and rank to go on from, of all its layers or some (default: none, a new one)",
    )  # fmt: skip
    add(
        "--layers", type=int, nargs="+", default=list(defaults.layers), metavar="I",
        help="layers to keep, from 0, where --base is a bi-encoder (default: every second one of 12)",
    )  # fmt: skip
    add(
        "--steps",
        type=positive_integer,
        default=defaults.steps,
        metavar="N",
        help=f"of training (default: {defaults.steps})",
    )
    add(
        "--warmup-steps", type=int, default=defaults.warmup_steps, metavar="N",
        help=f"of --steps, over which the learning rate rises to its peak (default: {defaults.warmup_steps})",
    )  # fmt: skip
    add("--learning-rate", type=float, default=defaults.learning_rate, metavar="X", help="peak (default: 3e-4)")
    add("--rank", type=positive_integer, default=defaults.rank, metavar="N", help=f"of LoRA (default: {defaults.rank})")
    add(
        "--questions-per-step", type=positive_integer, default=defaults.questions_per_step, metavar="N",
        help=f"(default: {defaults.questions_per_step})",
    )  # fmt: skip
    add(
        "--negatives", type=positive_integer, default=defaults.negatives_per_question, metavar="N",
        help=f"per question (default: {defaults.negatives_per_question})",
    )  # fmt: skip
    add(
        "--teacher-share", type=float, default=defaults.teacher_share, metavar="X",
        help="share of the target of --pairs that follows the bi-encoder's own similarities (default: 0, labels alone)",
    )  # fmt: skip
    add(
        "--max-tokens",
        type=positive_integer,
        default=defaults.max_tokens,
        metavar="N",
        help="per pair; longer passages are cut (default: 128)",
    )
    add(
        "--held-out", type=float, default=0.05, metavar="X",
        help="share of questions for early stop; below 20 questions there is none (default: 0.05)",
    )  # fmt: skip
    add(
        "--patience",
        type=positive_integer,
        default=5,
        metavar="N",
        help="evaluations without a gain until it stops early (default: 5)",
    )
    add(
        "--save-every", type=positive_integer, default=200, metavar="N", help="steps between checkpoints (default: 200)"
    )
    add(
        "--folds", type=int, default=5, metavar="N",
        help="folds of the cross-validation over labelled questions that comes first; 0 leaves it out (default: 5)",
    )  # fmt: skip
    add(
        "--cv-candidates", type=positive_integer, default=30, metavar="K",
        help="candidates per labelled question, to train on and to rerank in the cross-validation (default: 30)",
    )  # fmt: skip
    add("--seed", type=int, default=defaults.seed, metavar="N", help=f"(default: {defaults.seed})")
    add_wait_flag(parser)
    return parser


def file_share_and_size(text: str) -> PairFile:
    """Path, share and most pairs of ``FILE[=SHARE[:N]]``.

    Raises:
        UserError: where share or number is none.
    """
    name, _, rest = text.partition("=")
    share, _, size = rest.partition(":")
    try:
        value, count = float(share or 1.0), int(size) if size else None
        if value <= 0 or (count is not None and count < 1):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--pairs {text}: {rest!r} is not a share and a number of pairs. Write FILE=0.5:1000, say."
        ) from None
    return Path(name), value, count


def check_flags(flags: argparse.Namespace) -> None:
    """What can be told from the flags alone.

    Raises:
        UserError: for the first flag that cannot be meant.
    """
    name = str(flags.name)
    if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(".training"):
        raise UserError(
            f"--name {name!r}: the name of a folder under data/models is needed: letters, digits, '.', '_' and '-', "
            "no slash, and not ending in .training. Write --name my-reranker, say."
        )
    if name in _TAKEN:
        raise UserError(f"--name {name}: the project keeps files of its own there. Give another --name.")
    if flags.folds < 0 or flags.folds == 1:
        raise UserError(f"--folds {flags.folds}: a cross-validation needs 2 folds or more; 0 leaves it out.")
    if not 0 <= flags.warmup_steps < flags.steps:
        raise UserError(
            f"--steps {flags.steps}: warm-up takes {flags.warmup_steps} steps, and the learning rate would never fall "
            f"from its peak. Give more --steps, or --warmup-steps from 0 to {flags.steps - 1}."
        )
    if not 0 <= flags.held_out < 1:
        raise UserError(f"--held-out {flags.held_out:g}: a share is needed, from 0 to below 1 (0.05 is 5 %).")
    if not 0 <= flags.teacher_share < 1:
        raise UserError(f"--teacher-share {flags.teacher_share:g}: a share is needed, from 0 to below 1.")
    for flag, value in (("--learning-rate", flags.learning_rate), ("--rule-share", flags.rule_share)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"{flag} {value:g}: a number above 0 is needed.")
    if flags.rule_pairs < 0:
        raise UserError(f"--rule-pairs {flags.rule_pairs}: a number of pairs is needed, or 0 for none.")
    if flags.use_labels is False and not flags.pairs and not flags.rule_pairs:
        raise UserError("--no-use-labels leaves nothing to train on. Give --pairs FILE or --rule-pairs N as well.")
    for text in flags.pairs:
        path = file_share_and_size(text)[0]
        if not path.is_file():
            raise UserError(f"--pairs {path}: no such file. Give a JSON-lines file of {{question, passage}}.")
    for path in flags.fully_labelled:
        named = [file for file in map(file_share_and_size, flags.pairs) if file[0] == path]
        if not named:
            raise UserError(f"--fully-labelled {path}: not among --pairs. Name it there too, with the same path.")
        if any(count is not None for _, _, count in named):
            raise UserError(
                f"--fully-labelled {path}: --pairs takes a part of it, so right passages would be left out. Leave out "
                "the number of pairs."
            )
    if flags.continue_from is not None:
        read_recipe(flags.continue_from)


@contextmanager
def check_base(name: str) -> Iterator[None]:
    """Turn what the libraries say of a base that cannot be trained into one line.

    Raises:
        UserError: where the block fails for anything but a lack of memory.
    """
    try:
        yield
    except (TypeError, ValueError, RuntimeError) as error:
        if means_out_of_memory(error):
            raise
        raise UserError(
            f"--base {name}: cannot be fine-tuned ({first_line(error)}). "
            "Name a cross-encoder with one logit, of BERT's or RoBERTa's family."
        ) from error


def check_lengths(base: str, config: Any, tokenizer: Any, max_tokens: int, questions: Iterable[str]) -> None:
    """Whether the model reads pairs of so many tokens, and every question leaves room for a passage in them.

    Args:
        config: of the model.

    Raises:
        UserError: where it does not, or a question does not.
    """
    limit = min(int(getattr(config, "max_position_embeddings", 0) or 512), int(tokenizer.model_max_length))
    if max_tokens > limit:
        raise UserError(f"--max-tokens {max_tokens}: {base} reads at most {limit}. Give --max-tokens {limit} or less.")
    special = tokenizer.num_special_tokens_to_add(pair=True)
    for question in questions:
        tokens = len(tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        if tokens + special >= max_tokens:
            raise UserError(
                f"--max-tokens {max_tokens}: the question {question[:40]!r} has {tokens} tokens, which leaves no room "
                f"for a passage. Give --max-tokens {tokens + special + 32} or more (at most {limit}), or shorten it."
            )
