import subprocess
import sys
import threading

import pytest

from keras_sparse_dm import lazy
from keras_sparse_dm.lazy import MissingPackage, lazy_module, load


def module_file(folder, monkeypatch, name, text):
    """Write a module that can be imported until the end of the test."""
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_a_module_loads_on_first_use_and_not_before(tmp_path, monkeypatch):
    module_file(tmp_path, monkeypatch, "loaded_late", "value = 1\n")
    module = lazy_module("loaded_late")
    assert "loaded_late" not in sys.modules
    assert module.value == 1
    import loaded_late

    # The lazy module sees changes of the module, such as by a test.
    monkeypatch.setattr(loaded_late, "value", 2)
    assert module.value == 2
    assert load(module) is loaded_late
    with pytest.raises(AttributeError, match="nothing"):
        module.nothing  # noqa: B018


def test_threads_that_use_a_module_first_wait_for_it_to_be_whole(tmp_path, monkeypatch):
    text = "import time\ntime.sleep(0.2)\nlast = 1\n"
    module_file(tmp_path, monkeypatch, "loads_slowly", text)
    module, seen = lazy_module("loads_slowly"), []
    threads = [threading.Thread(target=lambda: seen.append(module.last)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


def test_submodules_load_with_their_parents():
    code = (
        "import sys\n"
        "from keras_sparse_dm.lazy import lazy_module\n"
        "image = lazy_module('PIL.Image')\n"
        "assert 'PIL' not in sys.modules\n"
        "print(image.new('L', (2, 3)).size)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "(2, 3)", result.stderr


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    # As if the package were not installed.
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "sklearn.metrics", raising=False)
    with pytest.raises(MissingPackage) as error:
        lazy_module("sklearn.metrics").euclidean_distances  # noqa: B018
    assert str(error.value) == (
        "scikit-learn is not installed; install it with: pip install 'keras_sparse_dm[train]'"
    )
    assert error.value.name.startswith("sklearn")


def test_errors_inside_a_module_stay_what_they_are(tmp_path, monkeypatch):
    module_file(tmp_path, monkeypatch, "lacks_another", "import not_installed_at_all\n")
    monkeypatch.setitem(lazy.OPTIONAL, "lacks_another", ("lacks-another", "lacks-another"))
    with pytest.raises(ModuleNotFoundError, match="not_installed_at_all") as error:
        lazy_module("lacks_another").value  # noqa: B018
    assert not isinstance(error.value, MissingPackage)
