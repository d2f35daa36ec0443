"""The benchmark against the reference implementation, here a stand-in with the parts of its code that are called."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.figures import reference_record
from benchmarks.presets import build, wan
from benchmarks.reference import reference
from benchmarks.report import markdown
from benchmarks.rollout import main
from benchmarks.timing import Timing
from benchmarks.walks import HIAR
from hiar.errors import UserError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PRESET = replace(wan(heads=12, layers=1, ffn=16), latent=(16, 4, 6))

WALKERS = """
import torch

class CausalInferencePipeline(torch.nn.Module):
    def __init__(self, args, device, generator, text_encoder, vae):
        super().__init__()
        assert args.denoising_step_list == [1000, 750, 500, 250]
        self.generator, self.text_encoder, self.vae = generator, text_encoder, vae

    def inference(self, noise, text_prompts, return_latents):
        print("said while it is timed")
        attention = self.generator.model.blocks[0].self_attn
        assert (self.num_transformer_blocks, self.frame_seq_length, attention.max_attention_size) == (1, 6, 126)
        assert self.text_encoder(text_prompts=text_prompts)["prompt_embeds"].shape == (2, 512, 4096)
        return self.vae.decode_to_pixel(noise, use_cache=False)

    def inference_hybrid(self, noise, text_prompts, return_latents, frame_first_steps):
        if noise.shape != (2, 9, 16, 4, 6) or noise.dtype != torch.bfloat16:
            raise ValueError(f"noise {tuple(noise.shape)}")
        return self.inference(noise, text_prompts, return_latents)
"""

WRAPPERS = """
import torch
torch.cuda.current_device()

class CausalWanModel(torch.nn.Module):
    def __init__(self, dim, num_layers, local_attn_size, **shape):
        super().__init__()
        assert (dim, num_layers, local_attn_size, shape["ffn_dim"]) == (1536, 1, 21, 16)
        block = torch.nn.Module()
        block.self_attn = torch.nn.Module()
        self.blocks = [block]

    @classmethod
    def from_pretrained(cls, folder):
        raise OSError(folder)

class WanDiffusionWrapper(torch.nn.Module):
    def __init__(self, timestep_shift, is_causal):
        super().__init__()
        self.model = CausalWanModel.from_pretrained("weights that are not there")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    files = {
        "pipeline/causal_inference.py": WALKERS,
        "utils/wan_wrapper.py": WRAPPERS,
        "wan/modules/model.py": "",
        "wan/modules/attention.py": "def attention(q, k, v): ...",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_reference_is_built_in_the_presets_shape_and_timed(checkout: Path):
    setup = build(PRESET, torch.device("cpu"), batch=2)
    with reference(checkout, setup, threads=1) as other:
        seconds = {order: [other.seconds(order, 3)] for order in ("step_first", "block_first")}
        with pytest.raises(UserError, match=r"ValueError: noise \(2, 12, 16, 4, 6\)"):
            other.seconds("step_first", 4)
        facts = other.facts()
    assert facts["commit"] == "unknown"
    ours = {(HIAR, False): [Timing([0.5], None)]}
    record = reference_record(setup, [HIAR], 3, ours, {order: [1.0] for order in seconds})
    assert record["frames_per_second"]["step_first"]["median"] == 2 * (8 * 4 + 1)
    assert [ratio["measured"]["median"] for ratio in record["ratios"]] == [2.0, 2.0]
    result = json.loads((RESULTS / "world.json").read_text()) | {"reference": facts | record}
    assert "- step_first: 66 (66-66) frames/s" in markdown(result, "picture.svg")
    assert "| step_first separate | reference step_first | 2.00 (2.00-2.00) |" in markdown(result, "picture.svg")


def test_code_that_cannot_be_imported_is_one_line(checkout: Path):
    (checkout / "utils/wan_wrapper.py").write_text("import a_package_that_is_not_there")
    setup = build(PRESET, torch.device("cpu"), batch=2)
    with (
        pytest.raises(UserError, match=r"No module named 'a_package_that_is_not_there'; install what its requirements"),
        reference(checkout, setup, threads=1),
    ):
        pass


def test_a_folder_or_a_preset_that_does_not_fit_is_one_line(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = ["--preset", "wan-1.3b", "--out", str(tmp_path / "x.json"), "--reference"]
    assert main([*line, str(tmp_path)]) == 2
    assert f"--reference = {tmp_path}: no pipeline/causal_inference.py in it" in capsys.readouterr().err
    assert main([*line, str(checkout), "--preset", "world"]) == 2
    assert "written for 12 heads of 128; use --preset wan-1.3b" in capsys.readouterr().err
