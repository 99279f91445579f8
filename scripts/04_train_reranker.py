"""Fine-tune the cross-encoder on labels or pairs; the result is a model directory for CROSS_ENCODER_MODEL."""

import argparse
import logging
import math
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from _cli import PROJECT_ROOT, main, set_up_threads

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from _inputs import choose_inputs, load_queries, log_inputs, prepared_corpus
from _plans import cpu_engine, encoder_plans, index_plan, model_resolver, search_plan
from _train_flags import PairFile, check_base, check_flags, check_lengths, file_share_and_size, training_parser
from config import Settings
from src.core.artifacts import atomic_directory, file_sha256, fingerprint
from src.core.data_lock import data_lock
from src.core.errors import UserError
from src.engine.devices import CpuEngine, pick_device
from src.engine.encoder import SentenceEncoder
from src.indexing import BUILD_COMMAND
from src.insight.comparison import gain_lines
from src.insight.profile import Profiler
from src.insight.progress import progress_bar
from src.models.embedded_reranker import ADAPTER_WEIGHTS, load_base_classifier, merge_adapter
from src.models.resolve import EMBEDDED, ModelResolver, ResolvedModel
from src.quality.adapter import load_adapter, read_recipe, save_adapter, wrap_with_lora
from src.quality.augment import Rewriter, pairs_by_rule
from src.quality.compare import compare
from src.quality.crossval import LabelledCandidates, ScorePairs, out_of_fold_scores, split_folds
from src.quality.mining import MARGIN, Example, Miner, read_pairs
from src.quality.training import Source, Trainer, TrainingSettings, describe_sources, held_out_accuracy
from src.retrieval import retrieve
from src.stages.chunk import sentence_spans
from src.stages.rerank import PassageTexts, blend

log = logging.getLogger("search")

ADAPTER_FOLDER = "adapter"
MOST_HELD_OUT = 200
# With fewer, one question more or less right decides which checkpoint is called the best.
FEWEST_HELD_OUT = 20


def _pair_sources(
    files: Sequence[PairFile], complete: Sequence[Path], seed: int, miner: Miner, taught: bool
) -> list[Source]:
    sources = []
    for path, share, count in files:
        pairs = read_pairs(path)
        rewriter = Rewriter(list(dict.fromkeys(passage for _, passage in pairs)))
        if count is not None and len(pairs) > count:
            pairs = [pairs[i] for i in sorted(random.Random(seed).sample(range(len(pairs)), count))]
        margin = math.inf if path in complete else MARGIN
        sources.append(Source(path.stem, miner.examples(pairs, (), margin, taught), share, rewriter))
    return sources


def _miner(resolver: ModelResolver, device: str, models: Path, cpu: CpuEngine) -> Miner:
    model = resolver.resolve(EMBEDDED["bi-encoder"], "bi-encoder")
    encoder = SentenceEncoder(model.directory, device, max_tokens=160, cpu=cpu, fingerprint=model.fingerprint)
    return Miner(encoder, model.fingerprint, models / "mined", progress_bar)


def _rule_sources(flags: argparse.Namespace, settings: Settings, resolver: ModelResolver, miner: Miner) -> list[Source]:
    """Pairs made by rules from the prepared corpus."""
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    corpus, _ = prepared_corpus(inputs, settings, encoder_plans(settings, resolver))
    sentences = {
        doc_id: [text[start:end] for start, end in sentence_spans(text)]
        for doc_id, text in zip(corpus.doc_ids, corpus.texts, strict=True)
    }
    pairs, passages = pairs_by_rule(sentences, flags.rule_pairs, random.Random(flags.seed))
    if not pairs:
        raise UserError("--rule-pairs: no document has four sentences of 40 to 350 characters.")
    return [Source("by rule", miner.examples(pairs, passages), flags.rule_share)]


def _labelled(flags: argparse.Namespace, settings: Settings, resolver: ModelResolver) -> LabelledCandidates:
    """The labels of the data folder, with stage one's own candidates."""
    inputs = choose_inputs(flags, settings, PROJECT_ROOT)
    log_inputs(inputs, PROJECT_ROOT)
    encoders = encoder_plans(settings, resolver)
    corpus, chunks = prepared_corpus(inputs, settings, encoders)
    queries, qrels = load_queries(inputs, settings, corpus)
    if qrels is None:
        raise UserError(f"no labels at {inputs.no_labels}. Give --labels FILE, or train on --pairs FILE.")
    if flags.folds:
        split_folds([query_id for query_id in queries.query_ids if query_id in qrels.relevant], flags.folds, flags.seed)
    indices = index_plan(settings, encoders, pick_device(settings.device))
    plan = search_plan(settings, argparse.Namespace(top_k=settings.top_k), (), BUILD_COMMAND + inputs.command)
    found = retrieve(inputs.data, corpus, chunks, queries, indices, plan, Profiler(), progress_bar)
    candidates = found.fused.cut(flags.cv_candidates)
    read = PassageTexts.of(corpus, chunks, found.passages[:, : candidates.depth])
    return LabelledCandidates(queries, qrels, candidates, corpus, read.texts, read.rows(range(len(queries))))


