"""The command `sparse-dm study`: options, errors, and the list of studies."""

import dataclasses
import os
import subprocess
import sys

import pytest
from study_launcher import options_for

from keras_sparse_dm.cli import main
from keras_sparse_dm.study.studies import find_study
from keras_sparse_dm.study.tasks import tasks_of


def one_line(capsys, *argv):
    assert main(["study", *map(str, argv)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sparse-dm study")
    return lines[0]


def test_errors_name_the_option(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "must be run, report or list; received nothing" in one_line(capsys)
    assert "Did you mean 'table" in one_line(capsys, "run", "tabel2")
    assert "received 'big'" in one_line(capsys, "run", "table2", "--scale", "big")
    assert "--jobs must be 1 or more" in one_line(capsys, "run", "table2", "--jobs", "0")
    assert "received 'x=3'" in one_line(capsys, "run", "table2", "--epochs", "x=3")
    assert "matches none" in one_line(capsys, "run", "table2", "--cells", "nothing")
    assert "no folder" in one_line(capsys, "run", "table2", "--data-dir", "nowhere")
    assert "mnist" in one_line(capsys, "run", "sketches", "--scale", "reduced")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))
    kanji = ("run", "table2", "--scale", "paper", "--cells", "*kanjivg*")
    (tmp_path / "quickdraw").mkdir()
    (tmp_path / "mnist").mkdir()
    assert "give --yes" in one_line(capsys, *kanji, "--data-dir", tmp_path)
    assert not (tmp_path / "studies").exists()


def test_epochs_of_a_preset_take_precedence():
    from keras_sparse_dm.commands.study import StudyRunSettings

    settings = StudyRunSettings("sketches", epochs=("chirodiff_vmnist=3", "8"))
    epochs = settings.epochs_by_preset()
    assert epochs["chirodiff_vmnist"] == 3 and epochs["chirodiff_kanjivg"] == 8


def test_list_names_the_studies(capsys):
    assert main(["study", "list"]) == 0
    out = capsys.readouterr().out
    assert "table2      60 runs" in out and "sketches    44 runs" in out


def test_cells_that_are_not_chosen_need_no_data(tmp_path, capsys):
    (tmp_path / "celebahq").mkdir()
    command = ["study", "run", "table1", "--scale", "reduced", "--data-dir", str(tmp_path)]
    command += ["--output-dir", str(tmp_path / "study")]
    assert main([*command, "--cells", "*bedrooms*"]) == 2
    assert "in which lsun_bedrooms holds the data set" in capsys.readouterr().err
    options = dataclasses.replace(
        options_for(tmp_path / "study"), scale="reduced", data_dir=tmp_path
    )
    assert len(tasks_of(find_study("table1").with_cells("*celebahq-dense*"), options)) > 0


def test_list_has_help(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["study", "list", "--help"])
    assert not ended.value.code and "List the studies" in capsys.readouterr().out
    assert "--scale" in one_line(capsys, "list", "--scale")


@pytest.mark.cases(1)
@pytest.mark.parametrize("arguments", [["list"], ["list", "--help"], ["run", "--help"]])
def test_a_reader_that_ends_early_gets_no_traceback(arguments):
    command = [sys.executable, "-m", "keras_sparse_dm.cli", "study", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141  # 128 + SIGPIPE
    process.stderr.close()
