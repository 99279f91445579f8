"""Bad input, widely: what is said, the exit code, and that everything written before is still there."""

import json
import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _cli

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PAGES, QUESTIONS, bert_tokenizer, load_script, save_cross_encoder
from safetensors.torch import load_file, save_file

from config import Settings, load_settings
from config.schema import SETTINGS_FILE
from src.core.artifacts import MANIFEST_NAME, describe_files

CORPUS, ASKED, LABELS = "websites_updated.csv", "questions_clean.csv", "qrels.csv"
STEPS = {1: "01_preprocess", 2: "02_build_indices", 3: "03_run_search"}
Mutate = Callable[["Bench"], None]


@dataclass
class Bench:
    """A prepared data folder, and the settings and flags that a case changes."""

    data: Path
    settings: Settings
    models: Path
    flags: list[str]

    def text(self, name: str) -> str:
        return (self.data / "raw" / name).read_text(encoding="utf-8")

    def set(self, **values: Any) -> None:
        self.settings = self.settings.model_copy(update=values)

    def one(self, pattern: str) -> Path:
        return sorted(self.data.glob(pattern))[0]

    def reseal(self, path: Path) -> None:
        """Make the manifest agree with a file that was changed, as a file from elsewhere would."""
        manifest = path.parent / MANIFEST_NAME
        values = json.loads(manifest.read_text(encoding="utf-8"))
        values["files"].update(describe_files(path.parent, [path.name]))
        manifest.write_text(json.dumps(values), encoding="utf-8")


def both(first: Mutate, second: Mutate) -> Mutate:
    def mutate(bench: Bench) -> None:
        first(bench)
        second(bench)

    return mutate


def raw(name: str, content: str | bytes) -> Mutate:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return lambda bench: (bench.data / "raw" / name).write_bytes(data) and None


def variants(content: str) -> Mutate:
    return lambda bench: (
        (bench.data / "processed" / "query_variants.csv").write_text(content, encoding="utf-8") and None
    )


def replaced(name: str, old: str, new: str) -> Mutate:
    def mutate(bench: Bench) -> None:
        text = bench.text(name)
        assert old in text
        (bench.data / "raw" / name).write_text(text.replace(old, new, 1), encoding="utf-8")

    return mutate


def moved_out(to: str, name: str) -> Mutate:
    """One of the files leaves ``raw``; the others, and all that was prepared, are gone."""

    def mutate(bench: Bench) -> None:
        (bench.data / "raw" / name).rename(bench.data / to)
        for folder in ("raw", "processed"):
            shutil.rmtree(bench.data / folder)

    return mutate


def recoded(name: str, encoding: str) -> Mutate:
    return lambda bench: (bench.data / "raw" / name).write_bytes(bench.text(name).encode(encoding)) and None


def added(name: str, row: str) -> Mutate:
    def mutate(bench: Bench) -> None:
        with (bench.data / "raw" / name).open("ab") as handle:
            handle.write(f"{row}\n".encode("utf-8", "surrogatepass"))

    return mutate


def flags(*values: str) -> Mutate:
    return lambda bench: bench.flags.extend(value.replace("DATA", str(bench.data)) for value in values)


def settings(**values: Any) -> Mutate:
    return lambda bench: bench.set(**values)


def array(pattern: str, change: Callable[[Any], Any]) -> Mutate:
    def mutate(bench: Bench) -> None:
        path = bench.one(pattern)
        np.save(path, change(np.load(path)), allow_pickle=True)
        bench.reseal(path)

    return mutate


def put(value: float) -> Callable[[Any], Any]:
    def change(vectors: Any) -> Any:
        vectors[1, 1] = value
        return vectors

    return change


def manifest(pattern: str, change: Callable[[dict[str, Any]], None]) -> Mutate:
    def mutate(bench: Bench) -> None:
        path = bench.one(pattern) / MANIFEST_NAME
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return mutate


def flipped(pattern: str) -> Mutate:
    def mutate(bench: Bench) -> None:
        path = bench.one(pattern)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        bench.flags.append("--verify")

    return mutate


def cut(pattern: str) -> Mutate:
    return lambda bench: bench.one(pattern).write_bytes(bench.one(pattern).read_bytes()[:-5]) and None


def gone(pattern: str) -> Mutate:
    return lambda bench: bench.one(pattern).unlink()


