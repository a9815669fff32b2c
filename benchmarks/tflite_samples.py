"""Distance of quantized files' samples from those of the float32 file, in FD-kanji.

    python benchmarks/tflite_samples.py                  # trains for some minutes first
    python benchmarks/tflite_samples.py --model runs/mine/model.keras

All files sample from the same noise. The float32 file also samples from other noise, to show which
distances arise by chance.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import keras
import numpy as np

import keras_sparse_dm as ksd
from keras_sparse_dm.export import generate_from_tflite, representative_data, to_tflite
from keras_sparse_dm.metrics import EmbeddedFeatures, frechet_distance, render_sketches

FILES = {
    "float32": {},
    "float16": {"quantize": "float16"},
    "dynamic int8": {"quantize": "int8_dynamic"},
    "dynamic int8, stored dense": {"quantize": "int8_dynamic", "sparse": False},
    "full int8": {"quantize": "int8"},
}


def trained(train, epochs, sparsity):
    denoiser = ksd.models.ChiroDiff.from_preset("chirodiff_kanjivg", seed=0)
    model = ksd.diffusion.DiffusionModel(denoiser, ksd.diffusion.NoiseSchedule.linear(1000), seed=0)
    ksd.sparsify(model, sparsity, seed=0)
    model.compile(keras.optimizers.AdamW(3e-3, use_ema=True, ema_momentum=0.98))
    steps = ksd.data.steps_per_epoch(train, 128)
    model.fit(
        ksd.data.train_batches(train, batch_size=128, seed=0),
        steps_per_epoch=steps,
        epochs=epochs,
        verbose=2,
        callbacks=[ksd.DynamicSparsity("rigl", update_every=max(1, steps // 2), prune_rate=0.1)],
    )
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model.keras of a run on KanjiVG")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(0)
    train, validation = ksd.data.load_kanjivg()
    if arguments.model:
        model = keras.saving.load_model(arguments.model)
    else:
        model = trained(train, arguments.epochs, arguments.sparsity)
    lengths = ksd.data.sample_lengths(train, arguments.samples, 0)
    longest = int(lengths.max())
    network = EmbeddedFeatures()

    def features(sketches):
        return network(render_sketches(sketches, 128, progress=False))

    real = features(validation)
    drawn, figures = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in FILES.items():
            path = Path(folder) / "model.tflite"
            if options.get("quantize") == "int8":
                options["representative"] = representative_data(
                    model, train, length=longest, batch_size=32, n=16
                )
            exported = to_tflite(model, path, length=longest, batch_size=32, **options)
            for seed, title in ((0, name), (1, "float32, other noise")):
                if seed and name != "float32":
                    continue
                points = generate_from_tflite(
                    path, lengths=lengths, steps=arguments.steps, seed=seed
                )
                finite = np.isfinite(points).all(axis=(1, 2))
                points[~finite] = 0.0
                drawn[title] = features([p[:n] for p, n in zip(points, lengths, strict=True)])
                figures[title] = {"largest difference of epsilon": exported.largest_difference}
    with warnings.catch_warnings():
        # Few samples are no problem, because both sides have the same number.
        warnings.simplefilter("ignore", UserWarning)
        for title, values in drawn.items():
            figures[title]["to the float file's"] = frechet_distance(drawn["float32"], values)
            figures[title]["to real ones"] = frechet_distance(real, values)
    print(f"| {'FD-kanji':<28} | to the float file's | to real ones | epsilon differs by |")
    print("|---|---:|---:|---:|")
    for title, row in figures.items():
        cells = [f"{row[key]:.4g}" for key in ("to the float file's", "to real ones")]
        cells.append(f"{row['largest difference of epsilon']:.2g}")
        print(f"| {title:<28} | {' | '.join(cells)} |")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
