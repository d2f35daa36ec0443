"""VBench's own static filter on a folder, on the CPU; runs in VBench's environment.

python -I official_filter.py WORKER.PY WEIGHTS VIDEOS OUT
"""

import importlib.util
import os
import sys
from argparse import Namespace

worker, weights, videos, out = sys.argv[1:]
spec = importlib.util.spec_from_file_location("worker", worker)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.mend_torchvision()
module.load_everything()
os.environ |= {"VBENCH_CACHE_DIR": weights}

from vbench.cli import static_filter  # noqa: E402

static_filter.DEVICE = "cpu"
model = f"{weights}/raft_model/models/raft-things.pth"
options = {"small": False, "mixed_precision": False, "alternate_corr": False, "filter_scope": "temporal_flickering"}
static_filter.static_filter(
    Namespace(model=model, videos_path=videos, result_path=out, store_name="filtered.json", **options)
)
