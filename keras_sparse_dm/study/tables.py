"""A study's tables in the layouts of the paper's Tables 1 to 6, the printed numbers beside ours."""

import numpy as np

from keras_sparse_dm.sparsity.registry import facts_of
from keras_sparse_dm.study.cost_at_paper_setting import columns_as_in_paper, cost_at_paper_setting
from keras_sparse_dm.study.paper import PAPER_COSTS, PAPER_SETTINGS
from keras_sparse_dm.study.report_table import Column, Entry, Table
from keras_sparse_dm.study.scores import number_text

PAPER = "Paper"
_COSTS = {"parameters": "Params", "training": "Train FLOPs", "sampling": "Test FLOPs"}
_MISSING = Entry("–")


def tables_of(scores):
    """Return the tables that show a study, in the paper's layouts.

    Args:
        scores: `Scores`.

    Returns:
        List of `Table`. A study with runs on all of CelebA-HQ has the layout of Table 3, one with
        several numbers of sampling steps that of Table 4, one with static runs and several prune
        rates that of Tables 5 and 6, with a table for each sparsity, and any other study that of
        Tables 1 and 2.
    """
    if scores.approaches(full=True):
        return [full_and_reduced(scores)]
    if len(scores.study.sampling_steps) > 1:
        return [by_sampling_steps(scores)]
    sparsities = [s for s in scores.sparsities if _has_prune_rates(scores, s)]
    if sparsities:
        return [by_prune_rate(scores, sparsity) for sparsity in sparsities]
    return [with_costs(scores)]


def with_costs(scores):
    """Return the layout of Tables 1 and 2: score, and cost at the paper's setting."""
    several = _tells_apart(scores)
    printed = any(scores.paper_fid(a) or _paper_cost(a) for a in scores.cells)
    columns = [
        Column("Dataset", numbers=False),
        Column("Approach", numbers=False),
        Column(f"{scores.name} ± SD (↓)"),
        *(Column(heading) for heading in _COSTS.values()),
    ]
    if printed:
        columns.append(Column("FID ± SD (↓)", PAPER))
        columns += [Column(heading, PAPER) for heading in _COSTS.values()]
    table = Table(f"{scores.study.name}-scores", _caption(scores), columns, [])
    for approaches in _blocks(scores):
        best, block = _best(scores, approaches), []
        papers = _paper_scores(scores, approaches)
        for approach in approaches:
            relative = approach.method != "dense"
            distribution = dict(approach.options).get("distribution", "erk")
            cost = cost_at_paper_setting(
                approach.preset, approach.method, approach.sparsity, distribution
            )
            row = [
                Entry("" if block else _dataset(approach)),
                Entry(approach.title(**several)),
                _score(scores, approach, best, scores.dense(approach)),
                *(Entry(text) for text in columns_as_in_paper(cost, relative).values()),
            ]
            if printed:
                row.append(papers.get(approach, _MISSING))
                row += _paper_costs(approach, table)
            block.append(row)
        table.blocks.append(block)
    return table


def full_and_reduced(scores):
    """Return the layout of Table 3: the full data set against half of it."""
    kinds = {True: "Full dataset", False: "Reduced dataset"}
    columns = [
        Column("Methods", numbers=False),
        *(Column(heading, f"{scores.name} (↓)") for heading in kinds.values()),
        *(Column(heading, f"{PAPER}, FID (↓)") for heading in kinds.values()),
    ]
    several = _tells_apart(scores)
    table = Table(f"{scores.study.name}-scores", _caption(scores), columns, [])
    for preset in scores.presets:
        of_kind = {full: scores.approaches(preset=preset, full=full) for full in kinds}
        best = {full: _best(scores, approaches) for full, approaches in of_kind.items()}
        papers = {full: _paper_scores(scores, found) for full, found in of_kind.items()}
        dense = {full: scores.dense(found[0]) for full, found in of_kind.items() if found}
        by_title = {}
        for full, approaches in of_kind.items():
            for approach in approaches:
                by_title.setdefault(approach.title(**several), {})[full] = approach
        block = [
            [
                Entry(title),
                *(_score(scores, pair.get(full), best[full], dense.get(full)) for full in kinds),
                *(papers[full].get(pair.get(full), _MISSING) for full in kinds),
            ]
            for title, pair in by_title.items()
        ]
        table.blocks.append(block)
    return table


