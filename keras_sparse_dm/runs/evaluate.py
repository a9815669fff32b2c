"""Distance of a run's samples from real data, and the run's cost: `sparse-dm evaluate`."""

import warnings

import numpy as np

from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.data.cache import fingerprint_of
from keras_sparse_dm.diffusion.registry import SAMPLERS
from keras_sparse_dm.files import whole_file
from keras_sparse_dm.metrics.costs.cost import cost
from keras_sparse_dm.metrics.features.cache import cached_features
from keras_sparse_dm.metrics.features.embedded import EmbeddedFeatures
from keras_sparse_dm.metrics.features.inception import InceptionFeatures
from keras_sparse_dm.metrics.frechet import FewSamplesWarning, frechet_distance
from keras_sparse_dm.metrics.intervals import Interval, bootstrap_interval
from keras_sparse_dm.metrics.kernel import kernel_distance
from keras_sparse_dm.metrics.precision_recall import precision_recall
from keras_sparse_dm.runs.folder import write_json
from keras_sparse_dm.runs.markdown import markdown_table
from keras_sparse_dm.runs.samples import generate
from keras_sparse_dm.sparsity.registry import facts_of

# In a run's folder.
RESULTS = "evaluation.json"
REPORT = "evaluation.md"
FOLDER = "evaluation"
# Number of samples in the picture.
DRAWN = 64
# Largest number of real examples to compare with, as in the paper.
REAL_SAMPLES = 20_000
# Samples in a subset of the kernel distance, as in torch-fidelity.
KERNEL_SUBSET = 1000
# Each half must hold more examples than the neighbours that precision and recall count.
FEWEST = 8


def evaluate(
    run,
    samples=10_000,
    steps=None,
    sampler=None,
    eta=None,
    real="train",
    real_samples=REAL_SAMPLES,
    weights=(),
    seed=0,
    cache_dir=None,
    progress=True,
):
    """Generate samples of a run, measure them, and write the results to the run's folder.

    Args:
        run: The `Run`.
        samples: Number of samples; the paper takes 10,000.
        steps, sampler, eta: Arguments of `DiffusionModel.generate`; the run's by default.
        real: Part of the run's data to compare with: `"train"` or `"validation"`.
        real_samples: Largest number of real examples, drawn with the seed; the paper takes 20,000
            sketches, and all images.
        weights: Paths of Inception weights, each of which adds a distance; see
            `InceptionFeatures`.
        seed: Seed of everything random.
        cache_dir: Folder for the features of real data.
        progress: Whether to show progress bars.

    Returns:
        Dictionary of the results, as in `evaluation.json`.

    Raises:
        SettingsError: for weights that cannot be used, or too few real examples.
        ValueError: for steps or eta out of range.
    """
    # Everything that can fail comes before the long work.
    networks = [EmbeddedFeatures(), *(_inception(path) for path in weights)]
    others = run.train if real == "train" else run.validation
    held_out = run.validation if real == "train" else run.train
    if min(len(others), len(held_out)) < FEWEST:
        raise SettingsError(
            f"the run has too few data to measure distances: {len(run.train)} for training and "
            f"{len(run.validation)} for validation; {FEWEST} of each are needed."
        )
    folder = run.folder / FOLDER
    s = run.settings.sampling
    sampling = {
        "sampler": s.sampler if sampler is None else sampler,
        "steps": s.steps if steps is None else steps,
        "eta": s.eta if eta is None else eta,
    }
    generated, broken = generate(
        run, samples, **sampling, seed=seed, keep=folder, progress=progress
    )
    folder.mkdir(parents=True, exist_ok=True)
    run.kind.write(generated, folder / "samples.npz")
    run.kind.write(run.kind.first(generated, DRAWN), folder / "samples.png")

    chosen = _choose(others, real_samples, seed)
    # As many real examples as samples, to show how low the distance can be.
    control = _choose(held_out, samples, seed)
    distances = {}
    for network in networks:
        of_real = _real_features(run, network, others, chosen, cache_dir, progress)
        of_generated = network(run.kind.pictures(generated, progress), progress=progress)
        of_control = _real_features(run, network, held_out, control, cache_dir, progress)
        distances[network.name] = {
            "network": network.fingerprint,
            "dimensions": network.dimensions,
            "generated": _measure(of_real, of_generated, seed),
            "held out": _measure(of_real, of_control, seed),
        }
    costs = _cost(run, sampling)
    results = {
        "run": str(run.folder),
        "model": run.file.name,
        "preset": run.settings.preset,
        "method": run.settings.training.method,
        "sparsity": run.settings.training.sparsity,
        "steps_trained": int(run.model.optimizer.iterations),
        "samples": samples,
        "samples_not_finite": broken,
        "real": real,
        "real_samples": len(chosen),
        "held_out_samples": len(control),
        "sampling": sampling,
        "seed": seed,
        "distances": distances,
        "cost": costs.to_dict(),
    }
    write_json(run.folder / RESULTS, results)
    with whole_file(run.folder / REPORT) as temporary:
        temporary.write_text(_markdown(run, results, networks, costs), encoding="utf-8")
    for part in folder.glob("part-*.npz"):
        part.unlink()
    return results


