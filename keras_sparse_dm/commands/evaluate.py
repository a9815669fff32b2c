"""Options of `sparse-dm evaluate` and `sparse-dm sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from keras_sparse_dm.checks import SettingsError, UsageError, at_least, check_choices, in_range
from keras_sparse_dm.commands.options import fail, load_quietly, parse_options
from keras_sparse_dm.diffusion.registry import SAMPLERS
from keras_sparse_dm.files import os_error_text
from keras_sparse_dm.lazy import lazy_module

tyro = lazy_module("tyro")
evaluation = lazy_module("keras_sparse_dm.runs.evaluate")
exported_models = lazy_module("keras_sparse_dm.runs.exported")
inception = lazy_module("keras_sparse_dm.metrics.features.inception")
run_samples = lazy_module("keras_sparse_dm.runs.samples")

SAMPLE_ENDINGS = (".png", ".svg", ".pdf", ".gif", ".npz", ".json")

# Options that several commands of runs share.
_arg = tyro.conf.arg
Steps = Annotated[int | None, _arg(help="Steps of ddim, from 1 to T; the run's by default.")]
Sampler = Annotated[Literal[tuple(SAMPLERS)] | None, _arg(help="Sampler; the run's by default.")]
Eta = Annotated[float | None, _arg(help="Noise of ddim, from 0 to 1; the run's by default.")]
DataDir = Annotated[
    Path | None,
    _arg(help="Folder of the data set's files, if they have moved since the run read them."),
]
CacheDir = Annotated[
    Path | None,
    _arg(help="Folder for prepared data; by default the user's cache folder."),
]
Verbose = Annotated[int, _arg(help="0 for no progress bars.")]


@dataclass(frozen=True)
class EvaluateSettings:
    """Measure the distance of a run's samples from real data, and the cost of the run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run; of an unfinished run, the last checkpoint is used."""
    samples: int = 10_000
    """Number of samples to generate; the paper's is 10,000."""
    steps: Steps = None
    sampler: Sampler = None
    eta: Eta = None
    real: Literal["train", "validation"] = "train"
    """Real data to compare the samples with: the training data, as in the paper, or those for
    validation."""
    real_samples: int = 20_000
    """Largest number of real sketches or images to compare with."""
    weights: tuple[Path, ...] = ()
    """Files of Inception weights; each adds a distance: torch-fidelity's or pytorch-fid's the FID,
    Ge et al.'s a distance of sketches. FD-kanji, of the embedded network, needs no file."""
    seed: int = 0
    """Seed of the samples and of the intervals."""
    data_dir: DataDir = None
    cache_dir: Path | None = None
    """Folder for prepared data and features; by default the user's cache folder."""
    verbose: Verbose = 1

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        check_folder_of_run(self.run)
        check_choices(self)
        _check_sampling(self, self.samples, "--samples", 8)
        at_least(("--real-samples", self.real_samples, 8), error=SettingsError)
        for path in self.weights:
            if not path.is_file():
                sources = f"{inception.where_to_get()} {inception.where_to_get('quickdraw')}"
                raise SettingsError(f"--weights: there is no file {path}. {sources}")


@dataclass(frozen=True)
class SampleSettings:
    """Generate samples of a run or of an exported model."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or an exported model: a .tflite file, the directory of a SavedModel, or a
    sparse checkpoint."""
    output: Path
    """File to write: .png, .svg or .pdf (a picture), .gif (sketches, drawn point by point), .npz
    (points and lengths, or images) or .json (sketches, which convert-sketches reads)."""
    n: int = 64
    """Number of samples (-n)."""
    steps: Steps = None
    sampler: Sampler = None
    eta: Eta = None
    seed: int = 0
    """Seed of the samples."""
    data_dir: DataDir = None
    cache_dir: CacheDir = None
    verbose: Verbose = 1

    def check(self):
        """Check all that can be checked without loading Keras or data.

        Raises:
            SettingsError: naming the option, what was received and what would be right.
        """
        if not self.run.exists():
            raise SettingsError(
                f"there is no {self.run}; give the folder of a run, or an exported model."
            )
        check_choices(self)
        _check_sampling(self, self.n, "-n", 1)
        if self.output.suffix.lower() not in SAMPLE_ENDINGS:
            raise SettingsError(
                f"--output must end in {', '.join(SAMPLE_ENDINGS)}; received {self.output}."
            )
        if not self.output.absolute().parent.is_dir():
            raise SettingsError(f"--output: the folder {self.output.parent} does not exist.")


def check_folder_of_run(run):
    """Raise a SettingsError if the folder of a run does not exist."""
    if not run.is_dir():
        raise SettingsError(f"there is no folder {run}; give the folder of a run.")


def _check_sampling(settings, count, option, least):
    at_least((option, count, least), ("--steps", settings.steps, 1), error=SettingsError)
    if settings.eta is not None:
        in_range("--eta", settings.eta, 0, 1, error=SettingsError)
    if not 0 <= settings.seed < 2**31:
        raise SettingsError(f"--seed must be from 0 to 2147483647; received {settings.seed}.")


def evaluate_command(argv, prog="sparse-dm evaluate"):
    """Parse the options of `evaluate`, evaluate, and return the exit code."""

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

    advice = "The samples generated so far are kept; the same command resumes."
    return run_command(argv, prog, EvaluateSettings, work, advice)


def sample_command(argv, prog="sparse-dm sample"):
    """Parse the options of `sample`, write the samples, and return the exit code."""
    # `-n` is the usual spelling of a number of items.
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
    """Load the `Run` that a command's settings name."""
    return run_samples.load_run(
        settings.run, settings.data_dir, settings.cache_dir, settings.verbose
    )


def _check_steps(steps, timesteps):
    if steps is not None and steps > timesteps:
        raise SettingsError(
            f"--steps must be at most the run's {timesteps} timesteps; received {steps}."
        )


def _check_options_of_exported(settings, exported):
    """Raise a SettingsError for options that a run accepts but this exported model does not."""
    if exported.only_ddim and (settings.sampler or exported.sampling.sampler) != "ddim":
        raise SettingsError(
            f"--sampler must be ddim, the only sampler of {settings.run}; received "
            f"{settings.sampler or exported.sampling.sampler}."
        )
    eta = exported.sampling.eta if settings.eta is None else settings.eta
    if exported.deterministic and eta:
        raise SettingsError(f"--eta must be 0 for {settings.run}; received {eta:g}.")
    if exported.steps is not None and settings.steps not in (None, exported.steps):
        raise SettingsError(
            f"--steps must be {exported.steps}, the number that {settings.run} was exported with; "
            f"received {settings.steps}."
        )


def run_command(argv, prog, kind, work, advice):
    """Parse options, run a command, print its errors, and return the exit code.

    Args:
        argv: List of command line arguments.
        prog: Name of the command in messages.
        kind: Dataclass of the settings, with a method `check`.
        work: Function of the settings that does the command's work.
        advice: Text that follows the message of a file error or an interrupt.
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
