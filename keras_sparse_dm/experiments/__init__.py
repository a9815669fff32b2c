"""Runs of the study: settings, training, reports."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "report": ["write_report"],
        "settings": ["RunSettings", "SettingsError", "TrainingDiverged"],
        "training": ["train"],
    },
)
