"""Tables of a report, written as Markdown and as LaTeX (packages booktabs and graphicx)."""

import itertools
import re
from dataclasses import dataclass, field

_LATEX_SYMBOLS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "Δ": r"$\Delta$",
    "–": "--",
}


@dataclass(frozen=True)
class Entry:
    """An entry of a table.

    Attributes:
        text: Plain text.
        bold, underlined, italic: True to set the text so.
        notes: Numbers of the notes that it points to, counted from 1.
    """

    text: str = ""
    bold: bool = False
    underlined: bool = False
    italic: bool = False
    notes: tuple = ()

    def to_markdown(self):
        """Return the entry as Markdown."""
        text = self.text.replace("|", r"\|")
        text = f"<ins>{text}</ins>" if self.underlined else text
        text = f"*{text}*" if self.italic and text else text
        text = f"**{text}**" if self.bold else text
        return text + "".join(f"<sup>{n}</sup>" for n in self.notes)

    def to_latex(self):
        """Return the entry as LaTeX."""
        text = latex(self.text)
        text = rf"\underline{{{text}}}" if self.underlined else text
        text = rf"\textit{{{text}}}" if self.italic and text else text
        text = rf"\textbf{{{text}}}" if self.bold else text
        marks = ",".join(map(str, self.notes))
        return text + (rf"\textsuperscript{{{marks}}}" if marks else "")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: Heading of the column.
        group: Heading that it shares with its neighbours, or "".
        numbers: True to align the column to the right.
    """

    heading: str
    group: str = ""
    numbers: bool = True


@dataclass
class Table:
    """A table with notes.

    Attributes:
        label: Label for references in LaTeX.
        caption: Caption, plain text.
        columns: List of `Column`.
        blocks: List of blocks with a rule between them; a block is a list of rows, a row a list of
            `Entry`.
        notes: Texts of the notes.
    """

    label: str
    caption: str
    columns: list
    blocks: list
    notes: list = field(default_factory=list)

    def note(self, text):
        """Return the number of the note with a text; add the note if it is new."""
        if text not in self.notes:
            self.notes.append(text)
        return self.notes.index(text) + 1

    def to_markdown(self):
        """Return the table as Markdown."""
        headings = [f"{c.group}: {c.heading}" if c.group else c.heading for c in self.columns]
        lines = [
            f"**{self.caption}**",
            "",
            _markdown_row(headings),
            _markdown_row(["---:" if c.numbers else "---" for c in self.columns]),
            *(
                _markdown_row([entry.to_markdown() for entry in row])
                for row in itertools.chain(*self.blocks)
            ),
        ]
        for i, text in enumerate(self.notes, 1):
            lines += ["", f"<sup>{i}</sup> {text}"]
        return "\n".join(lines) + "\n"

    def to_latex(self):
        """Return the table as LaTeX."""
        lines = [
            r"\begin{table}[htbp]",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{2.5pt}",
            rf"\caption{{{latex(self.caption)}}}",
            rf"\label{{tab:{self.label}}}",
            # Shrink a table that is wider than the page.
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join('r' if c.numbers else 'l' for c in self.columns)}}}",
            r"\toprule",
            *self._latex_groups(),
            _latex_row([_latex_heading(column) for column in self.columns]),
        ]
        for block in self.blocks:
            lines.append(r"\midrule")
            lines += [_latex_row([entry.to_latex() for entry in row]) for row in block]
        lines += [r"\bottomrule", r"\end{tabular}}"]
        for i, text in enumerate(self.notes, 1):
            lines += ["", rf"\raggedright\textsuperscript{{{i}}}~{latex(text)}\par"]
        return "\n".join([*lines, r"\end{table}", ""])

    def _latex_groups(self):
        """Return the row of shared headings with a rule under each, or [] if there are none."""
        cells, rules, first = [], [], 1
        for group, columns in itertools.groupby(self.columns, lambda column: column.group):
            count = len(list(columns))
            last = first + count - 1
            if group:
                cells.append(rf"\multicolumn{{{count}}}{{c}}{{{latex(group)}}}")
                rules.append(rf"\cmidrule(lr){{{first}-{last}}}")
            else:
                cells += [""] * count
            first = last + 1
        return [_latex_row(cells), "".join(rules)] if rules else []


def latex(text):
    """Return plain text as LaTeX, with `S = 0.5` and the like as formulas."""
    text = "".join(_LATEX_SYMBOLS.get(character, character) for character in text)
    return re.sub(r"\b([Sp]) = ([\d.]*\d)", r"$\1 = \2$", text)


def _latex_heading(column):
    """Return a heading as LaTeX, a long one in two lines."""
    text = column.heading
    if len(text) <= 10 or " " not in text:
        return latex(text)
    spaces = [i for i, character in enumerate(text) if character == " "]
    middle = min(spaces, key=lambda i: abs(i - len(text) / 2))
    upper, lower = latex(text[:middle]), latex(text[middle + 1 :])
    return rf"\shortstack[{'r' if column.numbers else 'l'}]{{{upper}\\ {lower}}}"


def _markdown_row(cells):
    return f"| {' | '.join(cells)} |"


def _latex_row(cells):
    return " & ".join(cells) + r" \\"
