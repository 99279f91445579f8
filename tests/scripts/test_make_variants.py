"""07_make_variants from the command line, and the benchmark of its rules."""

import json
import random
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import QUESTIONS, load_script, write_csv
from models.chat_server import Reply, chat_server, completion
from test_run import Project, starting

import _damage
from config import Settings
from src.core.errors import UserError


@pytest.fixture
def project(bank: Path, settings: Settings, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    questions = {"01": "rfrfz cnfdrf gj drkfle", "2": "ипотека без комисиии", "q3": QUESTIONS["q3"]}
    write_csv(bank / "raw" / "questions_clean.csv", "q_id,query", [f"{q},{text}" for q, text in questions.items()])
    (bank / "raw" / "qrels.csv").unlink()
    return Project(bank, settings, caplog)


def with_model(project: Project, url: str) -> Settings:
    return project.settings.model_copy(update={"llm_url": url, "llm_model": "tiny", "llm_concurrency": 2})


def test_rules_from_questions_to_a_search_that_uses_them(project: Project) -> None:
    project.prepare()
    lines = project.run("07_make_variants", "--maker", "rules")
    path = project.data / "processed" / "query_variants.parquet"
    assert lines[-1] == f"Query variants: 2 for 2 of 3 questions. File: {path}"
    assert "Rules that changed a question: layout 1, spelling 1" in lines
    assert pq.read_table(path).to_pylist() == [
        {"q_id": "01", "original_query": "rfrfz cnfdrf gj drkfle", "variant_1": "rfrfz ставка по вкладу"},
        {"q_id": "2", "original_query": "ипотека без комисиии", "variant_1": "ипотека без комиссии"},
        {"q_id": "q3", "original_query": QUESTIONS["q3"], "variant_1": None},
    ]
    lines = project.run("03_run_search", "--no-rerank")
    starting(lines, "Query variants: 2 variants of 2 of 3 questions; left out: 1 empty cells")
    rows = pq.read_table(project.data / "runs" / "bm25-document.parquet").to_pylist()
    assert next(row["web_id"] for row in rows if row["q_id"] == "01") == "11"  # none without the variant


def test_abbreviations_number_limit_and_output(project: Project, tmp_path: Path) -> None:
    project.prepare()
    table = write_csv(tmp_path / "short.csv", "short,long", ["ипотека,кредит на квартиру"])
    output = tmp_path / "new" / "made.parquet"
    flags = ["--maker", "rules", "--abbreviations", str(table), "--output", str(output), "--limit", "2"]
    project.run("07_make_variants", *flags)
    found = pd.read_parquet(output)
    assert found["q_id"].tolist() == ["01", "2"]
    assert found.loc[1, ["variant_1", "variant_2", "variant_3"]].tolist() == [
        "кредит на квартиру без комиссии",
        "кредит на квартиру без комисиии",
        "ипотека без комиссии",
    ]
    project.run("07_make_variants", *flags, "--number", "1")
    assert pd.read_parquet(output).columns.tolist() == ["q_id", "original_query", "variant_1"]


def test_a_model_that_misbehaves_and_a_second_run(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "sk-hidden\n")
    project.prepare()

    def answer(question: str, before: int) -> Reply:
        if question == QUESTIONS["q3"]:
            return completion("I cannot do that.")
        return completion(json.dumps([f"{question} {n}" for n in range(5)], ensure_ascii=False))

    with chat_server(answer) as server:
        settings = with_model(project, server.url)
        lines = project.run("07_make_variants", "--maker", "llm", "--number", "2", settings=settings)
        assert (
            "Questions: 3 asked, 0 answered before; 1 malformed answers left out, 0 without an answer, 0 cut short"
            in lines
        )
        path = project.data / "processed" / "query_variants.parquet"
        assert lines[-1] == f"Query variants: 4 for 2 of 3 questions. File: {path}"
        first = path.read_bytes()
        lines += project.run("07_make_variants", "--maker", "llm", "--number", "2", settings=settings)
        assert (
            "Questions: 0 asked, 3 answered before; 1 malformed answers left out, 0 without an answer, 0 cut short"
            in lines
        )
        assert len(server.requests) == 3
        assert {headers["authorization"] for headers in server.headers} == {"Bearer sk-hidden"}
    assert path.read_bytes() == first
    assert pq.read_table(path).column("variant_2").to_pylist() == [
        "rfrfz cnfdrf gj drkfle 1",
        "ипотека без комисиии 1",
        None,
    ]
    kept = (project.data / "processed" / "query_variants_answers.jsonl").read_text(encoding="utf-8")
    assert "sk-hidden" not in kept + "\n".join(lines) + json.dumps(settings.snapshot())


def test_a_server_that_refuses_leaves_the_file_as_it_was(project: Project) -> None:
    project.prepare()
    project.run("07_make_variants", "--maker", "rules")
    path = project.data / "processed" / "query_variants.parquet"
    before = path.read_bytes()
    with (
        chat_server(lambda question, before: Reply(status=404, body="no such model")) as server,
        pytest.raises(UserError, match=r"HTTP 404 for model 'tiny': 'no such model'\. Check LLM_URL, LLM_MODEL"),
    ):
        project.run("07_make_variants", "--maker", "llm", settings=with_model(project, server.url))
    assert path.read_bytes() == before


def own_file(project: Project, path: Path) -> None:
    frame = pd.DataFrame({"q_id": ["01", "2"], "original_query": ["rfrfz cnfdrf gj drkfle", "x"], "variant_1": "мой"})
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)


