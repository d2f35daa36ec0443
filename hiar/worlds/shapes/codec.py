"""The pixel codec of the built-in world: a fixed linear encoder of patches and a trained convolutional decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Self, cast

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hiar.config import Count, Section
from hiar.errors import UserError, require
from hiar.models.finite import require_finite
from hiar.parameters import explain

CONFIG = "config.json"
WEIGHTS = "codec.safetensors"


class PatchCodec(nn.Module):
    """Videos <-> latents, frame by frame: one latent frame per pixel frame, one latent pixel per patch.

    The encoder projects each patch on the first ``channels`` principal components of the world's patches and scales
    them to unit variance (``fit_encoder``). The decoder inverts that projection and adds the output of a small
    residual convolutional network, which sees a patch's latent pixel and its neighbours.
    """

    chunk = 64  # frames decoded at a time: bounds memory, and stays in a processor's cache
    mean: Tensor  # (3 patch^2,) of the fitted patches
    basis: Tensor  # (channels, 3 patch^2), orthonormal rows
    scale: Tensor  # (channels,) standard deviations of the projections

    def __init__(self, patch: int, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.config = {"patch": patch, "channels": channels, "width": width, "depth": depth}
        self.patch, self.channels = patch, channels
        pixels = 3 * patch**2
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.eye(channels, pixels))
        self.register_buffer("scale", torch.ones(channels))
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.layers = nn.Sequential(*(_Layer(width) for _ in range(depth)))
        self.leave = _zeroed(nn.Conv2d(width, pixels, 1))  # an untrained decoder is the linear one

    @torch.no_grad()
    def fit_encoder(self, frames: Tensor) -> None:
        """Set the encoder to the principal components of the patches of ``frames``, (N, 3, H, W) in [-1, 1]."""
        patches = F.pixel_unshuffle(frames, self.patch).movedim(1, -1).flatten(0, -2).double()
        mean = patches.mean(dim=0)
        centred = patches - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))  # in ascending order
        basis = vectors.T.flip(0)[: self.channels]
        signs = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True)).sign()  # an eigenvector's sign is arbitrary
        self.mean.copy_(mean)
        self.basis.copy_(basis * signs)
        self.scale.copy_(variances.flip(0)[: self.channels].clamp_min(1e-12).sqrt())

    def encode(self, video: Tensor) -> Tensor:
        """(B, 3, F, H, W) in [-1, 1] -> latents (B, channels, F, H / patch, W / patch)."""
        weight = (self.basis / self.scale[:, None]).view(self.channels, 3, self.patch, self.patch)
        bias = -(self.basis @ self.mean) / self.scale
        return _fold(F.conv2d(_unfold(video), weight, bias, stride=self.patch), len(video))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, channels, F, h, w) -> video (B, 3, F, h patch, w patch), in about [-1, 1]; not clipped."""
        frames = [self._decode(part) for part in _unfold(latents).split(self.chunk)]
        return _fold(torch.cat(frames), len(latents))

    def loss(self, video: Tensor, noise: Tensor) -> Tensor:
        """Mean squared error of decoding the latents of ``video`` (B, 3, F, H, W) with ``noise`` added to them.

        Generated latents are never exactly those of a picture; a decoder trained on noisy ones corrects their errors.
        Only the decoder learns; the encoder has no parameters.
        """
        return F.mse_loss(self.decode(self.encode(video) + noise), video)

    def latent_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a latent frame. Raises BrokenRule when a side is no multiple of a patch's."""
        remedy = f"is not a multiple of the codec's patch of {self.patch} pixels"
        for field, pixels in (("height", height), ("width", width)):
            require(pixels % self.patch == 0, field, pixels, remedy)
        return height // self.patch, width // self.patch

    @staticmethod
    def pictures(frames: int) -> int:
        """Number of pictures: one per latent frame."""
        return frames

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.basis.device

    def decoding(self) -> Callable[[Tensor], Tensor]:
        """A decoder for one batch of videos, called block by block; this one needs no state between blocks."""
        return self.decode

    def _decode(self, frames: Tensor) -> Tensor:
        """(N, channels, h, w) -> (N, 3, h patch, w patch)."""
        weight = (self.basis * self.scale[:, None]).T[:, :, None, None]
        linear = F.conv2d(frames, weight, self.mean)
        patches = linear + self.leave(F.silu(self.layers(self.enter(frames))))
        return F.pixel_shuffle(patches, self.patch)

    def save(self, folder: Path) -> None:
        """Write config.json and codec.safetensors into a folder.

        Raises UserError when a weight is not finite; nothing is then written.
        """
        require_finite(self.state_dict(), str(folder / WEIGHTS))
        folder.mkdir(exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(self.state_dict(), folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The codec saved in ``folder``.

        Raises UserError when a file is missing, broken or does not match the other, or a weight is not finite.
        """
        config, weights = folder / CONFIG, folder / WEIGHTS
        try:
            codec = cls(**_Config.model_validate_json(config.read_bytes()).model_dump())
            codec.load_state_dict(load_file(weights))
        except OSError as error:
            missing = error.filename or weights
            raise UserError(
                f"{missing}: cannot be read; name a codec's folder or make one with 'hiar stage codec'"
            ) from None
        except ValidationError as error:
            raise UserError(
                f"{config}: is not a codec's configuration ({explain(error, _Config)}); make the codec again"
            ) from None
        except (SafetensorError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{weights}: does not fit {CONFIG} ({reason}); make the codec again") from None
        require_finite(codec.state_dict(), str(weights))
        return codec


class _Config(Section):
    patch: Count
    channels: Count
    width: Count
    depth: Annotated[int, Field(ge=0)]


class _Layer(nn.Module):
    """A residual pair of convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = _zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + cast(Tensor, self.second(F.silu(self.first(F.silu(hidden)))))


def _unfold(video: Tensor) -> Tensor:
    """(B, C, F, H, W) -> (B F, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _fold(frames: Tensor, batch: int) -> Tensor:
    """(B F, C, H, W) -> (B, C, F, H, W)."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


def _zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all weights set to zero, so that it adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
