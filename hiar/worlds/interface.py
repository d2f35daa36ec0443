"""What a world is: where prompts and clips come from, and how text and pixels become tensors.

Everything else of the project - the grid, the rollout, the losses, the stages, the commands - sees worlds through these
protocols alone. A world is a package `hiar.worlds.KIND` with a function ``open_world`` that makes a `World` of its
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

if TYPE_CHECKING:  # it takes as long to import as all else together, which who asks about a world may not need
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

# Every purpose draws its prompts from a range of numbers of its own: none serves two of them.
PURPOSES = ("training", "held-out", "pairs", "distill", "sample", "critic", "validation")
SPLIT = 2**40
FIRST_CLIP = {name: place * SPLIT for place, name in enumerate(PURPOSES)}
AHEAD = 4096  # prompts that a training has prepared at a time, where that takes long: some gigabytes of a cache


class Network(Protocol):
    """What text encoders and codecs have of torch's modules."""

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
        """Embeddings (B, words, dim) of prompts; how an empty one means "no prompt" is the encoder's own affair."""
        ...

    def prepare(self, prompts: Collection[str]) -> None:
        """Do for all of them at once what `encode` would do for each part of them anew, if anything."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `World.load_text` reads into a folder; raises UserError for weights that are not finite."""
        ...


class Codec(Network, Protocol):
    """Videos of pixels <-> latents."""

    channels: int  # of a latent frame
    chunk: int  # latent frames that are decoded at a time: bounds memory

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a latent frame of pictures of a size.

        Raises BrokenRule (`hiar.errors`) when they make no whole latent pixels.
        """
        ...

    def pictures(self, frames: int) -> int:
        """How many pictures the first ``frames`` latent frames of a video are."""
        ...

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> latents (B, channels, f, h, w)."""
        ...

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """A decoder of one batch of videos, to be called with part after part of their latents.

        Latents (B, channels, f, h, w) -> video (B, 3, F, H, W) in about [-1, 1]; what it must remember of a video, it
        does.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def save(self, folder: Path) -> None:
        """Write what `World.load_codec` reads into a folder; raises UserError for weights that are not finite."""
        ...


class Trainable(Codec, Protocol):
    """A codec that is trained here."""

    def loss(self, video: Tensor, noise: Tensor) -> Tensor:
        """How badly ``video`` (B, 3, F, H, W) comes back from its latents with ``noise`` (B, C, f, h, w) added."""
        ...

    def parameters(self) -> Any: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Any: ...


Part = Literal["transformer", "text_encoder", "codec"]  # of a model, and their folders in a checkpoint
TRANSFORMER: Part = "transformer"
TEXT: Part = "text_encoder"
CODEC: Part = "codec"


# From noise (B, C, F, H, W) to clean latents, along a velocity that takes a state and its noise level (), in so many
# steps whose levels are warped by a shift.
Solver = Callable[[Callable[[Tensor, Tensor], Tensor], Tensor, int, float], Tensor]


Lora = tuple[Path, float]  # the file of an adapter of low rank, and its scale


class World(Protocol):
    """Prompts, pictures, and what is needed to go from the ones to the others."""

    name: str  # in reports
    height: int  # of its pictures
    width: int
    frames_per_second: int
    negative_prompt: str  # what guidance leads away from
    solver: Solver | None  # of its teacher's clips; None: Euler's
    has_clips: bool  # whether it has videos of its own, to train on and to compare with
    base: Path | None  # the model that it adopts; None: codec, text encoder and teacher are trained here

    def check(self, prompt: str) -> None:
        """Raise UserError for a prompt that this world cannot show."""
        ...

    def prompts(self, *, seed: int, first: int, count: int) -> list[str]:
        """Prompts ``first`` to ``first + count``, which begin at ``FIRST_CLIP[purpose]``."""
        ...

    def clips(self, *, seed: int, first: int, count: int, frames: int) -> tuple[Tensor, list[str]]:
        """The videos of these prompts, uint8 (count, frames, H, W, 3), where the world has any, and the prompts."""
        ...

    def new_codec(self, settings: config.Codec, *, seed: int, frames: int) -> Trainable:
        """A codec to be trained, fitted to clips of so many frames as far as it needs no training."""
        ...

    def new_text(self, model: config.Model, *, seed: int) -> Text:
        """A text encoder to be trained."""
        ...

    def adopt(self, part: Part, folder: Path) -> None:
        """Make ``folder`` stand for a part of the base, without copying it. Raises UserError when it is not whole."""
        ...

    def referred(self, folder: Path) -> tuple[Path, str] | None:
        """The base that a part's folder refers to, and the hash of what it had there; None of a part that lies in it.

        Raises UserError where that is not there any more.
        """
        ...

    def verify(self, folder: Path) -> None:
        """Read every file that a part's folder refers to. Raises UserError where they are not what they were."""
        ...

    def check_foreign(self, source: Path, weights: str | None) -> None:
        """Raise UserError where `bring_in` would refuse a source, as far as its head and the base's tell.

        Nothing is refused where the base is not there.
        """
        ...

    def bring_in(self, source: Path, weights: str | None, folder: Path, lora: Lora | None = None) -> None:
        """Write somebody else's transformer, of the base's size, into a new ``folder``.

        weights: which of several sets in the source. lora: what is added to it. Raises UserError when it is none, or
        not whole.
        """
        ...

    def send_out(self, folder: Path, form: str, out: Path) -> None:
        """Write the transformer in ``folder`` in the ``form`` that others read. Raises UserError for no such form."""
        ...

    def outline(self, part: Part, params: config.Params, folder: Path | None = None) -> nn.Module:
        """A part of an experiment's model from its configuration alone, on the device in use: weights are not read.

        folder: another model than the world's base. Raises UserError where its configuration is not known.
        """
        ...

    def seconds(self, frames: int) -> float:
        """How long a video of so many latent frames plays."""
        ...

    def words(self, params: config.Params) -> int:
        """Rows of a prompt's embedding."""
        ...

    def kept(self, prompts: int) -> tuple[int, int]:
        """Of ``prompts`` draws of a prompt, how many are different ones that are kept embedded on the disk, at most.

        And the bytes that they take there. Nothing is kept where embedding takes no time.
        """
        ...

    def load_transformer(self, folder: Path, dtype: torch.dtype | None = torch.float32) -> WanTransformer3DModel:
        """The transformer in a folder, in a type but for what Wan keeps in full. Raises UserError when it is broken.

        None: as it is stored, to be read only: a large one stays in its file, whose pages processes share.
        """
        ...

    def load_text(self, folder: Path) -> Text:
        """The text encoder in a folder. Raises UserError when it is missing or broken."""
        ...

    def load_codec(self, folder: Path) -> Codec:
        """The codec in a folder. Raises UserError when it is missing or broken."""
        ...


