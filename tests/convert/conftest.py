import pytest


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch (the extra `convert`) is not installed")


@pytest.fixture
def safetensors():
    return pytest.importorskip(
        "safetensors.numpy", reason="safetensors (the extra `convert`) is not installed"
    )
