"""Keras's own tests of its layers, from its wheel, run with the sparse twins.

They check what users of a layer rely on: numbers of weights, `set_weights`, legacy loading,
constraints, quantization, LoRA, masking, serialization.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

LAYERS = Path(keras.__file__).parent / "src" / "layers"
FILES = {
    "recurrent": ["rnn/gru_test.py", "rnn/lstm_test.py", "rnn/simple_rnn_test.py"],
    "attention": [
        "attention/multi_head_attention_test.py",
        "attention/grouped_query_attention_test.py",
    ],
    "dense": ["core/dense_test.py"],
    "einsum": ["core/einsum_dense_test.py"],
    "convolution": [
        "convolutional/conv_test.py",
        "convolutional/conv_transpose_test.py",
        "convolutional/depthwise_conv_test.py",
        "convolutional/separable_conv_test.py",
    ],
}
# Tests that a sparse layer cannot pass, with the reason.
REFUSED = {}


@pytest.mark.slow
@pytest.mark.cases(1)
@pytest.mark.parametrize("kind", FILES)
def test_kerass_own_tests_pass_with_the_sparse_twins(kind):
    files = [LAYERS / file for file in FILES[kind]]
    missing = [str(file) for file in files if not file.exists()]
    assert not missing, f"Keras's wheel no longer contains {missing}; take them from its repository"
    command = [sys.executable, "-m", "pytest", "-p", "sparse_twins", "-p", "no:cacheprovider"]
    command += ["-q", "-rf", "-n", "0", "--tb=line", "-c", os.devnull, *map(str, files)]
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    environment = os.environ | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    failed = {name for name in re.findall(r"^FAILED \S+::(\w+)", result.stdout, re.MULTILINE)}
    assert failed == set(REFUSED.get(kind, {})), result.stdout[-5000:]
    assert re.search(r"\d+ passed", result.stdout), result.stdout[-5000:] + result.stderr[-2000:]
