"""Loading of the sketches that a run's settings name. Loads no Keras."""

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.datasets import SKETCH_DATASETS
from keras_sparse_dm.places import load_place


def load_sketch_data(data, data_dir=None, cache_dir=None, progress=True):
    """Load the sketches that settings name.

    Args:
        data: `SketchSettings`.
        data_dir: Folder of the data set's files, or None.
        cache_dir: Folder for prepared data, or None.
        progress: Whether to show a progress bar.

    Returns:
        `(train, validation)`, two `SketchArrays`.

    Raises:
        SettingsError: for data that are missing, broken or too few.
    """
    dataset = SKETCH_DATASETS[data.dataset]
    options = {name: getattr(data, setting) for name, setting in dataset.options.items()}
    preparation = {
        "cache_dir": cache_dir,
        "representation": data.representation,
        "spacing": data.spacing,
        "scale": data.scale,
        "tolerance": data.simplify or None,
        "max_strokes": data.max_strokes or None,
        "max_sketches": data.max_sketches or None,
        "max_points": data.max_points,
        "progress": progress,
    }
    try:
        return load_place(dataset.place)(data_dir, **options, **preparation)
    except (ValueError, FileNotFoundError) as error:
        options = ("--categories", "--max-points")
        named = (o for o in options if str(error).startswith(o[2:].replace("-", "_")))
        raise SettingsError(f"{next(named, '--data-dir')}: {error}") from None
