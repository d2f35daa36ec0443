"""Windows of a rollout as clips of their own, for a codec whose first latent frame is unlike the others, as Wan's.

Networks have learned on clips whose first latent frame is one picture; where a later window of a rollout begins, the
latent frame is several. It is decoded, and its last picture encoded as a clip's first, as Self-Forcing's code does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.worlds.interface import Codec


def begins_apart(codec: Codec) -> bool:
    """Whether a clip's first latent frame is fewer pictures than the others."""
    return codec.pictures(2) != 2 * codec.pictures(1)


def as_clips(windows: Tensor, per_rollout: int, block: int, codec: Codec) -> Tensor:
    """Windows (B * per_rollout, C, F, h, w), rollout by rollout, the later of which begin as clips do.

    The first ``block`` frames of such a window pass no gradients on: one of them is no frame that a student made.
    """
    if per_rollout == 1 or not begins_apart(codec):
        return windows
    rollouts = windows.unflatten(0, (-1, per_rollout))
    first, later = rollouts[:, :1], rollouts[:, 1:]
    begun = _first_latents(rollouts.detach(), codec).to(windows)
    later = torch.cat([begun, later[:, :, :, 1:block].detach(), later[:, :, :, block:]], dim=3)
    return torch.cat([first, later], dim=1).flatten(0, 1)


def frame_weights(windows: Tensor, per_rollout: int, block: int, codec: Codec) -> Tensor | None:
    """Of a loss on `as_clips`' windows, (B * per_rollout, F): each window's is the mean over frames that learn.

    None: all frames do.
    """
    if per_rollout == 1 or not begins_apart(codec):
        return None
    frames = windows.shape[2]
    weights = torch.ones(len(windows) // per_rollout, per_rollout, frames, device=windows.device)
    weights[:, 1:, :block], weights[:, 1:, block:] = 0.0, frames / (frames - block)
    return weights.flatten(0, 1)


@torch.no_grad()
def _first_latents(rollouts: Tensor, codec: Codec) -> Tensor:
    """The picture that each later window begins with, encoded: of (B, W, C, F, h, w), (B, W - 1, C, 1, h, w)."""
    videos = rollouts.transpose(1, 2).flatten(2, 3).float()
    decode, done, latents = codec.decoding(), 0, []
    for end in range(rollouts.shape[3] + 1, videos.shape[2], rollouts.shape[3]):
        for part in videos[:, :, done:end].split(codec.chunk, dim=2):
            pictures = decode(part)
        latents.append(codec.encode(pictures[:, :, -1:]))
        done = end
    return torch.stack(latents, dim=1)