def _split(sources: Sequence[Source], share: float, seed: int) -> tuple[list[Source], list[Example]]:
    """Whole questions are held out, from every source by its size; none where they would be too few to tell."""
    kept: list[Source] = []
    held_out: list[Example] = []
    for source in sources:
        questions = sorted({example.question for example in source.examples})
        chosen = set(random.Random(seed).sample(questions, int(len(questions) * share)))
        kept.append(
            Source(
                source.name,
                [e for e in source.examples if e.question not in chosen],
                source.share,
                source.rewrite,
            )
        )
        held_out.extend(e for e in source.examples if e.question in chosen and len(e.negatives) >= 5)
    if len({example.question for example in held_out}) < FEWEST_HELD_OUT:
        return list(sources), []
    random.Random(seed).shuffle(held_out)
    return kept, held_out[:MOST_HELD_OUT]


def _base_model(resolver: ModelResolver, name: str) -> ResolvedModel:
    role = "bi-encoder" if name == EMBEDDED["bi-encoder"] else "cross-encoder"
    return resolver.resolve(name, role)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Forge:
    """Makes trainers of one shape, each with a fresh copy of the base.

    Attributes:
        continue_from: adapter to go on from.
        folder: of the checkpoints, one folder per training.
    """

    base: ResolvedModel
    shape: TrainingSettings
    continue_from: Path | None
    folder: Path
    device: str

    @property
    def start(self) -> dict[str, str]:
        """What every trainer starts from, with fingerprints."""
        adapter = "none"
        if self.continue_from is not None:
            content = [read_recipe(self.continue_from), file_sha256(self.continue_from / ADAPTER_WEIGHTS)]
            adapter = f"{self.continue_from.name}, fingerprint {fingerprint(content)}"
        return {"base": f"{self.base.used}, fingerprint {self.base.fingerprint}", "adapter": adapter}

    def trainer(self, name: str) -> Trainer:
        """A trainer that keeps its checkpoints under ``name``."""
        # Weights that no base ships start from this, in every fold alike.
        torch.manual_seed(self.shape.seed)
        layers = self.shape.layers if self.base.role == "bi-encoder" else None
        with check_base(self.base.requested):
            model = wrap_with_lora(load_base_classifier(self.base.directory, layers), self.shape)
        if self.continue_from is not None:
            load_adapter(model, self.continue_from, self.base.used, self.shape)
        tokenizer = AutoTokenizer.from_pretrained(self.base.directory, local_files_only=True)
        return Trainer(model, tokenizer, self.shape, self.folder / name, self.device, self.start)


def _plain(question: str) -> str:
    """A question without what spacing and capitals make of it."""
    return " ".join(question.casefold().split())


def _cross_validate(
    labelled: LabelledCandidates, sources: Sequence[Source], forge: Forge, flags: argparse.Namespace, weight: float
) -> None:
    """Print what training gains on labelled questions that it has not seen; nothing is replaced before."""
    others = [source for source in sources if source.name != "labels"]
    share = next(source.share for source in sources if source.name == "labels")

    def train(number: int, examples: list[Example]) -> ScorePairs:
        # The same question may be asked twice, under two ids or in a file of pairs.
        tested = {
            _plain(text)
            for query_id, text in zip(labelled.queries.query_ids, labelled.queries.texts, strict=True)
            if query_id in folds[number]
        }
        sources = [
            replace(s, examples=[e for e in s.examples if _plain(e.question) not in tested])
            for s in (*others, Source("labels", examples, share))
        ]
        trainer = forge.trainer(f"fold-{number}")
        trainer.train(sources, progress_bar, flags.save_every)
        return trainer.scores

    folds = split_folds(labelled.labelled, flags.folds, flags.seed)
    key = fingerprint([forge.start, asdict(forge.shape), describe_sources(others), share])
    tuned = out_of_fold_scores(labelled, folds, train, forge.folder, key)
    runs = [replace(labelled.candidates, name="stage one")]
    if forge.base.role == "cross-encoder":
        base = forge.trainer("untrained")
        scores = np.zeros_like(tuned)
        with progress_bar("Scoring by the base", len(scores)) as progress:
            for place in range(len(scores)):
                scores[place] = labelled.score(place, base.scores)
                progress(1)
        runs.append(blend(labelled.candidates, scores, weight, "base, blended"))
    runs.append(blend(labelled.candidates, tuned, weight, "fine-tuned, blended"))
    compared = compare(runs, labelled.corpus, labelled.queries, labelled.qrels)
    log.info(
        "Cross-validation over %d folds (each trained all %d steps), %d labelled questions, %d candidates, "
        "blend weight %g:",
        flags.folds, forge.shape.steps, compared.labelled, labelled.candidates.depth, weight,
    )  # fmt: skip
    for line in gain_lines(compared):
        log.info("  %s", line)


