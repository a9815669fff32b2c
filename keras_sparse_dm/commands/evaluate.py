"""`sparse-dm evaluate` and `sparse-dm sample`: how their options are read."""

from dataclasses import dataclass
from pathlib import Path

from keras_sparse_dm.checks import SettingsError, UsageError
from keras_sparse_dm.commands.options import fail, load_quietly, parse_options
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module

tyro = lazy_module("tyro")
evaluation = lazy_module("keras_sparse_dm.runs.evaluate")
exported_models = lazy_module("keras_sparse_dm.runs.exported")
inception = lazy_module("keras_sparse_dm.metrics.features.inception")
run_samples = lazy_module("keras_sparse_dm.runs.samples")

SAMPLE_ENDINGS = (".png", ".svg", ".pdf", ".gif", ".npz", ".json")


@dataclass(frozen=True)
class EvaluateSettings:
    """Measures how far what a run generates is from real data, and what the run costs."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, finished or not: without its model.keras, its last checkpoint serves."""
    samples: int = 10_000
    """Samples to generate; the paper takes 10,000."""
    steps: int | None = None
    """Steps of ddim, from 1 to T; the run's own by default."""
    sampler: str | None = None
    """Sampler, ddim or ddpm; the run's own by default."""
    eta: float | None = None
    """Noise of ddim; the run's own by default."""
    real: str = "train"
    """What is compared with: train, the sketches or images that were trained on, as in the paper,
    or validation."""
    real_samples: int = 20_000
    """At most so many real ones."""
    weights: tuple[Path, ...] = ()
    """Files of Inception weights, each for a distance more: torch-fidelity's or pytorch-fid's for
    the FID, Ge et al.'s for sketches. Without any the distance is that of the embedded network."""
    seed: int = 0
    """Seed of the samples and of the intervals."""
    data_dir: Path | None = None
    """Folder of the data set's files, where they are no longer where the run read them."""
    cache_dir: Path | None = None
    """Folder for prepared data and features; by default the user's cache folder."""
    verbose: int = 1
    """0 for no progress bars."""

    def check(self):
        """Checks everything that can be checked without loading anything.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        check_folder_of_run(self.run)
        _check_sampling(self, self.samples, "--samples", 8)
        if self.real not in ("train", "validation"):
            raise SettingsError(f"--real must be train or validation; received {self.real}.")
        if self.real_samples < 8:
            raise SettingsError(f"--real-samples must be 8 or more; received {self.real_samples}.")
        for path in self.weights:
            if not path.is_file():
                sources = f"{inception.where_to_get()} {inception.where_to_get('quickdraw')}"
                raise SettingsError(f"--weights: there is no file {path}. {sources}")


@dataclass(frozen=True)
class SampleSettings:
    """Generates samples of a run, or of what was exported from it, to look at or to work with."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, finished or not; or what `export` wrote: a .tflite file, the directory
    of a SavedModel, or a sparse checkpoint."""
    output: Path
    """File to write: .png, .svg or .pdf (a picture), .gif (sketches, drawn point by point), .npz
    (points and lengths, or images), .json (sketches, for convert-sketches)."""
    n: int = 64
    """Number of samples (-n)."""
    steps: int | None = None
    """Steps of ddim, from 1 to T; the run's own by default."""
    sampler: str | None = None
    """Sampler, ddim or ddpm; the run's own by default."""
    eta: float | None = None
    """Noise of ddim; the run's own by default."""
    seed: int = 0
    """Seed of the samples."""
    data_dir: Path | None = None
    """Folder of the data set's files, where they are no longer where the run read them."""
    cache_dir: Path | None = None
    """Folder for prepared data; by default the user's cache folder."""
    verbose: int = 1
    """0 for no progress bars."""

    def check(self):
        """Checks everything that can be checked without loading anything.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        if not self.run.exists():
            raise SettingsError(
                f"there is no {self.run}; give the folder of a run, or an exported model."
            )
        _check_sampling(self, self.n, "-n", 1)
        if self.output.suffix.lower() not in SAMPLE_ENDINGS:
            raise SettingsError(
                f"--output must end in {', '.join(SAMPLE_ENDINGS)}; received {self.output}."
            )
        if not self.output.absolute().parent.is_dir():
            raise SettingsError(f"--output: the folder {self.output.parent} does not exist.")


def check_folder_of_run(run):
    """Raises the SettingsError that says so where a run's folder is none."""
    if not run.is_dir():
        raise SettingsError(f"there is no folder {run}; give that of a run.")


