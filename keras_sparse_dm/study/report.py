"""Report of a study: `report.md`, `tables.tex`, figures and sample sheets."""

import datetime
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.study.figures import figures_of, sample_sheet, save_figure
from keras_sparse_dm.study.results import RESULT_FILE, read_results
from keras_sparse_dm.study.scores import Scores, dataset_title
from keras_sparse_dm.study.tables import costs_of_the_runs, tables_of

REPORT = "report.md"
TABLES = "tables.tex"
# Longer lists of names are cut, and the rest is counted.
_NAMED = 12


def write_study_report(study, folder, output_dir=None, score=None, seeds=None, command=None):
    """Write a study's report from the results in its folder.

    Equal results give equal bytes. Each file is either whole or missing.

    Args:
        study: The `Study`.
        folder: The study's folder.
        output_dir: Folder of the report; by default `reports/NAME` in the study's folder.
        score: Name of the distance to report; by default the FID of an Inception network if all
            evaluations have it, and FD-kanji otherwise.
        seeds: Number of seeds that each run should have, counted from 0. By default, the study's
            own, and at smoke scale, where one is enough, the seeds that were run.
        command: Command line that the report names as its source, or None.

    Returns:
        Path of the `report.md`.

    Raises:
        SettingsError: if the folder holds no runs of the study, or none with that distance.
        OSError: if a file cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SettingsError(f"there is no folder {folder}; --folder must be the folder of a study.")
    results = read_results(folder)
    scores = Scores(_with_seeds(study, results, seeds), results, score)
    if not scores.runs and not scores.failed:
        raise SettingsError(
            f"{folder} holds no run of {study.name} that has ended; `sparse-dm study run "
            f"{study.name}` starts them."
        )
    output_dir = folder / "reports" / study.name if output_dir is None else Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    tables = [*tables_of(scores), costs_of_the_runs(scores)]
    figures = figures_of(scores)
    for name, (_, figure) in figures.items():
        save_figure(figure, output_dir, name)
    sheets, without = _sample_sheets(scores, folder, output_dir)
    lines = [
        *_head(scores, folder, command),
        *_results_part(scores, tables[:-1]),
        *_figures_part(figures),
        *_sheets_part(sheets, without),
        "## Cost of the runs",
        "",
        tables[-1].to_markdown(),
        *_differences_part(scores),
        *_failures_part(scores),
        *_left_out_part(results),
    ]
    _write(output_dir / TABLES, _latex_file(scores, tables))
    _write(output_dir / REPORT, "\n".join(lines).rstrip() + "\n")
    return output_dir / REPORT


def _with_seeds(study, results, seeds):
    """Return the study with the number of seeds that each run should have."""
    names = {cell.name for cell in study.cells}
    found = [run for run in results.runs if run.cell in names]
    if seeds is None and found and all(run.scale == "smoke" for run in found):
        seeds = 1 + max(run.seed for run in found)
    return study if seeds is None else study.with_seeds(seeds)


def _write(path, text):
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _head(scores, folder, command):
    runs = scores.runs.values()
    everything = [*runs, *scores.failed.values()]
    versions = sorted({run.version for run in everything})
    scales = sorted({run.scale for run in everything})
    seeds = sorted({run.seed for run in runs})
    seconds = sum(run.report["training_seconds"] for run in runs)
    samples = sorted({evaluation.samples for evaluation in scores.evaluations})
    newest = _newest(scores, folder)
    rows = [
        ("Study", f"{scores.study.name}: {scores.study.title}"),
        ("Command", f"`{command}`" if command else None),
        ("Scale", ", ".join(scales)),
        ("Runs", f"{len(runs)} of {len(scores.study.cells)}"),
        ("Failed", str(len(scores.failed)) if scores.failed else None),
        ("Seeds", ", ".join(map(str, seeds)) or "none"),
        ("Score", _score_line(scores)),
        ("Samples per evaluation", ", ".join(f"{n:,}" for n in samples) or "none"),
        ("Training, all runs", f"{seconds:,.0f} s"),
        ("Newest result", newest),
        ("keras_sparse_dm", ", ".join(versions)),
    ]
    lines = [f"# {scores.study.title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_in_a_row(text)} |" for name, text in rows if text is not None]
    return [*lines, ""]


def _in_a_row(text):
    """Return text as an entry of a Markdown table, in one line."""
    return " ".join(text.split()).replace("|", r"\|")


def _score_line(scores):
    others = {name for e in scores.evaluations for name in e.distances} - {scores.name}
    also = f" (also measured: {', '.join(sorted(others))})" if others else ""
    return f"{scores.name}{also}"


def _newest(scores, folder):
    """Return the time when the last run ended, in UTC; None if no run is finished."""
    times = [(folder / run.folder / RESULT_FILE).stat().st_mtime for run in scores.runs.values()]
    if not times:
        return None
    return f"{datetime.datetime.fromtimestamp(max(times), datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _results_part(scores, tables):
    lines = ["## Results", ""]
    for table in tables:
        lines.append(table.to_markdown())
    return [*lines, _reading(scores, tables), ""]


def _reading(scores, tables):
    """Return the text that explains all the tables."""
    headings = {column.heading for table in tables for column in table.columns}
    sentences = ["The paper's numbers are in italics, marked by the same rules."]
    if all(scores.is_papers(preset) for preset in scores.presets):
        sentences.append("They are FIDs of the same feature network as ours.")
    else:
        sentences.append(
            f"They are FIDs; {scores.name} is the distance of another feature network. Compare the "
            "order of the models, not the size of the numbers."
        )
    sentences.append(
        "SD: sample standard deviation over the runs (n - 1 in the denominator). The paper does "
        "not say which formula it uses."
    )
    if "Params" in headings:
        sentences.append(
            "Params, Train FLOPs and Test FLOPs are counted at the paper's setting (its network, "
            "iterations, sampling steps and sketch lengths), and for sparse models relative to "
            "dense. Params of sparse models: the share of the kernels' weights that is left."
        )
    floors = {preset: scores.held_out(preset) for preset in scores.presets}
    floors = [f"{dataset_title(p)} {value:.2f}" for p, value in floors.items() if value is not None]
    if floors:
        sentences.append(f"{scores.name} of held-out real data: {', '.join(floors)}.")
    return " ".join(sentences)


def _figures_part(figures):
    lines = ["## Figures", ""] if figures else []
    for name, (caption, _) in figures.items():
        lines += [f"![{caption}]({name}.png)", "", f"*{caption}* ([SVG]({name}.svg))", ""]
    return lines


def _sample_sheets(scores, folder, output_dir):
    """Draw a sheet for each data set: dense above, the best sparse model below.

    Returns:
        `(sheets, without)`: a list of `(title, file name)`, and the titles of data sets for which
        samples are missing.
    """
    sheets, without = [], []
    for preset in scores.presets:
        approaches = [a for a in scores.approaches(preset=preset) if not a.full]
        dense = [a for a in approaches if a.method == "dense"]
        best = scores.best_sparse(approaches)
        wanted = [a for a in (*dense, best) if a is not None]
        found = [pair for pair in (_samples_of(scores, a, folder) for a in wanted) if pair]
        if len(found) < len(wanted) or not found:
            without.append(dataset_title(preset))
        if found:
            name = f"samples-{preset}.png"
            sample_sheet(found, output_dir / name)
            sheets.append((f"Samples, {'; '.join(title for title, _ in found)}", name))
    return sheets, without


def _samples_of(scores, approach, folder):
    """Return `(title, path)` of the samples of an approach's first run with samples, or None."""
    for cell in sorted(scores.cells[approach], key=lambda cell: cell.seed):
        if cell.name in scores.runs:
            file = folder / scores.runs[cell.name].folder / "evaluation" / "samples.npz"
            if file.exists():
                data = (
                    f"{approach.dataset} ({cell.category})" if cell.category else approach.dataset
                )
                return f"{data}: {approach.title(prune_rate=True, update_every=True)}", file
    return None


