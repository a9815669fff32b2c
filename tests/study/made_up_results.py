"""Made-up results of studies, for tests of scores, tables, figures and reports."""

from keras_sparse_dm.study.results import EvaluationResult, Results, RunResult
from keras_sparse_dm.study.scales import settings_of
from keras_sparse_dm.study.scores import Scores

SKETCHES = ("chirodiff_vmnist", "chirodiff_kanjivg")


def made_up(study, value, missing=(), failed=(), networks=("FD-kanji",)):
    """Return results of a study whose scores are `value(cell, steps)`."""
    runs, evaluations = [], []
    for cell in study.cells:
        if cell.name in missing:
            continue
        settings = settings_of(cell, "smoke")
        fails = cell.name in failed
        fields = {name: getattr(cell, name) for name in cell.__dataclass_fields__}
        cost = {"parameters": 1000, "active_parameters": 1000 - 800 * cell.sparsity}
        for kind, flops in (("training", 4e9), ("sampling", 3e8)):
            cost[f"dense_{kind}_flops"] = flops
            cost[f"sparse_{kind}_flops"] = flops * (1 - cell.sparsity)
        runs.append(
            RunResult(
                cell=cell.name,
                scale="smoke",
                **fields,
                status="failed" if fails else "finished",
                settings=settings.to_dict(),
                version="1.2.3",
                differences=["epochs: 2 instead of 600", f"data set: not {cell.preset}"],
                seconds=None if fails else 9.0,
                error="the loss <x> | is\nnot finite" if fails else None,
                report={} if fails else {"cost": cost, "iterations": 8, "training_seconds": 7.0},
                folder=f"runs/{cell.name}",
            )
        )
        for steps in study.sampling_steps or (settings.sampling.steps,):
            score = {"frechet": [value(cell, steps), 0.0, 0.0]}
            distances = {n: {"generated": score, "held out": {"frechet": [0.5]}} for n in networks}
            if not fails:
                evaluations.append(EvaluationResult(cell.name, steps, 64, distances, cell.seed))
    return Results(runs, evaluations)


def scores_of(study, value=lambda cell, steps: 10.0 + cell.seed, score=None, **options):
    return Scores(study, made_up(study, value, **options), score)
