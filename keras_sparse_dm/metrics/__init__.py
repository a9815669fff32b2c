"""Costs of models, and distances of generated samples from real data."""

import lazy_loader as _lazy

from keras_sparse_dm.renamed import also_old_names as _also_old_names

_own_attribute, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "intervals": ["Interval", "bootstrap_interval"],
        "costs": ["Cost", "LayerCost", "FileBytes", "TrainingBytes", "cost", "kernel_flops"],
        "features": [
            "EmbeddedFeatures",
            "FeatureStatistics",
            "InceptionFeatures",
            "cached_features",
            "cached_statistics",
            "render_sketches",
            "where_to_get",
        ],
        "frechet": ["FewSamplesWarning", "frechet_distance"],
        "kernel": ["KernelDistance", "kernel_distance", "squared_discrepancy"],
        "precision_recall": ["PrecisionRecall", "precision_recall"],
    },
)

__getattr__ = _also_old_names(
    __name__,
    {name: f"study:{name}" for name in ("PAPER_COSTS", "PAPER_FIDS", "PAPER_SETTINGS")},
    _own_attribute,
)
