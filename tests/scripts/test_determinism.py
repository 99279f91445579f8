"""Equal bytes twice; another batch or block size gives the same top five."""

import csv
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import load_script, write_csv

from config import Settings
from src.core import spool
from src.stages import embed

WORDS = "карта вклад кредит ипотека перевод счёт ставка рубль банкомат отделение лимит комиссия".split(" ")  # noqa: SIM905


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Forty pages, some of them twice under two ids, and a dozen questions."""
    chance = random.Random(4)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(3, 40))) for _ in range(30)]
    pages = [f'{i},"{text[:12]}","{text}"' for i, text in enumerate([*texts, *texts[:10]])]
    asked = [f'q{i},"{" ".join(chance.choices(WORDS, k=4))}"' for i in range(12)]
    write_csv(tmp_path / "raw" / "websites_updated.csv", "web_id,title,text", pages)
    write_csv(tmp_path / "raw" / "questions_clean.csv", "q_id,query", asked)
    return tmp_path / "raw"


Search = Callable[[str, Settings], bytes]


@pytest.fixture
def search(raw: Path, tmp_path: Path) -> Search:
    def run(name: str, settings: Settings) -> bytes:
        data = tmp_path / name
        shutil.copytree(raw, data / "raw", dirs_exist_ok=True)
        for script in ("01_preprocess", "02_build_indices", "03_run_search"):
            output = ["--output", str(data / "s.csv")] if script.startswith("03") else []
            load_script(script).run(settings, ["--data-dir", str(data), "--fresh", *output])
        return (data / "s.csv").read_bytes()

    return run


def artefacts(folder: Path) -> dict[str, bytes]:
    """Everything but manifests and reports, which hold times, and pair scores, whose files are cut by the clock."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and not path.name.endswith(("manifest.json", "report.html"))
        and "pair_scores" not in path.parts
    }


def pair_scores(folder: Path) -> list[dict[str, object]]:
    tables = [pq.read_table(path).to_pylist() for path in folder.glob("runs/pair_scores/*/*.parquet")]
    return sorted((row for table in tables for row in table), key=lambda row: (row["question"], row["passage"]))


def lists(submission: bytes) -> dict[str, list[int]]:
    return {row[0]: json.loads(row[1]) for row in list(csv.reader(io.StringIO(submission.decode())))[1:]}


def final_scores(folder: Path) -> dict[tuple[str, str], float]:
    rows = pq.read_table(folder / "runs" / "rerank-on.parquet").to_pylist()
    return {(row["q_id"], row["web_id"]): row["score"] for row in rows}


def test_equal_bytes_twice(search: Search, settings: Settings, tmp_path: Path) -> None:
    first, second = search("one", settings), search("two", settings)
    assert first == second
    one, two = artefacts(tmp_path / "one"), artefacts(tmp_path / "two")
    assert sorted(one) == sorted(two)
    assert [name for name in one if one[name] != two[name]] == []
    tables = [pair_scores(tmp_path / name) for name in ("one", "two")]
    assert len(tables[0]) > 10
    assert tables[0] == tables[1]


@pytest.mark.parametrize(("batch", "block"), [(1, 256), (64, 3)])
def test_another_batch_or_block_gives_the_same_lists(
    search: Search, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, block: int
) -> None:
    settings = settings.model_copy(update={"reranker_candidate_k": 20, "top_k": 5})
    expected = search("one", settings)
    monkeypatch.setattr(embed, "BLOCK_TEXTS", block)
    found = search("two", settings.model_copy(update={"reranker_batch_size": batch, "encoder_batch_size": batch}))
    assert lists(found) == lists(expected)
    one, two = final_scores(tmp_path / "one"), final_scores(tmp_path / "two")
    assert one.keys() == two.keys()
    # Float noise of 1e-6 in the models' outputs, made larger by z-scores over the near-equal scores of untrained ones.
    assert max(abs(one[key] - two[key]) for key in one) < 5e-3


def test_questions_in_small_blocks_and_in_files_give_the_same_lists(
    search: Search, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(update={"reranker_candidate_k": 20, "top_k": 5})
    expected = search("one", settings)
    monkeypatch.setattr(spool, "BLOCK", 5)
    monkeypatch.setattr(spool.Spool, "smallest_file", 1)
    assert lists(search("two", settings)) == lists(expected)
    one, two = final_scores(tmp_path / "one"), final_scores(tmp_path / "two")
    assert max(abs(one[key] - two[key]) for key in one) < 5e-3
    assert not list((tmp_path / "two" / "runs").glob("tmp*"))


def test_the_order_of_all_input_rows_changes_nothing(search: Search, settings: Settings, raw: Path) -> None:
    expected = lists(search("one", settings))
    for name in ("websites_updated.csv", "questions_clean.csv"):
        header, *rows = (raw / name).read_text(encoding="utf-8").splitlines()
        np.random.default_rng(1).shuffle(rows)
        (raw / name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    assert lists(search("two", settings)) == expected
