"""Loading of the sketches that a run's settings name. Loads no Keras."""

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.data import load_kanjivg, load_quickdraw, load_sketches, load_vmnist


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
        if data.dataset == "kanjivg":
            return load_kanjivg(data_dir, characters=data.characters, **preparation)
        if data.dataset == "quickdraw":
            return load_quickdraw(data_dir, data.categories, data.recognized, **preparation)
        if data.dataset == "vmnist":
            return load_vmnist(data_dir, data.digits, **preparation)
        return load_sketches(data_dir, **preparation)
    except (ValueError, FileNotFoundError) as error:
        options = ("--categories", "--max-points")
        named = (o for o in options if str(error).startswith(o[2:].replace("-", "_")))
        raise SettingsError(f"{next(named, '--data-dir')}: {error}") from None
