"""Random weights, in the formats and at the paths of the published ones; runs in VBench's environment.

python -I random_weights.py WORKER.PY FOLDER. CLIP has two layers per tower, all else its published size: 4 GB.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("worker", sys.argv[1])
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
worker.mend_torchvision()
folder = Path(sys.argv[2])
folder.mkdir(parents=True)
os.environ["VBENCH_CACHE_DIR"] = str(folder)
os.environ["HF_HUB_OFFLINE"] = "1"
os.chdir(folder)

import torch  # noqa: E402

torch.manual_seed(0)

# a stand-in for DINO's repository, with the one function of its hubconf.py that VBench calls
HUB = """
import torch

dependencies = ["torch"]


def dino_vitb16(pretrained=True, **kwargs):
    from vision_transformer import vit_base

    model = vit_base()
    url = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url=url, map_location="cpu"))
    return model
"""
VISION_TRANSFORMER = """
from dreamsim.feature_extraction.vision_transformer import vit_base  # DINO's own, as DreamSim brings it along
"""


def place(name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def clip(name, width, layers, patch, embedding, text_width):
    from clip.model import CLIP

    model = CLIP(embedding, 224, layers, width, patch, 77, 49408, text_width, text_width // 64, 2).eval()
    inputs = {"encode_image": torch.randn(1, 3, 224, 224), "encode_text": torch.zeros(1, 77, dtype=torch.long)}
    torch.jit.save(torch.jit.trace_module(model, inputs), place(f"clip_model/{name}"))


def tokenizer():
    import clip as package

    name = "bpe_simple_vocab_16e6.txt.gz"
    shutil.copy(Path(package.__file__).with_name(name), place(f"ViCLIP/{name}"))


def dino():
    from dreamsim.feature_extraction.vision_transformer import vit_base

    root = "dino_model/facebookresearch_dino_main"
    place(f"{root}/hubconf.py").write_text(HUB)
    place(f"{root}/vision_transformer.py").write_text(VISION_TRANSFORMER)
    place(f"{root}/utils.py").write_text("")
    torch.save(vit_base().state_dict(), place("dino_model/dino_vitbase16_pretrain.pth"))


def dinov2():
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(image_size=518, patch_size=14)).save_pretrained(
        place("dinov2-base/config.json").parent, safe_serialization=True
    )


def dreamsim():
    from dreamsim.config import dreamsim_args
    from dreamsim.feature_extraction.vision_transformer import DINOHead, vit_base
    from dreamsim.model import PerceptualModel
    from peft import LoraConfig, get_peft_model

    head = {f"module.head.{name}": value for name, value in DINOHead(768, 2048).state_dict().items()}
    head["module.head.last_layer.weight"] = torch.randn(2048, 256)
    torch.save({"student": head}, place("dreamsim/dino_vitb16_pretrain.pth"))
    for name in ("clip", "open_clip"):
        model = vit_base(patch_size=16)
        model.pos_drop = torch.nn.LayerNorm(768)
        state = model.state_dict() | {"proj": torch.randn(768, 512) / 768**0.5}
        torch.save({"state_dict": state}, place(f"dreamsim/{name}_vitb16_pretrain.pth.tar"))
    hub = folder / "dreamsim"
    links = {"facebookresearch_dino_main": "dino_model/facebookresearch_dino_main", "checkpoints": "dino_model"}
    for name, target in links.items():
        (hub / name).symlink_to((folder / target).resolve())
    model = PerceptualModel(**dreamsim_args["model_config"]["ensemble"], device="cpu", load_dir=str(hub))
    tuned = get_peft_model(model, LoraConfig(r=16, lora_alpha=8, target_modules=["qkv"]))
    for name, value in tuned.named_parameters():
        if "lora_B" in name:  # initialised to 0, an adapter has no effect
            torch.nn.init.normal_(value, std=0.02)
    tuned.save_pretrained(place("dreamsim/ensemble_lora/adapter_config.json").parent, safe_serialization=True)
    for name in links:
        (hub / name).unlink()


def tables():
    """Mapping tables of another shape than VBench-Long's, which are fitted to its networks."""
    for name in ("subject", "background"):
        values = [number / 100 for number in range(101)]
        path = place(f"vbench_long/{name}_mapping_table.yaml")
        path.write_text("".join(f"{value}: {value**0.5}\n" for value in values))


def aesthetic():
    name = "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth"
    torch.save(torch.nn.Linear(768, 1).state_dict(), place(name))


def musiq():
    from pyiqa.archs.musiq_arch import MUSIQ

    name = "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth"
    torch.save(MUSIQ(pretrained=False).state_dict(), place(name))


def amt():
    import numpy as np
    import vbench
    from omegaconf import OmegaConf
    from vbench.third_party.amt.utils.build_utils import build_from_cfg

    config = OmegaConf.load(Path(vbench.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml").network
    model = build_from_cfg(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=np.cos(1.5))  # its trainer computes the rate by NumPy
    state = {"epoch": 299, "state_dict": model.state_dict(), "optim": optimizer.state_dict()}
    torch.save(state, place("amt_model/amt-s.pth"))


def raft():
    from easydict import EasyDict
    from vbench.third_party.RAFT.core.raft import RAFT

    model = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save(state, place("raft_model/models/raft-things.pth"))


def umt():
    import vbench.human_action  # noqa: F401  (registers the model)
    from timm.models import create_model

    options = {"num_classes": 400, "all_frames": 16, "tubelet_size": 1, "use_mean_pooling": True, "init_scale": 1.0}
    model = create_model("vit_large_patch16_224", pretrained=False, **options)
    with torch.no_grad():
        model.head.bias += torch.linspace(-4, 4, 400)  # some actions are likely, as in a trained network
    torch.save(model.state_dict(), place("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth"))


def viclip():
    from vbench.third_party.ViCLIP.simple_tokenizer import SimpleTokenizer
    from vbench.third_party.ViCLIP.viclip import ViCLIP

    model = ViCLIP(SimpleTokenizer(str(folder / "ViCLIP/bpe_simple_vocab_16e6.txt.gz")), pretrain=None)
    with torch.no_grad():  # ViCLIP leaves these uninitialised
        for one in (
            model.vision_encoder.proj,
            model.text_encoder.positional_embedding,
            model.text_encoder.text_projection,
        ):
            one.normal_(std=0.02)
    torch.save({"model": model.state_dict()}, place("ViCLIP/ViClip-InternVid-10M-FLT.pth"))


clip("ViT-B-32.pt", 768, 2, 32, 512, 512)
clip("ViT-L-14.pt", 1024, 2, 14, 768, 768)
for make in (tokenizer, dino, dinov2, dreamsim, tables, aesthetic, musiq, amt, raft, umt, viclip):
    make()
