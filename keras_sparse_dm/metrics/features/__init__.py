"""Features of sketches and images, for the distances."""

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    submod_attrs={
        "cache": ["cached_features", "cached_statistics"],
        "embedded": ["EmbeddedFeatures"],
        "inception": ["InceptionFeatures", "where_to_get"],
        "sketch_images": ["render_sketches"],
        "statistics": ["FeatureStatistics"],
    },
)
