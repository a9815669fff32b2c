import csv
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_sparse_dm import DynamicSparsity, sparsify, sparsity_report
from keras_sparse_dm.commands.train import train_command
from keras_sparse_dm.data import kanjivg_folder, select_characters
from keras_sparse_dm.diffusion import DiffusionModel, NoiseSchedule
from keras_sparse_dm.models import ChiroDiff
from keras_sparse_dm.runs.samples import load_run
from keras_sparse_dm.sparsity import check_invariant, masked_kernels
from keras_sparse_dm.sparsity.install import innermost_sparse_optimizer

SLOW_FIXTURES = {"interrupted", "stopped", "unbroken"}

pytestmark = pytest.mark.usefixtures("private_cache")

STEPS = 3  # an epoch: 60 sketches, 51 of them for training, in batches of 16
WEIGHTS = 2 * (13 * 24 + 8 * 24) + 16 * 8 + 16 * 3
BIASES = 2 * 2 * 24 + 8 + 3
TINY = (
    *("--units", "8", "--num-layers", "1", "--batch-size", "16", "--noise.timesteps", "50"),
    *("--update-every", "2", "--prune-rate", "0.2", "--sparsity", "0.5", "--seed", "3"),
    *("--learning-rate", "0.01", "--learning-rate-schedule", "cosine", "--ema-momentum", "0.8"),
    *("--sampling.steps", "3", "--samples", "4", "--verbose", "0"),
    *("--sampling.evaluation", "0"),
)
THREE_EPOCHS = (*TINY, "--epochs", "3")
LOSS_COLUMNS = ("epoch", "loss", "val_loss", "learning_rate", "sparsity")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder of 60 kanji from all of KanjiVG."""
    folder = tmp_path_factory.mktemp("data") / "svg"
    folder.mkdir()
    files = select_characters(sorted(kanjivg_folder().glob("*.svg")))
    for file in files[:: len(files) // 60][:60]:
        shutil.copy(file, folder)
    return folder


def run(*argv):
    return train_command([str(argument) for argument in argv])


class _Stop(keras.callbacks.Callback):
    """Call a function at one training step, before the callbacks of the run."""

    def __init__(self, step, act):
        super().__init__()
        self.step, self.act = step, act

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            self.act(self.model)


def at_step(patch, step, act):
    fit = DiffusionModel.fit

    def fit_with_stop(self, *args, callbacks=(), **kwargs):
        return fit(self, *args, callbacks=[_Stop(step, act), *callbacks], **kwargs)

    patch.setattr(DiffusionModel, "fit", fit_with_stop)


def interrupt(model):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unbroken(data, tmp_path_factory):
    """Folder of a complete run, with a picture every second epoch."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    arguments = (*THREE_EPOCHS, "--data-dir", data, "--output-dir", folder)
    assert run(*arguments, "--samples-every", "2") == 0
    return folder


@pytest.fixture(scope="module")
def interrupted(data, tmp_path_factory):
    """Folder of the same run, stopped by Ctrl-C in the middle of its second epoch."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, STEPS + 2, interrupt)
        assert run(*THREE_EPOCHS, "--data-dir", data, "--output-dir", folder) == 130
    return folder


@pytest.fixture
def stopped(interrupted, tmp_path):
    """Copy of the stopped run's folder, to resume."""
    return shutil.copytree(interrupted, tmp_path / "run")


def one_line(capfd):
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    ours = [line for line in err.splitlines() if line.startswith("train.py: error:")]
    assert len(ours) == 1, err
    # Only TensorFlow and Python's warnings print anything else.
    rest = [line for line in err.splitlines() if "rror" in line and line not in ours]
    assert not [line for line in rest if not re.match(r"^[EIW]\d{4} ", line)], rest
    return ours[0]


