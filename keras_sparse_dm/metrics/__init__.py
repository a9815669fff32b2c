"""What models cost, and how far what they generate is from real data."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "bootstrap": ["Interval", "bootstrap_interval"],
        "cost": ["Cost", "LayerCost", "cost", "kernel_flops"],
        "embedded": ["EmbeddedFeatures"],
        "frechet": ["FewSamplesWarning", "frechet_distance"],
        "inception": ["InceptionFeatures", "where_to_get"],
        "kernel": ["KernelDistance", "kernel_distance", "squared_discrepancy"],
        "memory": ["FileBytes", "TrainingBytes"],
        "paper": ["PAPER_COSTS", "PAPER_FIDS", "PAPER_SETTINGS"],
        "precision_recall": ["PrecisionRecall", "precision_recall"],
        "render": ["render_sketches"],
        "statistics": ["FeatureStatistics", "cached_features", "cached_statistics"],
    },
)
