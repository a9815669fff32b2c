import pytest

from keras_sparse_dm.study.cost_at_paper_setting import CostAtPaperSetting


@pytest.fixture
def no_paper_costs(monkeypatch):
    """Costs without tracing the large network, which only one test does."""
    none = CostAtPaperSetting(1, 1.0, 1.0, 1.0, 1.0, 1.0)
    monkeypatch.setattr("keras_sparse_dm.study.tables.cost_at_paper_setting", lambda *_: none)
