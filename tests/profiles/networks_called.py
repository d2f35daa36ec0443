"""Drift's networks called without our code; runs in VBench's environment.

python -I networks_called.py WORKER.PY make FOLDER: save random weights of the published architectures in their places.
python -I networks_called.py WORKER.PY call FOLDER FRAMES.NPY: print their values for frames (F, H, W, 3), as JSON.
"""

import importlib.util
import json
import os
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
worker.mend_torchvision()
folder = Path(sys.argv[3])
os.environ |= {"TORCH_HOME": str(folder / "torch_home"), "HF_HUB_OFFLINE": "1"}

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import Dinov2Config, Dinov2Model  # noqa: E402

torch.manual_seed(0)
torch.set_num_threads(1)
MUSIQ, CLIP = folder / "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth", folder / "clip_model/RN50.pt"
DINOV2, ALEXNET = folder / "dinov2-base", folder / "torchvision_model/alexnet-owt-7be5be79.pth"


def make():
    import torchvision
    from clip.model import CLIP as Clip
    from pyiqa.archs.musiq_arch import MUSIQ as Musiq

    for path in (MUSIQ, CLIP, ALEXNET):
        path.parent.mkdir(parents=True)
    torch.save(Musiq(pretrained=False).state_dict(), MUSIQ)
    model = Clip(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12).eval()
    inputs = {"encode_image": torch.randn(1, 3, 224, 224), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.save(torch.jit.trace_module(model, inputs), CLIP)
    Dinov2Model(Dinov2Config(image_size=518)).save_pretrained(DINOV2, safe_serialization=True)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), ALEXNET)


@torch.no_grad()
def call():
    import pyiqa
    import torchvision.transforms.functional as transforms
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    place = folder / "torch_home/hub/checkpoints" / ALEXNET.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    place.symlink_to(ALEXNET)
    frames = torch.from_numpy(np.load(sys.argv[4])).permute(0, 3, 1, 2).contiguous().float() / 255
    device = torch.device("cpu")
    musiq = pyiqa.create_metric("musiq", device=device, pretrained_model_path=str(MUSIQ))
    clip_iqa = pyiqa.create_metric("clipiqa", device=device, backbone=str(CLIP))
    dinov2 = Dinov2Model.from_pretrained(DINOV2, local_files_only=True).eval()
    resized = transforms.resize(frames, 256, transforms.InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    top, left = ((side - 224) // 2 for side in resized.shape[2:])
    squares = transforms.normalize(
        transforms.crop(resized, top, left, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    tokens = torch.cat([dinov2(square[None]).pooler_output for square in squares])
    pairs = range(len(frames) - 1)
    values = {
        "musiq": [musiq(frame[None]).item() for frame in frames],
        "clip_iqa": [clip_iqa(frame[None]).item() for frame in frames],
        "dinov2": torch.cosine_similarity(tokens[:-1], tokens[1:]).tolist(),
        "lpips": [
            learned_perceptual_image_patch_similarity(
                frames[i : i + 1], frames[i + 1 : i + 2], net_type="alex", normalize=True
            ).item()
            for i in pairs
        ],
    }
    print(json.dumps(values))


{"make": make, "call": call}[sys.argv[2]]()
