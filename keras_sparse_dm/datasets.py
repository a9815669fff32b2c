"""Registries of the data sets of sketches and of images: facts that need no Keras.

Another data set is a module, as in `data/sketches` or `data/images`, and a line here.
"""

from typing import NamedTuple


class Dataset(NamedTuple):
    """Facts about a data set, for loading, options and studies.

    Attributes:
        place: Function that loads the data set, `"module:function"`. For sketches
            `load(data_dir, **options, **preparation)`, as `load_sketches`; for images
            `plan(dataset, data_dir, counts, seed, **options)`, as `plan_published`.
        options: `{argument of the function: setting}` of options that not all data sets have.
        folders: Patterns of its folder or file in the `--data-dir` of a study, the best first.
        source: Where to get it, as in "Put SOURCE there."
        unit: Plural noun for its examples.
        packaged: `"whole"` if a Python package brings it, `"sample"` if one brings some of it.
        own: True for files of one's own, whose `--data-dir` must be given.
        downloads: True if `load_images` can download it.
    """

    place: str
    options: dict = {}
    folders: tuple[str, ...] = ()
    source: str = ""
    unit: str = "drawings"
    packaged: str = ""
    own: bool = False
    downloads: bool = False


# Choices of settings: KanjiVG's drawings, and MNIST's digits.
CHARACTERS = ("kanji", "kanji+variants", "all")
DIGITS = ("test", "train", "all")

_SKETCHES = "keras_sparse_dm.data.sketches"
SKETCH_DATASETS = {
    "kanjivg": Dataset(
        f"{_SKETCHES}.kanjivg:load_kanjivg",
        {"characters": "characters"},
        ("kanjivg", "kanji*.npz"),
        unit="kanji",
        packaged="whole",
    ),
    "quickdraw": Dataset(
        f"{_SKETCHES}.quickdraw:load_quickdraw",
        {"categories": "categories", "recognized": "recognized"},
        ("quickdraw",),
        "cat.ndjson, crab.ndjson and mosquito.ndjson of "
        "https://storage.googleapis.com/quickdraw_dataset/full/raw/",
    ),
    "vmnist": Dataset(
        f"{_SKETCHES}.vmnist:load_vmnist",
        {"part": "digits"},
        ("mnist", "vmnist"),
        "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz of "
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        unit="digits",
        packaged="sample",
    ),
    "files": Dataset(f"{_SKETCHES}.own_files:load_sketches", own=True),
}

_IMAGES = "keras_sparse_dm.data.images"
_PUBLISHED = f"{_IMAGES}.published:plan_published"
IMAGE_DATASETS = {
    "kanjivg": Dataset(
        f"{_IMAGES}.kanjivg:plan_kanjivg",
        folders=("kanjivg",),
        unit="kanji",
        packaged="whole",
    ),
    "celebahq": Dataset(
        _PUBLISHED,
        folders=("celebahq",),
        source="the 30,000 images of https://github.com/tkarras/progressive_growing_of_gans",
    ),
    "lsun_bedrooms": Dataset(
        _PUBLISHED,
        folders=("lsun_bedrooms",),
        source="13,098 or more of the bedrooms of https://github.com/fyu/lsun",
    ),
    "imagenette": Dataset(
        _PUBLISHED,
        folders=("imagenette",),
        source="train and val of https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
        downloads=True,
    ),
    "folder": Dataset(f"{_IMAGES}.folder:plan_own_folder", own=True),
}
