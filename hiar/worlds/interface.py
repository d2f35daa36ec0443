"""What a world is: where prompts and clips come from, and how text and pixels become tensors.

Everything else of the project - the grid, the rollout, the losses, the stages, the commands - sees worlds through these
protocols alone. A world is a package `hiar.worlds.KIND` with a function ``open_world`` that makes a `World` from its
section of params.yaml.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

import torch
from torch import Tensor, nn

from hiar import config

if TYPE_CHECKING:  # its import takes as long as all others together, and not every user of a world needs it
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

# Each purpose numbers its prompts in a range of its own, so that no number serves two purposes.
PURPOSES = ("training", "held-out", "pairs", "distill", "sample", "critic", "validation")
SPLIT = 2**40
FIRST_CLIP = {name: place * SPLIT for place, name in enumerate(PURPOSES)}
AHEAD = 4096  # prompts that a training prepares at a time, where that is slow: some gigabytes of cache


class Network(Protocol):
    """The part of torch's Module interface that text encoders and codecs have."""

    def to(self, device: torch.device | str) -> Self: ...

    def eval(self) -> Self: ...

    def requires_grad_(self, requires_grad: bool = True) -> Self: ...


class Text(Network, Protocol):
    """A text encoder."""

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        ...

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, words, dim) of prompts; each encoder defines how an empty one means "no prompt"."""
        ...

    def prepare(self, prompts: Collection[str]) -> None:
        """Do the work once for all ``prompts`` that `encode` would otherwise repeat for each batch, if there is any."""
        ...

    def save(self, folder: Path) -> None:
        """Write into a folder what `World.load_text` reads; raises UserError for weights that are not finite."""
        ...


class Codec(Network, Protocol):
    """Videos of pixels <-> latents."""

    channels: int  # of a latent frame
    chunk: int  # latent frames decoded at a time: bounds memory

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a latent frame, from those of its pictures.

        Raises BrokenRule (`hiar.errors`) when they are no multiple of a latent pixel's.
        """
        ...

    def pictures(self, frames: int) -> int:
        """Number of pictures that the first ``frames`` latent frames of a video decode to."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> latents (B, channels, f, h, w)."""
        ...

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """A decoder for one batch of videos, called with one part of their latents after the other.

        Latents (B, channels, f, h, w) -> video (B, 3, F, H, W) in about [-1, 1]; it keeps the state that
        it needs between parts.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def save(self, folder: Path) -> None:
        """Write into a folder what `World.load_codec` reads; raises UserError for weights that are not finite."""
        ...


class Trainable(Codec, Protocol):
    """A codec that is trained here."""

    def loss(self, video: Tensor, noise: Tensor) -> Tensor:
        """Reconstruction loss of ``video`` (B, 3, F, H, W) from its latents with ``noise`` (B, C, f, h, w) added."""
        ...

    def parameters(self) -> Any: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any: ...


Part = Literal["transformer", "text_encoder", "codec"]  # parts of a model, and their folders in a checkpoint
TRANSFORMER: Part = "transformer"
TEXT: Part = "text_encoder"
CODEC: Part = "codec"


# (velocity, noise (B, C, F, H, W), steps, shift) -> clean latents. The velocity takes a state and its noise level (), a
# scalar tensor; shift is the timestep shift of the steps' levels.
Solver = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, int, float], Tensor]


Lora = tuple[Path, float]  # the file of a low-rank adapter, and its scale


class World(Protocol):
    """Prompts, clips, and the parts of the models that generate videos from prompts."""

    name: str  # in reports
    height: int  # of its pictures
    width: int
    frames_per_second: int
    negative_prompt: str  # what guidance leads away from
    solver: Solver | None  # for its teacher's clips; None: Euler
    has_clips: bool  # whether it has videos of its own, for training and comparison
    base: Path | None  # the model that it adopts; None: codec, text encoder and teacher are trained here

    def check(self, prompt: str) -> None:
        """Raise UserError for a prompt that this world cannot show."""
        ...

    def prompts(self, *, seed: int, first: int, count: int) -> list[str]:
        """Prompts ``first`` to ``first + count``; a purpose's numbers begin at ``FIRST_CLIP[purpose]``."""
        ...

    def clips(self, *, seed: int, first: int, count: int, frames: int) -> tuple[Tensor, list[str]]:
        """The videos of these prompts, uint8 (count, frames, H, W, 3), and the prompts; only where `has_clips`."""
        ...

    def new_codec(self, settings: config.Codec, *, seed: int, frames: int) -> Trainable:
        """A codec to be trained; what needs no training is fitted to clips of ``frames`` frames."""
        ...

    def new_text(self, model: config.Model, *, seed: int) -> Text:
        """A text encoder to be trained."""
        ...

    def adopt(self, part: Part, folder: Path) -> None:
        """Make ``folder`` refer to a part of the base instead of copying it. Raises UserError when that is missing."""
        ...

    def referred(self, folder: Path) -> tuple[Path, str] | None:
        """The base that a part's folder refers to, and the hash of its files; None where the folder holds the part.

        Raises UserError when the base is gone or its files have changed.
        """
        ...

    def verify(self, folder: Path) -> None:
        """Read every file that a part's folder refers to. Raises UserError when one has changed."""
        ...

    def check_foreign(self, source: Path, weights: str | None) -> None:
        """Raise UserError where `bring_in` would refuse a source, as far as its headers and the base's show.

        Without the base, nothing is refused.
        """
        ...

    def bring_in(self, source: Path, weights: str | None, folder: Path, lora: Lora | None = None) -> None:
        """Import a foreign transformer of the base's size into a new ``folder``.

        weights: which set, where the source has several. lora: an adapter to merge into it. Raises UserError when the
        source holds no such transformer, or an incomplete one.
        """
        ...

    def send_out(self, folder: Path, form: str, out: Path) -> None:
        """Export the transformer in ``folder`` in a ``form`` that others read. Raises UserError for an unknown one."""
        ...

    def outline(self, part: Part, params: config.Params, folder: Path | None = None) -> nn.Module:
        """A part of an experiment's model from its configuration alone, on torch's default device; no weights are read.

        folder: a model other than the world's base. Raises UserError when its configuration is not known.
        """
        ...

    def seconds(self, frames: int) -> float:
        """Duration in seconds of a video of ``frames`` latent frames."""
        ...

    def words(self, params: config.Params) -> int:
        """Rows of a prompt's embedding."""
        ...

    def kept(self, prompts: int) -> tuple[int, int]:
        """How many different prompts of ``prompts`` draws are cached on disk as embeddings, at most, and their bytes.

        Nothing is cached where embedding is cheap.
        """
        ...

    def load_transformer(self, folder: Path, dtype: torch.dtype | None = torch.float32) -> WanTransformer3DModel:
        """The transformer in a folder, in ``dtype`` except what Wan keeps in fp32. Raises UserError when it is broken.

        None: as stored and read-only: a large one is memory-mapped, and processes share its pages.
        """
        ...

    def load_text(self, folder: Path) -> Text:
        """The text encoder in a folder. Raises UserError when it is missing or broken."""
        ...

    def load_codec(self, folder: Path) -> Codec:
        """The codec in a folder. Raises UserError when it is missing or broken."""
        ...