def bi_encoder(change: Callable[[Path], None]) -> Mutate:
    def mutate(bench: Bench) -> None:
        folder = bench.models / "bi"
        shutil.copytree(bench.settings.encoders[0].model, folder)
        change(folder)
        entry = bench.settings.encoders[0].model_copy(update={"model": str(folder)})
        bench.set(encoders=[entry, entry.model_copy(update={"unit": "chunk"})])

    return mutate


def cross_encoder(change: Callable[[Path], None]) -> Mutate:
    def mutate(bench: Bench) -> None:
        folder = bench.models / "cross"
        shutil.copytree(bench.settings.cross_encoder_model, folder)
        change(folder)
        bench.set(cross_encoder_model=str(folder))

    return mutate


def weights(value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = next(folder.rglob("model.safetensors"))
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        name = sorted(name for name in tensors if "LayerNorm.weight" in name)[-1]
        tensors[name][:] = value
        save_file(tensors, path, {"format": "pt"})

    return change


def without_padding(folder: Path) -> None:
    tokenizer = bert_tokenizer()
    tokenizer.pad_token = None
    place = next(folder.rglob("tokenizer.json")).parent
    tokenizer.save_pretrained(place)


def three_logits(folder: Path) -> None:
    shutil.rmtree(folder)
    save_cross_encoder(folder, labels=3)


def other_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.rglob(name)).write_text(text) and None


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: next(folder.rglob(name)).unlink()


