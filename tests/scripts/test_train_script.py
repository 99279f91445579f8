import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from conftest import load_script
from sentence_transformers import CrossEncoder
from test_run import Project

from config import Settings
from src.core.errors import UserError
from src.quality.mining import Example
from src.quality.training import Source, TrainingSettings


@pytest.fixture
def project(
    bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    caplog.set_level("INFO")
    found = Project(bank, settings, caplog)
    found.prepare()
    return found


def train(
    project: Project, root: Path, monkeypatch: pytest.MonkeyPatch, *flags: str, script: ModuleType | None = None
) -> list[str]:
    script = script or load_script("04_train_reranker")
    monkeypatch.setattr(script, "PROJECT_ROOT", root)
    project.caplog.clear()
    script.run(
        project.settings,
        ["--data-dir", str(project.data), "--base", project.settings.cross_encoder_model, "--steps", "4",
         "--warmup-steps", "2",
         "--questions-per-step", "2", "--negatives", "2", "--rank", "4", "--save-every", "2", *flags],
    )  # fmt: skip
    return [record.getMessage() for record in project.caplog.records]


def test_labels_become_a_model_that_any_tool_loads(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = train(project, tmp_path, monkeypatch, "--name", "mine", "--held-out", "0.25", "--folds", "2")
    assert "Training on labels: 4 examples, share 1" in lines
    start = "Cross-validation over 2 folds (each trained all 4 steps), 4 labelled questions"
    measured = next(i for i, line in enumerate(lines) if line.startswith(start))
    assert lines[measured + 1].startswith("  stage one -> base, blended: Hit@1 ")
    assert any(line.startswith("  stage one -> fine-tuned, blended: Hit@5 1.0000 -> 1.0000") for line in lines)
    saved = next(i for i, line in enumerate(lines) if line.startswith("Model: "))
    assert measured < saved
    assert not (tmp_path / "data" / "models" / "mine.training").exists()
    # One question of four is too few to choose a model by: all four steps are trained, as in the folds.
    assert (
        "Held out: none, as --held-out 0.25 would give fewer than 20 questions: all 4 steps are trained, "
        "and the last model is kept."
    ) in lines
    folder = tmp_path / "data" / "models" / "mine"
    history = json.loads((folder / "adapter" / "recipe.json").read_text(encoding="utf-8"))["history"]
    assert [sorted(record) for record in history] == [["accuracy", "loss", "step"]] * 2
    assert history[-1]["step"] == 4
    assert {path.name for path in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "recipe.json",
    }
    scores = CrossEncoder(str(folder), device="cpu").predict([("ставка", "Ставка 15 %"), ("ставка", "Карта")])
    assert scores.shape == (2,)
    used = project.settings.model_copy(update={"cross_encoder_model": str(folder)})
    assert any(line.startswith("✓ Cross-encoder loaded") for line in project.run("03_run_search", settings=used))
    with pytest.raises(UserError, match="mine: exists already"):
        train(project, tmp_path, monkeypatch, "--name", "mine")


def test_an_interrupted_cross_validation_never_goes_on_with_other_folds(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    # Fold 0 is trained to its end, and its checkpoint lies there; its scores do not.
    monkeypatch.setattr("src.quality.crossval.LabelledCandidates.score", die)
    with pytest.raises(KeyboardInterrupt):
        train(project, tmp_path, monkeypatch, "--name", "cut", "--folds", "2")
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"fold-0.*of another origin .*labels, 2 examples.* there, labels, 3 examples"):
        train(project, tmp_path, monkeypatch, "--name", "cut", "--folds", "4")
    lines = train(project, tmp_path, monkeypatch, "--name", "cut", "--folds", "2")
    assert any(line.startswith("Going on from step 4 of an interrupted training in ") for line in lines)
    assert any(line.startswith("Cross-validation over 2 folds (each") for line in lines)


def test_kept_scores_of_a_fold_are_of_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, keys = load_script("04_train_reranker"), []

    def note(labelled: object, folds: object, train: object, kept: Path, key: str) -> None:
        keys.append(key)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "out_of_fold_scores", note)
    forge = SimpleNamespace(start={"base": "b"}, shape=TrainingSettings(), folder=tmp_path)
    for passage in ("old", "old", "new"):
        sources = [Source("pairs", [Example("q", passage, ("n",))]), Source("labels", [])]
        with pytest.raises(KeyboardInterrupt):
            script._cross_validate(
                SimpleNamespace(labelled=("q1", "q2")), sources, forge, Namespace(folds=2, seed=0), 0.5
            )
    assert keys[0] == keys[1] != keys[2]


def test_a_fold_never_trains_on_its_own_questions_under_another_id_or_from_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("04_train_reranker")
    seen: list[list[str]] = []

    class Stub:
        scores = None

        def train(self, sources: list[Source], *_: object) -> None:
            seen.append([example.question for source in sources for example in source.examples])

    def train_both(labelled: object, folds: object, train: Callable[..., object], kept: Path, key: str) -> None:
        train(0, [Example("Card  fee?", "p", ("n",)), Example("rate?", "p", ("n",))])
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "out_of_fold_scores", train_both)
    monkeypatch.setattr(script, "split_folds", lambda *_: [frozenset({"q1"}), frozenset({"q2", "q3"})])
    queries = SimpleNamespace(query_ids=("q1", "q2", "q3"), texts=("card fee?", "Card  fee?", "rate?"))
    forge = SimpleNamespace(start={}, shape=TrainingSettings(), folder=tmp_path, trainer=lambda name: Stub())
    pairs = [Example("CARD fee?", "p", ("n",)), Example("hours?", "p", ("n",))]
    with pytest.raises(KeyboardInterrupt):
        script._cross_validate(
            SimpleNamespace(labelled=("q1", "q2", "q3"), queries=queries),
            [Source("pairs", pairs), Source("labels", [])],
            forge,
            Namespace(folds=2, seed=0, save_every=1),
            0.5,
        )
    assert seen == [["hours?", "rate?"]]


