"""Tables in Markdown."""


def markdown_table(headings, rows):
    """Return the lines of a table: text in the first column, numbers on the right in the others.

    Args:
        headings: Heading of each column.
        rows: Lists of as many entries, each of which is turned into text.
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (headings, *rows)]
    return [lines[0], "|---|" + "---:|" * (len(headings) - 1), *lines[1:]]
