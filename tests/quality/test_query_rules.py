from pathlib import Path

import pytest
from conftest import write_csv

from src.core.errors import UserError
from src.core.types import Corpus
from src.quality.query_rules import (
    RulesMaker,
    Vocabulary,
    correct_spelling,
    in_dictionary,
    like,
    read_abbreviations,
    spell_out,
    switch_layout,
    undo_transliteration,
)

TEXTS = (
    "Дебетовая карта: как оформить карту, сколько стоит обслуживание карты. Без комиссии. Комиссия за снятие.",
    "Любой вклад, хороший кредит, электронная подпись. Кредитный лимит и льготный период. Ежемесячный платёж.",
    "Это не всё: что такое жёлтый щит, объявление о карте на русском. Подъезд, юбилей, хлеб. За границей.",
    "Visa Premium and cashback for a card. The login page. Комиссия, ещё раз комиссия.",
)
CORPUS = Corpus(("1", "2", "3", "4"), ("", "", "", ""), TEXTS)
WORDS = Vocabulary.of(CORPUS)


def test_words_are_known_in_any_inflection() -> None:
    assert WORDS.counts["карта"] == 1
    assert WORDS.knows("картами, КАРТОЙ!")
    assert not WORDS.knows("карта банк")
    assert WORDS.knows_any("карта банк")
    assert not WORDS.knows("?!")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rfhnf", "карта"),
        ("RFHNF", "КАРТА"),
        ("Rfhnf", "Карта"),
        ("rfr jajhvbnm rfhne", "как оформить карту"),
        ("rfr jajhvbnm rfhne?", "как оформить карту,"),  # the Russian comma is the shifted key beside the dot
        ("rfr jajhvbnm rfhne&", "как оформить карту?"),
        ("k.,jq rhtlbn", "любой кредит"),
        (";tknsq obn", "жёлтый щит".replace("ё", "е")),
        (";`knsq obn", "жёлтый щит"),
        ("[kt, .,bktq", "хлеб юбилей"),
        ("gjl]tpl", "подъезд"),
        (",tp rjvbccbb", "без комиссии"),
        ("'nj rfhnf", "это карта"),
        ("<TP RJVBCCBB", "БЕЗ КОМИССИИ"),
        ("rfhnf.", "карта."),
        ("сколько стоит rfhnf", "сколько стоит карта"),
        ("мшыф", "visa"),
        ("ЗКУЬШГЬ", "PREMIUM"),
        ("сфырифсл ащк сфкв", "cashback for card"),
        ("visa rfhnf 2000", "visa карта 2000"),
    ],
)
def test_the_wrong_keyboard_layout(typed: str, meant: str) -> None:
    assert switch_layout(typed, WORDS) == meant


@pytest.mark.parametrize(
    "text",
    [
        "visa premium cashback",
        "как оформить карту",
        "pf",  # "за" is a word of the corpus, but two letters prove nothing
        "xerox",
        "что такое sms",
        "12.5 % ;-)",
        "rfhnf1",  # "карта1" is no word of the corpus
        "rfкаhnf",  # two alphabets in one word
        "",
    ],
)
def test_what_is_no_wrong_layout(text: str) -> None:
    assert switch_layout(text, WORDS) == text


def test_unknown_words_follow_where_the_layout_is_clear() -> None:
    # "лимитный" is no word of the corpus, but its neighbouring letters all occur there.
    assert not WORDS.knows("лимитный")
    assert switch_layout("rfr jajhvbnm kbvbnysq", WORDS) == "как оформить лимитный"
    # One known word does not speak for another.
    assert switch_layout("rfhnf kbvbnysq", WORDS) == "карта kbvbnysq"
    assert switch_layout("rfr jajhvbnm rfhne qqq", WORDS) == "как оформить карту qqq"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("karta", "карта"),
        ("KARTA", "КАРТА"),
        ("Kak oformit kartu?", "Как оформить карту?"),
        ("lgotnyj period", "льготный период"),
        ("lgotniy period", "льготный период"),
        ("kreditny limit", "кредитный лимит"),
        ("kartoj", "картой"),
        ("kartoi", "картой"),
        ("zheltyi schit", "желтый щит"),
        ("komissiya", "комиссия"),
        ("komissija za sniatie", "комиссия за снятие"),
        ("khoroshiy kredit", "хороший кредит"),
        ("xoroshij", "xoroshij"),
        ("elektronnaya podpis", "электронная подпись"),
        ("yubilej", "юбилей"),
    ],
)
def test_transliteration(typed: str, meant: str) -> None:
    assert undo_transliteration(typed, WORDS) == meant