HEAD = "web_id,url,kind,title,text\n"
LONG = "очень " * 10_000
# name -> (what is wrong, the step that says so, what it says)
REFUSED: dict[str, tuple[Mutate, int, str]] = {
    # --- the corpus file ---
    "corpus: no such file": (flags("--corpus", "DATA/no.csv"), 1, r"--corpus /\S+/no\.csv: no such file\. Give the path"),
    "corpus: a folder": (flags("--corpus", "DATA/raw"), 1, r"--corpus /\S+/raw: no such file"),
    "corpus: empty": (raw(CORPUS, ""), 1, r"websites_updated\.csv: the file is empty \(0 rows\)"),
    "corpus: blank lines": (raw(CORPUS, "\n \n"), 1, "the file is empty"),
    "corpus: header alone": (raw(CORPUS, HEAD), 1, "has a header but no rows; at least one row is expected"),
    "corpus: id column renamed": (replaced(CORPUS, "web_id", "webid"), 1, "no column 'web_id'.*Did you mean 'webid'"),
    "corpus: title column renamed": (replaced(CORPUS, "title", "name"), 1, "no column 'title'; the file has 'web_id'"),
    "corpus: text column renamed": (replaced(CORPUS, "text", "texts"), 1, "no column 'text'.*Did you mean 'texts'"),
    "corpus: text column missing": (raw(CORPUS, "web_id,title\n1,a\n"), 1, "no column 'text'"),
    "corpus: title column twice": (raw(CORPUS, "web_id,title,title,text\n1,a,b,c\n"), 1, "'title' occurs 2 times"),
    "corpus: semicolons": (raw(CORPUS, "web_id;title;text\n1;a;b\n"), 1, "header 'web_id;title;text' are separated by semicolons"),
    "corpus: semicolons and commas in the text": (raw(CORPUS, "web_id;title;text\n1;a;b,c\n"), 1, "separated by semicolons, commas are needed"),
    "corpus: tabs": (raw(CORPUS, "web_id\ttitle\ttext\n1\ta\tb\n"), 1, "separated by tabs"),
    "corpus: an id twice": (added(CORPUS, "10,u,f,a,b"), 1, r"row 8: id '10' in column 'web_id' stands already in row 1"),
    "corpus: an empty id": (added(CORPUS, ",u,f,a,b"), 1, "row 8: empty id in column 'web_id'. Give every row an id"),
    "corpus: no text at all": (raw(CORPUS, HEAD + "1,u,f,,\n2,u,f,nan,\n"), 1, "all 2 rows are empty in columns 'title'"),
    "corpus: UTF-16": (recoded(CORPUS, "utf-16"), 1, "the file is UTF-16; UTF-8 or Windows-1251 is expected"),
    "corpus: one broken byte": (raw(CORPUS, HEAD.encode() + "1,u,f,привет,".encode() + b"\xff\n"), 1, "broken UTF-8 at"),
    "corpus: no encoding": (raw(CORPUS, HEAD.encode() + b"1,u,f,\x98,\xff\n"), 1, r"neither UTF-8 \(byte \d+\) nor Win"),
    "corpus: a lone surrogate": (added(CORPUS, '77,u,f,"при\ud800вет","текст"'), 1, "broken UTF-8 at byte"),
    "corpus: too many fields": (added(CORPUS, "77,u,f,a,b,c,d"), 1, r"websites_updated\.csv, row 8 \(line 9\): 7 field\(s\), the header has 5"),
    "corpus: cut off": (added(CORPUS, "77,u,f"), 1, r"websites_updated\.csv, row 8 \(line 9\): 3 field\(s\), the header has 5"),
    "questions: cut off": (added(ASKED, "q77"), 1, r"questions_clean\.csv, row 5 \(line 6\): 1 field\(s\), the header has 2"),
    "corpus: an open quote": (added(CORPUS, '77,u,f,"a'), 1, "cannot be read as CSV: .*Check quotes and commas"),
    "corpus: a zip file": (raw(CORPUS, b"PK\x03\x04\x14\x00\x08\x08\x98\x00,\xff\n\x00" * 9), 1, "27 of its 126 bytes are NUL: it is UTF-16, or no text"),
    "corpus: formula id =": (added(CORPUS, "=1+1,u,f,a,b"), 1, "row 8: a spreadsheet would run the id '=1.1' in column"),
    "corpus: formula id @": (added(CORPUS, "@SUM(A1),u,f,a,b"), 1, r"run the id '@SUM\(A1\)'"),
    "corpus: formula id +": (added(CORPUS, "+7,u,f,a,b"), 1, r"run the id '\+7'.*negative whole numbers are fine"),
    "corpus: formula id -": (added(CORPUS, "-1+cmd,u,f,a,b"), 1, r"run the id '-1\+cmd'"),
    "corpus: fewer documents than K": (flags("--top-k", "8"), 3, "TOP_K = 8, but the corpus has only 7 documents"),
    # --- the questions file ---
    "questions: no such file": (flags("--questions", "DATA/no.csv"), 1, r"--questions /\S+/no\.csv: no such file"),
    "questions: own ones without a corpus": (
        both(moved_out("mine.csv", ASKED), flags("--questions", "DATA/mine.csv")), 1,
        r"--questions /\S+/mine\.csv: there is no corpus to answer them from \(/\S+/raw/websites_updated\.csv",
    ),
    "questions: empty": (raw(ASKED, ""), 1, r"questions_clean\.csv: the file is empty"),
    "questions: header alone": (raw(ASKED, "q_id,query\n"), 1, r"questions_clean\.csv: the file has a header but no rows"),
    "questions: id column renamed": (replaced(ASKED, "q_id", "id"), 1, "no column 'q_id'"),
    "questions: query column renamed": (replaced(ASKED, "query", "querry"), 1, "no column 'query'.*mean 'querry'"),
    "questions: a column twice": (raw(ASKED, "q_id,query,q_id\n1,a,2\n"), 1, "column 'q_id' occurs 2 times"),
    "questions: an id twice": (added(ASKED, "q1,снова"), 1, "row 5: id 'q1' in column 'q_id' stands already in row 1"),
    "questions: an empty id": (added(ASKED, " ,снова"), 1, "row 5: empty id in column 'q_id'"),
    "questions: an empty one": (added(ASKED, "q9,"), 1, "row 5: question 'q9' is empty in column 'query'"),
    "questions: one of blanks": (added(ASKED, 'q9,"  \t "'), 1, "row 5: question 'q9' is empty"),
    "questions: one of NUL bytes": (added(ASKED, "q9,\x00\x00"), 1, "row 5: question 'q9' is empty"),
    "questions: a missing value": (added(ASKED, "q9,NaN"), 1, "row 5: question 'q9' is empty"),
    "questions: UTF-16": (recoded(ASKED, "utf-16-le"), 1, r"questions_clean\.csv: \d+ of its \d+ bytes are NUL: it is UTF-16, or"),
    "questions: formula id": (added(ASKED, '"=HYPERLINK(1)",a'), 1, r"row 5: a spreadsheet would run the id '=HYPERLINK"),
    "questions: 10,000 words": (added(ASKED, f"q9,{LONG}"), 3, "question 'q9' has 50000 tokens; the cross-encoder reads"),
    # --- the labels file ---
    "labels: no such file": (flags("--labels", "DATA/no.csv"), 1, r"--labels /\S+/no\.csv: no such file"),
    "labels: empty": (raw(LABELS, ""), 1, r"qrels\.csv: the file is empty"),
    "labels: header alone": (raw(LABELS, "q_id,web_id\n"), 1, r"qrels\.csv: the file has a header but no rows"),
    "labels: question column renamed": (replaced(LABELS, "q_id", "question"), 1, "no column 'q_id'"),
    "labels: document column renamed": (replaced(LABELS, "web_id", "doc"), 1, "no column 'web_id'"),
    "labels: a column twice": (raw(LABELS, "q_id,web_id,q_id\nq1,9,q1\n"), 1, "column 'q_id' occurs 2 times"),
    "labels: UTF-16": (recoded(LABELS, "utf-16"), 1, "the file is UTF-16; UTF-8 or Windows-1251 is expected"),
    "labels: unknown question": (added(LABELS, "q77,9"), 1, "row 5: label for question 'q77', which the 4 questions"),
    "labels: unknown document": (added(LABELS, "q1,777"), 1, "row 5: label names document '777', which the corpus of 7"),
    "labels: unknown document in a list": (added(LABELS, 'q1,"[9, 778]"'), 1, "row 5: label names document '778'"),
    "labels: unknown document in a bare list": (added(LABELS, 'q1,"9, 778"'), 1, "row 5: label names document '778'"),
    "labels: a bare list of unknown documents": (added(LABELS, "q1,777;778"), 1, "row 5: label names document '777;778'"),
    "labels: no document": (added(LABELS, "q1,"), 1, "row 5: question 'q1' has no document id"),
    "labels: an empty list": (added(LABELS, "q1,[]"), 1, "row 5: question 'q1' has no document id"),
    # --- flags and settings ---
    "flags: K of 0": (flags("--top-k", "0"), 3, "argument --top-k: '0' is not a whole number of at least 1"),
    "flags: a limit that is no number": (flags("--limit", "ten"), 3, "argument --limit: 'ten' is not a whole number"),
    "flags: misspelt": (flags("--limmit", "3"), 3, "unrecognized arguments: --limmit 3"),
    "flags: output is a folder": (flags("--output", "DATA/raw"), 3, r"--output /\S+/raw: a folder; the path of a file"),
    "settings: another chunk size": (settings(chunk_tokens=40), 3, "CHUNK_TOKENS is 96 there, but this run needs 40"),
    "settings: another BM25": (settings(bm25_k1=2.0), 3, "k1 is 1.2 there, but this run needs 2.0"),
    # --- models ---
    "bi-encoder: NaN in its weights": (bi_encoder(weights(np.nan)), 2, "a vector that is not finite, for the text '.*"),
    "bi-encoder: inf in its weights": (bi_encoder(weights(np.inf)), 2, "a vector that is not finite"),
    "bi-encoder: no weights": (bi_encoder(removed("model.safetensors")), 2, "has no weights"),
    "bi-encoder: weights cut short": (
        bi_encoder(lambda f: next(f.rglob("*.safetensors")).write_bytes(b"x" * 50) and None), 2,
        "ENCODERS: the model in .*bi cannot be loaded: ",
    ),
    "bi-encoder: a broken config": (bi_encoder(other_text("config.json", "{")), 1, "ENCODERS: the model in .* cannot"),
    "bi-encoder: no padding token": (bi_encoder(without_padding), 2, "ENCODERS: the tokenizer in .*bi has no padding"),
    "bi-encoder: no such folder": (
        lambda b: b.set(encoders=[b.settings.encoders[0].model_copy(update={"model": "./nowhere"})]), 1,
        r"model '\./nowhere': no directory",
    ),
    # --- the variants file ---
    "variants: of other questions": (variants("q_id,original_query,variant_1\nz1,a,b\n"), 3, "belongs to other questions"),
    "variants: column missing": (variants("q_id,variant_1\nq1,b\n"), 3, "no column 'original_query'"),
    "variants: empty": (variants(""), 3, r"query_variants\.csv: the file is empty"),
    "cross-encoder: three logits": (cross_encoder(three_logits), 3, "has 3 outputs, a reranker has 1"),
    "cross-encoder: NaN in its weights": (cross_encoder(weights(np.nan)), 3, "returned a score that is not finite"),
    "cross-encoder: no config": (cross_encoder(removed("config.json")), 3, r"has no config\.json\. Copy the whole"),
    "cross-encoder: code of its own": (
        cross_encoder(other_text("config.json", '{"model_type": "x", "auto_map": {"AutoConfig": "evil.Config"}}')), 3,
        "Python code of its own .* does not run unless the settings name it: ALLOW_REMOTE_CODE",
    ),
    # --- artefacts ---
    "vectors: NaN": (array("embeddings/dense-c*/vectors.npy", put(np.nan)), 3, "holds values that are not finite. Run"),
    "vectors: inf": (array("embeddings/dense-c*/vectors.npy", put(np.inf)), 3, "holds values that are not finite. Run"),
    "vectors: float64": (array("embeddings/dense-c*/vectors.npy", np.float64), 3, r"holds float64 \(7, 32\), float32"),
    "vectors: too few": (array("embeddings/dense-c*/vectors.npy", lambda v: v[:3]), 3, r"holds float32 \(3, 32\), floa"),
    "vectors: a pickle": (array("embeddings/dense-c*/vectors.npy", lambda v: v.astype(object)), 3, "cannot be read"),
    "vectors: a flipped byte": (flipped("embeddings/dense-c*/vectors.npy"), 3, r"damaged: .*Run: .*02_\S+\.py --data-dir \S+ --verify"),
    "vectors: cut short": (cut("embeddings/dense-c*/vectors.npy"), 3, r"half-copied: \d+ bytes, the manifest says"),
    "token vectors: a flipped byte": (flipped("embeddings/*-tokens/tokens.npy"), 3, r"tokens\.npy: damaged: its bytes"),
    "token vectors: other offsets": (
        array("embeddings/*-tokens/offsets.npy", lambda o: o[::-1].copy()), 3, "does not hold the token vectors of 7",
    ),
    "index: missing": (gone("indices/dense-*/index.faiss"), 3, r"index\.faiss: damaged or half-copied: missing"),
    "index: a flipped byte": (flipped("indices/dense-*/index.faiss"), 3, r"index\.faiss: damaged: its bytes have the"),
    "index: no index": (
        lambda b: b.one("indices/dense-*/index.faiss").write_bytes(b"zzzz" * 9) and b.reseal(b.one("indices/*/*.faiss")),
        3, r"index\.faiss: cannot be read",
    ),
    "BM25: a flipped byte": (flipped("indices/bm25-*/*.csc.index.npy"), 3, "damaged: its bytes have the SHA-256"),
    "BM25: a pickle": (array("indices/bm25-*/indices.csc.index.npy", lambda v: v.astype(object)), 3, "cannot be read"),
    "corpus copy: a flipped byte": (flipped("processed/corpus/corpus.parquet"), 2, r"Run: python \S+01_\S+\.py.* --verify"),
    "corpus copy: no parquet": (
        lambda b: b.one("processed/corpus/*.parquet").write_bytes(b"zzzz" * 9) and b.reseal(b.one("processed/corpus/ch*")),
        2, "cannot be read",
    ),
    "manifest: another corpus": (
        manifest("processed/corpus", lambda m: m["inputs"].update(corpus_file="ab" * 32)), 2, 'corpus_file is "abab',
    ),
    "manifest: another layout": (
        manifest("embeddings/dense-d*", lambda m: m.update(format_version=99)), 3, "format_version is 99 there, but th",
    ),
    "manifest: another kind": (manifest("indices/dense-d*", lambda m: m.update(kind="bm25")), 3, 'kind is "bm25" there'),
    "manifest: a path that leaves": (
        manifest("indices/dense-d*", lambda m: m["files"].update({"../../raw/qrels.csv": {"bytes": 40, "sha256": ""}})),
        3, r"its manifest names a file outside the folder \(\.\./\.\./raw/qrels\.csv\)",
    ),
    "manifest: an absolute path": (
        manifest("indices/dense-d*", lambda m: m["files"].update({"/etc/passwd": {"bytes": 40, "sha256": ""}})),
        3, r"its manifest names a file outside the folder \(/etc/passwd\)",
    ),
    "manifest: no JSON": (
        lambda b: (b.one("indices/bm25-c*") / MANIFEST_NAME).write_text("{") and None, 3, "damaged manifest",
    ),
    "manifest: no sizes": (
        manifest("indices/bm25-c*", lambda m: m.update(files={"bm25.json": {}})), 3, r"damaged manifest \('bytes'\)",
    ),
    "manifest: no JSON, and no file to make it from": (
        lambda b: [(b.one("processed/corpus") / MANIFEST_NAME).write_text("{"), shutil.rmtree(b.data / "raw")][1], 1,
        r"damaged manifest .*--corpus FILE --questions FILE \(or copy the folder anew\)",
    ),
    "manifest: missing": (gone(f"indices/bm25-c*/{MANIFEST_NAME}"), 3, "not prepared yet .no manifest.json"),
}  # fmt: skip


