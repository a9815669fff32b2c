"""Checkpoints to resume a run from, which must have the run's configuration."""

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.diffusion import DiffusionModel
from keras_sparse_dm.runs.callbacks import read_checkpoint
from keras_sparse_dm.runs.folder import CONFIG_FILE
from keras_sparse_dm.runs.sparse_model import dynamic_sparsity
from keras_sparse_dm.sparsity import masked_kernels
from keras_sparse_dm.sparsity.install import innermost_optimizer, innermost_sparse_optimizer
from keras_sparse_dm.sparsity.schedules import serialize_schedule


def load_checkpoint(path, expected, training, steps):
    """Load a checkpoint of the same configuration as the model `expected`.

    Args:
        path: The checkpoint.
        expected: New model of the run, not trained.
        training: `TrainingSettings`.
        steps: Number of steps per epoch.

    Raises:
        SettingsError: if the checkpoint cannot be read or has another configuration.
    """
    model = read_checkpoint(path)
    here, there = _description(expected), _description(model)
    if training.method != "dense" and there is not None:
        # The method and schedule that the callback will install in the new model.
        sparse = innermost_sparse_optimizer(model)
        callback = dynamic_sparsity(training, None, steps, path.parent)
        here["method"] = callback.method.name
        here["schedule"] = serialize_schedule(callback.schedule)
        there["method"] = sparse.method.name if sparse is not None else "dense"
        there["schedule"] = sparse.get_config()["schedule"] if sparse is not None else None
    if here != there:
        names = "a model of another kind"
        if there is not None:
            names = ", ".join(name for name, value in here.items() if there.get(name) != value)
        raise SettingsError(
            f"--resume: checkpoint {path} has another configuration than {CONFIG_FILE} of the run "
            f"({names})."
        )
    return model


def _description(model):
    """Return the facts that configurations differ in, or None unless it is a DiffusionModel."""
    if not isinstance(model, DiffusionModel):
        return None
    optimizer = innermost_optimizer(model)
    optimizer_config = optimizer.get_config() if optimizer is not None else {}
    return {
        "denoiser": {"class": type(model.denoiser).__name__, **model.denoiser.get_config()},
        "noise schedule": model.noise_schedule.get_config(),
        "seed": model.seed,
        "optimizer": {k: v for k, v in optimizer_config.items() if k != "name"},
        "masks": [(k.target.density, k.target.structure) for k in masked_kernels(model)],
    }
