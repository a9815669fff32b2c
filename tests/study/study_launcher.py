"""A launcher in a process of its own: `python study_launcher.py FOLDER JOBS [real]`.

Runs a study of six cells at smoke scale with the stand-in worker, or trains two tiny ones.
"""

import dataclasses
import sys
from pathlib import Path

from keras_sparse_dm.study import launcher as study_module
from keras_sparse_dm.study.grid import Study, grid
from keras_sparse_dm.study.launcher import WORKER, run_study
from keras_sparse_dm.study.tasks import Options, tasks_of

FAKE = (sys.executable, str(Path(__file__).with_name("fake_study_worker.py")))
STUDY = Study(
    "six",
    "Six runs",
    tuple(grid(("chirodiff_vmnist",), ("dense", "static", "rigl"), (0.5,), (0.2,), (0, 1))),
)
TINY = Study("two", "Two runs", STUDY.cells[1::3])


def options_for(folder, jobs=2, **others):
    return Options("smoke", Path(folder), jobs=jobs, **others)


def launch(folder, jobs=2, study=STUDY, worker=FAKE, change=lambda tasks: tasks, **others):
    options = options_for(folder, jobs, **others)
    return run_study(study, change(tasks_of(study, options)), options, worker)


def tiny(tasks):
    """Return the tasks with a tiny network."""
    return [
        dataclasses.replace(
            task,
            settings=dataclasses.replace(
                task.settings,
                samples=4,
                model=dataclasses.replace(task.settings.model, units=8, num_layers=1),
            ),
        )
        for task in tasks
    ]


if __name__ == "__main__":
    folder, jobs, *real = sys.argv[1:]
    study_module.POLL = 0.02
    study_module.LOOK_AT_OTHERS = 0.1
    if real:
        sys.exit(launch(folder, int(jobs), TINY, WORKER, tiny))
    sys.exit(launch(folder, int(jobs)))
