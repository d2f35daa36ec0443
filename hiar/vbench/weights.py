"""The files that VBench's dimensions and Drift load: their sources, their expected contents, and a check of both.

Most are pickles. None is loaded unless its SHA-256 is the one that its publisher names, or one that the user has
approved (`approve`, kept in approved.json beside the files).
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import NamedTuple

from hiar.errors import UserError, suggest
from hiar.io.files import file_hash, write_json

APPROVED = "approved.json"
_DINO = "https://raw.githubusercontent.com/facebookresearch/dino/7c446df5b9f45747937fb0d72314eb9f7b66930a/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_CLIP_B = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_CLIP_L = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_VIDEO = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/"
_CLIP_R = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
_BERT = "https://huggingface.co/bert-base-uncased/resolve/main/"
_DREAMSIM = (
    "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/dreamsim_ensemble_checkpoint.zip"
)
_LONG = (
    "https://raw.githubusercontent.com/Vchitect/VBench/fe06fcc93866630370ec6caccd82dcfb46fc22b6/vbench2_beta_long/"
    "configs/"
)
_DINOV2 = "https://huggingface.co/facebook/dinov2-base/resolve/main/"


class Weight(NamedTuple):
    """One file. sha256: published hash, or those of its first digits that are published; empty where none is.

    member: the file's name in the zip archive at ``url``, where that is one.
    """

    url: str
    sha256: str = ""
    size: int | None = None  # bytes, where known
    member: str | None = None


# By path in VBench's folder of weights. Hashes: the publishers of CLIP, MUSIQ and AlexNet write them into the
# addresses; DINO's code is that of the commit in its address; the vocabulary is the one in the package openai-clip.
WEIGHTS = {
    "dino_model/facebookresearch_dino_main/hubconf.py": Weight(
        _DINO + "hubconf.py", "fa80babf82c71d2123e23b05061eb1991a1fbc9877238f250b2a25023e910f72", 5653
    ),
    "dino_model/facebookresearch_dino_main/vision_transformer.py": Weight(
        _DINO + "vision_transformer.py", "b1f998d5f49ab43666b9fc6d007c5f6540c3ead2e8645e144f74045f63ff44d7", 11150
    ),
    "dino_model/facebookresearch_dino_main/utils.py": Weight(
        _DINO + "utils.py", "962a97e1acda1c986dfd921275325e4083f9016dddadcf018f1ccf03fa600eab", 28039
    ),
    "dino_model/dino_vitbase16_pretrain.pth": Weight(
        "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    ),
    "clip_model/ViT-B-32.pt": Weight(f"{_CLIP}{_CLIP_B}/ViT-B-32.pt", _CLIP_B),
    "clip_model/ViT-L-14.pt": Weight(f"{_CLIP}{_CLIP_L}/ViT-L-14.pt", _CLIP_L),
    "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth": Weight(
        "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth"
    ),
    "pyiqa_model/musiq_spaq_ckpt-358bb6af.pth": Weight(
        "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
        "358bb6af",
    ),
    "amt_model/amt-s.pth": Weight("https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth"),
    "raft_model/models/raft-things.pth": Weight(
        "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip", member="models/raft-things.pth"
    ),
    "umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth": Weight(_VIDEO + "l16_ptk710_ftk710_ftk400_f16_res224.pth"),
    "ViCLIP/ViClip-InternVid-10M-FLT.pth": Weight(_VIDEO + "ViClip-InternVid-10M-FLT.pth"),
    "ViCLIP/bpe_simple_vocab_16e6.txt.gz": Weight(
        "https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
        1356917,
    ),
    "grit_model/grit_b_densecap_objectdet.pth": Weight(_VIDEO + "grit_b_densecap_objectdet.pth"),
    "caption_model/tag2text_swin_14m.pth": Weight(
        "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth"
    ),
    "bert-base-uncased/config.json": Weight(_BERT + "config.json"),
    "bert-base-uncased/vocab.txt": Weight(_BERT + "vocab.txt"),
    "bert-base-uncased/model.safetensors": Weight(_BERT + "model.safetensors"),
    "clip_model/RN50.pt": Weight(f"{_CLIP}{_CLIP_R}/RN50.pt", _CLIP_R),
    "dinov2-base/config.json": Weight(_DINOV2 + "config.json"),
    "dinov2-base/model.safetensors": Weight(_DINOV2 + "model.safetensors"),
    "vbench_long/subject_mapping_table.yaml": Weight(
        _LONG + "subject_mapping_table.yaml", "ad6c730b772577d573594ce1ace40e7a70c29ed6b026325589697061cdb86269", 2373
    ),
    "vbench_long/background_mapping_table.yaml": Weight(
        _LONG + "background_mapping_table.yaml",
        "47cc19bd7f22907e7c6515f0181d2c032187842d5d1686a238d0341ac2e5a440",
        2380,
    ),
    **{
        f"dreamsim/{member}": Weight(_DREAMSIM, member=member)
        for member in (
            "dino_vitb16_pretrain.pth",
            "clip_vitb16_pretrain.pth.tar",
            "open_clip_vitb16_pretrain.pth.tar",
            "ensemble_lora/adapter_config.json",
            "ensemble_lora/adapter_model.safetensors",
        )
    },
    "torchvision_model/alexnet-owt-7be5be79.pth": Weight(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth", "7be5be79"
    ),
}


class Held(NamedTuple):
    """The file at a weight's place. problem: why it may not be loaded, with the remedy; None where it may."""

    name: str
    path: Path
    sha256: str | None  # None: nothing is there
    problem: str | None


