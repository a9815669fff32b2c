"""Reports of runs, `report.md` and `report.json`: costs and results."""

from pathlib import Path

from keras_sparse_dm.files import whole_file
from keras_sparse_dm.runs.folder import read_json, write_json
from keras_sparse_dm.runs.markdown import markdown_table


def write_report(folder, results, rows=()):
    """Write `report.json`, and `report.md` for people.

    Args:
        folder: The run's folder.
        results: Dictionary of plain values, as `train` collects them.
        rows: `(name, value)` lines about the data and the samples.
    """
    folder = Path(folder)
    table = results["sparsity_table"]
    write_json(
        folder / "report.json",
        {name: value for name, value in results.items() if name != "sparsity_table"},
    )
    with whole_file(folder / "report.md") as temporary:
        temporary.write_text(_markdown(results, table, rows), encoding="utf-8")


def distance_rows(evaluation, results):
    """Return `(name, value)` lines of the Fréchet distances, and of the untrained network's.

    Args:
        evaluation: Contents of `evaluation.json`.
        results: Contents of `report.json`.
    """
    rows = []
    for name, distance in evaluation["distances"].items():
        text = f"{distance['generated']['frechet'][0]:.4g}"
        text += f", held-out real {distance['held out']['frechet'][0]:.4g}"
        untrained = results.get(f"{name.lower().replace('-', '_')}_untrained")
        if untrained is not None:
            text += f", untrained {untrained:.4g}"
        rows.append((f"{name} of {plural(evaluation['samples'], 'sample')}", text))
    return rows


def summary(folder):
    """Return a summary of a run in at most ten lines.

    Args:
        folder: Folder of a run that has ended.
    """
    folder = Path(folder)
    r = read_json(folder / "report.json", {})
    evaluation = read_json(folder / "evaluation.json", {})
    before, after = r["validation_loss_untrained"], r["validation_loss_trained"]
    rows = [("Validation loss", f"{after:.4f}, untrained {before:.4f}")]
    rows += distance_rows(evaluation, r) if evaluation else []
    active, size = r["cost"]["active_parameters"], r["cost"]["parameters"]
    rows += [
        ("Active parameters", f"{active:,} of {size:,}"),
        ("Training time", f"{r['training_seconds']:.0f} s for {plural(r['epochs'], 'epoch')}"),
        ("Samples", folder / "samples.png"),
        ("Report", folder / "report.md"),
    ]
    width = max(len(name) for name, _ in rows) + 2
    sparsity = f"{r['method']}, sparsity {r['sparsity']['sparsity']:.4g}"
    return "\n".join([f"{r['preset']}, {sparsity}", *(f"{n:<{width}}{v}" for n, v in rows)])


def plural(number, noun):
    """Return a number with its noun, such as "1 epoch" or "2 epochs"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _markdown(r, table, data_rows):
    c, sparsity = r["cost"], r["sparsity"]
    before, after = r["validation_loss_untrained"], r["validation_loss_trained"]
    ratio = {
        name: c[f"sparse_{name}"] / c[f"dense_{name}"]
        for name in ("flops", "sampling_flops", "training_flops")
    }
    exchanged = sum(r["last_update_exchanged"].values())
    size = sum(k["size"] for k in sparsity["kernels"])
    updates = f"{r['topology_updates']}"
    if r["topology_updates"]:
        share = exchanged / sparsity["active"]
        updates += f", the last exchanged {share:.2%} of the active weights"
    costs = [
        ("Nonzero weights in kernels", f"{size:,}", f"{sparsity['nonzeros']:,}",
         f"{sparsity['nonzeros'] / size:.4f}"),
        ("Parameters", f"{c['parameters']:,}", f"{c['active_parameters']:,}",
         f"{c['active_parameters'] / c['parameters']:.4f}"),
        (f"FLOPs, one pass over {r['flops_example']}", f"{c['dense_flops']:.3e}",
         f"{c['sparse_flops']:.3e}", f"{ratio['flops']:.4f}"),
        (f"FLOPs, one sample ({r['sampling_steps']} {r['sampler']} steps)",
         f"{c['dense_sampling_flops']:.3e}", f"{c['sparse_sampling_flops']:.3e}",
         f"{ratio['sampling_flops']:.4f}"),
        (f"FLOPs, training ({r['iterations']:,} iterations)", f"{c['dense_training_flops']:.3e}",
         f"{c['sparse_training_flops']:.3e}", f"{ratio['training_flops']:.4f}"),
    ]  # fmt: skip
    unit = r["unit"]
    facts = [
        ("Validation loss, untrained", f"{before:.4f}"),
        ("Validation loss, trained", f"{after:.4f} ({after / before:.1%} of untrained)"),
        ("Topology updates", updates),
        ("Epochs", r["epochs"]),
        ("Batch size", r["batch_size"]),
        ("Seed", r["seed"]),
        (f"{unit.capitalize()} for training, validation",
         f"{r[f'training_{unit}']:,}, {r[f'validation_{unit}']:,}"),
        *data_rows,
        ("Wall time: training", f"{r['training_seconds']:.0f} s"),
        ("Wall time: everything since the (re)start", f"{r['session_seconds']:.0f} s"),
    ]  # fmt: skip
    lines = [
        f"# {r['preset']}, {r['method']}, sparsity {sparsity['sparsity']:.4f}",
        "",
        f"![generated {r['unit']} beside real ones](samples.png)",
        "",
        *markdown_table(("", "dense", "this run", "ratio"), costs),
        "",
        "FLOPs count two per multiply-add in the kernels, without pruned weights; training counts "
        "three passes of one example per iteration, as in the paper's tables.",
        "",
        *markdown_table(("", ""), facts),
        "",
        "```",
        table,
        "```",
        "",
    ]
    return "\n".join(lines)
