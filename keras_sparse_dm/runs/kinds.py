"""Kinds of data that runs train on. Loads no Keras.

All that runs on sketches and runs on images differ in is answered by one object of each, a `Kind`.
Another kind is a module with such an object and a line in `KINDS`.
"""

import abc
from typing import NamedTuple

from keras_sparse_dm.places import load_place


class Entry(NamedTuple):
    """Location of the class of a kind.

    Attributes:
        place: The `Kind`, `"module:class"`, loaded when it is needed.
        model: Kind of model that trains on it, as presets name it.
    """

    place: str
    model: str


KINDS = {
    "sketches": Entry("keras_sparse_dm.runs.sketches:Sketches", "chirodiff"),
    "images": Entry("keras_sparse_dm.runs.images:Images", "unet"),
}


class Kind(abc.ABC):
    """Kind of data: the parts of a run that depend on it.

    Attributes:
        unit: The examples, in the plural: `"sketches"`.
        part_size: Samples that are generated and kept at a time.
        endings: Endings of the files that samples can be written to.
        input_names: Names of the denoiser's inputs in a SavedModel.
        tflite_parts: `{stem: part}` of the `.tflite` files beside the denoiser's.
        metadata_keys: What an exported file must tell, beside how the run sampled.
        example_call: Arguments of `generate` in a code example.
        example_number: Number of samples in a code example of a SavedModel.
    """

    unit = None
    part_size = None
    endings = ()
    input_names = ()
    tflite_parts = {}
    metadata_keys = frozenset()
    example_call = example_number = ""

    @abc.abstractmethod
    def training_run(self, settings):
        """Return the data, model and pictures of a run to train.

        Args:
            settings: Checked `RunSettings`.

        Raises:
            SettingsError: for data or sizes that cannot work.
        """

    @abc.abstractmethod
    def load(self, settings, progress=True):
        """Return a run's data for training and validation.

        Raises:
            SettingsError: for data that are missing, broken or too few.
        """

    @abc.abstractmethod
    def put_in_cache(self, settings):
        """Prepare the cached data of a run, and return a line about them."""

    @abc.abstractmethod
    def example(self, run):
        """Return inputs of the denoiser of batch size 1, for which FLOPs are counted."""

    def lengths(self, run, n, seed):
        """Return the lengths of `n` samples, int32 (n,), or None if samples have no length."""
        return None

    @abc.abstractmethod
    def draw_samples(self, model, n, lengths, **options):
        """Return samples of a `DiffusionModel` as float arrays.

        Args:
            model: The model.
            n: Number of samples.
            lengths: As `lengths` gives them.
            options: As of `generate`: steps, sampler, eta and seed.
        """

    @abc.abstractmethod
    def finished(self, samples, broken):
        """Return samples as they are kept.

        Args:
            samples: Array (n, ...) of `draw_samples`, which may be changed.
            broken: Boolean array (n,): samples that are not finite.
        """

    @abc.abstractmethod
    def joined(self, run, parts, lengths):
        """Return all samples from arrays of `part_size` of them."""

    @abc.abstractmethod
    def first(self, samples, n):
        """Return the first `n` samples."""

    @abc.abstractmethod
    def write(self, samples, path):
        """Write samples to a file in one step; its ending is one of `endings`."""

    @abc.abstractmethod
    def chosen(self, data, numbers):
        """Return `(parts, state)` of some real examples, to compute features of.

        Args:
            data: A run's data.
            numbers: Sorted numbers of the examples.

        Returns:
            An iterable of what `pictures` takes, and values that change with the examples.
        """

    @abc.abstractmethod
    def pictures(self, examples, progress):
        """Return the pictures for a feature network, a uint8 array (n, height, width, 3)."""

    def metadata(self, run):
        """Return the facts about a run that exported files of this kind store in addition."""
        return {}

    def tflite_length(self, run, length):
        """Return the points of the longest sketch that a `.tflite` file takes, or None."""
        return None


def kind_named(name):
    """Return the `Kind` of a name in `KINDS`."""
    return load_place(KINDS[name].place)()


def kind_of_model(model):
    """Return the name of the kind that a preset's kind of model trains on."""
    return next(name for name, entry in KINDS.items() if entry.model == model)