def _sheets_part(sheets, without):
    lines = ["## Samples", ""] if sheets or without else []
    for title, name in sheets:
        lines += [f"![{title}]({name})", "", f"*{title}*", ""]
    if without:
        lines += [f"Samples of one or both models are missing: {', '.join(without)}.", ""]
    return lines


def _differences_part(scores):
    """Return the differences from the paper's settings, each once for all runs that share it."""
    runs = {**scores.runs, **scores.failed}
    holders = {}
    for name, run in runs.items():
        for line in run.differences:
            holders.setdefault(line, []).append(name)
    lines = ["## Where the runs differ from the paper's", ""]
    if not holders:
        return [*lines, "In no setting.", ""]
    grouped = {}
    for line, names in holders.items():
        grouped.setdefault(_whose(names, runs), []).append(line)
    # Differences of all runs come first.
    for whose in sorted(grouped, key=lambda text: (text != "All runs", text)):
        lines += [f"{whose}:", "", *(f"- {line}" for line in grouped[whose]), ""]
    return lines


def _whose(names, runs):
    """Return a short description of runs: all, a data set, a method, or their names."""
    if len(names) == len(runs):
        return "All runs"
    names = set(names)
    for attributes in (("preset",), ("method",), ("preset", "method")):
        groups = {}
        for name, run in runs.items():
            groups.setdefault(tuple(getattr(run, a) for a in attributes), set()).add(name)
        covered = [key for key, members in groups.items() if members <= names]
        if set().union(*(groups[key] for key in covered)) == names:
            titles = {"preset": dataset_title, "method": lambda method: facts_of(method).title}
            return "; ".join(
                " ".join(titles[a](value) for a, value in zip(attributes, key, strict=True))
                for key in covered
            )
    return _listed(sorted(names))


def _listed(names):
    """Return names in one line, cut after the first `_NAMED`."""
    rest = len(names) - _NAMED
    return ", ".join(f"`{name}`" for name in names[:_NAMED]) + (
        f" and {rest} more" if rest > 0 else ""
    )


def _failures_part(scores):
    lines = []
    if scores.failed:
        lines += ["## Failed runs", ""]
        for name, run in scores.failed.items():
            error = " ".join((run.error or "unknown error").split())
            lines.append(f"- `{name}`: {error.replace('<', '&lt;')}")
        lines.append("")
    if scores.missing:
        count = len(scores.missing)
        lines += ["## Missing runs", "", f"{count}: {_listed(scores.missing)}.", ""]
    unscored = [name for name in scores.runs if not _has_all_scores(scores, name)]
    if unscored:
        lines += [f"Runs without a {scores.name} of the study: {_listed(unscored)}.", ""]
    return lines


def _left_out_part(results):
    """Return the folders that were not read, with the reasons."""
    if not results.wrong:
        return []
    return ["## Folders left out", "", *(f"- {line}" for line in results.wrong), ""]


def _has_all_scores(scores, name):
    evaluations = [
        scores.evaluation(name, steps) for steps in scores.study.sampling_steps or (None,)
    ]
    return all(e is not None and scores.name in e.distances for e in evaluations)


def _latex_file(scores, tables):
    lines = [
        f"% {scores.study.name}: {' '.join(scores.study.title.split())}.",
        r"% Needs \usepackage{booktabs,graphicx}.",
        f"% {_reading(scores, tables)}",
        "",
    ]
    return "\n".join([*lines, *(table.to_latex() for table in tables)])
