"""VBench's own call on a folder, with none of our code but the torchvision fix; runs in VBench's environment.

python -I official.py WORKER.PY WEIGHTS HOME VIDEOS OUT DIMENSION...
"""

import importlib.util
import os
import sys
from pathlib import Path

worker, weights, home, videos, out, *dimensions = sys.argv[1:]
spec = importlib.util.spec_from_file_location("worker", worker)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.mend_torchvision()
module.load_everything()
os.environ |= {"VBENCH_CACHE_DIR": weights, "TORCH_HOME": home, "HF_HUB_OFFLINE": "1"}
os.chdir(weights)

import torch  # noqa: E402
import vbench  # noqa: E402

suite = Path(vbench.__file__).parent / "VBench_full_info.json"
for dimension in dimensions:
    vbench.VBench(torch.device("cpu"), str(suite), out).evaluate(
        videos, dimension, dimension_list=[dimension], local=True
    )