def by_sampling_steps(scores):
    """Return the layout of Table 4: a column for each number of sampling steps."""
    all_steps = sorted(scores.study.sampling_steps)
    several = _tells_apart(scores)
    headings = [f"{steps} steps" for steps in all_steps]
    columns = [
        Column("Dataset", numbers=False),
        Column("Approach", numbers=False),
        *(Column(heading, f"{scores.name} (↓)") for heading in headings),
    ]
    printed = [s for s in all_steps if any(scores.paper_fid(a, s) for a in scores.cells)]
    columns += [Column(f"{steps} steps", f"{PAPER}, FID (↓)") for steps in printed]
    table = Table(f"{scores.study.name}-scores", _caption(scores), columns, [])
    for approaches in _blocks(scores):
        best = {steps: _best(scores, approaches, steps) for steps in all_steps}
        papers = {steps: _paper_scores(scores, approaches, steps) for steps in printed}
        table.blocks.append(
            [
                [
                    Entry("" if i else _dataset(approach)),
                    Entry(approach.title(**several)),
                    *(
                        _score(scores, approach, best[steps], scores.dense(approach), steps)
                        for steps in all_steps
                    ),
                    *(papers[steps].get(approach, _MISSING) for steps in printed),
                ]
                for i, approach in enumerate(approaches)
            ]
        )
    return table


def by_prune_rate(scores, sparsity):
    """Return the layout of Tables 5 and 6: one sparsity, a column for each method and prune rate.

    The paper's numbers are a row below ours; in columns they would make the table too wide.
    """
    keys = [("dense", None)] if scores.approaches(method="dense") else []
    of_sparsity = scores.approaches(sparsity=sparsity)
    methods = list(dict.fromkeys(approach.method for approach in of_sparsity))
    for method in methods:
        rates = {a.prune_rate for a in of_sparsity if a.method == method}
        keys += [(method, rate) for rate in sorted(rates, key=lambda p: p or 0, reverse=True)]
    columns = [
        Column("Dataset", numbers=False),
        Column("Source", numbers=False),
        *(
            Column(facts_of(method).title)
            if rate is None
            else Column(f"p = {rate:g}", facts_of(method).title)
            for method, rate in keys
        ),
    ]
    table = Table(
        f"{scores.study.name}-scores-s{sparsity:g}",
        _caption(scores, f"S = {sparsity:g}", baseline="Static-DM"),
        columns,
        [],
    )
    for approaches in _blocks(scores):
        found = {
            (approach.method, approach.prune_rate): approach
            for approach in approaches
            if approach.method == "dense" or approach.sparsity == sparsity
        }
        best = _best(scores, list(found.values()))
        static = found.get(("static", None))
        papers = _paper_scores(scores, found.values(), baseline="static")
        rows = [[Entry(_dataset(approaches[0])), Entry(scores.name)]]
        rows[0] += [_score(scores, found.get(key), best, static) for key in keys]
        if papers:
            rows.append([Entry(), Entry(f"{PAPER}, FID", italic=True)])
            rows[1] += [papers.get(found.get(key), _MISSING) for key in keys]
        table.blocks.append(rows)
    return table


def costs_of_the_runs(scores):
    """Return a table of the runs' costs with their own networks, iterations and data."""
    several = _tells_apart(scores)
    columns = [
        Column("Dataset", numbers=False),
        Column("Approach", numbers=False),
        *map(Column, ("Runs", "Parameters", "active", "Iterations")),
        Column("Train FLOPs"),
        Column("relative"),
        Column("Test FLOPs"),
        Column("relative"),
        Column("Training, s"),
    ]
    caption = (
        f"{scores.study.name}, cost of the runs themselves: mean over the runs. Active parameters "
        "and FLOPs are relative to the same network, dense. Train FLOPs count one example per "
        "iteration, Test FLOPs one sample with the run's own sampling steps."
    )
    table = Table(f"{scores.study.name}-own-costs", caption, columns, [])
    for approaches in _blocks(scores):
        block = []
        for approach in approaches:
            names = [cell.name for cell in scores.cells[approach] if cell.name in scores.runs]
            reports = [scores.runs[name].report for name in names]
            cells = [_MISSING] * 8
            if reports:
                cells = [Entry(text) for text in _own_cost(reports)]
            block.append(
                [
                    Entry("" if block else _dataset(approach)),
                    Entry(approach.title(**several)),
                    Entry(f"{len(reports)}/{len(scores.cells[approach])}"),
                    *cells,
                ]
            )
        table.blocks.append(block)
    return table


def _own_cost(reports):
    def mean(name):
        return float(np.mean([report["cost"][name] for report in reports]))

    active = mean("active_parameters") / mean("parameters")
    iterations = float(np.mean([report["iterations"] for report in reports]))
    seconds = float(np.mean([report["training_seconds"] for report in reports]))
    texts = [f"{mean('parameters'):.0f}", f"{active:.2f}×", f"{iterations:.0f}"]
    for kind in ("training", "sampling"):
        sparse, dense = mean(f"sparse_{kind}_flops"), mean(f"dense_{kind}_flops")
        texts += [_flops(sparse), f"{sparse / dense:.2f}×"]
    return [*texts, f"{seconds:.0f}"]


