"""The closest picture the world can render to a given one, in closed form.

A frame of the world is ``m c + (1 - m) b``: a mask m that only shape and position decide, a colour c and a backdrop b
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

from hiar.config import Shape, World
from hiar.world import backdrop
from hiar.world.shapes import EDGE, extents, masks

STRIDE = 0.2  # of the coarse grid of positions, in radii
REDUCTION = 0.4  # of the coarse pictures: at most this many radii a pixel
STEPS = 2  # Gauss-Newton steps; from half a stride away they leave hundredths of a pixel
RIDGE = 1e-6  # squared contrast under which a frame shows no shape whose position could be refined


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
    low: Tensor  # (2,) least centre the shape may have
    high: Tensor  # (2,)
    position: Tensor  # (P, 2)
    basis: Tensor  # (reduced pixels, P r): for each position r orthonormal pictures that span all it can look like


def atlases(world: World) -> list[Atlas]:
    """The coarse search's tables, one a shape of the world."""
    return [_atlas(world, shape) for shape in world.shapes]


def fit(world: World, tables: list[Atlas], frames: Tensor) -> Fit:
    """Fit frames (N, 3, H, W) in [0, 1] against all shapes, positions and colours. ``tables`` are ``atlases(world)``."""
    coarse = F.avg_pool2d(frames, _reduction(world)).flatten(2)
    coarse = coarse - coarse.mean(dim=2, keepdim=True)  # a constant is renderable anyway; without it sums are exacter
    patterns = backdrop.basis(world).float()
    whole = _Sums(
        patterns=world.size * (patterns @ patterns.T).double(),
        frames=(frames.sum(dim=2) @ patterns.T).double().mT,
        energy=frames.square().sum(dim=(1, 2, 3)).double(),
    )
    found = [_refine(world, table, frames, patterns, whole, _search(table, coarse)) for table in tables]
    residual = torch.stack([one.residual for one in found])
    best = residual.argmin(dim=0)
    rows = torch.arange(len(frames))
    color, background, position = (
        torch.stack([getattr(one, name) for one in found])[best, rows] for name in ("color", "background", "position")
    )
    return Fit(best, position, color, background, residual[best, rows])


class _Sums(NamedTuple):
    """Inner products over whole frames."""

    patterns: Tensor  # (K, K)
    frames: Tensor  # (N, K, 3)
    energy: Tensor  # (N,)


class _Solution(NamedTuple):
    color: Tensor
    background: Tensor
    residual: Tensor
    move: Tensor  # (N, 2) how far the centre should move
    position: Tensor


def _atlas(world: World, shape: Shape) -> Atlas:
    low = torch.tensor(extents(shape, world.radius))
    high = world.size - low
    steps = ((high - low) / (STRIDE * world.radius)).ceil().int() + 1
    x, y = (torch.linspace(float(a), float(b), int(n)) for a, b, n in zip(low, high, steps, strict=True))
    position = torch.cartesian_prod(x, y)
    mask = masks(shape, world.radius, world.size, position)[:, None]
    behind = (1 - mask) * backdrop.basis(world).float()[:, None, :]
    pictures = F.avg_pool2d(torch.cat([mask, behind], dim=1), _reduction(world)).flatten(2)
    basis, _ = torch.linalg.qr(pictures.mT)
    return Atlas(shape, low, high, position, basis.transpose(0, 1).flatten(1))


def _reduction(world: World) -> int:
    """Pixels a side that the coarse search averages into one: a divisor of the frame's size."""
    most = max(1, int(REDUCTION * world.radius))
    return max(n for n in range(1, most + 1) if world.size % n == 0)


def _search(table: Atlas, coarse: Tensor) -> Tensor:
    """The grid position (N, 2) whose pictures explain most of each reduced frame (N, 3, pixels)."""
    count = len(table.position)
    explained = (coarse @ table.basis).square_().unflatten(2, (count, -1)).sum(dim=(1, 3))
    return table.position[explained.argmax(dim=1)]


def _refine(world: World, table: Atlas, frames: Tensor, patterns: Tensor, whole: _Sums, start: Tensor) -> _Solution:
    position = start
    for _ in range(STEPS):
        solution = _solve(world, table.shape, frames, patterns, whole, position, moving=True)
        furthest = STRIDE * world.radius
        step = solution.move.clamp(-furthest, furthest).float()
        position = (position + step).clamp(table.low, table.high)
    return _solve(world, table.shape, frames, patterns, whole, position, moving=False)


def _solve(
    world: World, shape: Shape, frames: Tensor, patterns: Tensor, whole: _Sums, position: Tensor, *, moving: bool
) -> _Solution:
    """Least squares at given positions (N, 2); with ``moving`` the mask's derivatives join the basis.

    The mask is zero outside a crop around the shape, where only the backdrop's sums count: those of the whole frame
    less those of the crop.
    """
    side = min(world.size, 2 * math.ceil(world.radius + EDGE / 2 + 1.5))
    corner = (position.round().int() - side // 2).clamp(0, world.size - side)
    rows = torch.arange(len(frames))
    pixels = frames.unfold(2, side, 1).unfold(3, side, 1)[rows, :, corner[:, 1], corner[:, 0]]
    columns = patterns.unfold(1, side, 1)[:, corner[:, 0]].transpose(0, 1)[:, :, None, :]
    mask = masks(shape, world.radius, side, position - corner)[:, None]
    parts = [mask, (1 - mask) * columns, columns.expand(-1, -1, side, -1), pixels]
    if moving:
        down, right = torch.gradient(mask, dim=(2, 3))
        parts[2:2] = [-right, -down]  # the mask's derivatives by the centre's x and y
    k = len(patterns)
    unknowns = 1 + k + 2 * moving
    stacked = torch.cat(parts, dim=1).flatten(2)
    products = (stacked @ stacked.mT).double()
    behind, below, seen = slice(1, 1 + k), slice(unknowns, unknowns + k), slice(unknowns + k, None)
    normal, right_side = products[:, :unknowns, :unknowns].clone(), products[:, :unknowns, seen].clone()
    normal[:, behind, behind] += whole.patterns - products[:, below, below]
    right_side[:, behind] += whole.frames - products[:, below, seen]
    weights = torch.linalg.solve(normal, right_side)
    color, mean = weights[:, 0], weights[:, 1]
    energy = (whole.energy - (weights * right_side).sum(dim=(1, 2))).clamp_min(0)
    contrast = color - mean
    slopes = weights[:, 1 + k : 3 + k]  # (N, 2, 3): derivative weights, contrast times move in every channel
    move = (slopes * contrast[:, None]).sum(dim=2) / (contrast.square().sum(dim=1, keepdim=True) + RIDGE)
    return _Solution(
        color=color.float(),
        background=(mean - backdrop.mean_light(world)).float(),
        residual=(energy / (3 * world.size**2)).sqrt().float(),
        move=move,
        position=position,
    )
