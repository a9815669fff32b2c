"""The documentation: its Python runs, its command lines parse, its links lead somewhere."""

import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

import keras_sparse_dm as ksd
from keras_sparse_dm import cli
from keras_sparse_dm.commands.options import parse_options
from keras_sparse_dm.study.studies import find_study

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def read(path):
    return path.read_text(encoding="utf-8")


def run_page(name, *shortened):
    """Runs a page's Python from top to bottom, in one namespace.

    Args:
        name: Of the file in `docs`.
        *shortened: Pairs of a text, which the page must hold, and what stands for it here.

    Returns:
        The names that the page has defined.
    """
    blocks = re.findall(r"```python\n(.*?)```", read(ROOT / "docs" / name), re.DOTALL)
    source = "\n".join(blocks)
    for long, short in shortened:
        assert long in source
        source = source.replace(long, short)
    names = {"__name__": "docs"}
    exec(compile(source, name, "exec"), names)
    return names


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_quick_start(empty_folder):
    names = run_page(
        "index.md",
        ("load_vmnist()", "load_vmnist(max_sketches=20)"),
        ("batch_size=64", "batch_size=8"),
        ("(train, 64)", "(train, 8)"),
        ("epochs=60", "epochs=1"),
        ("steps=50", "steps=2"),
        ("update_every=50", "update_every=2"),
        ('"chirodiff_vmnist")', '"chirodiff_vmnist", units=8, num_layers=1)'),
    )
    ksd.sparsity.check_invariant(names["model"])
    assert names["model"].optimizer.topology_updates == 1
    assert (empty_folder / "digits.png").stat().st_size > 1000


def test_method(capsys):
    names = run_page("method.md")
    np.testing.assert_array_equal(names["mask"], [[1, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(names["weights"], [[3, 0, 0], [0, 2, -1]])
    np.testing.assert_array_equal(names["grown"], [[0, 0, 1], [0, 0, 0]])
    assert "(3 f_S dT + 2 f_S + f_D) / (dT + 1)" in capsys.readouterr().out
    cost = names["cost"]
    share = cost.sparse_flops / cost.dense_flops
    # What the page says of the two conventions.
    assert 0 < cost.sparse_training_flops / cost.dense_training_flops - share < 0.0005


def test_choosing():
    names = run_page("choosing.md")
    assert abs(ksd.sparsity_report(names["model"]).sparsity - 0.5) < 0.01


def test_distances_that_the_advice_rests_on_are_the_papers():
    printed = {(f.mean, f.sd) for f in ksd.metrics.PAPER_FIDS}
    text = read(ROOT / "docs/choosing.md")
    quoted = [tuple(map(float, pair)) for pair in re.findall(r"(\d+\.\d+) ± (\d+\.\d+)", text)]
    assert len(quoted) == 6 * 2 + 6 * 5
    assert set(quoted) <= printed


def test_data(empty_folder):
    names = run_page("data.md")
    assert len(names["train"]) == 19 and names["train"][0].shape == (16, 16, 3)
    assert len(list(ksd.data.read_sketches("waves.json"))) == 40


def test_evaluation(empty_folder, capsys):
    with pytest.warns(ksd.metrics.FewSamplesWarning):
        run_page(
            "evaluation.md", ("load_vmnist()", "load_vmnist(max_sketches=80)"), ("=100", "=10")
        )
    distance, kernel_distance = capsys.readouterr().out.splitlines()
    assert float(distance) > 0 and "±" in kernel_distance


def test_extending(empty_folder):
    names = run_page("extending.md")
    assert names["points"].shape == (256, 2)
    ksd.sparsity.check_invariant(names["model"])
    assert len(names["train"]) + len(names["validation"]) == 8
    assert names["denoiser"].units == 64


def test_export(empty_folder):
    names = run_page(
        "export.md",
        ('"chirodiff_kanjivg")', '"chirodiff_kanjivg", units=8, num_layers=1)'),
        ("steps=50", "steps=2"),
        ("points = ksd", "sketches = ksd"),
    )
    assert names["sketches"].shape == (2, 80, 3)
    assert names["epsilon"].shape == (1, 90, 3)


def test_study_of_your_own(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", read(ROOT / "docs/study.md"), re.DOTALL)
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    study = find_study(str(tmp_path / "mine.yaml"))
    # Dense, static and RigL at two sparsities; two seeds, two presets.
    assert len(study.cells) == (1 + 2 + 2) * 2 * 2
    assert study.sampling_steps == (25, 50)


# The modules of the commands that read options.
PARSING = (
    "commands.convert",
    "commands.convert_sketches",
    "commands.data",
    "commands.evaluate",
    "commands.study",
    "commands.study_report",
    "commands.train",
)


def command_lines():
    """The commands that the texts show, without the remarks behind them."""
    for path in TEXTS:
        shown = re.findall(r"^    ((?:sparse-dm|python train\.py) .*)$", read(path), re.MULTILINE)
        yield from (re.sub(r"\s+#.*", "", line) for line in shown)


class Parsed(BaseException):
    """Raised when a command's options have been read, before it does its work."""


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_command_lines_parse(line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def parse_and_stop(*args, **kwargs):
        raise Parsed(parse_options(*args, **kwargs))

    program, *arguments = shlex.split(line)
    if program == "python":
        arguments[0] = "train"
    for module in PARSING:
        monkeypatch.setattr(f"keras_sparse_dm.{module}.parse_options", parse_and_stop)
    try:
        code = cli.main(arguments)
    except Parsed:
        return
    # One without options has done its work.
    assert code == 0, capsys.readouterr().err


def anchors(text):
    """What headings are linked by: in small letters, spaces as hyphens, other signs left out."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(path):
    """Addresses of the links and pictures of a text, those of its code left out."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", read(path), flags=re.DOTALL)
    return re.findall(r"\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)", text)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path):
    """Files and headings are there; of links to elsewhere the form alone is checked."""
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https" and "." in parts.netloc, link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        if target.parent == ROOT / "docs" / "api":
            # Made when the documentation is built.
            continue
        assert target.exists(), link
        assert not parts.fragment or parts.fragment in anchors(read(target)), link
