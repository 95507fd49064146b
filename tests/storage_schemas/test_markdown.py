"""Texts in Markdown stay texts, and cells stay in their table."""

import pytest

from storage_schemas.markdown import plain, table


def test_a_table_has_a_head_a_rule_and_a_line_per_row() -> None:
    assert table(("a", "b"), [("1", "2"), ("3", "4")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [("a|b", r"a\|b"), (r"a\|b", r"a\|b"), (r"a\\|b", r"a\\\|b"), ("a\nb", "a b"), ("a\r\nb", "a b")],
)
def test_no_cell_breaks_out_of_its_table(cell: str, shown: str) -> None:
    assert table(("x",), [(cell,)]).splitlines()[2:] == [f"| {shown} |"]


def test_plain_text_is_no_markup() -> None:
    assert plain("![a](b) <b>*c*</b>\n| `d` ~~e~~ _f_ # \\") == (
        r"!\[a\](b) \<b\>\*c\*\</b\> \| \`d\` \~\~e\~\~ \_f\_ \# " + "\\\\"
    )