def _check_sampling(settings, count, option, least):
    if count < least:
        raise SettingsError(f"{option} must be {least} or more; received {count}.")
    if settings.steps is not None and settings.steps < 1:
        raise SettingsError(f"--steps must be 1 or more; received {settings.steps}.")
    if settings.sampler not in (None, "ddim", "ddpm"):
        raise SettingsError(f"--sampler must be ddim or ddpm; received {settings.sampler}.")
    if settings.eta is not None and not 0 <= settings.eta <= 1:
        raise SettingsError(f"--eta must be a number in [0, 1]; received {settings.eta:g}.")
    if not 0 <= settings.seed < 2**31:
        raise SettingsError(f"--seed must be from 0 to 2147483647; received {settings.seed}.")


def evaluate_command(argv, prog="sparse-dm evaluate"):
    """Parses the options of `evaluate`, evaluates, and returns the exit code."""

    def work(settings):
        run = load_for(settings)
        _check_steps(settings.steps, run.settings.noise.timesteps)
        evaluation.evaluate(
            run,
            settings.samples,
            settings.steps,
            settings.sampler,
            settings.eta,
            settings.real,
            settings.real_samples,
            settings.weights,
            settings.seed,
            settings.cache_dir,
            progress=settings.verbose > 0,
        )
        report = run.folder / evaluation.REPORT
        print(report.read_text(encoding="utf-8"))
        print(f"Report: {report}   Samples: {run.folder / evaluation.FOLDER / 'samples.npz'}")

    advice = "What was generated is kept: the same command goes on from there."
    return run_command(argv, prog, EvaluateSettings, work, advice)


def sample_command(argv, prog="sparse-dm sample"):
    """Parses the options of `sample`, writes the samples, and returns the exit code."""
    # As the usual spelling of a number of things.
    argv = ["--n" if argument == "-n" else argument for argument in argv]

    def work(settings):
        if exported_models.is_exported(settings.run):
            run = exported_models.load_exported(settings.run)
            _check_options_of_exported(settings, run)
            _check_steps(settings.steps, run.timesteps)
        else:
            run = load_for(settings)
            _check_steps(settings.steps, run.settings.noise.timesteps)
        ending = settings.output.suffix.lower()
        if ending not in run.kind.endings:
            raise SettingsError(
                f"--output must end in {', '.join(run.kind.endings)} for a run on {run.kind.unit}; "
                f"received {settings.output}."
            )
        samples, broken = run_samples.generate(
            run,
            settings.n,
            settings.steps,
            settings.sampler,
            settings.eta,
            settings.seed,
            progress=settings.verbose > 0,
        )
        if broken:
            print(f"{broken} of {settings.n} samples are not finite and are left empty.")
        run.kind.write(samples, settings.output)
        print(f"Samples: {settings.output}")

    return run_command(argv, prog, SampleSettings, work, "")


def load_for(settings):
    """The `Run` of a command's settings."""
    return run_samples.load_run(
        settings.run, settings.data_dir, settings.cache_dir, settings.verbose
    )


def _check_steps(steps, timesteps):
    if steps is not None and steps > timesteps:
        raise SettingsError(
            f"--steps must be at most the run's {timesteps} timesteps; received {steps}."
        )


def _check_options_of_exported(settings, exported):
    """Refuses what a run could, but an exported model cannot."""
    if exported.only_ddim and (settings.sampler or exported.sampling.sampler) != "ddim":
        raise SettingsError(
            f"--sampler must be ddim, the only one in {settings.run}; received "
            f"{settings.sampler or exported.sampling.sampler}."
        )
    eta = exported.sampling.eta if settings.eta is None else settings.eta
    if exported.deterministic and eta:
        raise SettingsError(f"--eta must be 0 for {settings.run}; received {eta:g}.")
    if exported.steps is not None and settings.steps not in (None, exported.steps):
        raise SettingsError(
            f"--steps must be {exported.steps}, which {settings.run} was exported for; received "
            f"{settings.steps}."
        )


def run_command(argv, prog, kind, work, advice):
    """Parses options, does the work, tells errors, and returns the exit code.

    Args:
        argv: List of strings.
        prog: What the command is called.
        kind: The dataclass of its settings, with a `check`.
        work: Called with them.
        advice: What is said after an error of the disk or an interrupt.
    """
    try:
        settings = parse_options(kind, argv, prog)
        settings.check()
        load_quietly(evaluation)
        work(settings)
    except UsageError as error:
        return fail(prog, error, 2)
    except OSError as error:
        if error.errno is None:
            raise
        return fail(prog, f"{os_error_text(error)} {advice}".strip(), 1)
    except KeyboardInterrupt:
        return fail(prog, f"interrupted. {advice}".strip(), 130)
    return 0