def distance_from_training_data(run, samples, seed=0, cache_dir=None):
    """Return the embedded network's Fréchet distance of a run's samples from the training data.

    Args:
        run: The `Run`; its model may be in training.
        samples: Number of samples, `FEWEST` or more.
        seed: Seed of everything random.
        cache_dir: Folder for the features of real data.

    Returns:
        The distance as a float, equal to the distance from `evaluate` with as many samples.
    """
    network = EmbeddedFeatures()
    chosen = _choose(run.train, REAL_SAMPLES, seed)
    real = _real_features(run, network, run.train, chosen, cache_dir, progress=False)
    generated, _ = generate(run, samples, seed=seed, progress=False)
    with warnings.catch_warnings():
        # Distances of few samples are larger, but they still fall in training.
        warnings.simplefilter("ignore", FewSamplesWarning)
        return frechet_distance(real, network(run.kind.pictures(generated, progress=False)))


def _choose(data, number, seed):
    """Return the indices of at most `number` random examples, sorted."""
    return np.sort(np.random.default_rng(seed).permutation(len(data))[:number])


def _inception(path):
    try:
        return InceptionFeatures(path)
    except (ValueError, OSError, ImportError) as error:
        raise SettingsError(f"--weights {path}: {error}") from None


def _real_features(run, network, data, chosen, cache_dir, progress):
    """Return features of real data, kept in the cache folder."""
    parts, state = run.kind.chosen(data, chosen)

    def compute():
        pictures = (run.kind.pictures(part, progress) for part in parts)
        return np.concatenate([network(part, progress=progress) for part in pictures])

    return cached_features(compute, fingerprint_of([network.fingerprint, state]), cache_dir)


def _measure(real, other, seed):
    """Return all distances of a set of features from those of real data, with intervals."""
    size = min(KERNEL_SUBSET, len(real), len(other))
    with warnings.catch_warnings():
        # The report mentions few samples once for all distances.
        warnings.simplefilter("ignore", FewSamplesWarning)
        # Real features are the same in all comparisons, so only the others are resampled.
        intervals = {
            "frechet": bootstrap_interval(frechet_distance, real, other, seed=seed, resample="b"),
            "kernel": bootstrap_interval(kernel_distance, real, other, seed=seed, resample="b"),
        }
        near = bootstrap_interval(precision_recall, real, other, seed=seed, resample="b")
        subsets = kernel_distance(real, other, subset_size=size, seed=seed)
    intervals |= {name: near[name] for name in ("precision", "recall")}
    return {
        **{name: [i.value, i.low, i.high] for name, i in intervals.items()},
        "kernel_of_subsets": [subsets.mean, subsets.std],
        "kernel_subset_size": size,
    }


def _cost(run, sampling):
    t = run.settings.training
    return cost(
        run.model.denoiser,
        run.example,
        sampling_steps=SAMPLERS[sampling["sampler"]].evaluations(
            sampling["steps"], run.settings.noise.timesteps
        ),
        iterations=int(run.model.optimizer.iterations),
        # The cost of pruning from dense depends on the schedule; the report of the run has it.
        method="static" if facts_of(t.method).prunes else t.method,
        update_every=t.update_every,
        batch_size=t.batch_size,
        optimizer=run.model.optimizer,
    )


def _markdown(run, r, networks, costs):
    sampling = r["sampling"]
    facts = SAMPLERS[sampling["sampler"]]
    steps = facts.steps(sampling["steps"], run.settings.noise.timesteps)
    how = f"{steps} {sampling['sampler']} steps"
    if facts.takes_eta:
        how += f", eta {sampling['eta']:g}"
    kind_of_data = run.kind.unit
    lines = [
        f"# Evaluation of {run.folder.name}",
        "",
        f"{r['samples']:,} samples ({how}, seed {r['seed']}) of `{r['model']}` after "
        f"{r['steps_trained']:,} training steps, against {r['real_samples']:,} real {kind_of_data} "
        f"({r['real']}).",
        "",
        "![samples](evaluation/samples.png)",
        "",
    ]
    rows = []
    for network in networks:
        kinds = [r["distances"][network.name][kind] for kind in ("generated", "held out")]
        suffix = network.name.removeprefix("FD-")
        for title, name in (
            (network.name, "frechet"),
            (f"KD-{suffix}", "kernel"),
            (f"precision ({suffix})", "precision"),
            (f"recall ({suffix})", "recall"),
        ):
            rows.append([title, *(Interval(*kind[name]) for kind in kinds)])
        cells = ["{:.4g} ± {:.2g}".format(*kind["kernel_of_subsets"]) for kind in kinds]
        size = kinds[0]["kernel_subset_size"]
        rows.append([f"KD-{suffix}, mean and SD of subsets of {size}", *cells])
    lines += markdown_table(("distance", "samples", "held-out real ones"), rows)
    few = min(r["samples"], r["real_samples"], r["held_out_samples"])
    lines += [
        "",
        f"Held out: {r['held_out_samples']:,} other real {kind_of_data}. Brackets: 95% intervals "
        "over the samples. The Fréchet distance of fewer samples is larger, so compare only runs "
        "with equal numbers of samples.",
    ]
    if r["samples_not_finite"]:
        lines.append(f"{r['samples_not_finite']:,} samples are not finite.")
    lines += [
        f"{network.name} is not stable here: it needs more samples than its {network.dimensions} "
        f"features, and the smallest set has {few:,}."
        for network in networks
        if few <= network.dimensions
    ]
    lines.append("")
    for network in networks:
        note = getattr(network, "note", None)
        lines.append(
            f"- {network.name}: {network.dimensions} features, network {network.fingerprint}"
            + (f". {note}" if note else "")
        )
    lines += ["", "```", str(costs), "```", ""]
    return "\n".join(lines)
