import zlib

import numpy as np
import pytest

from keras_sparse_dm.export import file_sizes


def test_a_file_and_a_directory(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, 3_000_000, "uint8").tobytes()
    zeros = bytes(2_500_000)
    (tmp_path / "model" / "variables").mkdir(parents=True)
    (tmp_path / "model" / "graph.pb").write_bytes(zeros)
    (tmp_path / "model" / "variables" / "data").write_bytes(random)
    (tmp_path / "model" / "empty").write_bytes(b"")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "model" / "graph.pb")
    compressed = [len(zlib.compress(content)) for content in (zeros, random, b"")]
    assert file_sizes(tmp_path / "model" / "graph.pb") == (len(zeros), compressed[0])
    assert file_sizes(str(tmp_path / "model")) == (len(zeros) + len(random), sum(compressed))
    size, most = file_sizes(tmp_path / "model" / "graph.pb", level=9)
    assert most == len(zlib.compress(zeros, 9)) <= compressed[0]
    assert file_sizes(tmp_path / "model" / "graph.pb", level=0)[1] > size


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="`path` must be an existing file or directory.*nothing"):
        file_sizes(tmp_path / "nothing")
    with pytest.raises(ValueError, match="`level` must be from -1 to 9; received 10"):
        file_sizes(tmp_path, level=10)