def ids(bench: Bench) -> list[str]:
    table = pq.read_table(bench.data / "processed" / "corpus" / "corpus.parquet")
    return [str(value) for value in table.column("web_id").to_pylist()]


def labelled(bench: Bench) -> dict[str, set[str]]:
    table = pq.read_table(bench.data / "processed" / "questions" / "qrels.parquet").to_pylist()
    return {q: {row["web_id"] for row in table if row["q_id"] == q} for q in QUESTIONS}


def text_of(bench: Bench, doc_id: str) -> str:
    table = pq.read_table(bench.data / "processed" / "corpus" / "corpus.parquet").to_pylist()
    return str(next(row["text"] for row in table if row["web_id"] == doc_id))


def holds(*wanted: str) -> Callable[[Bench], bool]:
    return lambda bench: set(wanted) <= set(ids(bench))


# name -> (what is strange, what must hold after all three steps)
ACCEPTED: dict[str, tuple[Mutate, Callable[[Bench], bool]]] = {
    "NUL bytes in a text": (added(CORPUS, "77,u,f,a,те\x00кст"), lambda b: text_of(b, "77") == "текст"),
    "emoji": (added(CORPUS, "77,u,f,a,карта 💳👍🏽"), lambda b: text_of(b, "77") == "карта 💳👍🏽"),
    "right to left": (added(CORPUS, "77,u,f,a,בנק \u202eبنك\u202c"), lambda b: "בנק" in text_of(b, "77")),
    "a 5 MB document": (
        added(CORPUS, f"77,u,f,a,{('ж' * 1199 + ' ') * 2_100}"), lambda b: len(text_of(b, "77")) == 2_100 * 1200 - 1,
    ),
    "a document of one character": (added(CORPUS, "77,u,f,,x"), lambda b: text_of(b, "77") == "x"),
    "a document of nothing": (added(CORPUS, "77,u,f,,"), holds("77")),
    "ids with spaces": (added(CORPUS, '"моя страница 7",u,f,a,b'), holds("моя страница 7")),
    "leading zeros": (added(CORPUS, "007,u,f,a,b\n07,u,f,c,d"), holds("007", "07")),
    "huge and negative ids": (added(CORPUS, f"{'9' * 60},u,f,a,b\n-5,u,f,c,d"), holds("9" * 60, "-5")),
    "Windows-1251": (recoded(CORPUS, "cp1251"), holds(*PAGES)),
    "line ends of Windows": (
        lambda b: (b.data / "raw" / CORPUS).write_bytes(b.text(CORPUS).replace("\n", "\r\n").encode()) and None,
        holds(*PAGES),
    ),
    "labels as lists of every kind": (
        raw(LABELS, 'q_id,web_id\nq1,"9, 10"\nq2,[11 12]\nq3,"(13, 9)"\nq4,15;9\n'),
        lambda b: labelled(b) == {"q1": {"9", "10"}, "q2": {"11", "12"}, "q3": {"13", "9"}, "q4": {"15", "9"}},
    ),
    "an id like a list": (
        both(added(CORPUS, '"9, 10",u,f,a,b'), added(LABELS, 'q1,"9, 10"')), lambda b: labelled(b)["q1"] == {"9", "9, 10"},
    ),
    "K beyond the corpus": (settings(reranker_candidate_k=5000), holds(*PAGES)),
    "a question of 10,000 words, not reranked": (
        both(added(ASKED, f"q9,{LONG}"), flags("--no-rerank")), holds(*PAGES),
    ),
    "a cross-encoder without padding token": (cross_encoder(without_padding), holds(*PAGES)),
    "a question twice under two ids": (added(ASKED, f'q9,"{QUESTIONS["q1"]}"'), holds(*PAGES)),
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, bi_encoder: Path, cross_encoder: Path) -> Iterator[Path]:
    """A data folder after a whole run, and its settings; made once."""
    from conftest import bank as make_bank
    from conftest import settings as make_settings

    folder = tmp_path_factory.mktemp("bad-input")
    data = make_bank.__wrapped__(folder)
    values = make_settings.__wrapped__(bi_encoder, cross_encoder)
    for script in STEPS.values():
        arguments = ["--data-dir", str(data)]
        arguments += ["--output", str(data / "submission.csv")] if script.startswith("03") else []
        load_script(script).run(values, arguments)
    return data


