"""Tables of columns with totals, as text for a terminal and as HTML for a notebook."""

import html

from rich.markup import escape
from rich.table import Table


def text_table(columns):
    """Return a `rich.table.Table`.

    Args:
        columns: List of `(header, total, cells)`, all texts; the first two columns are names.
    """
    table = Table(show_footer=True)
    for i, (header, total, _) in enumerate(columns):
        table.add_column(header, total, justify="left" if i < 2 else "right", overflow="fold")
    for row in zip(*(cells for _, _, cells in columns), strict=True):
        table.add_row(*map(escape, row))
    return table


def html_table(header, rows, footer=()):
    """Return a table as HTML.

    Args:
        header: List of texts.
        rows: Iterable of lists of texts.
        footer: List of texts, or empty for none.
    """

    def line(cells, tag):
        return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    foot = f"<tfoot>{line(footer, 'th')}</tfoot>" if footer else ""
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody>{foot}</table>"


def html_table_of_columns(columns):
    """Return columns as `text_table` takes them as HTML."""
    headers, totals, cells = zip(*columns, strict=True)
    return html_table(headers, zip(*cells, strict=True), totals)
