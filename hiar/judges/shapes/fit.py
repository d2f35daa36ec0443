"""The closest picture the world can render to a given one, in closed form.

A frame of the world is ``m c + (1 - m) b``: a mask m that only shape and position decide, a colour c, and a backdrop b
that is a weighted sum of few known patterns. With shape and position given, the best colours are linear least squares.
So the search is over positions alone: all of them on a coarse grid at reduced resolution, then Gauss-Newton steps on
the pixels around the shape.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from hiar.config import Shape, ShapesWorld
from hiar.worlds.shapes import backdrop
from hiar.worlds.shapes.shapes import EDGE, extents, masks

STRIDE = 0.25  # of the coarse grid of positions, in radii
REDUCTION = 0.4  # of the coarse pictures: at most this many radii per pixel
CHUNK = 256  # positions whose pictures are rendered at a time
RIDGE = 1e-6  # squared contrast so small that no position can be told from it


class Fit(NamedTuple):
    """The best renderable picture for each of N frames. Colours are in [0, 1] where the frame's are."""

    shape: Tensor  # (N,) index into world.shapes
    position: Tensor  # (N, 2) x and y of the centre, pixels
    color: Tensor  # (N, 3)
    background: Tensor  # (N, 3)
    residual: Tensor  # (N,) root mean square difference over pixels and channels


class Atlas(NamedTuple):
    """One shape at every position of the coarse grid."""

    shape: Shape
    low: Tensor  # (2,) smallest x and y of the shape's centre
    high: Tensor  # (2,)
    position: Tensor  # (P, 2)
    basis: Tensor  # (reduced pixels, r P): at each position r orthonormal pictures that span all it can look like


class _Frames(NamedTuple):
    """N frames, the backdrop's K patterns, and their inner products over whole frames."""

    pixels: Tensor  # (N, 3, H, W)
    patterns: Tensor  # (K, W), the same in every row
    energy: Tensor  # (N,) of the pixels with themselves
    seen: Tensor  # (N, K, 3) of the patterns with the pixels
    overlap: Tensor  # (K, K) of the patterns with each other


class _Solution(NamedTuple):
    color: Tensor  # (N, 3)
    background: Tensor  # (N, 3)
    residual: Tensor  # (N,)
    move: Tensor  # (N, 2) from the given position towards the best one; (N, 0) if not requested


def atlases(world: ShapesWorld) -> list[Atlas]:
    """The coarse search's tables, one per shape of the world."""
    return [_atlas(world, shape) for shape in world.shapes]


def fit(world: ShapesWorld, tables: list[Atlas], pixels: Tensor) -> Fit:
    """Fit frames (N, 3, H, W) in [0, 1] against all shapes, positions and colours; ``tables`` is ``atlases(world)``."""
    frames = _prepare(world, pixels)
    reduced = _reduce(world, pixels)
    reduced = reduced - reduced.mean(dim=2, keepdim=True)  # any constant is renderable; without it sums are more exact
    fits = []
    for index, table in enumerate(tables):
        position = _refine(world, table, frames, _search(table, reduced))
        found = _solve(world, table.shape, frames, position)
        shape = torch.full((len(pixels),), index)
        fits.append(Fit(shape, position, found.color, found.background, found.residual))
    best = torch.stack([one.residual for one in fits]).argmin(dim=0)
    row = torch.arange(len(pixels))
    return Fit(*(torch.stack(field)[best, row] for field in zip(*fits, strict=True)))


def _atlas(world: ShapesWorld, shape: Shape) -> Atlas:
    low = torch.tensor(extents(shape, world.radius))
    high = world.size - low
    counts = ((high - low) / (STRIDE * world.radius)).ceil().int() + 1
    x, y = (torch.linspace(float(a), float(b), int(n)) for a, b, n in zip(low, high, counts, strict=True))
    position = torch.cartesian_prod(x, y)
    basis = torch.cat([_spanning(world, shape, part) for part in position.split(CHUNK)])
    return Atlas(shape, low, high, position, basis.permute(1, 2, 0).flatten(1))


def _spanning(world: ShapesWorld, shape: Shape, position: Tensor) -> Tensor:
    """Orthonormal reduced pictures (N, reduced pixels, r) that span a shape at (N, 2) and the backdrop around it."""
    mask = masks(shape, world.radius, world.size, position)[:, None]
    behind = (1 - mask) * backdrop.basis(world).float()[:, None, :]
    return torch.linalg.qr(_reduce(world, torch.cat([mask, behind], dim=1)).mT).Q