def weights_folder() -> Path:
    """Where VBench itself keeps them: $VBENCH_CACHE_DIR, or ~/.cache/vbench."""
    return Path(os.environ.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench")


def inspect(folder: Path, name: str) -> Held:
    """Check one weight's file, which is read whole for its hash but not loaded."""
    path, known = folder / name, WEIGHTS[name]
    if not path.is_file():
        size = f", {known.size} bytes" if known.size else ""
        said = f", SHA-256 {known.sha256}{'...' * (len(known.sha256) < 64)}" if known.sha256 else ""
        return Held(name, path, None, f"{path}: is missing{size}{said}; `hiar vbench fetch {name}`, or copy it there")
    found = file_hash(path)
    if wrong := _wrong_format(path):
        return Held(name, path, found, f"{path}: {wrong}; `hiar vbench fetch {name} --replace`")
    if approved(folder).get(name) == found or (known.sha256 and found.startswith(known.sha256)):
        return Held(name, path, found, None)
    if known.sha256:
        remedy = f"`hiar vbench fetch {name} --replace`, or `hiar vbench fetch --approve {name}` if you trust yours"
        return Held(name, path, found, f"{path}: SHA-256 {found}: should be {known.sha256}; {remedy}")
    if name in approved(folder):
        remedy = f"copy it back, or `hiar vbench fetch --approve {name}` if you trust this one"
        return Held(name, path, found, f"{path}: SHA-256 {found}: is not the file you approved; {remedy}")
    remedy = f"compare it with its source and `hiar vbench fetch --approve {name}`"
    return Held(name, path, found, f"{path}: SHA-256 {found}: its publisher gives no hash to check; {remedy}")


def approved(folder: Path) -> dict[str, str]:
    """The hashes that the user has approved, by name. Raises UserError when the file cannot be read."""
    path = folder / APPROVED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and approve the files again") from None
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise UserError(f"{path}: is not a table of hashes by name; delete it and approve the files again")
    return found


def approve(folder: Path, name: str) -> str:
    """Record the hash of the file at a weight's place as the one to load from now on, and return it.

    Raises UserError when there is no file, or one of another format.
    """
    path = folder / known_weight(name)
    if not path.is_file():
        raise UserError(f"{path}: is missing, so it cannot be approved; `hiar vbench fetch {name}`, or copy it there")
    if wrong := _wrong_format(path):
        raise UserError(f"{path}: {wrong}; copy or fetch the right file")
    found = file_hash(path)
    write_json(folder / APPROVED, approved(folder) | {name: found})
    return found


def known_weight(name: str) -> str:
    """The name itself. Raises UserError for one that is no weight of VBench or Drift."""
    if name not in WEIGHTS:
        raise UserError(f"file '{name}': is not one of VBench's weights; {suggest(name, WEIGHTS)}")
    return name


def _wrong_format(path: Path) -> str | None:
    """How a file differs from what its name promises, by its first bytes and an archive's list; None where it fits."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file"
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html><he", b"<html lan"):
        return "is a web page, not the file"
    if path.suffix == ".gz":
        return None if head.startswith(b"\x1f\x8b") else "is not compressed with gzip"
    if path.suffix == ".pt":
        return None if _has(path, "constants.pkl") else "is not a TorchScript archive"
    if path.name.endswith((".pth", ".pth.tar")):
        # torch.save's archive, or its format before 1.6: a pickle of protocol 2
        return None if head.startswith(b"\x80\x02") or _has(path, "data.pkl") else "is not a file of torch.save"
    return None


def _has(path: Path, member: str) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == member for name in archive.namelist())
