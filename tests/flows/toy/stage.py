"""A stage of the miniature experiment: records that it runs, follows its file of orders, and writes its output."""

import json
import os
import signal
import sys
import time
from pathlib import Path

name = sys.argv[1]


def note(event):
    with open("events.log", "a") as events:
        events.write(f"{event} {name}\n")


def wait_for(path):
    end = time.monotonic() + 600
    while not Path(path).exists():
        if time.monotonic() > end:
            sys.exit(f"{path} never came")
        time.sleep(0.02)


note("begin")
print(f"at work on {name}")
orders = Path("orders") / name
size = 0
for order in orders.read_text().splitlines() if orders.exists() else []:
    action, _, argument = order.partition(" ")
    if action == "say":
        print(argument, file=sys.stderr)
    elif action == "tell":
        print(os.environ[argument])
    elif action == "note":
        note(os.environ.get(argument))
    elif action == "exit":
        sys.exit(int(argument))
    elif action == "crash-once" and not Path(argument).exists():
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "touch":
        Path(argument).touch()
    elif action == "fill":
        size = int(argument)
    elif action == "wait":
        wait_for(argument)

if name == "score":
    summary = {"mean": 0.5, "se": 0.01, "n": 4}
    columns = ("good", "saturation_drift", "background_shift", "border_jump", "hops", "smoothed_speed")
    metrics = dict.fromkeys(columns, summary)
    seed = {"seed-0": metrics}
    rows = {"teacher": {"teacher": seed}, "distill": {"self-forcing": seed, "hiar": seed}}
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/summary.json").write_text(json.dumps(rows))
    Path("metrics/world.json").write_text(json.dumps([{"seed": 0, "metrics": metrics}]))
else:
    Path("out").mkdir(exist_ok=True)
    Path("out", name).write_text(name.ljust(size))
note("end")
