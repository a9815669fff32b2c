import re

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import save_file
from support import assert_same_arrays as assert_equal

from keras_sparse_dm import sparsify, sparsity_report
from keras_sparse_dm.convert import load_pytorch
from keras_sparse_dm.models import ChiroDiff

UNITS = 6


def random_tensors(units=UNITS, layers=2, seed=0):
    """A state dict of the original network: PyTorch's names, shapes and layout."""
    random = np.random.default_rng(seed)
    shapes = {"pe_proj_W": (4, 1)}
    for i in range(layers):
        inputs = 13 if i == 0 else 2 * units
        for suffix in ("", "_reverse"):
            shapes[f"model.rnn.weight_ih_l{i}{suffix}"] = (3 * units, inputs)
            shapes[f"model.rnn.weight_hh_l{i}{suffix}"] = (3 * units, units)
            shapes[f"model.rnn.bias_ih_l{i}{suffix}"] = (3 * units,)
            shapes[f"model.rnn.bias_hh_l{i}{suffix}"] = (3 * units,)
    shapes["model.out_proj.weight"] = (units, 2 * units)
    shapes["model.out_proj.bias"] = (units,)
    shapes["final_proj.0.weight"] = (3, units + 8)
    shapes["final_proj.0.bias"] = (3,)
    return {n: 0.4 * random.standard_normal(s).astype("float32") for n, s in shapes.items()}


def new_model():
    return ChiroDiff(units=UNITS, num_layers=2, timesteps=50)


