"""Old names of `runs`, which work for one more version and warn."""

from keras_sparse_dm.renamed import also_old_names


def _unknown(name):
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__getattr__ = also_old_names(
    __name__,
    {
        "RunSettings": "runs:RunSettings",
        "SettingsError": "runs:SettingsError",
        "TrainingDiverged": "runs:TrainingDiverged",
        "train": "runs:train",
        "write_report": "runs:write_report",
    },
    _unknown,
)
