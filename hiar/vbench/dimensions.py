"""VBench's sixteen dimensions: how each is normalised and weighted, and what it needs to run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from hiar.errors import UserError, suggest

LONG = "vbench-long"
PROTOCOLS = ("vbench", LONG)
QUALITY, SEMANTIC = "quality", "semantic"
LONG_SECONDS = 5.0  # videos of this length and more are long
CLIP_SECONDS, LONG_CLIP_SECONDS = 2, 10  # of VBench-Long's clips
FLICKERING = "temporal_flickering"
STATIC_FILTER = f"{FLICKERING}_static_filter"  # which finds whether a video is static
SAMPLES, FLICKERING_SAMPLES = 5, 25  # videos per prompt; the 25 are to be filtered for static ones


class Dimension(NamedTuple):
    """One dimension. low and high: raw values normalised to 0 and 1, constants of VBench's own script."""

    group: str
    low: float
    high: float
    weight: float = 1.0
    files: tuple[str, ...] = ()  # in the folder of weights, see `hiar.vbench.weights`
    packages: tuple[str, ...] = ()  # beyond what `make vbench` installs
    described: bool = False  # uses the suite's auxiliary_info, so for the suite's prompts only
    clip_seconds: int = CLIP_SECONDS


DINO = (
    "dino_model/facebookresearch_dino_main/hubconf.py",
    "dino_model/facebookresearch_dino_main/vision_transformer.py",
    "dino_model/facebookresearch_dino_main/utils.py",
    "dino_model/dino_vitbase16_pretrain.pth",
)
RAFT = ("raft_model/models/raft-things.pth",)
_CLIP_B, _CLIP_L = "clip_model/ViT-B-32.pt", "clip_model/ViT-L-14.pt"
_VICLIP = ("ViCLIP/ViClip-InternVid-10M-FLT.pth", "ViCLIP/bpe_simple_vocab_16e6.txt.gz")
_VOCABULARY = "bert-base-uncased/vocab.txt"
_BERT = ("bert-base-uncased/config.json", _VOCABULARY, "bert-base-uncased/model.safetensors")


def _detected() -> Dimension:
    """A dimension that finds objects with GRiT."""
    files = ("grit_model/grit_b_densecap_objectdet.pth", _VOCABULARY)
    return Dimension(SEMANTIC, 0, 1, files=files, packages=("detectron2", "lvis", "boto3"), described=True)


DIMENSIONS = {
    "subject_consistency": Dimension(QUALITY, 0.1462, 1, files=DINO),
    "background_consistency": Dimension(QUALITY, 0.2615, 1, files=(_CLIP_B,)),
    FLICKERING: Dimension(QUALITY, 0.6293, 1),
    "motion_smoothness": Dimension(QUALITY, 0.706, 0.9975, files=("amt_model/amt-s.pth",)),
    "dynamic_degree": Dimension(QUALITY, 0, 1, 0.5, files=RAFT),
    "aesthetic_quality": Dimension(
        QUALITY, 0, 1, files=(_CLIP_L, "aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth")
    ),
    "imaging_quality": Dimension(QUALITY, 0, 1, files=("pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",)),
    "object_class": _detected(),
    "multiple_objects": _detected(),
    "human_action": Dimension(
        SEMANTIC,
        0,
        1,
        files=("umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
        clip_seconds=LONG_CLIP_SECONDS,
    ),
    "color": _detected(),
    "spatial_relationship": _detected(),
    "scene": Dimension(SEMANTIC, 0, 0.8222, files=("caption_model/tag2text_swin_14m.pth", *_BERT), described=True),
    "appearance_style": Dimension(SEMANTIC, 0.0009, 0.2855, files=(_CLIP_B,), described=True),
    "temporal_style": Dimension(SEMANTIC, 0, 0.364, files=_VICLIP, clip_seconds=LONG_CLIP_SECONDS),
    "overall_consistency": Dimension(SEMANTIC, 0, 0.364, files=_VICLIP, clip_seconds=LONG_CLIP_SECONDS),
}


def protocol_for(seconds: float) -> str:
    """The default protocol for videos of this length."""
    return LONG if seconds >= LONG_SECONDS else "vbench"


def known_dimensions(names: Iterable[str]) -> list[str]:
    """The named dimensions, each once, in the given order. Raises UserError for one that VBench does not have."""
    named = list(dict.fromkeys(names))
    for name in named:
        if name not in DIMENSIONS:
            raise UserError(f"dimension '{name}': is not one of VBench's; {suggest(name, DIMENSIONS)}")
    return named


def samples_of(dimensions: Iterable[str]) -> int:
    """Number of videos per prompt that these dimensions need."""
    return FLICKERING_SAMPLES if FLICKERING in dimensions else SAMPLES