def describe_foreign(source: Path, base: Path | None) -> list[tuple[str, str]]:
    """What a checkpoint is that is not ours, as names and values; ``base``: the model that it was made from.

    Raises UserError when no world knows it.
    """
    described: list[tuple[str, str]] = import_module("hiar.worlds.wan").describe(source, base)
    return described


class ForeignPair(Protocol):
    """One of somebody else's ODE pairs."""

    @property
    def prompt(self) -> str: ...

    @property
    def states(self) -> Tensor:
        """(S + 1, C, F, h, w), from pure noise to clean."""
        ...


def foreign_pairs(source: Path) -> Iterator[ForeignPair]:
    """ODE pairs that are not ours, one or more, all of one shape and type. Raises UserError where they are none."""
    pairs: Iterator[ForeignPair] = import_module("hiar.worlds.wan.formats.pairs").foreign_pairs(source)
    return pairs


def write_foreign_pairs(captions: Sequence[str], shards: Callable[[], Iterator[Tensor]], form: str, out: Path) -> None:
    """Write our ODE pairs as others read them. Raises UserError where that cannot be."""
    import_module("hiar.worlds.wan.formats.pairs_out").write_pairs(captions, shards, form, out)


def convert_base(source: Path, out: Path) -> None:
    """Write a base model in the layout that its world adopts. Raises UserError when no world knows it."""
    import_module("hiar.worlds.wan").convert_base(source, out)


def open_world(settings: config.World) -> World:
    """The world of a section of params.yaml, or of a checkpoint's card."""
    return cast(World, import_module(f"hiar.worlds.{settings.kind}").open_world(settings))