def describe_foreign(source: Path, base: Path | None) -> list[tuple[str, str]]:
    """The properties of a foreign checkpoint, as names and values; ``base``: the model that it was made from.

    Raises UserError when no world can read it.
    """
    described: list[tuple[str, str]] = import_module("hiar.worlds.wan").describe(source, base)
    return described


class ForeignPair(Protocol):
    """An ODE pair of another project."""

    @property
    def prompt(self) -> str: ...

    @property
    def states(self) -> Tensor:
        """(S + 1, C, F, h, w), from pure noise to clean."""
        ...


def foreign_pairs(source: Path) -> Iterator[ForeignPair]:
    """ODE pairs of another project, one at least, all of one shape and type. Raises UserError where there are none."""
    pairs: Iterator[ForeignPair] = import_module("hiar.worlds.wan.formats.pairs").foreign_pairs(source)
    return pairs


def write_foreign_pairs(captions: Sequence[str], shards: Callable[[], Iterator[Tensor]], form: str, out: Path) -> None:
    """Write our ODE pairs in a ``form`` that others read. Raises UserError where that is not possible."""
    import_module("hiar.worlds.wan.formats.pairs_out").write_pairs(captions, shards, form, out)


def convert_base(source: Path, out: Path) -> None:
    """Write a base model in the layout that its world adopts. Raises UserError when no world knows it."""
    import_module("hiar.worlds.wan").convert_base(source, out)


def open_world(settings: config.World) -> World:
    """The world of a section of params.yaml, or of a checkpoint's card."""
    return cast(World, import_module(f"hiar.worlds.{settings.kind}").open_world(settings))
