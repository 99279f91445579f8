import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import bert_tokenizer, tiny_config
from transformers import AutoTokenizer, BertModel

from src.core.errors import UserError
from src.engine.pair_scorer import CrossEncoderScorer
from src.engine.torch_backend import TorchBackend
from src.models.embedded_reranker import load_base_classifier
from src.quality.adapter import load_adapter, save_adapter, wrap_with_lora
from src.quality.mining import Example
from src.quality.training import (
    Source,
    Trainer,
    TrainingSettings,
    draw,
    held_out_accuracy,
    learning_rate_factor,
    targets,
)

SHAPE = TrainingSettings(
    layers=(0,), rank=4, alpha=8, learning_rate=3e-3, warmup_steps=2, steps=12, questions_per_step=2,
    negatives_per_question=2, max_tokens=32,
)  # fmt: skip
WORDS = ["карта", "вклад", "кредит", "ипотека", "перевод", "счет"]
EXAMPLES = [Example(word, f"{word} да", tuple(f"{other} да" for other in WORDS if other != word)) for word in WORDS]


def bars(name: str, total: int) -> Any:
    return nullcontext(lambda count: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(5)
    tokenizer = bert_tokenizer()
    BertModel(tiny_config(len(tokenizer)), add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


START = {"base": "tiny, fingerprint 1", "adapter": "none"}


def trainer(base: Path, folder: Path, settings: TrainingSettings = SHAPE, start: dict[str, str] = START) -> Trainer:
    torch.manual_seed(9)
    model = wrap_with_lora(load_base_classifier(base, settings.layers), settings)
    return Trainer(model, bert_tokenizer(), settings, folder, "cpu", start)


@pytest.fixture(scope="module")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the checkpoint of a whole training on EXAMPLES."""
    folder = tmp_path_factory.mktemp("finished")
    trainer(base, folder).train([Source("one", EXAMPLES)], bars, save_every=12)
    return folder


@pytest.mark.parametrize("which", ["cross_encoder", "xlmr_cross_encoder"])
def test_the_trainer_scores_as_the_search_does(
    which: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.quality.training.half_precision", lambda device: None)
    folder = request.getfixturevalue(which)
    model = wrap_with_lora(load_base_classifier(folder), SHAPE)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [(question, f"{passage} да") for question in WORDS[:3] for passage in WORDS]
    found = Trainer(model, tokenizer, replace(SHAPE, max_tokens=64), tmp_path, "cpu", START).scores(pairs)
    search = CrossEncoderScorer(folder, TorchBackend(folder, "cpu"), batch_size=4, max_length=64)
    rows = np.array([(i, i) for i in range(len(pairs))], dtype=np.int32)
    expected = search.score(search.tokenize([q for q, _ in pairs]), search.tokenize([p for _, p in pairs]), rows)
    assert np.ptp(expected) > 1e-3  # the comparison would be empty on equal scores
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_types_are_left_out_where_the_model_has_one(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.quality.training.half_precision", lambda device: None)
    model = trainer(base, tmp_path)
    plain = model.tokenizer.model_input_names = ["input_ids", "attention_mask"]
    without = model.scores([("карта", "вклад")])
    model.tokenizer.model_input_names = [*plain, "token_type_ids"]
    assert model.scores([("карта", "вклад")]) != without
    model.model.config.type_vocab_size = 1
    assert model.scores([("карта", "вклад")]) == without


def test_an_adapter_is_gone_on_from_layer_by_layer(base: Path, tmp_path: Path) -> None:
    both, upper = replace(SHAPE, layers=(0, 1)), replace(SHAPE, layers=(1,))
    model = wrap_with_lora(load_base_classifier(base, both.layers), both)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter).half())
    save_adapter(model, tmp_path / "both", both, "embedded:base", [])
    kept = wrap_with_lora(load_base_classifier(base, upper.layers), upper)
    load_adapter(kept, tmp_path / "both", "embedded:base", upper)
    theirs, ours = dict(model.named_parameters()), dict(kept.named_parameters())
    checked = 0
    for name, value in ours.items():
        if value.requires_grad:
            torch.testing.assert_close(value, theirs[name.replace("layer.0.", "layer.1.")])
            checked += 1
    # A and B of six matrices, pooler and classifier with their biases.
    assert checked == 2 * 6 + 4


@pytest.mark.parametrize(
    ("base_name", "changes", "message"),
    [
        ("embedded:other", {}, r"an adapter of base and rank \('embedded:base', 4\) with layers \[0\]"),
        ("embedded:base", {"rank": 8}, r"this training has \('embedded:base', 8\)"),
        ("embedded:base", {"layers": (0, 1)}, r"with layers \[0, 1\]\. Give --base, --rank and --layers to fit"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    base: Path, tmp_path: Path, base_name: str, changes: dict[str, Any], message: str
) -> None:
    model = wrap_with_lora(load_base_classifier(base, SHAPE.layers), SHAPE)
    save_adapter(model, tmp_path / "one", SHAPE, "embedded:base", [])
    with pytest.raises(UserError, match=message):
        load_adapter(model, tmp_path / "one", base_name, replace(SHAPE, **changes))
    with pytest.raises(UserError, match=r"recipe\.json: missing"):
        load_adapter(model, tmp_path / "none", base_name, SHAPE)


@pytest.mark.parametrize("layers", [[], [2], [-1], [1, 0], [0, 0]])
def test_layers_that_are_not_there_are_refused(base: Path, layers: list[int]) -> None:
    with pytest.raises(UserError, match=r"has layers 0 to 1\. Name those to keep, in rising order"):
        load_base_classifier(base, layers)


def test_learning_rate_by_hand() -> None:
    shape = TrainingSettings(warmup_steps=4, steps=12)
    assert [learning_rate_factor(step, shape) for step in (0, 3, 4, 8, 12)] == [0.25, 1.0, 1.0, 0.5, 0.0]


def test_every_example_comes_once_before_any_comes_twice() -> None:
    batches = draw([Source("one", EXAMPLES)], SHAPE)
    questions = [example.question for _ in range(3) for example in next(batches)]
    assert sorted(questions) == sorted(WORDS)


def test_shares_and_the_number_of_negatives() -> None:
    short = [Example("never", "x", ("y",))]
    rare = [Example("rare", "x", ("a", "b", "c"))]
    batches = draw([Source("often", EXAMPLES, 9.0), Source("rare", rare, 1.0), Source("short", short, 9.0)], SHAPE)
    drawn = [example for _ in range(300) for example in next(batches)]
    assert {len(example.negatives) for example in drawn} == {2}
    assert "never" not in {example.question for example in drawn}
    assert 0.05 < sum(example.question == "rare" for example in drawn) / len(drawn) < 0.16


def test_too_few_negatives_are_an_error() -> None:
    with pytest.raises(UserError, match="no question has 2 mined negatives"):
        next(draw([Source("short", [Example("q", "x", ("y",))])], SHAPE))


def test_a_draw_keeps_the_similarities_of_the_passages_drawn() -> None:
    example = Example("q", "right", ("0.1", "0.2", "0.3", "0.4"), (0.9, 0.1, 0.2, 0.3, 0.4))
    for _, (drawn, _) in zip(range(20), draw([Source("one", [example])], SHAPE), strict=False):
        assert drawn.similarities == (0.9, *map(float, drawn.negatives))


def test_targets_by_hand() -> None:
    # 0.01 apart at a temperature of 0.01: the softmax of 1 and 0 is 0.7311 and 0.2689.
    sure = Example("q", "right", ("near",), (0.9, 0.89))
    wrong = Example("q", "right", ("near",), (0.89, 0.9))
    silent = Example("q", "right", ("near",))
    found = targets([sure, wrong, silent], 0.5)
    np.testing.assert_allclose(found, [[0.8655, 0.1345], [1, 0], [1, 0]], atol=1e-4)
    np.testing.assert_array_equal(targets([sure], 0.0), [[1, 0]])


def test_rewriting_happens_on_each_draw() -> None:
    def mark(example: Example, generator: random.Random) -> Example:
        return Example(example.question + "!", example.positive, example.negatives)

    assert all(example.question.endswith("!") for example in next(draw([Source("one", EXAMPLES, 1.0, mark)], SHAPE)))


def test_it_learns_what_the_labels_say(base: Path, tmp_path: Path) -> None:
    settings = TrainingSettings(**{**SHAPE.__dict__, "steps": 120, "learning_rate": 1e-2})
    model = trainer(base, tmp_path, settings)
    losses_before = held_out_accuracy(model, EXAMPLES, negatives=5)
    model.train([Source("one", EXAMPLES)], bars, save_every=40)
    assert model.history[-1]["loss"] < 0.5 * model.history[0]["loss"]
    assert held_out_accuracy(model, EXAMPLES, negatives=5) > losses_before


def test_an_interrupted_training_ends_where_an_undisturbed_one_does(base: Path, tmp_path: Path) -> None:
    whole = trainer(base, tmp_path / "whole")
    whole.train([Source("one", EXAMPLES)], bars, save_every=4)

    class KilledError(Exception):
        pass

    def die_at_eight(current: Trainer) -> float:
        if len(current.history) == 2:
            raise KilledError
        return float(len(current.history))

    first = trainer(base, tmp_path / "cut")
    with pytest.raises(KilledError):
        first.train([Source("one", EXAMPLES)], bars, save_every=4, evaluate=die_at_eight)
    second = trainer(base, tmp_path / "cut")
    second.train([Source("one", EXAMPLES)], bars, save_every=4, evaluate=lambda t: float(len(t.history)))
    for left, right in zip(whole.masters, second.masters, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert [record["step"] for record in second.history] == [4, 8, 12]


def test_a_checkpoint_of_other_settings_is_refused(base: Path, tmp_path: Path) -> None:
    trainer(base, tmp_path).train([Source("one", EXAMPLES)], bars, save_every=4)
    other = trainer(base, tmp_path, TrainingSettings(**{**SHAPE.__dict__, "steps": 20}))
    with pytest.raises(UserError, match="interrupted training with other settings"):
        other.train([Source("one", EXAMPLES)], bars)


ONE = [Source("one", EXAMPLES)]


@pytest.mark.parametrize(
    ("sources", "start", "message"),
    [
        ([Source("one", EXAMPLES[:-1])], START, r"source 1: one, 6 examples, share 1\.0, .* there, one, 5 examples"),
        ([Source("one", [*EXAMPLES[1:], EXAMPLES[0]])], START, "source 1: one, 6 examples"),
        (
            [Source("one", [replace(EXAMPLES[0], negatives=EXAMPLES[0].negatives[1:]), *EXAMPLES[1:]])],
            START,
            "source 1",
        ),
        ([Source("one", EXAMPLES, 0.5)], START, r"share 1\.0, .* there, one, 6 examples, share 0\.5"),
        ([*ONE, Source("two", EXAMPLES)], START, "source 2: none there, two, 6 examples"),
        (ONE, {**START, "base": "tiny, fingerprint 2"}, "base: tiny, fingerprint 1 there, tiny, fingerprint 2 here"),
        (ONE, {**START, "adapter": "a, fingerprint 3"}, "adapter: none there, a, fingerprint 3 here"),
    ],
)
def test_a_checkpoint_of_other_examples_or_another_start_is_refused(
    finished: Path, base: Path, sources: list[Source], start: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=f"training of another origin lies there .*{message}.*Take another --name"):
        trainer(base, finished, start=start).train(sources, bars, save_every=12)


def test_the_best_evaluation_is_kept_and_patience_ends_it(base: Path, tmp_path: Path) -> None:
    figures = iter([0.1, 0.9, 0.5, 0.4, 0.3, 0.2])
    kept: list[list[torch.Tensor]] = []

    def evaluate(current: Trainer) -> float:
        kept.append([master.clone() for master in current.masters])
        return next(figures)

    model = trainer(base, tmp_path)
    model.train([Source("one", EXAMPLES)], bars, save_every=2, evaluate=evaluate, patience=2)
    assert [record["held_out"] for record in model.history] == [0.1, 0.9, 0.5, 0.4]
    for live, best in zip(model.live, kept[1], strict=True):
        torch.testing.assert_close(live.detach(), best)