def run(settings: Settings, arguments: Sequence[str]) -> None:
    """Mine negatives, train, save ``data/models/NAME`` and its adapter."""
    flags = training_parser(settings).parse_args(arguments)
    check_flags(flags)
    set_up_threads(settings.cpu_threads)
    device = pick_device(settings.device)
    models = PROJECT_ROOT / "data" / "models"
    target = models / flags.name
    if target.exists():
        raise UserError(f"{target}: exists already. Give another --name, or remove it.")
    with data_lock(models / f"{flags.name}.training", flags.wait):
        _run(settings, flags, models, target, device)


def _run(settings: Settings, flags: argparse.Namespace, models: Path, target: Path, device: str) -> None:
    files = [file_share_and_size(text) for text in flags.pairs]
    resolver = model_resolver(settings)
    base = _base_model(resolver, flags.base)
    use_labels = not (flags.pairs or flags.rule_pairs) if flags.use_labels is None else flags.use_labels
    sources: list[Source] = []
    # First, so that what is wrong with the labels is told before hours of mining.
    labelled = _labelled(flags, settings, resolver) if use_labels else None
    if flags.pairs or flags.rule_pairs:
        miner = _miner(resolver, device, models, cpu_engine(settings))
        sources += _pair_sources(files, flags.fully_labelled, flags.seed, miner, flags.teacher_share > 0)
        sources += _rule_sources(flags, settings, resolver, miner) if flags.rule_pairs else []
    if labelled is not None:
        sources.append(Source("labels", labelled.examples(labelled.labelled)))
    config = AutoConfig.from_pretrained(base.directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(base.directory, local_files_only=True)
    asked = [example.question for source in sources for example in source.examples]
    asked += [] if labelled is None else labelled.queries.texts
    check_lengths(base.requested, config, tokenizer, flags.max_tokens, dict.fromkeys(asked))
    sources, held_out = _split(sources, flags.held_out, flags.seed)
    for source in sources:
        log.info("Training on %s: %d examples, share %g", source.name, len(source.examples), source.share)

    layers = flags.layers if base.role == "bi-encoder" else range(config.num_hidden_layers)
    shape = TrainingSettings(
        layers=tuple(layers), rank=flags.rank, alpha=2 * flags.rank, learning_rate=flags.learning_rate,
        warmup_steps=flags.warmup_steps, steps=flags.steps, questions_per_step=flags.questions_per_step,
        negatives_per_question=flags.negatives, max_tokens=flags.max_tokens,
        teacher_share=flags.teacher_share, seed=flags.seed,
    )  # fmt: skip
    forge = Forge(base, shape, flags.continue_from, models / f"{flags.name}.training", device)
    if labelled is not None and flags.folds:
        _cross_validate(labelled, sources, forge, flags, settings.reranker_blend_weight)
    trainer = forge.trainer("all")
    before = held_out_accuracy(trainer, held_out)
    if held_out:
        log.info("Held out: %d questions, Hit@1 among 11 before training: %.4f", len(held_out), before)
    else:
        log.info(
            "Held out: none, as --held-out %g would give fewer than %d questions: all %d steps are trained, "
            "and the last model is kept.", flags.held_out, FEWEST_HELD_OUT, flags.steps,
        )  # fmt: skip
    evaluate = (lambda t: held_out_accuracy(t, held_out)) if held_out else None
    trainer.train(sources, progress_bar, flags.save_every, evaluate, flags.patience)
    data = [{"source": s.name, "examples": len(s.examples), "share": s.share} for s in sources]
    with atomic_directory(target) as temporary:
        save_adapter(trainer.model, temporary / ADAPTER_FOLDER, shape, base.used, trainer.history, data)
        merge_adapter(base.directory, temporary / ADAPTER_FOLDER, temporary)
    shutil.rmtree(forge.folder, ignore_errors=True)
    if held_out:
        log.info("Held out: Hit@1 among 11: %.4f -> %.4f", before, max(r["held_out"] for r in trainer.history))
    log.info("Model: %s. To use it: CROSS_ENCODER_MODEL = %r", target, f"data/models/{flags.name}")


if __name__ == "__main__":
    main(run)