def values(model):
    # Weights and masks; the other variables are random state.
    return [ops.convert_to_numpy(v) for v in model.weights]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def torch_gru(x, tensors, layer, suffix):
    """The equations of PyTorch's GRU documentation, one sequence."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    w_i, w_h, b_i, b_h = (
        tensors[f"model.rnn.{n}_l{layer}{suffix}"].astype("float64") for n in names
    )
    h, outputs = np.zeros(UNITS), []
    for row in x[::-1] if suffix else x:
        i_r, i_z, i_n = np.split(w_i @ row + b_i, 3)
        h_r, h_z, h_n = np.split(w_h @ h + b_h, 3)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        n = np.tanh(i_n + r * h_n)
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.array(outputs[::-1] if suffix else outputs)


def numpy_chirodiff(tensors, points, t, timesteps=50):
    """One unpadded sketch in the absolute representation."""
    angle = 2 * np.pi * ((t + 1) / timesteps) * 4.0 * tensors["pe_proj_W"].reshape(-1)
    time = np.tile(np.concatenate([np.sin(angle), np.cos(angle)]), (len(points), 1))
    velocity = np.diff(points[:, :2], axis=0, prepend=np.zeros((1, 2)))
    hidden = np.concatenate([points, velocity, time], axis=1)
    for layer in range(2):
        hidden = np.concatenate(
            [torch_gru(hidden, tensors, layer, suffix) for suffix in ("", "_reverse")], axis=1
        )
    hidden = hidden @ tensors["model.out_proj.weight"].T + tensors["model.out_proj.bias"]
    joined = np.concatenate([hidden, time], axis=1)
    return joined @ tensors["final_proj.0.weight"].T + tensors["final_proj.0.bias"]


def test_the_filled_network_computes_what_pytorch_would():
    tensors = random_tensors()
    model = new_model()
    assert load_pytorch(model, tensors) is None
    points = np.random.default_rng(1).standard_normal((7, 3))
    mine = model((points[None].astype("float32"), np.array([11]), np.array([7])))
    np.testing.assert_allclose(mine[0], numpy_chirodiff(tensors, points, 11), atol=1e-4)


def test_the_published_prefix_is_accepted():
    plain, prefixed = new_model(), new_model()
    tensors = random_tensors()
    load_pytorch(plain, tensors)
    load_pytorch(prefixed, {f"scorefn.{name}": t for name, t in tensors.items()})
    assert_equal(values(plain), values(prefixed))
    assert set(tensors) == set(random_tensors())  # and the dictionary is left as it was


@pytest.mark.cases(1)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("lightning", [False, True])
def test_pytorch_files(tmp_path, torch, suffix, lightning):
    tensors = random_tensors()
    state = {f"scorefn.{n}": torch.from_numpy(t) for n, t in tensors.items()}
    path = tmp_path / f"model{suffix}"
    torch.save({"state_dict": state, "epoch": 3} if lightning else state, path)
    from_file, from_dict = new_model(), new_model()
    load_pytorch(from_file, path)
    load_pytorch(from_dict, tensors)
    assert_equal(values(from_file), values(from_dict))


def test_a_dictionary_of_pytorch_tensors(torch):
    tensors = random_tensors()
    from_torch, from_dict = new_model(), new_model()
    load_pytorch(from_torch, {n: torch.from_numpy(t) for n, t in tensors.items()})
    load_pytorch(from_dict, tensors)
    assert_equal(values(from_torch), values(from_dict))


def test_a_pytorch_module_of_the_original_shape_agrees(torch):
    """Compare with PyTorch itself."""
    tensors = random_tensors()
    gru = torch.nn.GRU(13, UNITS, num_layers=2, bidirectional=True, batch_first=True)
    prefix = "model.rnn."
    gru.load_state_dict(
        {
            n.removeprefix(prefix): torch.from_numpy(t)
            for n, t in tensors.items()
            if n.startswith(prefix)
        }
    )
    model = new_model()
    load_pytorch(model, tensors)
    x = np.random.default_rng(0).standard_normal((2, 5, 13)).astype("float32")
    hidden = x
    for layer in model.recurrent:
        hidden = layer(hidden)
    np.testing.assert_allclose(hidden, gru(torch.from_numpy(x))[0].detach().numpy(), atol=1e-5)


def test_pytorch_files_that_would_run_code_are_refused(tmp_path, torch):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"state_dict": {"pe_proj_W": Evil()}}, tmp_path / "evil.pt")
    model = new_model()
    before = values(model)
    with pytest.raises(Exception, match="(?i)weights"):
        load_pytorch(model, tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()
    assert_equal(values(model), before)


def test_safetensors_files(tmp_path):
    tensors = random_tensors()
    save_file({f"scorefn.{n}": t for n, t in tensors.items()}, tmp_path / "model.safetensors")
    from_file, from_dict = new_model(), new_model()
    load_pytorch(from_file, str(tmp_path / "model.safetensors"))
    load_pytorch(from_dict, tensors)
    assert_equal(values(from_file), values(from_dict))


def damaged(change):
    tensors = random_tensors()
    change(tensors)
    return tensors


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    "change, named",
    [
        (lambda t: t.pop("model.rnn.bias_hh_l1_reverse"), ["model.rnn.bias_hh_l1_reverse"]),
        (lambda t: t.pop("pe_proj_W"), ["pe_proj_W"]),
        (lambda t: t.update(extra=np.zeros(3)), ["extra"]),
        (
            lambda t: t.update({"final_proj.0.weight": np.zeros((3, 5), "float32")}),
            ["final_proj.0.weight", "(3, 5)", str((UNITS + 8, 3))],
        ),
        (
            lambda t: t.update({"model.rnn.weight_ih_l0": np.zeros((9, 13), "float32")}),
            ["model.rnn.weight_ih_l0", "(9, 13)"],
        ),
        # Gates that do not split in three are a wrong shape like any other.
        (
            lambda t: t.update({"model.rnn.weight_ih_l0": np.zeros((10, 13), "float32")}),
            ["model.rnn.weight_ih_l0", "(10, 13)"],
        ),
        (
            lambda t: t.update({"model.rnn.bias_ih_l1": np.zeros((20,), "float32")}),
            ["model.rnn.bias_ih_l1", "(20,)"],
        ),
        (
            lambda t: (t.pop("model.out_proj.bias"), t.update({"a.b": np.zeros(1)})),
            ["model.out_proj.bias", "a.b"],
        ),
    ],
)
def test_what_does_not_match_is_listed_and_nothing_changes(change, named):
    model = new_model()
    sparsify(model, 0.5, seed=0)
    before = values(model)
    with pytest.raises(ValueError) as error:
        load_pytorch(model, damaged(change))
    for text in named:
        assert text in str(error.value)
    assert_equal(values(model), before)


def test_a_checkpoint_of_another_size_is_refused():
    model = new_model()
    before = values(model)
    with pytest.raises(ValueError, match=re.escape("model.rnn.weight_hh_l0")):
        load_pytorch(model, random_tensors(units=7))
    with pytest.raises(ValueError, match="l2"):
        load_pytorch(model, random_tensors(layers=3))
    with pytest.raises(ValueError, match="l1.*missing"):
        load_pytorch(model, random_tensors(layers=1))
    assert_equal(values(model), before)


def test_a_converted_model_is_dense():
    model = new_model()
    sparsify(model, 0.8, seed=0)
    assert sparsity_report(model).sparsity == pytest.approx(0.8, abs=0.01)
    load_pytorch(model, random_tensors())
    report = sparsity_report(model)
    assert report.sparsity == 0.0
    assert all(k.active == k.nonzeros == k.size for k in report.kernels)


@pytest.mark.parametrize("name", ["nothing.pt", "nothing.safetensors"])
def test_files_that_do_not_exist_are_named(tmp_path, name):
    with pytest.raises((ValueError, FileNotFoundError), match=name):
        load_pytorch(new_model(), tmp_path / name)


def test_unknown_file_formats_and_models_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"1")
    with pytest.raises(ValueError, match=r"\.safetensors.*model\.bin"):
        load_pytorch(new_model(), tmp_path / "model.bin")
    with pytest.raises(ValueError, match="ChiroDiff.*Sequential"):
        load_pytorch(keras.Sequential([keras.layers.Dense(2)]), {})
