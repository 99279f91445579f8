from src.insight.printable import one_line, title_of


def test_one_line() -> None:
    assert one_line("a\n b\t\x1b[0m") == "a b ␛[0m"
    assert one_line("абвгд", 4) == "абв…"
    assert one_line("абвг", 4) == "абвг"


def test_a_page_without_a_title_is_called_by_its_text() -> None:
    assert title_of("Вклад", "текст") == "Вклад"
    assert title_of("", "Первые слова\nтекста", 10) == "Первые сл…"
    assert title_of("", "") == "(empty)"
