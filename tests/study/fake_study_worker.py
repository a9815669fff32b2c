"""Stand-in for a study's worker: leaves the files of a run in its folder, without training.

Environment variables: `RAN`, a file to which each run adds a line `NAME PID`; `HOLD`, a file that
keeps runs from ending while it exists; `FAIL`, a part of the names of runs that fail; `SLOW`,
seconds that each run takes.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

ELSEWHERE = 4


def end_with_launcher():
    while os.read(0, 1):
        pass
    os._exit(3)


def main(kind):
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_launcher, daemon=True).start()
    if kind != "run":
        return 0
    try:
        with FileLock(job["lock"], timeout=1):
            return run(job)
    except Timeout:
        return ELSEWHERE


def run(job):
    name, folder = job["name"], Path(job["output_dir"])
    settings = job["settings"]
    evaluations = [
        {
            "sampling_steps": steps,
            "samples": settings["sampling"]["evaluation"],
            "seed": settings["seed"],
            "weights": job["weights"],
            "seconds": 0.5,
            "distances": {"FD-kanji": {"generated": {"frechet": [float(steps), 0.0, 9.0]}}},
        }
        for steps in job["sampling_steps"]
    ]
    # Another launcher may have finished the cell just before this worker got the lock.
    if (folder / "result.json").exists():
        if json.loads((folder / "result.json").read_text())["evaluations"] == evaluations:
            return 0
    with open(os.environ["RAN"], "a") as ran:
        ran.write(f"{name} {os.getpid()}\n")
    folder.mkdir(parents=True, exist_ok=True)
    trained = settings | {"sampling": settings["sampling"] | {"evaluation": 0}}
    (folder / "config.json").write_text(json.dumps({"settings": trained}))
    time.sleep(float(os.environ.get("SLOW", 0)))
    while Path(os.environ.get("HOLD", "/nowhere")).exists():
        time.sleep(0.02)
    if os.environ.get("FAIL") and os.environ["FAIL"] in name:
        print("Traceback (most recent call last):\nValueError: too bad", flush=True)
        return 1
    result = {name: job[name] for name in ("name", "cell", "scale", "settings", "differences")}
    result |= {
        "schema": 1,
        "version": "0.1.0",
        "seconds": 1.5,
        "report": {"iterations": 6},
        "evaluations": evaluations,
    }
    (folder / ".result").write_text(json.dumps(result))
    (folder / ".result").replace(folder / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
