"""Tasks: the cells of a study with the settings they are run with, and how far each of them is.

A run's own folder says how far the cell is. Loads no Keras.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.runs.folder import CONFIG_FILE, read_config
from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.study.differences import setting_clashes
from keras_sparse_dm.study.grid import LATENT_DIFFUSION, Cell
from keras_sparse_dm.study.results import RESULT_FILE, read_result
from keras_sparse_dm.study.scales import sampling_steps_of, settings_of


@dataclass(frozen=True)
class Options:
    """Options of a study.

    Attributes:
        scale: `"smoke"`, `"reduced"` or `"paper"`.
        folder: The study's folder.
        data_dir, cache_dir, epochs, samples, autoencoder: Arguments of `settings_of`.
        weights: Paths of Inception weights for the evaluation.
        jobs: Number of runs at a time.
    """

    scale: str
    folder: Path
    data_dir: Path | None = None
    cache_dir: Path | None = None
    epochs: dict = field(default_factory=dict)
    samples: int | None = None
    autoencoder: Path | None = None
    weights: tuple[Path, ...] = ()
    jobs: int = 1


@dataclass(frozen=True)
class Task:
    """A cell with the settings of its run and its evaluations.

    Attributes:
        cell: The `Cell`.
        settings: `RunSettings`.
        sampling_steps: Numbers of sampling steps; the run is evaluated with each of them.
        weights: Paths of Inception weights.
    """

    cell: Cell
    settings: RunSettings
    sampling_steps: tuple[int, ...]
    weights: tuple[Path, ...]

    @property
    def name(self):
        """Name of the cell."""
        return self.cell.name


def tasks_of(study, options):
    """Return the tasks of a study, a list of `Task`.

    Raises:
        SettingsError: for settings that no run can have, or two different cells of one name.
    """
    tasks = {}
    for cell in study.cells:
        settings = settings_of(
            cell,
            options.scale,
            options.data_dir,
            folder=options.folder,
            cache_dir=options.cache_dir,
            epochs=options.epochs,
            samples=options.samples,
            autoencoder=options.autoencoder,
        )
        _check(settings)
        steps = sampling_steps_of(study, settings)
        if max(steps) > settings.noise.timesteps:
            raise SettingsError(
                f"sampling_steps must be at most the {settings.noise.timesteps} timesteps; "
                f"received {max(steps)}."
            )
        task = Task(cell, settings, steps, options.weights)
        if tasks.setdefault(cell.name, task).cell != cell:
            raise SettingsError(f"two runs of the study are called {cell.name} but differ.")
    return list(tasks.values())


def _check(settings):
    """Check settings, except for an autoencoder that the study trains first."""
    if settings.preset in LATENT_DIFFUSION and trains_autoencoder(settings):
        settings = dataclasses.replace(
            settings, autoencoder=None, data=dataclasses.replace(settings.data, dataset="kanjivg")
        )
    settings.check()


def trains_autoencoder(settings):
    """Return True if the study trains the run's autoencoder first, in the study's folder."""
    path = getattr(settings, "autoencoder", None)
    return path is not None and settings.output_dir.parents[1] in path.parents


def training_settings(settings):
    """Return the settings for training alone: evaluations follow, one per number of steps."""
    sampling = dataclasses.replace(settings.sampling, evaluation=0)
    resume = (settings.folder / CONFIG_FILE).exists()
    return dataclasses.replace(settings, sampling=sampling, resume=resume)


def state_of(task):
    """Return `(state, message)` of a task, read from its run's folder.

    The state is `"finished"`, `"waiting"` (not started, or partly done), or `"clash"` if the folder
    holds something other than the task's run; the message then says what.
    """
    folder = task.settings.folder
    try:
        config = read_config(folder)
        if config is None:
            return "waiting", ""
        clashes = setting_clashes(training_settings(task.settings), config["settings"])
        if clashes:
            return "clash", f"{folder} holds a run of other settings: {'; '.join(clashes)}."
        result = read_result(folder)
        if result is None:
            return "waiting", ""
        done = {
            evaluation["sampling_steps"]
            for evaluation in result["evaluations"]
            if fits(evaluation, task.settings, task.weights)
        }
    except SettingsError as error:
        return "clash", str(error)
    except (KeyError, TypeError) as error:
        return "clash", f"{folder / RESULT_FILE} is damaged: {error!r}."
    return ("finished" if done.issuperset(task.sampling_steps) else "waiting"), ""


def fits(evaluation, settings, weights):
    """Return True if a stored evaluation has the number of samples, seed and weights asked for."""
    return (
        evaluation["samples"] == settings.sampling.evaluation
        and evaluation["seed"] == settings.seed
        and evaluation["weights"] == names_of(weights)
    )


def names_of(weights):
    """Return the sorted file names of weights; an evaluation stores them to name its networks."""
    return sorted(Path(path).name for path in weights)
