from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

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


def train(project: Project, root: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> list[str]:
    script = load_script("04_train_reranker")
    monkeypatch.setattr(script, "PROJECT_ROOT", root)
    project.caplog.clear()
    script.run(
        project.settings,
        ["--data-dir", str(project.data), "--base", project.settings.cross_encoder_model, "--steps", "4",
         "--questions-per-step", "2", "--negatives", "2", "--rank", "4", "--save-every", "2", *flags],
    )  # fmt: skip
    return [record.getMessage() for record in project.caplog.records]


def test_labels_become_a_model_that_any_tool_loads(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = train(project, tmp_path, monkeypatch, "--name", "mine", "--held-out", "0.25", "--folds", "2")
    assert "Training on labels: 3 examples, share 1" in lines
    measured = next(i for i, line in enumerate(lines) if line.startswith("Cross-validation over 2 folds, 4 labelled"))
    assert lines[measured + 1].startswith("  stage one -> base, blended: Hit@1 ")
    assert any(line.startswith("  stage one -> fine-tuned, blended: Hit@5 1.0000 -> 1.0000") for line in lines)
    saved = next(i for i, line in enumerate(lines) if line.startswith("Model: "))
    assert measured < saved
    assert not (tmp_path / "data" / "models" / "mine.training").exists()
    folder = tmp_path / "data" / "models" / "mine"
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
    assert any(line.startswith("Cross-validation over 2 folds, 4 labelled") for line in lines)


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


def test_what_cannot_be_trained_on(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a share and a number of pairs"):
        train(project, tmp_path, monkeypatch, "--pairs", "x.jsonl=much")
    with pytest.raises(UserError, match="--folds 5: 4 questions are labelled"):
        train(project, tmp_path, monkeypatch)
    (project.data / "raw" / "qrels.csv").unlink()
    with pytest.raises(UserError, match="no labels at "):
        train(project, tmp_path, monkeypatch)
    models = tmp_path / "data" / "models"
    assert not models.exists() or not list(models.iterdir())