@pytest.mark.parametrize(
    ("questions", "share", "held_out"), [(399, 0.05, 0), (400, 0.05, 20), (400, 0.0, 0), (8, 0.5, 0)]
)
def test_fewer_than_twenty_questions_are_never_held_out(questions: int, share: float, held_out: int) -> None:
    examples = [Example(f"q{i}", "right", ("a", "b", "c", "d", "e")) for i in range(questions)]
    sources, chosen = load_script("04_train_reranker")._split([Source("labels", examples)], share, 0)
    assert len(chosen) == held_out
    kept = {example.question for example in sources[0].examples}
    assert len(kept) == questions - held_out
    assert not kept & {example.question for example in chosen}


def test_where_enough_are_held_out_the_best_figure_is_told(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([0.25, 0.75, 0.5])
    script = load_script("04_train_reranker")
    monkeypatch.setattr(script, "PROJECT_ROOT", tmp_path)
    monkeypatch.setattr(script, "_split", lambda sources, share, seed: (list(sources), list(sources[0].examples)))
    monkeypatch.setattr(script, "held_out_accuracy", lambda trainer, examples: next(figures))
    lines = train(project, tmp_path, monkeypatch, "--folds", "0", script=script)
    assert "Held out: 4 questions, Hit@1 among 11 before training: 0.2500" in lines
    assert "Held out: Hit@1 among 11: 0.2500 -> 0.7500" in lines


def test_what_cannot_be_trained_on(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a share and a number of pairs"):
        train(project, tmp_path, monkeypatch, "--pairs", "x.jsonl=much")
    script = load_script("04_train_reranker")
    # Told before stage one runs, which takes long on a large corpus.
    monkeypatch.setattr(script, "retrieve", None)
    with pytest.raises(UserError, match="--folds 5: 4 questions are labelled"):
        train(project, tmp_path, monkeypatch, script=script)
    with pytest.raises(
        UserError, match=r"--max-tokens 16: the question 'сколько стоит снять наличку с кредитки' has 33"
    ):
        train(project, tmp_path, monkeypatch, "--folds", "0", "--max-tokens", "16")
    with pytest.raises(UserError, match=r"--max-tokens 129: .* reads at most 128\. Give --max-tokens 128 or less"):
        train(project, tmp_path, monkeypatch, "--folds", "0", "--max-tokens", "129")
    (project.data / "raw" / "qrels.csv").unlink()
    with pytest.raises(UserError, match="no labels at "):
        train(project, tmp_path, monkeypatch)
    models = tmp_path / "data" / "models"
    assert not models.exists() or not list(models.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--folds", "1"], "--folds 1: a cross-validation needs 2 folds or more; 0 leaves it out."),
        (["--folds", "-2"], "--folds -2: a cross-validation needs 2 folds or more"),
        (["--name", "a/b"], "--name 'a/b': the name of a folder under data/models is needed: .* no slash"),
        (["--name", ".."], r"--name '\.\.': the name of a folder"),
        (["--name", ""], "--name '': the name of a folder"),
        (["--name", "x.training"], "not ending in .training"),
        (["--name", "mined"], "--name mined: the project keeps files of its own there"),
        (["--name", "e5-small-reranker"], "--name e5-small-reranker: the project keeps files of its own there"),
        (["--steps", "39"], "--steps 39: warm-up takes 40 steps, .* or --warmup-steps from 0 to 38."),
        (["--steps", "40"], "--steps 40: warm-up takes 40 steps"),
        (["--warmup-steps", "-1"], "--steps 2000: warm-up takes -1 steps"),
        (["--held-out", "1"], "--held-out 1: a share is needed, from 0 to below 1"),
        (["--held-out", "-0.1"], "--held-out -0.1: a share is needed"),
        (["--learning-rate", "0"], "--learning-rate 0: a number above 0 is needed"),
        (["--learning-rate", "nan"], "--learning-rate nan: a number above 0 is needed"),
        (["--rule-share", "-1"], "--rule-share -1: a number above 0 is needed"),
        (["--rule-pairs", "-5"], "--rule-pairs -5: a number of pairs is needed, or 0 for none"),
        (["--no-use-labels"], "--no-use-labels leaves nothing to train on"),
        (["--fully-labelled", "no.jsonl"], "--fully-labelled no.jsonl: not among --pairs"),
        (["--pairs", "no.jsonl=0.5"], "--pairs no.jsonl: no such file"),
        (["--continue-from", "nowhere"], "nowhere/recipe.json: missing"),
    ],
)
def test_flags_that_cannot_be_meant(
    flags: list[str], message: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("04_train_reranker")
    monkeypatch.setattr(script, "PROJECT_ROOT", tmp_path)
    with pytest.raises(UserError, match=message) as error:
        script.run(settings, ["--data-dir", str(tmp_path / "d"), *flags])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_base_that_cannot_be_trained(
    two_logit_model: Path, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"--base .*two-logits: cannot be fine-tuned ") as error:
        train(project, tmp_path, monkeypatch, "--folds", "0", "--base", str(two_logit_model))
    assert "\n" not in str(error.value)
