"""One run: its settings, training, samples, evaluation, exports and report."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "report": ["write_report"],
        "settings": ["RunSettings", "SettingsError", "TrainingDiverged"],
        "train": ["train"],
    },
)