def _reduce(world: ShapesWorld, pictures: Tensor) -> Tensor:
    """Pictures (N, channels, H, W) averaged over squares for the coarse search, (N, channels, reduced pixels)."""
    side = min(world.size, math.ceil(world.size / (REDUCTION * world.radius)))
    return F.adaptive_avg_pool2d(pictures, side).flatten(2)


def _prepare(world: ShapesWorld, pixels: Tensor) -> _Frames:
    patterns = backdrop.basis(world).float()
    return _Frames(
        pixels=pixels,
        patterns=patterns,
        energy=pixels.square().sum(dim=(1, 2, 3)).double(),
        seen=(pixels.sum(dim=2) @ patterns.T).double().mT,
        overlap=world.size * (patterns @ patterns.T).double(),
    )


def _search(table: Atlas, reduced: Tensor) -> Tensor:
    """The grid position (N, 2) whose pictures explain most of each reduced frame (N, 3, reduced pixels)."""
    products = reduced.flatten(0, 1) @ table.basis
    explained = products.square_().view(len(reduced), -1, len(table.position)).sum(dim=1)
    return table.position[explained.argmax(dim=1)]


def _refine(world: ShapesWorld, table: Atlas, frames: _Frames, position: Tensor) -> Tensor:
    """The best position (N, 2) near the given one."""
    furthest = STRIDE * world.radius  # the longest step; a fit that goes further is no use even as a direction
    steps = 1 + max(1, round(furthest / EDGE))  # each goes about half an edge's width; the last is for precision
    for _ in range(steps):
        move = _solve(world, table.shape, frames, position, moving=True).move
        position = (position + move.clamp(-furthest, furthest)).clamp(table.low, table.high)
    return position


def _solve(world: ShapesWorld, shape: Shape, frames: _Frames, position: Tensor, *, moving: bool = False) -> _Solution:
    """The least-squares colours for a shape at given positions (N, 2); ``move`` is empty unless ``moving``.

    With ``moving`` the mask's derivatives by the position join the unknowns: their weights are contrast times move.
    The mask is zero outside a crop around the shape. There only the backdrop counts, whose sums are those of the whole
    frame less those of the crop.
    """
    side = min(world.size, 2 * math.ceil(world.radius + EDGE / 2 + 1.5))  # off-centre by half, derivatives take one
    corner = (position.round().int() - side // 2).clamp(0, world.size - side)
    across, down = corner.unbind(1)
    crop = frames.pixels.unfold(2, side, 1).unfold(3, side, 1)[torch.arange(len(position)), :, down, across]
    patterns = frames.patterns.unfold(1, side, 1)[:, across].transpose(0, 1)[:, :, None, :]
    mask = masks(shape, world.radius, side, position - corner)[:, None]
    unknown = [mask, (1 - mask) * patterns]
    if moving:
        by_y, by_x = torch.gradient(mask, dim=(2, 3))
        unknown += [-by_x, -by_y]  # moving the centre one way is moving the pixels the other way
    stack = torch.cat([*unknown, patterns.expand(-1, -1, side, -1), crop], dim=1).flatten(2)
    products = (stack @ stack.mT).double()

    k = len(frames.patterns)
    n = products.shape[1] - k - 3
    behind, pattern, pixel = slice(1, 1 + k), slice(n, n + k), slice(n + k, None)
    normal, target = products[:, :n, :n].clone(), products[:, :n, pixel].clone()
    normal[:, behind, behind] += frames.overlap - products[:, pattern, pattern]
    target[:, behind] += frames.seen - products[:, pattern, pixel]
    weights = torch.linalg.solve(normal, target)  # (N, n, 3)

    color, mean = weights[:, 0], weights[:, 1]
    left = (frames.energy - (weights * target).sum(dim=(1, 2))).clamp_min(0)
    contrast = (color - mean)[:, None]
    move = (weights[:, 1 + k :] * contrast).sum(dim=2) / (contrast.square().sum(dim=2) + RIDGE)
    return _Solution(
        color=color.float(),
        background=(mean - backdrop.mean_light(world)).float(),
        residual=(left / (3 * world.size**2)).sqrt().float(),
        move=move.float(),
    )
