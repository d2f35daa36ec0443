"""Wan's video codec in streaming form: diffusers' autoencoder, with its causal state kept from part to part.

The first latent frame is one picture, each later one four: a clip has 4n + 1 pictures. A latent pixel is 8 x 8
pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanCausalConv3d
from torch import Tensor, nn

from hiar.errors import BrokenRule, UserError, require
from hiar.models.finite import require_finite
from hiar.worlds.interface import CODEC
from hiar.worlds.wan.pretrained import load_pretrained
from hiar.worlds.wan.references import refer

SPATIAL = 8  # pixels along the side of a latent pixel
STRETCH = 4  # pictures of every latent frame but the first


def pixel_frames(latent_frames: int) -> int:
    """Pictures of a video of this many latent frames, at least 1."""
    return STRETCH * (latent_frames - 1) + 1


def latent_frames(pixel_frames: int) -> int:
    """Latent frames of a clip of this many pictures. Raises UserError when they are not 4n + 1."""
    if pixel_frames < 1 or pixel_frames % STRETCH != 1:
        shorter = max(1, pixel_frames - (pixel_frames - 1) % STRETCH)
        raise UserError(
            f"video: pictures = {pixel_frames}: should be 4n + 1, as Wan's first latent frame is one picture and every "
            f"other is four; give {shorter} or {shorter + STRETCH}"
        )
    return (pixel_frames - 1) // STRETCH + 1


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the latents of pictures.

    Raises BrokenRule when a side is no multiple of 8: diffusers would silently crop it.
    """
    for name, side in (("height", height), ("width", width)):
        nearest = max(SPATIAL, side - side % SPATIAL)
        remedy = f"should be a multiple of {SPATIAL} pixels; resize it, for example to {nearest}"
        require(side == nearest, name, side, remedy)
    return height // SPATIAL, width // SPATIAL


class WanCodec(nn.Module):
    """A Wan autoencoder; latents are those of Wan's transformers, normalised to about unit variance.

    ``encoding`` and ``decoding`` take a video of any length part by part in constant memory, with the result that
    diffusers has for the whole.
    """

    chunk = 4  # latent frames to decode at a time; their pictures are in memory
    base: Path | None = None  # the model that the codec belongs to
    mean: Tensor  # (1, C, 1, 1, 1) of the autoencoder's unnormalised latents
    scale: Tensor  # their standard deviations

    def __init__(self, autoencoder: AutoencoderKLWan) -> None:
        super().__init__()
        self.encoder, self.leave = autoencoder.encoder, autoencoder.quant_conv
        self.enter, self.decoder = autoencoder.post_quant_conv, autoencoder.decoder
        config = autoencoder.config
        self.channels = int(config.z_dim)
        self.register_buffer("mean", torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1))
        self.register_buffer("scale", torch.tensor(config.latents_std).view(1, -1, 1, 1, 1))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mean.device

    @staticmethod
    def pictures(frames: int) -> int:
        """Number of pictures that the first ``frames`` latent frames of a video decode to."""
        return pixel_frames(frames)

    @staticmethod
    def latent_size(height: int, width: int) -> tuple[int, int]:
        """Height and width of a latent frame. Raises BrokenRule when a side is no multiple of 8."""
        return latent_size(height, width)

    def save(self, folder: Path) -> None:
        """Make ``folder`` refer to the base's codec, which is never copied."""
        assert self.base is not None, "a codec without a base"
        refer(folder, self.base, CODEC)

    def encode(self, video: Tensor) -> Tensor:
        """A whole clip (B, 3, F, H, W) in [-1, 1] -> latents (B, C, f, H / 8, W / 8), the posterior's mean.

        F = 4 f - 3. Raises UserError when F is not 4n + 1, or H or W no multiple of 8.
        """
        latent_frames(video.shape[2])
        return self.encoding()(video)

    def encoding(self) -> Callable[[Tensor], Tensor]:
        """An encoder for one batch of clips, called part by part, in constant memory for any length.

        Pictures (B, 3, F, H, W) in [-1, 1] -> latents (B, C, f, H / 8, W / 8). The first part has F = 4n + 1 pictures,
        the others 4n each; anything else raises UserError.
        """
        seen = _memory(self.encoder)
        first = True

        def encode(video: Tensor) -> Tensor:
            nonlocal first
            _, _, pictures, height, width = video.shape
            try:
                latent_size(height, width)
            except BrokenRule as error:
                raise UserError(f"video: {error}") from None
            latent_frames(pictures if first else pictures + 1)
            latents = []
            for part in _frames(video, first):
                hidden = self.leave(self.encoder(part, feat_cache=seen, feat_idx=[0]))
                latents.append((hidden[:, : self.channels] - self.mean) / self.scale)
            first = False
            return torch.cat(latents, dim=2)

        return encode

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """A decoder for one batch of videos, called block by block, in constant memory for any length.

        Latents (B, C, k, h, w) -> video (B, 3, F, 8 h, 8 w) in [-1, 1].
        """
        seen = _memory(self.decoder)

        def decode(latents: Tensor) -> Tensor:
            hidden = self.enter(latents * self.scale + self.mean)
            frames = [self.decoder(frame, feat_cache=seen, feat_idx=[0]) for frame in hidden.split(1, dim=2)]
            return torch.cat(frames, dim=2).clamp_(-1, 1)

        return decode


def load_codec(base: Path) -> WanCodec:
    """The codec of a base model's folder, frozen, in full precision.

    Raises UserError when vae/ is missing, broken, of another shape than Wan2.1's, or holds a weight that is not finite.
    """
    folder = base / "vae"
    autoencoder = load_pretrained(AutoencoderKLWan, folder, torch_dtype=torch.float32)
    require_finite(autoencoder.state_dict(), str(folder))
    config, path = autoencoder.config, folder / "config.json"
    spatial = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
    stretch = 2 ** sum(config.temperal_downsample)
    if (spatial, stretch) != (SPATIAL, STRETCH) or config.is_residual:
        raise UserError(
            f"{path}: a latent frame is {stretch} pictures and a latent pixel {spatial}x{spatial} pixels: Wan2.1's are "
            f"{STRETCH} and {SPATIAL}x{SPATIAL}; name a Wan2.1 base model"
        )
    for name in ("latents_mean", "latents_std"):
        if len(config[name]) != config.z_dim:
            raise UserError(f"{path}: {name}: has {len(config[name])} numbers: z_dim is {config.z_dim}; copy it again")
    codec = WanCodec(autoencoder).eval()
    codec.base = base
    return codec


def _memory(network: nn.Module) -> list[Tensor | str | None]:
    """An empty cache of the last two input frames of each causal convolution of a network, in the order of calls."""
    return [None] * sum(isinstance(layer, WanCausalConv3d) for layer in network.modules())


def _frames(video: Tensor, first: bool) -> list[Tensor]:
    """Split pictures into the parts that become one latent frame each."""
    if first:
        return [video[:, :, :1], *(video[:, :, 1:].split(STRETCH, dim=2) if video.shape[2] > 1 else ())]
    return list(video.split(STRETCH, dim=2))