def rows(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def losses(folder):
    """Return the columns that must not depend on the machine's speed, as text."""
    return [[row[name] for name in LOSS_COLUMNS] for row in rows(folder)]


def state(path):
    model = keras.saving.load_model(path)
    return [np.asarray(v) for v in (*model.weights, *model.optimizer.variables)]


def assert_same_run(folder, other):
    """Assert that weights, masks, optimizer state, losses and reports are bitwise equal."""
    assert losses(folder) == losses(other)
    for file in ("model.keras", "checkpoints/last.keras"):
        mine, theirs = state(folder / file), state(other / file)
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
    mine, theirs = (json.loads((f / "report.json").read_text()) for f in (folder, other))
    for name in ("training_seconds", "session_seconds"):
        del mine[name], theirs[name]
    assert mine == theirs


# Files of a run -------------------------------------------------------------------------------


def test_the_folder_holds_what_was_promised_and_nothing_half_written(unbroken):
    from matplotlib.image import imread

    files = {str(p.relative_to(unbroken)) for p in unbroken.rglob("*") if p.is_file()}
    fixed = {f for f in files if not f.startswith("tensorboard")}
    assert fixed == {
        "config.json",
        "state.json",
        "metrics.csv",
        "checkpoints/last.keras",
        "model.keras",
        "samples.png",
        "samples/epoch-0002.png",
        "report.md",
        "report.json",
    }
    assert files > fixed
    for picture in ("samples.png", "samples/epoch-0002.png"):
        pixels = imread(unbroken / picture)[..., :3]
        assert (pixels < 0.9).any()


def test_the_configuration_is_exact(unbroken, data):
    settings = json.loads((unbroken / "config.json").read_text())["settings"]
    training = settings["training"]
    assert (training["epochs"], training["batch_size"], training["update_every"]) == (3, 16, 2)
    assert (training["method"], training["sparsity"], training["prune_rate"]) == ("rigl", 0.5, 0.2)
    assert (training["learning_rate"], training["ema_momentum"]) == (0.01, 0.8)
    assert (settings["model"]["units"], settings["noise"]["timesteps"]) == (8, 50)
    assert (settings["seed"], settings["data_dir"]) == (3, str(data))
    versions = json.loads((unbroken / "config.json").read_text())["versions"]
    assert versions["keras"] == keras.__version__ and versions["tensorflow"] == tf.__version__


def test_metrics_have_a_row_an_epoch(unbroken):
    table = rows(unbroken)
    assert [int(row["epoch"]) for row in table] == [0, 1, 2]
    for row in table:
        assert np.isfinite([float(row[name]) for name in (*LOSS_COLUMNS, "seconds")]).all()
        assert float(row["sparsity"]) == pytest.approx(0.5, abs=0.01)
    rates = [float(row["learning_rate"]) for row in table]
    assert rates[0] > rates[1] > rates[2] >= 0


def test_the_report_says_what_the_model_is(unbroken, data):
    report = json.loads((unbroken / "report.json").read_text())
    model = keras.saving.load_model(unbroken / "model.keras")
    sparsity = sparsity_report(model)
    assert report["sparsity"] == json.loads(json.dumps(sparsity.to_dict()))
    cost, points = report["cost"], report["flops_points"]
    active = sum(int(np.asarray(k.mask).sum()) for k in masked_kernels(model))
    # Rounding changes the total by less than half a weight per kernel.
    assert abs(active - WEIGHTS / 2) <= 3
    assert (cost["parameters"], cost["active_parameters"]) == (WEIGHTS + BIASES, active + BIASES)
    dense, sparse = 2 * WEIGHTS * points, 2 * active * points
    assert (cost["dense_flops"], cost["sparse_flops"]) == (dense, sparse)
    assert (cost["dense_sampling_flops"], cost["sparse_sampling_flops"]) == (3 * dense, 3 * sparse)
    assert cost["dense_training_flops"] == 3 * dense * 9
    assert cost["sparse_training_flops"] == pytest.approx((3 * sparse * 2 + 2 * sparse + dense) * 3)
    assert (report["iterations"], report["training_sketches"]) == (9, 51)
    assert report["validation_sketches"] == 9
    assert report["topology_updates"] == 4
    assert points == round(report["points_per_sketch"])
    seconds = sum(float(row["seconds"]) for row in rows(unbroken))
    assert report["training_seconds"] == pytest.approx(seconds)
    # The final weights are the averaged ones, and the last row has their loss.
    assert report["validation_loss_trained"] == float(rows(unbroken)[-1]["val_loss"])
    assert report["validation_loss_untrained"] != report["validation_loss_trained"]
    text = (unbroken / "report.md").read_text()
    for number in (WEIGHTS + BIASES, active + BIASES):
        assert f"{number:,}" in text
    for number in (dense, sparse):
        assert f"{number:.3e}" in text


def test_every_update_exchanged_its_share_of_the_weights(unbroken):
    report = json.loads((unbroken / "report.json").read_text())
    optimizer = innermost_sparse_optimizer(
        keras.saving.load_model(unbroken / "checkpoints" / "last.keras")
    )
    assert optimizer.topology_updates == 4
    for kernel in report["sparsity"]["kernels"]:
        exchanged = report["last_update_exchanged"][kernel["name"]]
        # Dropped weights may grow back at once.
        assert 0 <= exchanged <= kernel["active"] * 0.2
    assert sum(report["last_update_exchanged"].values()) > 0


def test_the_invariant_holds_after_saving_and_loading(unbroken):
    for file in ("model.keras", "checkpoints/last.keras"):
        model = keras.saving.load_model(unbroken / file)
        check_invariant(model)
        optimizer = innermost_sparse_optimizer(model)
        for kernel in masked_kernels(model):
            mask = np.asarray(kernel.mask)
            # The weights, both moments and the average.
            states = [kernel.kernel, *optimizer.state_of(kernel.kernel)]
            assert len(states) == 4
            for values in map(np.asarray, states):
                assert (values[~mask] == 0).all()
                assert np.count_nonzero(values) > 0.5 * mask.sum()


def test_a_broken_invariant_is_seen_in_a_loaded_model(unbroken):
    model = keras.saving.load_model(unbroken / "model.keras")
    (kernel, *_) = masked_kernels(model)
    for variable in innermost_sparse_optimizer(model).state_of(kernel.kernel):
        before = np.asarray(variable)
        variable.assign(np.where(kernel.mask, before, 1e-3))
        with pytest.raises(AssertionError, match=kernel.name):
            check_invariant(model)
        variable.assign(before)
    check_invariant(model)


def test_tensorboard_has_the_curves(unbroken):
    values = {}
    for file in (unbroken / "tensorboard").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                number = float(tf.make_ndarray(value.tensor).reshape(-1)[0]) if (
                    value.tensor.dtype == 1
                ) else None  # fmt: skip
                tag = f"{file.parent.name}:{value.tag}"
                values.setdefault(tag, {})[event.step] = number
    table = rows(unbroken)
    for tag, column in (
        ("train:epoch_loss", "loss"),
        ("validation:epoch_loss", "val_loss"),
        ("train:epoch_learning_rate", "learning_rate"),
    ):
        assert list(values[tag].values()) == pytest.approx(
            [float(row[column]) for row in table], rel=1e-5
        )
    report = json.loads((unbroken / "report.json").read_text())
    for kernel in report["sparsity"]["kernels"]:
        density = values[f"sparsity:density/{kernel['name']}"]
        assert set(density) == {3, 6, 9}
        assert list(density.values()) == pytest.approx([kernel["density"]] * 3, rel=1e-6)
        exchanged = values[f"sparsity:exchanged/{kernel['name']}"]
        assert set(exchanged) == {2, 4, 6, 8}
        assert all(0 <= share <= 0.2 for share in exchanged.values())
        last = report["last_update_exchanged"][kernel["name"]] / kernel["active"]
        assert exchanged[8] == pytest.approx(last, rel=1e-6)


# Stopping and resuming -------------------------------------------------------------------------


def test_an_interrupted_run_keeps_its_finished_epochs(stopped):
    assert len(rows(stopped)) == 1
    model = keras.saving.load_model(stopped / "checkpoints" / "last.keras")
    assert int(model.optimizer.iterations) == STEPS
    check_invariant(model)
    assert not (stopped / "model.keras").exists()


@pytest.mark.nightly
def test_a_run_stopped_before_its_first_checkpoint_starts_anew(data, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    arguments = (*TINY, "--epochs", "1", "--data-dir", data, "--output-dir", folder)
    with monkeypatch.context() as patch:
        at_step(patch, 2, interrupt)
        assert run(*arguments) == 130
    line = one_line(capfd)
    assert str(folder) in line and "--resume" in line
    with monkeypatch.context() as patch:
        at_step(patch, 1, interrupt)  # only a run from the start reaches this step
        assert run("--output-dir", folder, "--resume", "--verbose", "0") == 130
    one_line(capfd)


def test_a_resumed_run_ends_with_the_bits_of_an_unbroken_one(stopped, unbroken, capfd):
    assert run("--output-dir", stopped, "--resume", "--samples", "4", "--verbose", "0") == 0
    assert "after epoch 1 of 3" in capfd.readouterr().out
    assert_same_run(stopped, unbroken)
    check_invariant(keras.saving.load_model(stopped / "model.keras"))


KILLED = """
import os, signal, sys
from pathlib import Path
import keras
from keras_sparse_dm.commands.train import train_command

save, saved = keras.Model.save, []

def save_and_die(self, path, *args, **kwargs):
    save(self, path, *args, **kwargs)
    saved.append(path)
    if len(saved) == 2:
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

keras.Model.save = save_and_die
train_command(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_killed_while_it_saves_ends_with_the_same_bits(data, unbroken, tmp_path, capfd):
    folder = tmp_path / "run"
    arguments = (*THREE_EPOCHS, "--data-dir", str(data), "--output-dir", str(folder))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    # The table already has the second epoch, but its checkpoint is incomplete.
    assert len(rows(folder)) == 2
    model = keras.saving.load_model(folder / "checkpoints" / "last.keras")
    assert int(model.optimizer.iterations) == STEPS
    assert run("--output-dir", folder, "--resume", "--samples", "4", "--verbose", "0") == 0
    assert_same_run(folder, unbroken)
    leftovers = [p.name for p in folder.rglob("*") if "partial" in p.name]
    assert not leftovers


def test_resuming_a_finished_run_changes_nothing(unbroken, tmp_path, monkeypatch):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    generate, counted = DiffusionModel.generate, []

    def counting(self, *args, lengths, **kwargs):
        counted.append(len(lengths))
        return generate(self, *args, lengths=lengths, **kwargs)

    monkeypatch.setattr(DiffusionModel, "generate", counting)
    assert run("--output-dir", folder, "--resume", "--verbose", "0") == 0
    assert_same_run(folder, unbroken)
    # The run was started with `--samples 4`.
    assert counted == [4]


# Errors -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_diverging_run_stops_and_says_so(data, tmp_path, capfd):
    folder = tmp_path / "run"
    arguments = (*TINY, "--epochs", "2", "--learning-rate-schedule", "constant")
    arguments = (*arguments, "--learning-rate", "1e30", "--global-clipnorm", "0")
    assert run(*arguments, "--data-dir", data, "--output-dir", folder) == 1
    line = one_line(capfd)
    assert re.search(r"loss is (nan|inf)", line) and "--learning-rate" in line
    assert not (folder / "model.keras").exists()


def test_a_nan_loss_keeps_the_last_good_checkpoint(stopped, monkeypatch, capfd):
    def poison(model):
        bias = model.denoiser.noise_projection.bias
        bias.assign(np.full(bias.shape, np.nan))

    before = (stopped / "checkpoints" / "last.keras").read_bytes()
    at_step(monkeypatch, STEPS + 1, poison)
    assert run("--output-dir", stopped, "--resume", "--verbose", "0") == 1
    line = one_line(capfd)
    assert "nan" in line and str(stopped / "checkpoints" / "last.keras") in line
    assert (stopped / "checkpoints" / "last.keras").read_bytes() == before
    assert len(rows(stopped)) == 1
    assert all(np.isfinite(v).all() for v in state(stopped / "checkpoints" / "last.keras"))


def test_a_full_disk_keeps_the_last_checkpoint(stopped, monkeypatch, capfd):
    checkpoint = stopped / "checkpoints" / "last.keras"
    before = checkpoint.read_bytes()

    def full(self, path, *args, **kwargs):
        with open(path, "wb") as file:
            file.write(before[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(keras.Model, "save", full)
    assert run("--output-dir", stopped, "--resume", "--samples", "4", "--verbose", "0") == 1
    line = one_line(capfd)
    assert "No space left" in line and "--resume" in line and str(stopped) in line
    assert checkpoint.read_bytes() == before
    assert os.listdir(checkpoint.parent) == ["last.keras"]


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_does_not_block_the_folder(
    data, tmp_path, monkeypatch, capfd
):
    training = importlib.import_module("keras_sparse_dm.runs.train")
    folder = tmp_path / "run"
    arguments = (*TINY, "--epochs", "1", "--data-dir", data, "--output-dir", folder)

    def full(path, values):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_json", full)
        assert run(*arguments) == 1
    line = one_line(capfd)
    assert "No space left" in line
    # The advice in the message must work.
    again = (*arguments, "--resume") if "--resume" in line else arguments
    with monkeypatch.context() as patch:
        at_step(patch, 1, interrupt)
        assert run(*again) == 130, capfd.readouterr().err


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    elif how == "flipped bytes":
        for i in range(len(content) // 4, len(content) * 3 // 4, 97):
            content[i] ^= 0xFF
    elif how == "text":
        content = b"hello"
    else:
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "flipped bytes", "text", "empty"])
def test_a_damaged_checkpoint_is_named(stopped, capfd, how):
    checkpoint = stopped / "checkpoints" / "last.keras"
    damage(checkpoint, how)
    before = checkpoint.read_bytes()
    assert run("--output-dir", stopped, "--resume", "--verbose", "0") == 2
    assert str(checkpoint) in one_line(capfd)
    assert checkpoint.read_bytes() == before
    assert len(rows(stopped)) == 1


@pytest.mark.parametrize("text", [None, "{half", "{}"])
def test_a_damaged_state_file_is_named(stopped, capfd, text):
    if text is None:
        (stopped / "state.json").unlink()
    else:
        (stopped / "state.json").write_text(text)
    assert run("--output-dir", stopped, "--resume", "--verbose", "0") == 2
    assert "state.json" in one_line(capfd)


@pytest.mark.parametrize("network", ["smaller", "dense", "not trained here"])
def test_a_checkpoint_of_another_configuration_is_refused(stopped, capfd, network):
    checkpoint = stopped / "checkpoints" / "last.keras"
    if network == "not trained here":
        other = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    else:
        units = 4 if network == "smaller" else 8
        other = DiffusionModel(ChiroDiff(units, 1, timesteps=50), NoiseSchedule.linear(50))
    other.compile(keras.optimizers.AdamW(1e-3, use_ema=True, ema_momentum=0.8))
    if network == "smaller":
        sparsify(other, 0.5)
        DynamicSparsity("rigl", update_every=2).set_model(other)
    other.save(checkpoint)
    assert run("--output-dir", stopped, "--resume", "--verbose", "0") == 2
    assert str(checkpoint) in one_line(capfd)


# Other ways to train -----------------------------------------------------------------------------


def finished(folder):
    report = json.loads((folder / "report.json").read_text())
    model = keras.saving.load_model(folder / "model.keras")
    assert (folder / "samples.png").exists()
    assert len(rows(folder)) == 1
    return report, model


@pytest.mark.slow
def test_a_dense_run_which_skips_and_names_broken_files(data, tmp_path, capfd):
    source = shutil.copytree(data, tmp_path / "svg")
    (source / "05a00.svg").write_text("<svg><path d='M 0 0")
    (source / "05a01.svg").write_bytes(b"\xff\xfe\x00garbage")
    folder = tmp_path / "run"
    arguments = (*TINY, "--epochs", "1", "--method", "dense", "--ema-momentum", "0")
    assert run(*arguments, "--data-dir", source, "--output-dir", folder) == 0
    out = capfd.readouterr().out
    assert "62 sketches read, 60 kept" in out and "2 broken" in out
    assert "05a00.svg" in out and "05a01.svg" in out
    report, model = finished(folder)
    assert sparsity_report(model).sparsity == 0
    assert innermost_sparse_optimizer(model) is None
    assert report["cost"]["sparse_flops"] == report["cost"]["dense_flops"] > 0
    assert report["cost"]["active_parameters"] == WEIGHTS + BIASES
    assert report["topology_updates"] == 0


@pytest.mark.slow
def test_a_static_run_with_every_other_option_turned(data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    begun = []
    at_step(monkeypatch, 1, lambda model: begun.extend(masked_kernels(model)) or begun.extend(
        np.asarray(k.mask) for k in masked_kernels(model)
    ))  # fmt: skip
    arguments = (
        *(*TINY, "--epochs", "1", "--method", "static", "--distribution", "uniform"),
        *("--representation", "delta", "--sampling.sampler", "ddpm", "--noise.schedule", "cosine"),
        *("--global-clipnorm", "0", "--learning-rate-schedule", "constant"),
    )
    assert run(*arguments, "--data-dir", data, "--output-dir", folder) == 0
    report, model = finished(folder)
    check_invariant(model)
    assert report["topology_updates"] == 0 and report["sampling_steps"] == 50
    assert all(k["density"] == pytest.approx(0.5, abs=0.02) for k in report["sparsity"]["kernels"])
    masks = begun[len(begun) // 2 :]
    for kernel, mask in zip(masked_kernels(model), masks, strict=True):
        np.testing.assert_array_equal(kernel.mask, mask)
    cost = report["cost"]
    assert cost["sparse_training_flops"] == 3 * cost["sparse_flops"] * STEPS
    assert (model.denoiser.representation, model.noise_schedule.kind) == ("delta", "cosine")
    assert float(rows(folder)[0]["learning_rate"]) == pytest.approx(0.01)


@pytest.mark.slow
def test_a_magran_run_with_a_cosine_prune_rate(data, tmp_path):
    folder = tmp_path / "run"
    arguments = (*TINY, "--epochs", "1", "--method", "magran", "--prune-schedule", "cosine")
    assert run(*arguments, "--data-dir", data, "--output-dir", folder) == 0
    report, model = finished(folder)
    check_invariant(model)
    assert report["topology_updates"] == 1
    # At step 2 of 3 the rate has fallen to a quarter.
    rate = 0.2 * 0.5 * (1 + np.cos(np.pi * 2 / 3))
    dropped = 0
    for kernel in report["sparsity"]["kernels"]:
        assert report["last_update_exchanged"][kernel["name"]] <= kernel["active"] * rate
        dropped += int(kernel["active"] * rate) if kernel["density"] < 1 else 0
    # Few dropped weights grow back if about half of all weights are candidates.
    assert sum(report["last_update_exchanged"].values()) > dropped / 2
    cost = report["cost"]
    assert cost["sparse_training_flops"] == 3 * cost["sparse_flops"] * STEPS


MINE = """
import keras
from keras_sparse_dm.sparsity import SparsityMethod

@keras.saving.register_keras_serializable(package="mine")
class Mine(SparsityMethod):
    name = "mine"
    gradient = None

    def growth_score(self, weights, gradient, seed):
        return keras.ops.ones_like(weights)
"""


@pytest.mark.slow
def test_a_method_of_ones_own_trains_and_is_found_again(data, tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "run"
    arguments = (*TINY, "--epochs", "1", "--method", "my_method:Mine", "--data-dir", data)
    assert run(*arguments, "--output-dir", folder) == 0
    report, model = finished(folder)
    check_invariant(model)
    assert report["topology_updates"] == 1
    # Another process has not imported it.
    del sys.modules["my_method"], keras.saving.get_custom_objects()["mine>Mine"]
    again = innermost_sparse_optimizer(load_run(folder, verbose=0).model)
    assert type(again.method).__module__ == "my_method"
