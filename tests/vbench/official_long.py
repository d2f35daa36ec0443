"""VBench-Long's own functions on clips and on videos of their first frames; runs in VBench's environment.

python -I official_long.py WORKER.PY WEIGHTS HOME CLIPS FIRSTS OUT. CLIPS holds NAME/NAME_000.mp4 and so on, FIRSTS
NAME.mp4. Its package imports libraries that cut videos, which are not installed and not called here.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

worker, weights, home, clips, firsts, out = sys.argv[1:]
spec = importlib.util.spec_from_file_location("worker", worker)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.mend_torchvision()
module.load_everything()
os.environ |= {"VBENCH_CACHE_DIR": weights, "TORCH_HOME": home, "HF_HUB_OFFLINE": "1"}
os.chdir(weights)
names = ["open_video", "SceneManager", "split_video_ffmpeg", "ContentDetector", "VideoFileClip"]
for place in ("scenedetect", "scenedetect.detectors", "scenedetect.video_splitter", "moviepy", "moviepy.editor"):
    sys.modules[place] = ModuleType(place)
    vars(sys.modules[place]).update(dict.fromkeys(names))

import torch  # noqa: E402
import torchvision.io  # noqa: E402

torchvision.io.write_video = None

from dreamsim import dreamsim  # noqa: E402
from transformers import Dinov2Model  # noqa: E402
from vbench.utils import init_submodules  # noqa: E402
from vbench2_beta_long import background_consistency, subject_consistency, utils  # noqa: E402

device = torch.device("cpu")
scripts = {"subject_consistency": subject_consistency, "background_consistency": background_consistency}
videos = [str(path) for path in sorted(Path(firsts).glob("*.mp4"))]
pieces = [str(path) for path in sorted(Path(clips).glob("*/*.mp4"))]


class Dinov2(torch.nn.Module):
    """DINOv2 with the interface of torch.hub's."""

    def __init__(self):
        super().__init__()
        self.model = Dinov2Model.from_pretrained(f"{weights}/dinov2-base").eval()

    def forward(self, pictures):
        return self.model(pictures).last_hidden_state[:, 0]


def compare_first_frames(dimension):
    if dimension == "subject_consistency":
        return subject_consistency.subject_consistency_dinov2(Dinov2(), videos, device, False)
    model, preprocess = dreamsim(pretrained=True, device="cpu", cache_dir=f"{home}/dreamsim")
    return background_consistency.background_consistency_dreamsim(model, preprocess, videos, device, False)


config = Path(home, "params.yaml")
config.write_text("".join(f"w_inclip_{one}: 0.5\nw_clip2clip_{one}: 0.5\n" for one in ("sb", "bg")))
for dimension, script in scripts.items():
    entries = Path(home, "entries.json")
    entries.write_text(json.dumps([{"prompt_en": "a", "dimension": [dimension], "video_list": pieces}]))
    submodules = init_submodules([dimension], local=True)[dimension]
    mean_across, across = compare_first_frames(dimension)
    within, records = getattr(script, f"compute_{dimension}")(str(entries), device, submodules)
    _, _, means = utils.reorganize_clips_results(records)
    _, found = utils.fuse_inclip_clip2clip(
        within,
        mean_across,
        means,
        across,
        dimension,
        dev_flag=True,
        slow_fast_eval_config=str(config),
        sb_mapping_file_path=f"{weights}/vbench_long/subject_mapping_table.yaml",
        bg_mapping_file_path=f"{weights}/vbench_long/background_mapping_table.yaml",
    )
    by_clip = [(os.path.basename(one["video_path"]), one["video_results"]) for one in found]
    Path(out, f"{dimension}.json").write_text(json.dumps(by_clip))