@pytest.mark.parametrize(
    "text",
    [
        "visa premium",
        "za",  # short alone
        "someone lost my karta on the metro today",  # one of many: the question is English
        "carte bancaire",
        "карта",
    ],
)
def test_what_is_no_transliteration(text: str) -> None:
    assert undo_transliteration(text, WORDS) == text


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("комисия за снятие", "комиссия за снятие"),
        ("Комисия", "Комиссия"),
        ("КОМИССЯИ", "КОМИССИЯ"),
        ("крдитный лимит", "кредитный лимит"),
        ("обслуживанние", "обслуживание"),
        ("абслуживание", "абслуживание"),  # the first letter is seldom wrong
        ("босcлуживание", "обслуживание"),  # a Latin letter inside
        ("босллуживание", "обслуживание"),
        ("ежемесчныйй", "ежемесячный"),
        ("cashbak", "cashback"),
        ("карьера", "карьера"),  # a word of the dictionary
        ("картами", "картами"),  # of the corpus, in another inflection
        ("картв", "карта"),
        ("крта", "крта"),  # too short
        ("платеж", "платеж"),
        ("комиссионер", "комиссионер"),
    ],
)
def test_spelling(typed: str, meant: str) -> None:
    assert correct_spelling(typed, WORDS) == meant


def test_the_most_frequent_of_the_nearest_words() -> None:
    texts = ("ставка ставка ставки", "справка")
    words = Vocabulary.of(Corpus(("1", "2"), ("", ""), texts))
    assert words.nearest("ставкв") == "ставка"
    assert words.nearest("ставкк") == "ставка"  # "ставки" is as near
    assert words.nearest("сптавка") == "ставка"  # "справка" is as near


def test_dictionary() -> None:
    assert in_dictionary("мамины")
    assert not in_dictionary("комисия")
    assert in_dictionary("delivered")
    assert not in_dictionary("recieved")


def test_case() -> None:
    assert [like("карта", w) for w in ("крта", "Крта", "КРТА", "К")] == ["карта", "Карта", "КАРТА", "Карта"]


def test_abbreviations() -> None:
    table = {"дбо": "дистанционное обслуживание", "дбо юл": "обслуживание организаций", "кк": "кредитная карта"}
    assert spell_out("Что такое ДБО?", table) == "Что такое дистанционное обслуживание?"
    assert spell_out("дбо ЮЛ и кк", table) == "обслуживание организаций и кредитная карта"
    assert spell_out("дбоб, ккк", table) == "дбоб, ккк"
    assert spell_out("дбо", {}) == "дбо"


def test_a_table_of_abbreviations(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", "short,long", ["ДБО,дистанционное обслуживание", "кк,кредитная карта"])
    assert read_abbreviations(path) == {"дбо": "дистанционное обслуживание", "кк": "кредитная карта"}


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["дбо,"], r"a\.csv, row 1: short form 'дбо', long form '': fill in both"),
        (["дбо,одно", "ДБО,другое"], r"a\.csv, row 2: short form 'ДБО' is 'другое' here and 'одно' above"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, rows: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_abbreviations(write_csv(tmp_path / "a.csv", "short,long", rows))
    with pytest.raises(UserError, match="no column 'long'"):
        read_abbreviations(write_csv(tmp_path / "b.csv", "short,lang", ["a,b"]))


def test_one_variant_per_rule_and_a_combined_one() -> None:
    maker = RulesMaker(CORPUS, {"кк": "кредитная карта"})
    assert maker.variants("как оформить карту", 3) == []
    assert maker.variants("rfhnf", 3) == ["карта"]
    assert maker.variants("кк без комиссси", 9) == [
        "кредитная карта без комиссии",
        "кредитная карта без комиссси",
        "кк без комиссии",
    ]
    assert maker.variants("кк без комиссси", 1) == ["кредитная карта без комиссии"]
    # The slip is only seen in the right layout.
    assert maker.variants("rfr jajhvbnm rjvbccb.&", 3)[0] == "как оформить комиссию?"
    assert maker.applied == {"abbreviations": 2, "spelling": 2, "layout": 2}
