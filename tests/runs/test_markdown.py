from markdown_it import MarkdownIt

from keras_sparse_dm.runs.markdown import markdown_table


def test_a_markdown_reader_finds_the_table():
    lines = markdown_table(("", "dense", "sparse"), [["bytes", "1,690", 230], ["ratio", "", 0.14]])
    tokens = MarkdownIt("commonmark").enable("table").parse("\n".join(lines))
    cells = [token.content for token in tokens if token.type == "inline"]
    assert cells == ["", "dense", "sparse", "bytes", "1,690", "230", "ratio", "", "0.14"]
    styles = [token.attrGet("style") for token in tokens if token.type == "th_open"]
    assert styles == [None, "text-align:right", "text-align:right"]
