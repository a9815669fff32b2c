"""The registry of methods agrees with their classes and loads no Keras."""

import subprocess
import sys

import pytest

from keras_sparse_dm.runs.settings import RunSettings
from keras_sparse_dm.sparsity import METHODS, methods
from keras_sparse_dm.sparsity.methods import get_method
from keras_sparse_dm.sparsity.registry import METHODS as FACTS
from keras_sparse_dm.sparsity.registry import facts_of, load_method


def test_every_method_is_registered():
    assert set(FACTS) - {"dense"} == set(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_facts_are_those_of_the_class(name):
    facts, cls = FACTS[name], METHODS[name]
    assert load_method(name) is cls
    assert facts.prunes == cls.dense_to_sparse
    assert (facts.exchanges or facts.prunes) == cls.dynamic
    assert len({other.title for other in FACTS.values()}) == len(FACTS)


def test_the_registry_loads_no_keras():
    code = "import sys, keras_sparse_dm.sparsity.registry; print('keras' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


def test_a_method_of_ones_own_is_named_by_module_and_class():
    name = "keras_sparse_dm.sparsity.methods:MagRan"
    assert type(get_method(name)) is methods.MagRan
    assert facts_of(name).title == "MagRan"
    settings = RunSettings.from_preset("quickstart")
    settings = settings.with_stored(
        settings.to_dict() | {"training": settings.to_dict()["training"] | {"method": name}}
    )
    settings.check()
    assert settings.folder.name == "quickstart-MagRan-s0.5-seed0"


@pytest.mark.parametrize(
    "name, text",
    [("nowhere:Mine", "nowhere"), ("keras_sparse_dm.sparsity.methods:Mine", "Mine")],
)
def test_a_class_that_is_not_there_is_named(name, text):
    with pytest.raises(ValueError, match=f"'{name}' cannot be imported: .*{text}"):
        get_method(name)


def test_other_texts_are_refused():
    with pytest.raises(ValueError, match="rigl, .* or package.module:Class; received 'mine'"):
        facts_of("mine")