@pytest.mark.parametrize("maker", ["rules", "llm"])
@pytest.mark.parametrize("foreign", ["a table", "an edited file of the script", "no parquet"])
def test_a_file_of_the_user_is_not_replaced_unless_asked_for(project: Project, maker: str, foreign: str) -> None:
    path = project.data / "processed" / "query_variants.parquet"
    project.prepare()
    if foreign == "no parquet":
        path.write_text("q_id,original_query\n")
    elif foreign == "a table":
        own_file(project, path)
    else:
        project.run("07_make_variants", "--maker", "rules")
        pd.read_parquet(path).to_parquet(path, index=False)
    before = path.read_bytes()
    with chat_server(lambda question, before: completion('["a"]')) as server:
        flags, settings = ["--maker", maker, "--limit", "1"], with_model(project, server.url)
        # Before any work: the corpus is not even looked for.
        with pytest.raises(UserError, match=r"query_variants\.parquet was not written by .*--output.*--overwrite"):
            project.run("07_make_variants", *flags, "--corpus", str(path), settings=settings)
        assert not server.requests
        assert path.read_bytes() == before
        project.run("07_make_variants", *flags, "--overwrite", settings=settings)
    assert pq.read_table(path).column("q_id").to_pylist() == ["01"]
    project.run("07_make_variants", "--maker", "rules")
    assert pq.read_table(path).column("q_id").to_pylist() == ["01", "2", "q3"]


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--output", "processed/../processed/query_variants.parquet"]])
def test_nothing_is_written_beside_a_csv_of_the_user(
    project: Project, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project.prepare()
    monkeypatch.chdir(project.data)
    path = project.data / "processed" / "query_variants.csv"
    own_file(project, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"query_variants\.csv is there.*Move or delete it \(--overwrite does not\)"):
        project.run("07_make_variants", "--maker", "rules", *flags)
    assert not path.with_suffix(".parquet").exists()
    elsewhere = project.data / "processed" / "other.parquet"
    project.run("07_make_variants", "--maker", "rules", "--output", str(elsewhere))
    assert elsewhere.is_file()
    assert path.read_bytes() == before


def test_a_limit_keeps_the_rows_of_other_questions(project: Project, tmp_path: Path) -> None:
    project.prepare()
    project.run("07_make_variants", "--maker", "rules")
    path = project.data / "processed" / "query_variants.parquet"
    first = pq.read_table(path).to_pylist()
    table = write_csv(tmp_path / "short.csv", "short,long", ["cnfdrf,ставка"])
    flags = ["--maker", "rules", "--abbreviations", str(table), "--limit", "1"]
    lines = project.run("07_make_variants", *flags)
    assert (
        lines[-2]
        == "Kept of the file that was there: the rows of 2 other questions; 0 left out that read otherwise now"
    )
    assert lines[-1] == f"Query variants: 2 for 1 of 1 questions. File: {path}"
    found = pq.read_table(path).to_pylist()
    assert found[0]["variant_2"] == "rfrfz ставка gj drkfle"
    assert [{name: row[name] for name in first[0]} for row in found] == first
    starting(project.run("03_run_search", "--no-rerank"), "Query variants: 3 variants of 2 of 3 questions")
    project.run("07_make_variants", *flags, "--overwrite")
    assert pq.read_table(path).column("q_id").to_pylist() == ["01"]


def test_a_limit_keeps_no_row_that_the_search_would_refuse(project: Project) -> None:
    project.prepare()
    project.run("07_make_variants", "--maker", "rules")
    questions = ["01,rfrfz cnfdrf gj drkfle", "2,вклад", "q3,карта", "q4,что"]
    write_csv(project.data / "raw" / "questions_clean.csv", "q_id,query", questions)
    project.prepare()
    lines = project.run("07_make_variants", "--maker", "rules", "--limit", "1")
    assert (
        lines[-2]
        == "Kept of the file that was there: the rows of 0 other questions; 2 left out that read otherwise now"
    )
    path = project.data / "processed" / "query_variants.parquet"
    assert pq.read_table(path).column("q_id").to_pylist() == ["01"]
    rest = [f"z{n},вопрос {n}" for n in range(2)]
    write_csv(project.data / "raw" / "questions_clean.csv", "q_id,query", rest)
    project.prepare()
    project.run("07_make_variants", "--maker", "rules", "--limit", "1")
    assert pq.read_table(path).column("q_id").to_pylist() == ["z0", "01"]


def test_answers_that_were_cut(project: Project) -> None:
    project.prepare()

    def answer(question: str, before: int) -> Reply:
        return completion('["a"', "length") if question == QUESTIONS["q3"] else completion('["a"]')

    with chat_server(answer) as server:
        settings = with_model(project, server.url)
        lines = project.run("07_make_variants", "--maker", "llm", "--max-tokens", "70", settings=settings)
    counts = "Questions: 3 asked, 0 answered before; 0 malformed answers left out, 0 without an answer, 1 cut short"
    assert counts in lines
    assert "max_tokens = 70" in starting(lines, "WARNING: ")
    assert lines[-1].startswith("Query variants: 2 for 2 of 3 questions.")
    assert {request["max_tokens"] for request in server.requests} == {70}


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--maker", "rules", "--max-tokens", "9"], "--max-tokens is for --maker llm"),
        (["--maker", "llm"], "LLM_MODEL = None: name the model"),
        (["--maker", "llm", "--abbreviations", "a.csv"], "--abbreviations is for --maker rules"),
        (["--maker", "rules", "--abbreviations", "absent.csv"], r"absent\.csv: no such file"),
        (["--maker", "rules", "--output", "v.csv"], r"--output v\.csv: the file is written as parquet"),
    ],
)
def test_flags_that_do_not_go_together(project: Project, flags: list[str], complaint: str) -> None:
    project.prepare()
    with pytest.raises(UserError, match=complaint):
        project.run("07_make_variants", *flags)
    assert not list((project.data / "processed").glob("query_variants*"))


