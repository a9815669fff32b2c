"""The documentation: Python blocks run, command lines parse, links have targets."""

import ast
import doctest
import importlib
import re
import shlex
from pathlib import Path
from urllib.parse import urlsplit

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_sparse_dm as ksd
from keras_sparse_dm import cli
from keras_sparse_dm.commands.options import parse_options
from keras_sparse_dm.study.grid import SEEDS
from keras_sparse_dm.study.studies import find_study
from keras_sparse_dm.study.tasks import Options, tasks_of

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md"))]


def read(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_quick_start(run_page, empty_folder):
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


@pytest.mark.slow
def test_method(run_page, capsys):
    names = run_page("method.md")
    np.testing.assert_array_equal(names["mask"], [[1, 0, 1], [0, 1, 1]])
    np.testing.assert_array_equal(names["weights"], [[3, 0, 0], [0, 2, -1]])
    np.testing.assert_array_equal(names["grown"], [[0, 0, 1], [0, 0, 0]])
    assert "(3 f_S dT + 2 f_S + f_D) / (dT + 1)" in capsys.readouterr().out
    cost = names["cost"]
    share = cost.sparse_flops / cost.dense_flops
    # The page states this difference of the two conventions.
    assert 0 < cost.sparse_training_flops / cost.dense_training_flops - share < 0.0005


def test_choosing(run_page):
    names = run_page("choosing.md")
    assert abs(ksd.sparsity_report(names["model"]).sparsity - 0.5) < 0.01


def test_distances_that_the_advice_rests_on_are_the_papers():
    printed = {(f.mean, f.sd) for f in ksd.metrics.PAPER_FIDS}
    text = read(ROOT / "docs/choosing.md")
    quoted = [tuple(map(float, pair)) for pair in re.findall(r"(\d+\.\d+) ± (\d+\.\d+)", text)]
    assert len(quoted) == 6 * 2 + 6 * 5
    assert set(quoted) <= printed


@pytest.mark.slow
def test_data(run_page, empty_folder):
    names = run_page("data.md", ("load_vmnist()", "load_vmnist(max_sketches=40)"))
    assert len(names["train"]) == 19 and names["train"][0].shape == (16, 16, 3)
    assert len(list(ksd.data.read_sketches("waves.json"))) == 40
    assert (empty_folder / "digits.gif").stat().st_size > 5000
    for a, b in zip(ksd.data.read_sketches("digits.json"), names["sketches"], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.slow
def test_evaluation(run_page, empty_folder, capsys):
    with pytest.warns(ksd.metrics.FewSamplesWarning):
        run_page(
            "evaluation.md",
            ("load_vmnist()", "load_vmnist(max_sketches=300)"),
            ("subset_size=100", "subset_size=20"),
            ("model_channels=32, channel_mult=(1, 2)", "model_channels=32, channel_mult=(1,)"),
            ("(1, 16, 16, 3)", "(1, 4, 4, 3)"),
        )
    distance, interval, kernel, near, *cost = capsys.readouterr().out.splitlines()
    assert 0 < float(distance) < 100
    assert interval.startswith(f"{float(distance):.1f}"[:2]) and "[" in interval
    assert "±" in kernel and near.startswith("PrecisionRecall(precision=0.")
    assert "FLOPs, sampling" in "\n".join(cost)


@pytest.mark.slow
def test_extending(run_page, empty_folder):
    names = run_page("extending.md")
    assert names["points"].shape == (256, 2)
    ksd.sparsity.check_invariant(names["model"])
    assert len(names["train"]) + len(names["validation"]) == 8
    assert names["denoiser"].units == 64


@pytest.mark.slow
def test_export(run_page, empty_folder):
    names = run_page(
        "export.md",
        ('"chirodiff_kanjivg")', '"chirodiff_kanjivg", units=8, num_layers=1)'),
        ("steps=50", "steps=2"),
        ("points = ksd", "sketches = ksd"),
    )
    assert names["sketches"].shape == (2, 80, 3)
    assert names["epsilon"].shape == (1, 90, 3)
    assert names["loaded"].layers[0].masks
    assert names["smaller"].count_params() < 32 * 256 + 256 + 256 * 10 + 10
    assert "wide" in str(names["removed"])


def test_every_python_block_has_an_identifier_and_a_test():
    tests = "".join(
        read(Path(__file__).parent / f"test_{name}.py") for name in ("docs", "readme", "backends")
    )
    for path in TEXTS:
        blocks = read(path).count("```python")
        page = path.relative_to(ROOT / "docs" if path in PAGES else ROOT).as_posix()
        names = re.findall(r"<!-- example: (\w+) -->\n\n```python", read(path))
        assert len(names) == blocks, f"{page} has a Python block without an identifier"
        if not re.search(rf'run_page\(\s*"{page}"', tests):
            assert not [n for n in names if f'example("{page}", "{n}"' not in tests], page


def test_study_of_your_own(tmp_path):
    examples = re.findall(r"```yaml\n(.*?)```", read(ROOT / "docs/study.md"), re.DOTALL)
    studies = []
    for example in examples:
        (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
        studies.append(find_study(str(tmp_path / "mine.yaml")))
        # Settings that contradict each other are refused here.
        tasks_of(studies[-1], Options("smoke", tmp_path))
    study, structures = studies
    assert len(structures.cells) == (1 + 3 + 3) * len(SEEDS)
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
    """Yield the command lines in the texts, without their remarks."""
    for path in TEXTS:
        shown = re.findall(r"^    ((?:sparse-dm|python train\.py) .*)$", read(path), re.MULTILINE)
        yield from (re.sub(r"\s+#.*", "", line) for line in shown)


class Parsed(BaseException):
    """Exception raised once a command's options are parsed, before it does its work."""


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
    # A command without options has done its work.
    assert code == 0, capsys.readouterr().err


def anchors(text):
    """Return the anchors of headings: small letters, hyphens for spaces, no other signs."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(path):
    """Return the addresses of the links and pictures of a text, except those in code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", read(path), flags=re.DOTALL)
    return re.findall(r"\]\(([^()\s]*(?:\([^()\s]*\))?[^()\s]*)\)", text)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path):
    """Check that files and headings exist; check only the form of links to other sites."""
    for link in links(path):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https" and "." in parts.netloc, link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        if target.parent == ROOT / "docs" / "api":
            # The build of the documentation makes these.
            continue
        assert target.exists(), link
        assert not parts.fragment or parts.fragment in anchors(read(target)), link


# Docstrings ---------------------------------------------------------------------------------

# Docstrings start with an imperative or a noun phrase, never with one of these.
CLAUSES = ("What", "Which", "Whether", "How", "Of", "Where", "As", "Who", "When", "If", "That")
TOPS = ("keras_sparse_dm", "tests", "benchmarks", "scripts", "examples", "docs", "notebooks")
FOLDERS = sorted({file.parent for top in TOPS for file in (ROOT / top).rglob("*.py")})


def docstrings(folder):
    """Yield `(file:line, docstring)` of the modules, classes and functions of a folder."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for file in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(read(file))):
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}", text


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_docstrings_start_with_a_noun_or_an_imperative(folder):
    wrong = [
        f"{place}: {text.splitlines()[0]}"
        for place, text in docstrings(folder)
        if re.match(r"\w+", text) and re.match(r"\w+", text).group() in CLAUSES
    ]
    assert not wrong, "\n".join(wrong)


# Files of the package whose examples need a download, and those whose examples take seconds.
NEEDS_A_FILE = {"metrics/features/inception.py"}
SLOW_EXAMPLES = {
    "convert/pytorch.py",
    "data/sketches/vmnist.py",
    "diffusion/model.py",
    "export/saved_model.py",
    "export/tflite/inference.py",
    "export/tflite/write.py",
    "metrics/costs/cost.py",
    "models/autoencoder.py",
    "models/latent_diffusion.py",
    "models/unet.py",
    "sparsity/callback.py",
}
# Packages whose public names the examples use without imports.
WITH_NAMES = ("convert", "data", "diffusion", "export", "layers", "metrics", "models", "sparsity")


def files_with_examples():
    """Return the files of the package whose docstrings hold examples, with marks of slow ones."""
    files = []
    for file in sorted((ROOT / "keras_sparse_dm").rglob("*.py")):
        name = file.relative_to(ROOT / "keras_sparse_dm").as_posix()
        if ">>> " in read(file) and name not in NEEDS_A_FILE:
            marks = [pytest.mark.slow] if name in SLOW_EXAMPLES else []
            files.append(pytest.param(name, marks=marks))
    return files


def public_names(text):
    """Return the public names of the package that a text uses, with NumPy and Keras, by name."""
    words = set(re.findall(r"\w+", text))
    areas = [getattr(ksd, area) for area in WITH_NAMES]
    names = {name: getattr(area, name) for area in areas for name in words & set(area.__all__)}
    return names | {"keras": keras, "keras_sparse_dm": ksd, "np": np}


class ShownOutput(doctest.OutputChecker):
    """Checker that compares outputs only where the docstring shows one."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture
def eager():
    """Run what TensorFlow would trace and compile, which takes longer than one call of it."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize("file", files_with_examples())
def test_docstring_examples_run(file, empty_folder, eager):
    path = file.removesuffix(".py").removesuffix("/__init__")
    module = importlib.import_module(f"keras_sparse_dm.{path.replace('/', '.')}")
    text = read(ROOT / "keras_sparse_dm" / file)
    names = public_names(text)
    runner = doctest.DocTestRunner(ShownOutput(), optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder().find(module, extraglobs=names):
        runner.run(test)
    # A decorator could hide a docstring.
    assert runner.tries == text.count(">>> ") and not runner.failures
