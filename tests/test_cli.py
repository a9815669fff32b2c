import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keras_sparse_dm import __version__
from keras_sparse_dm.checks import SettingsError
from keras_sparse_dm.cli import main
from keras_sparse_dm.commands.train import named_preset, parse_settings, train_command
from keras_sparse_dm.data import kanjivg_folder
from keras_sparse_dm.models import PRESETS, get_preset
from keras_sparse_dm.runs.folder import CONFIG_FILE, write_json
from keras_sparse_dm.runs.settings import RunSettings


@pytest.fixture(autouse=True)
def empty_working_folder(tmp_path, monkeypatch):
    """Run each test in an empty folder, which holds all files that it writes."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KERAS_SPARSE_DM_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def refused(capfd, empty_working_folder):
    """Run `train`, expect exit code 2 and one line, and return the line."""

    def refused(*argv, code=2, untouched=True):
        before = sorted(empty_working_folder.rglob("*"))
        capfd.readouterr()
        try:
            received = train_command([str(a) for a in argv])
        except SystemExit as exit:
            received = exit.code
        out, err = capfd.readouterr()
        assert received == code
        assert "Traceback" not in out + err
        # The progress bar of data preparation may precede it.
        lines = err.replace("\r", "\n").splitlines()
        lines = [line for line in lines if line and "Preparing" not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith("train.py: error: ")
        if untouched:
            assert sorted(empty_working_folder.rglob("*")) == before
        return lines[0]

    return refused


def copy_sketches(folder, n=12):
    folder.mkdir()
    files = sorted(kanjivg_folder().glob("0[5-8]???.svg"))
    for file in files[:: len(files) // n][:n]:
        shutil.copy(file, folder)
    return folder


# Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, texts",
    [
        (["--sparsity", "1"], ["--sparsity", "[0, 1)", "received 1"]),
        (["--sparsity", "-0.2"], ["[0, 1)", "received -0.2"]),
        (["--sparsity=nan"], ["[0, 1)", "received nan"]),
        (["--sparsity", "0"], ["--sparsity", "--method dense"]),
        (["--sparsity", "90"], ["received 90", "Did you mean 0.9?"]),
        (["--method", "rigll"], ["'rigll'", "Did you mean 'rigl'?"]),
        (["--structure", "blocks"], ["--structure", "blocks:4", "'blocks'"]),
        (["--structure", "nm:2"], ["--structure", "nm:2:4", "'nm:2'"]),
        (["--structure", "nm:2:4"], ["--distribution uniform", "--sparsity 0.5", "erk"]),
        (["--competition", "globall"], ["kernel, global", "Did you mean 'global'?"]),
        (["--grow-init", "ones"], ["zeros, normal", "'ones'"]),
        (["--gradient-steps", "101"], ["--update-every", "100", "received 101"]),
        (["--start-step", "9", "--stop-step", "5"], ["--stop-step", "9", "received 5"]),
        (["--method", "gmp", "--stop-step", "5"], ["--stop-step", "gmp"]),
        (["--prune-rate", "0"], ["--prune-rate", "(0, 1]", "received 0"]),
        (["--prune-rate", "1.5"], ["(0, 1]", "received 1.5"]),
        (["--method", "snip"], ["rigl, magran, set, snfs, gmp, static, dense", "'snip'"]),
        (["--distribution", "erkk"], ["uniform, er, erk", "'erkk'"]),
        (["--prune-schedule", "linear"], ["constant, cosine", "'linear'"]),
        (["--learning-rate-schedule", "x"], ["constant, cosine", "'x'"]),
        (["--noise.schedule", "sigmoid"], ["linear, scaled_linear, cosine", "'sigmoid'"]),
        (["--update-every", "0"], ["--update-every", "1 or more", "received 0"]),
        (["--epochs", "-1"], ["--epochs", "1 or more", "received -1"]),
        (["chirodiff_kanji"], ["'chirodiff_kanji'", "Did you mean 'chirodiff_kanjivg'?"]),
        (["--epochs", "3", "ldm"], ["received 'ldm'", *PRESETS]),
        (["chirodiff_quickdraw"], ["--data-dir", "does not exist"]),
    ],
)
def test_bad_values(refused, argv, texts):
    line = refused(*argv)
    for text in texts:
        assert text in line


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--sparsity", "half"], "--sparsity"),
        (["--epochs", "1.5"], "--epochs"),
        (["--sparsty", "0.5"], "--sparsty, 0.5; did you mean --sparsity? See train.py --help."),
        (["--method"], "--method"),
        (["quickstart", "rigl"], "rigl"),
    ],
)
def test_options_that_do_not_parse(refused, argv, text):
    assert text in refused(*argv)


def test_data_folders_that_do_not_serve(refused, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "a.svg"
    file.write_text("<svg/>")
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "readme.txt").write_text("no sketch")
    for folder in (empty, tmp_path / "missing", file, texts):
        line = refused("--data-dir", folder, "--output-dir", "run")
        assert str(folder) in line and "--data-dir" in line


def test_a_data_folder_of_broken_files(refused, tmp_path):
    folder = copy_sketches(tmp_path / "svg")
    for i in range(3):
        (folder / f"05a0{i}.svg").write_text("<svg")
    line = refused("--data-dir", folder, "--output-dir", "run")
    assert "3 of 15 files are broken" in line and "05a00.svg" in line


def test_a_batch_larger_than_the_data(refused, tmp_path):
    folder = copy_sketches(tmp_path / "svg")
    line = refused("--data-dir", folder, "--batch-size", "11", "--output-dir", "run")
    assert "--batch-size" in line and "11" in line and "1 to 10" in line


@pytest.mark.slow
def test_too_little_room_is_said_before_training(refused, tmp_path, monkeypatch):
    folder = copy_sketches(tmp_path / "svg")
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    line = refused(
        *("--data-dir", folder, "--batch-size", "4", "--units", "4", "--num-layers", "1"),
        *("--output-dir", "run"),
    )
    assert "1 MB" in line and "run" in line


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a file", "below a file", "a folder that cannot be made"])
def test_an_output_folder_that_cannot_be(refused, tmp_path, kind):
    target = tmp_path / "file"
    target.write_text("mine")
    if kind == "below a file":
        target = target / "run"
    elif kind != "a file":
        target = Path("/proc/no-such-place/run")
    # The last error is only found once the data have been read.
    data = copy_sketches(tmp_path / "svg")
    line = refused("--output-dir", target, "--data-dir", data, "--batch-size", "4")
    assert str(target) in line and "--output-dir" in line
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_of_other_things_is_left_alone(refused, empty_working_folder):
    folder = empty_working_folder / "photos"
    folder.mkdir()
    (folder / "photo.jpg").write_text("mine")
    assert "photos" in refused("--output-dir", folder)


# A folder that holds a run -----------------------------------------------------------------------


@pytest.fixture
def stored(empty_working_folder):
    """Make a folder with the configuration of a run, as training writes it."""

    def stored(*argv):
        folder = empty_working_folder / "run"
        folder.mkdir(exist_ok=True)
        settings = parse_settings([*argv, "--output-dir", str(folder)])
        write_json(folder / CONFIG_FILE, {"settings": settings.to_dict(), "versions": {}})
        return folder

    return stored


def test_a_folder_that_holds_a_run_is_refused(refused, stored):
    folder = stored()
    line = refused("--output-dir", folder)
    assert str(folder) in line and "--resume" in line


def test_resume_needs_a_run(refused, empty_working_folder):
    (empty_working_folder / "empty").mkdir()
    for name in ("empty", "missing"):
        line = refused("--output-dir", name, "--resume")
        assert name in line and "holds no run" in line


def test_resume_inherits_the_settings_of_the_run(stored):
    told = ("--sparsity", "0.3", "--units", "5", "--seed", "4", "--noise.timesteps", "70")
    folder = stored("chirodiff_kanjivg", *told, "--method", "magran", "--data-dir", "/some/where")
    settings = parse_settings(["--output-dir", str(folder), "--resume"])
    wanted = parse_settings(
        ["chirodiff_kanjivg", *told, "--method", "magran", "--data-dir", "/some/where"]
    )
    assert settings.to_dict() == wanted.to_dict()
    assert settings.resume and settings.folder == folder
    # Options that are repeated with equal values are no difference.
    again = parse_settings(
        ["chirodiff_kanjivg", "--output-dir", str(folder), "--resume", "--sparsity", "0.3"]
    )
    assert again.to_dict() == wanted.to_dict()


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--sparsity", "0.4"], "--sparsity is 0.4 but was 0.3"),
        (["--method", "static"], "--method is 'static' but was 'rigl'"),
        (["--seed", "1"], "--seed is 1 but was 0"),
        (["--units", "7"], "--units is 7 but was 5"),
        (["chirodiff_kanjivg"], "preset is 'chirodiff_kanjivg' but was 'quickstart'"),
    ],
)
def test_resume_refuses_other_settings(refused, stored, argv, text):
    folder = stored("--sparsity", "0.3", "--units", "5")
    line = refused("--output-dir", folder, "--resume", *argv)
    assert text in line


@pytest.mark.parametrize("text", ["", "{half", "[]", "{}", '{"settings": {}}', '{"settings": 3}'])
@pytest.mark.parametrize("resume", [True, False])
def test_a_damaged_configuration_is_named(refused, empty_working_folder, text, resume):
    folder = empty_working_folder / "run"
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(text)
    line = refused("--output-dir", folder, *(["--resume"] if resume else []))
    assert str(folder) in line


# Presets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", range(5))
def test_the_preset_may_stand_anywhere(position):
    options = [["--seed", "4"], ["--sparsity", "0.25"], ["--output-dir", "quickstart"]]
    options.append(["--resume"])
    options.insert(position, ["chirodiff_kanjivg"])
    settings = parse_settings([word for option in options for word in option])
    preset = get_preset("chirodiff_kanjivg")
    assert settings.preset == "chirodiff_kanjivg"
    assert settings.model == preset.model and settings.noise == preset.noise
    assert settings.training.learning_rate == preset.training.learning_rate
    assert settings.training.epochs == preset.training.epochs
    assert settings.training.sparsity == 0.25 and settings.seed == 4


def test_without_arguments_it_is_the_quick_start():
    assert parse_settings([]) == RunSettings.from_preset("quickstart")


def test_a_value_that_is_called_like_a_preset_is_no_preset():
    settings = parse_settings(["--output-dir", "chirodiff_kanjivg"])
    assert settings.preset == "quickstart"
    assert settings.to_preset() == get_preset("quickstart")


def test_an_unknown_preset_is_refused_while_parsing():
    with pytest.raises(SettingsError, match="received 'nope'"):
        parse_settings(["nope"])


def test_help_tells_every_option_and_the_defaults_of_the_preset(capsys):
    with pytest.raises(SystemExit) as exit:
        train_command(["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    # The choices of an option are in the help, and the errors above are the settings' own.
    for choices in (
        "{rigl,magran,set,snfs,gmp,static,dense}|STR",
        "{kernel,global}",
        "{ddim,ddpm}",
    ):
        assert choices in text
    for option in (
        *("--method", "--sparsity", "--prune-rate", "--update-every", "--epochs", "--batch-size"),
        *("--seed", "--output-dir", "--resume", "--noise.timesteps", "--sampling.steps"),
    ):
        assert option in text
    with pytest.raises(SystemExit):
        train_command(["chirodiff_kanjivg", "--help"])
    assert "(default: 600)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.cases(1)
@pytest.mark.parametrize("command", [["train.py"], ["-m", "keras_sparse_dm.cli", "train"]])
def test_a_reader_that_leaves_sees_no_traceback(command):
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        [sys.executable, *command, "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=root,
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() != 0


def test_flags_are_the_options_without_a_value():
    """The preset may stand behind other options."""
    for flag in ("--grow-warmup", "--no-recognized", "--remat", "--scale-latents"):
        assert named_preset([flag, "chirodiff_vmnist"]) == "chirodiff_vmnist"
    assert named_preset(["--output-dir", "chirodiff_vmnist"]) is None


# sparse-dm -------------------------------------------------------------------------------------


def test_the_console_script(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert "train" in usage and all(name in usage for name in PRESETS)
    assert main(["train", "--sparsity", "2"]) == 2
    assert capsys.readouterr().err.startswith("sparse-dm train: error: --sparsity")


@pytest.mark.parametrize(
    "argv, received", [([], "nothing."), (["trian"], "'trian'. Did you mean 'train'?")]
)
def test_an_unknown_command(capsys, argv, received):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train" in line and f"received {received}" in line
