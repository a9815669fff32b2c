"""Stands in for the worker of a study: leaves in a run's folder what a run does, in no time.

Environment variables: `RAN`, a file to which each start adds a line `NAME PID`; `HOLD`, a file
for as long as which is there a begun run goes on; `FAIL`, a part of the names of runs that fail;
`SLOW`, seconds that each run takes.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path


def end_with_launcher():
    while os.read(0, 1):
        pass
    os._exit(3)


def main(*kind, file):
    threading.Thread(target=end_with_launcher, daemon=True).start()
    job = json.loads(Path(file).read_text())
    if kind:
        return 0
    name, folder = job["name"], Path(job["output_dir"])
    with open(os.environ["RAN"], "a") as ran:
        ran.write(f"{name} {os.getpid()}\n")
    folder.mkdir(parents=True, exist_ok=True)
    settings = job["settings"]
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
        "evaluations": [
            {
                "sampling_steps": steps,
                "samples": settings["sampling"]["evaluation"],
                "seed": settings["seed"],
                "weights": job["weights"],
                "seconds": 0.5,
                "distances": {"FD-kanji": {"generated": {"frechet": [float(steps), 0.0, 9.0]}}},
            }
            for steps in job["sampling_steps"]
        ],
    }
    (folder / ".result").write_text(json.dumps(result))
    (folder / ".result").replace(folder / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:-1], file=sys.argv[-1]))