@pytest.fixture
def bench(prepared: Path, settings: Settings, tmp_path: Path) -> Bench:
    shutil.copytree(prepared, tmp_path / "data")
    return Bench(tmp_path / "data", settings, tmp_path / "models", [])


def typed(
    bench: Bench, step: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """Exit code and output of a step, run as ``__main__`` runs it."""
    arguments = ["--data-dir", str(bench.data)]
    if step == 3 and "--output" not in bench.flags:
        arguments += ["--output", str(bench.data / "submission.csv")]
    monkeypatch.setattr(sys, "argv", [f"{STEPS[step]}.py", *arguments, *bench.flags])
    monkeypatch.setattr(_cli, "load_settings", lambda: bench.settings)
    monkeypatch.setattr(_cli, "stop_on_signals", lambda: None)
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        _cli.main(load_script(STEPS[step]).run)
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def on_disk(bench: Bench) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in bench.data.rglob("*")
        if path.is_file() and path.name != ".lock" and "raw" not in path.relative_to(bench.data).parts
    }


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(
    name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutate, step, message = REFUSED[name]
    mutate(bench)
    if step > 1 and name.startswith(("bi-encoder", "questions")) and "no weights" not in name:
        # The step before has no complaint.
        assert typed(bench, 1, monkeypatch, capsys)[0] == 0
    before = on_disk(bench)
    code, output = typed(bench, step, monkeypatch, capsys)
    last = output.strip().splitlines()[-1]
    assert re.search(message, last), output[-1500:]
    assert code == 2
    assert "error: " in last.lower()
    assert "Traceback" not in output
    # A command works on the folder of the run.
    assert "Run: python " not in last or f" --data-dir {bench.data}" in last
    assert on_disk(bench) == before


@pytest.mark.parametrize("name", ACCEPTED)
def test_strange_but_right(
    name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mutate, check = ACCEPTED[name]
    mutate(bench)
    given, bench.flags = bench.flags, []
    for step in STEPS:
        if step == 3:
            bench.flags = given
        code, output = typed(bench, step, monkeypatch, capsys)
        assert code == 0, output[-1500:]
    assert check(bench)
    rows = (bench.data / "submission.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len(pq.read_table(bench.data / "processed" / "questions" / "questions.parquet"))


def test_there_are_at_least_sixty() -> None:
    assert len(REFUSED) + len(ACCEPTED) >= 60


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("RERANKER_CANDIDATE_K = 100", "RERANKER_CANDIDATE_K = 0", "RERANKER_CANDIDATE_K = 0 is not valid"),
        ("TOP_K = 5", "TOP_K = 500", "RERANKER_CANDIDATE_K = 100 must not be below TOP_K = 500"),
        ("TOP_K = 5", "TOP_K = '5'", "TOP_K = '5' is not valid"),
        ("TOP_K = 5", "TOPK = 5", "unknown setting TOPK. Did you mean TOP_K"),
        ("TOP_K = 5", "TOP_K = (", "cannot be read: SyntaxError"),
    ],
)
def test_bad_settings_are_one_line(
    old: str,
    new: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "settings.py"
    path.write_text(SETTINGS_FILE.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    monkeypatch.setattr(_cli, "load_settings", lambda: load_settings(path))
    monkeypatch.setattr(_cli, "stop_on_signals", lambda: None)
    handlers = logging.root.handlers[:]
    try:
        with pytest.raises(SystemExit) as end:
            _cli.main(lambda *_: None)
    finally:
        logging.root.handlers[:] = handlers
    assert end.value.code == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
