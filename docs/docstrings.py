"""Extension of griffe, the reader of mkdocstrings, for the parts special to Keras's docstrings."""

import re

import griffe

# From a line that begins with the prompt to the next blank line. Keras's docstrings set it at the
# margin, below `Example:`, where Markdown would take it for a quotation.
DOCTEST = re.compile(r"^( *)>>> .*(?:\n *\S.*)*", re.MULTILINE)
# Arguments of calls rather than of the constructor.
CALL_ARGUMENTS = re.compile(r"^Call arguments:$", re.MULTILINE)
# Names that share a description, which griffe would take for a name and its type.
SHARED = re.compile(r"^ +[*\w]+(?:, [*\w]+)+: ", re.MULTILINE)
NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def as_google_style(docstring):
    """Return a docstring in the form that griffe's parser of Google's style expects."""
    docstring = DOCTEST.sub(lambda b: f"{b[1]}```pycon\n{b[0]}\n{b[1]}```", docstring)
    docstring = CALL_ARGUMENTS.sub("Args: Call arguments", docstring)
    return SHARED.sub(lambda names: names[0].replace(", ", f",{NO_BREAK_SPACE}"), docstring)


class KerasDocstrings(griffe.Extension):
    """Extension that applies `as_google_style` to every docstring."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = as_google_style(obj.docstring.value)