def _flops(value):
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def _score(scores, approach, best, base, steps=None):
    """Return our score: bold if better than the base (dense or static), underlined if the best."""
    if approach is None:
        return _MISSING
    score = scores.score(approach, steps)
    compared = base is not None and approach not in (base, scores.dense(approach))
    bold = compared and score.better_than(scores.score(base, steps))
    return Entry(str(score), bold=bold, underlined=approach == best)


def _best(scores, approaches, steps=None):
    """Return the sparse approach to underline; None if there is no other to compare it with."""
    scored = [a for a in approaches if a.method != "dense" and scores.score(a, steps).values]
    return scores.best_sparse(scored, steps) if len(scored) > 1 else None


def _paper_scores(scores, approaches, steps=None, baseline="dense"):
    """Return `{approach: Entry}` of the printed FIDs, marked by the same rules as ours."""
    found = {approach: scores.paper_fid(approach, steps) for approach in approaches}
    found = {approach: fid for approach, fid in found.items() if fid is not None}
    base = [fid.mean for approach, fid in found.items() if approach.method == baseline]
    sparse = [fid.mean for approach, fid in found.items() if approach.method != "dense"]
    return {
        approach: Entry(
            number_text(fid.mean, fid.sd),
            bold=bool(base) and approach.method != "dense" and fid.mean < base[0],
            underlined=len(sparse) > 1 and approach.method != "dense" and fid.mean == min(sparse),
            italic=True,
        )
        for approach, fid in found.items()
    }


def _paper_cost(approach):
    """Return the `PaperCost` of an approach, or None. No cost depends on the prune rate."""
    wanted = (approach.preset, approach.method, approach.sparsity)
    found = [row for row in PAPER_COSTS if (row.preset, row.method, row.sparsity) == wanted]
    own = approach.update_every in (None, PAPER_SETTINGS[approach.preset].update_every)
    extra = approach.full or approach.options
    return found[0] if found and own and not extra else None


def _paper_costs(approach, table):
    """Return the paper's cost columns. A figure that we cannot reproduce has a note on why."""
    row = _paper_cost(approach)
    if row is None:
        return [_MISSING] * len(_COSTS)
    times = "" if row.method == "dense" else "×"
    entries = []
    for column in _COSTS:
        reason = row.unexplained.get(column)
        notes = () if reason is None else (table.note(f"Not reproduced. {reason}"),)
        entries.append(Entry(getattr(row, column) + times, italic=True, notes=notes))
    return entries


def _caption(scores, what=None, baseline="Dense"):
    counts = sorted({len(cells) for cells in scores.cells.values()})
    runs = " or ".join(map(str, counts))
    over = "one run each" if counts == [1] else f"mean and sample SD over {runs} runs"
    title = scores.study.title if what is None else f"{scores.study.title}: {what}"
    kind = "Sparse" if baseline == "Dense" else "Dynamic sparse"
    sentences = [
        f"{scores.study.name}. {title}.",
        f"{scores.name}, {over}.",
        f"{kind} models that outperform {baseline} are bold; the best sparse model is underlined.",
    ]
    if scores.missing or scores.failed:
        sentences.append("In parentheses: the number of finished runs, and of all runs.")
    return " ".join(sentences)


def _blocks(scores):
    """Return a list of approaches for each data set, dense first."""
    blocks = {}
    for approach in scores.cells:
        blocks.setdefault((approach.preset, approach.full), []).append(approach)
    return [sorted(block, key=lambda a: a.method != "dense") for block in blocks.values()]


def _dataset(approach):
    return f"{approach.dataset}, full" if approach.full else approach.dataset


def _tells_apart(scores):
    """Return arguments for `Approach.title`: settings with several values must be named."""
    intervals = {a.update_every for a in scores.cells} - {None}
    return {"prune_rate": len(scores.prune_rates) > 1, "update_every": len(intervals) > 1}


def _has_prune_rates(scores, sparsity):
    """Return True if a sparsity has static runs, and dynamic runs with several prune rates."""
    approaches = scores.approaches(sparsity=sparsity)
    # The layout has no place for several update intervals or options.
    if len({a.update_every for a in approaches if a.prune_rate is not None}) > 1:
        return False
    if any(a.options for a in scores.cells):
        return False
    rates = {a.prune_rate for a in approaches if a.prune_rate is not None}
    return len(rates) > 1 and any(a.method == "static" for a in approaches)
