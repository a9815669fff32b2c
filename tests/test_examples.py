"""The examples run and print the reports that their docstrings promise."""

import importlib.util
from pathlib import Path

import keras
import pytest

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# A kernel that must be sparse, and the number of sparse kernels.
@pytest.mark.nightly
@pytest.mark.parametrize(
    "model, kernel, count",
    [
        # Two layers have two directions with two kernels each; the last layer has one.
        ("tagger", "forward_lstm_1/lstm_cell/recurrent_kernel", 9),
        ("mobilenet", "expanded_conv_1_depthwise/kernel", 54),
        ("convnext", "convnext_tiny_stage_2_block_3_pointwise_conv_1/kernel", 59),
    ],
)
def test_any_keras_model(model, kernel, count, tmp_path, capsys):
    script = example("sparse_any_keras_model")
    # Keras numbers the names of layers.
    keras.utils.clear_session()
    if model == "tagger":
        # Like the command line, with the table.
        script.main(models=(model,), sparsity=0.7)
        text = capsys.readouterr().out
        assert "tagger: the same after saving and loading" in text
        assert kernel in text and f"{count} kernels" in text
        keras.utils.clear_session()
    report = script.run(model, 0.8, tmp_path)
    assert (tmp_path / f"{model}.keras").stat().st_size > 0
    assert len(report.kernels) == count and not report.left_alone
    [one] = [k for k in report.kernels if k.name.endswith(kernel)]
    assert one.active < one.size or model == "mobilenet"
    assert report.sparsity == pytest.approx(0.8, abs=1e-3 if count > 9 else 1e-2)
    # The loaded file has the state of three updates of 0.3.
    assert report.ever_active > 1.2 * report.active / report.size