def test_it_names_the_script_that_must_come_first(project: Project) -> None:
    with pytest.raises(UserError, match=r"Run: python scripts/01_preprocess\.py"):
        project.run("07_make_variants", "--maker", "rules")


def test_the_wrong_layout_by_hand() -> None:
    assert _damage.in_wrong_layout("Карта, любой хлеб?") == "Rfhnf? k.,jq [kt,?"
    assert _damage.in_wrong_layout("БЕЗ ЭТО") == '<TP "NJ'
    assert _damage.in_wrong_layout("Visa card") == "Мшыф сфкв"


def test_slips_change_one_word_in_four() -> None:
    generator = random.Random(1)
    for _ in range(200):
        word = _damage.slip("комиссия", generator)
        assert word[0] == "к"
        assert abs(len(word) - 8) <= 1
    text = "комиссия за снятие наличных сколько стоит перевод другому человеку"
    changed = _damage.with_slips(text, random.Random(0)).split()
    assert sum(a != b for a, b in zip(text.split(), changed, strict=True)) == 2
    assert _damage.with_slips("как где", generator) == "как где"


def test_damage_is_repeatable_and_grows() -> None:
    texts = [f"комиссия за снятие наличных {n}" for n in range(20)]
    ten, kinds = _damage.damage(texts, 10, seed=3)
    assert (kinds.count("slips"), kinds.count("layout"), kinds.count("")) == (1, 1, 18)
    assert _damage.damage(texts, 10, seed=3) == (ten, kinds)
    thirty, more = _damage.damage(texts, 30, seed=3)
    assert (more.count("slips"), more.count("layout")) == (3, 3)
    assert all(b == a for a, b, kind in zip(ten, thirty, kinds, strict=True) if kind)
    assert _damage.damage(texts, 0, seed=3) == (texts, [""] * 20)


def test_the_benchmark_writes_every_figure(
    bank: Path, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    script = load_script("bench_variants")
    source = tmp_path / "sets" / "bank"
    source.mkdir(parents=True)
    for old, new in (("websites_updated", "websites"), ("questions_clean", "questions"), ("qrels", "qrels")):
        (source / f"{new}.csv").write_bytes((bank / "raw" / f"{old}.csv").read_bytes())
    monkeypatch.setattr(script, "PROJECT_ROOT", tmp_path)
    # The scripts that it starts would read the project's own settings.
    monkeypatch.setattr(script, "call", lambda name, *flags: load_script(name[:-3]).run(settings, flags[:-1]))
    flags = ["--datasets", str(tmp_path / "sets"), "--work-dir", str(tmp_path / "work"), "--damage", "0", "50"]
    flags += ["--sets", "bank"]
    script.run(settings, [*flags, "--name", "out", "--reranker", settings.cross_encoder_model])
    found = json.loads((tmp_path / "data" / "results" / "out.json").read_text(encoding="utf-8"))
    assert [(row["set"], row["questions"], row["damaged_percent"]) for row in found["rows"]] == [
        ("bank", 4, 0.0),
        ("bank", 4, 50.0),
    ]
    whole, half = found["rows"]
    assert (whole["slips"], whole["wrong_layout"], half["slips"], half["wrong_layout"]) == (0, 0, 1, 1)
    assert set(half["reranked"]) == {"without variants", "original", "max", "mean"}
    assert whole["reranked"]["without variants"] == whole["reranked"]["max"]
    for row in found["rows"]:
        for metric in ("Recall@100", "Hit@5", "Hit@1"):
            values = row["metrics"][metric]
            assert values["change"]["mean"] == pytest.approx(values["after"] - values["before"])
            assert values["wins"] - values["losses"] == round(4 * values["change"]["mean"])
    table = [record.getMessage() for record in caplog.records if record.getMessage().startswith("| bank | 4 | 50 % |")]
    assert table
    with pytest.raises(UserError, match="no such set"):
        script.run(settings, [*flags, "--sets", "absent"])
