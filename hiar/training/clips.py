"""Windows of a rollout as separate clips, for a codec whose first latent frame is unlike the others, as Wan's.

Networks were trained on clips whose first latent frame holds one picture; the first latent frame of a later window
holds several. It is decoded, and its last picture encoded as a clip's first, as Self-Forcing's code does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hiar.worlds.interface import Codec


def begins_apart(codec: Codec) -> bool:
    """Whether a clip's first latent frame holds fewer pictures than the others."""
    return codec.pictures(2) != 2 * codec.pictures(1)


def as_clips(windows: Tensor, per_rollout: int, block: int, codec: Codec) -> Tensor:
    """Windows (B * per_rollout, C, F, h, w), rollout by rollout, with the later ones made to begin as clips do.

    The first ``block`` frames of such a window pass no gradients: one of them was not made by the student.
    """
    if per_rollout == 1 or not begins_apart(codec):
        return windows
    rollouts = windows.unflatten(0, (-1, per_rollout))
    first, later = rollouts[:, :1], rollouts[:, 1:]
    begun = _first_latents(rollouts.detach(), codec).to(windows)
    later = torch.cat([begun, later[:, :, :, 1:block].detach(), later[:, :, :, block:]], dim=3)
    return torch.cat([first, later], dim=1).flatten(0, 1)


def frame_weights(windows: Tensor, per_rollout: int, block: int, codec: Codec) -> Tensor | None:
    """Weights (B * per_rollout, F) of a loss on `as_clips`' windows: each window's is the mean over frames that learn.

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
    """The first picture of each later window, encoded: (B, W, C, F, h, w) -> (B, W - 1, C, 1, h, w)."""
    videos = rollouts.transpose(1, 2).flatten(2, 3).float()
    decode, done, latents = codec.decoding(), 0, []
    for end in range(rollouts.shape[3] + 1, videos.shape[2], rollouts.shape[3]):
        for part in videos[:, :, done:end].split(codec.chunk, dim=2):
            pictures = decode(part)
        latents.append(codec.encode(pictures[:, :, -1:]))
        done = end
    return torch.stack(latents, dim=1)
