"""Exports of a trained run, with their sizes, differences and speeds."""

from dataclasses import asdict, replace
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.export import remove_dead_units
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.renamed import old_argument
from keras_sparse_dm.runs.exported import run_metadata
from keras_sparse_dm.runs.folder import read_json, write_json
from keras_sparse_dm.runs.formats import FORMATS
from keras_sparse_dm.runs.formats.measures import ExportedFile, inputs_of
from keras_sparse_dm.runs.markdown import markdown_table

# In the folder of the exported files.
RECORDS = "export.json"
README = "README.md"


@old_argument("dead_units", "keep_dead_units")
@old_argument("what", "part")
def export_run(
    run,
    folder,
    formats,
    quantize="none",
    part="denoiser",
    length=None,
    batch_size=1,
    optimizer=False,
    keep_dead_units=True,
    rounds=20,
):
    """Export a run's model to other formats, and describe the files in `README.md`.

    Args:
        run: The `Run`.
        folder: Where to write; made if it is not there.
        formats: Names in `FORMATS`.
        quantize: Type of the weights: `"none"` (float32), `"float16"` (sparse, tflite),
            `"bfloat16"` (sparse), `"int8_dynamic"` or `"int8"` (tflite).
        part: Part of the model in a `.tflite` file: `"denoiser"`, `"sampler_step"` or `"sampler"`.
        length: Points of the longest sketch that a `.tflite` file takes; by default that of the
            longest one trained on.
        batch_size: Examples in a call of a `.tflite` file.
        optimizer: Whether a sparse checkpoint holds the optimizer too.
        keep_dead_units: Whether to keep units that pruning left unused; see `remove_dead_units`.
        rounds: How often calls are timed; 0 for not at all.

    Returns:
        `(files, removed)`: a list of `ExportedFile`, of those written now; and the `DeadUnits`
        that were removed, or None.

    Raises:
        SettingsError: for what cannot be exported so.
        OSError: if something cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    length = run.kind.tflite_length(run, length)
    metadata = run_metadata(run)
    suffix = "" if quantize == "none" else f"-{quantize}"
    written, removed = [], None
    try:
        if not keep_dead_units:
            smaller, removed = remove_dead_units(run.model, inputs_of(run))
            run = replace(run, model=smaller)
            metadata["units_removed"] = {
                layer: before - after for layer, before, after, *_ in removed.layers
            }
        for name in formats:
            write = FORMATS[name].function("write")
            files = write(
                run,
                folder,
                f"model{suffix}",
                quantize=quantize,
                part=part,
                length=length,
                batch_size=batch_size,
                optimizer=optimizer,
                metadata=metadata,
                rounds=rounds,
            )
            # One by one: those that are written before an error are recorded.
            for file in files:
                written.append(file)
    except (ValueError, ImportError) as error:
        raise SettingsError(str(error)) from None
    finally:
        if written:
            _record(folder, run, metadata, written)
    return written, removed


# Descriptions of the files --------------------------------------------------------------------


def _record(folder, run, metadata, written):
    """Write `export.json` and `README.md`, about these files and those written before."""
    try:
        records = read_json(folder / RECORDS, {"files": list}) or {"files": []}
        before = [ExportedFile(**file) for file in records["files"]]
    except (SettingsError, TypeError):  # of another version, or changed by hand
        before = []
    names = {file.name for file in written}
    files = [f for f in before if f.name not in names and (folder / f.name).exists()] + written
    told = {name: value for name, value in metadata.items() if name != "lengths"}
    write_json(folder / RECORDS, {"run": told, "files": [asdict(file) for file in files]})
    with whole_file(folder / README) as temporary:
        temporary.write_text(_readme(folder, run, told, files), encoding="utf-8")


def table_rows(files):
    """Return `(header, cells)` of the table of exported files, for the terminal and the README."""

    def milliseconds(seconds):
        return "" if seconds is None else f"{seconds * 1e3:.2f}"

    columns = (
        ("file", lambda f: f.name),
        ("bytes, dense", lambda f: f"{f.dense_bytes:,}"),
        ("bytes", lambda f: f"{f.bytes:,}"),
        ("ratio", lambda f: f"{f.ratio:.3f}"),
        ("bytes, zlib", lambda f: f"{f.compressed_bytes:,}"),
        ("largest difference", lambda f: "" if f.difference is None else f"{f.difference:.1e}"),
        ("ms, dense", lambda f: milliseconds(f.dense_seconds)),
        ("ms", lambda f: milliseconds(f.seconds)),
    )
    return [(header, [cell(file) for file in files]) for header, cell in columns]


def _readme(folder, run, told, files):
    headings, columns = zip(*table_rows(files), strict=True)
    lines = [
        f"# {told['preset']}, {told['method']}, sparsity {told['sparsity']:g}",
        "",
        f"Exported from `{told['model']}` of the run `{run.folder.name}` after "
        f"{told['steps_trained']:,} training steps.",
        "",
        *markdown_table(headings, zip(*columns, strict=True)),
        "",
        "Dense: the same file with zeros stored as all other weights. Largest difference: of the "
        "predicted noise, from Keras's. ms: median time of one call, in the run that wrote the "
        'file, one thread for `.tflite`; "dense" is the dense file in the same run.',
        "",
    ]
    for file in files:
        snippet = FORMATS[file.format].function("snippet")
        lines += [f"## {file.name}", "", "```python", *snippet(folder, run, file), "```", ""]
    lines += [
        f"`sparse-dm sample {files[0].name} -n 64 --output look.png` draws what a file generates.",
        "",
    ]
    return "\n".join(lines)
