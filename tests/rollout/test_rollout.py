"""Rollouts: the same numbers in every order, in cached and masked form, and the same gradients."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from masked import last_block
from tiny import live_tensor_bytes, relative_error, tiny_denoiser

from hiar.config import Context, Order, Passes, Renoise
from hiar.grid import Cell, make_grid, walk_passes
from hiar.models.attention import Bidirectional, attend
from hiar.models.blockwise import Conditioning
from hiar.models.denoiser import Denoiser
from hiar.models.rings import Rings
from hiar.models.rotary import rotate, rotations
from hiar.rollout import cell
from hiar.rollout import walk as walking
from hiar.rollout.cell import Memory, Rollout, advance, carry_out, given_state
from hiar.rollout.walk import generate, walk
from hiar.schedule import add_noise, step_sigmas

STEPS, BLOCK, SHAPE = 3, 2, (3, 2, 4, 4)


def make_rollout(
    context: Context = "output",
    *,
    blocks: int | None = 6,
    window: int = 3,
    sinks: int = 0,
    given: int = 0,
    renoise: Renoise = "sde",
    batch: int = 2,
    steps: int = STEPS,
) -> Rollout:
    grid = make_grid(context, blocks=blocks, steps=steps, window=window, sinks=sinks, given=given)
    text = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(2))[:batch]
    return Rollout(grid, step_sigmas(STEPS, 5.0), SHAPE, renoise, 7, range(batch), text)


@torch.no_grad()
@pytest.mark.parametrize("renoise", ["sde", "euler"])
@pytest.mark.parametrize("context", ["clean", "output", "input"])
@pytest.mark.parametrize("batch", [1, 4])
def test_step_first_is_diagonal_to_the_bit(batch: int, context: Context, renoise: Renoise) -> None:
    model = tiny_denoiser()
    rollout = make_rollout(context=context, renoise=renoise, batch=batch, sinks=1)
    assert torch.equal(generate(model, rollout, "step_first"), generate(model, rollout, "diagonal"))


@torch.no_grad()
@pytest.mark.parametrize("context", ["output", "input"])
def test_block_first_walks_the_same_grid(context: Context) -> None:
    model = tiny_denoiser()
    rollout = make_rollout(context=context)
    assert torch.equal(generate(model, rollout, "step_first"), generate(model, rollout, "block_first"))


WALKS: list[tuple[Context, Order, Order, Passes]] = [
    ("output", "step_first", "step_first", "fused"),
    ("output", "step_first", "diagonal", "fused"),
    ("output", "step_first", "diagonal", "batched"),
    ("input", "step_first", "step_first", "fused"),
    ("input", "step_first", "diagonal", "batched"),
    ("clean", "step_first", "step_first", "fused"),
    ("clean", "step_first", "diagonal", "batched"),
    ("finished", "block_first", "block_first", "fused"),
    ("shared", "block_first", "block_first", "fused"),
    ("shared", "block_first", "diagonal", "fused"),
    ("shared", "block_first", "diagonal", "batched"),
]


@torch.no_grad()
@pytest.mark.parametrize(("context", "order", "fast_order", "passes"), WALKS)
@pytest.mark.parametrize(("window", "sinks", "given"), [(3, 0, 0), (2, 0, 1), (4, 2, 0), (1, 0, 0), (4, 1, 3)])
def test_fused_and_batched_passes_equal_separate_ones(
    context: Context, order: Order, fast_order: Order, passes: Passes, window: int, sinks: int, given: int
) -> None:
    """One forward call on several cells = one per cell, with a sliding window, with sinks, and after given clips."""
    model = tiny_denoiser()
    options = {"blocks": 9, "window": window, "sinks": sinks, "given": given}
    clip = torch.randn(2, 3, given * BLOCK, 4, 4, generator=torch.Generator().manual_seed(3)) if given else None
    rollout = make_rollout(context, **options)  # type: ignore[arg-type]
    expected = generate(model, rollout, order, clip)
    assert relative_error(generate(model, rollout, fast_order, clip, passes=passes), expected) < 1e-5


@pytest.mark.parametrize(("context", "order", "fast_order", "passes"), WALKS)
def test_gradients_of_fused_passes_are_those_of_separate_ones(
    context: Context, order: Order, fast_order: Order, passes: Passes
) -> None:
    for exit_step in range(STEPS):
        gradients = []
        for walk_order, kind in ((order, "separate"), (fast_order, passes)):
            model = tiny_denoiser()
            steps = STEPS if context == "shared" else exit_step + 1
            rollout = make_rollout(context, steps=steps)
            video = generate(model, rollout, walk_order, passes=kind, grad_step=exit_step, exit_step=exit_step)  # type: ignore[arg-type]
            (video**2).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert gradients[0].abs().max() > 0
        assert relative_error(gradients[1], gradients[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("window", "given", "sinks"), [(3, 0, 0), (2, 0, 0), (6, 0, 0), (3, 2, 0), (3, 0, 1), (4, 0, 2), (4, 2, 1)]
)
def test_shared_context_is_what_the_next_step_left(window: int, given: int, sinks: int) -> None:
    """Compared with a rollout that keeps each block's keys and values in lists, as the layers made them.

    First blocks that are kept as sinks are positioned right before the newest ones.
    """
    model = tiny_denoiser()
    clip = torch.randn(2, 3, given * BLOCK, 4, 4, generator=torch.Generator().manual_seed(3)) if given else None
    rollout = make_rollout("shared", window=window, given=given, sinks=sinks)
    shared = generate(model, rollout, "block_first", clip)
    assert relative_error(shared, listed_shared_rollout(model, rollout, clip)) < 1e-5


@torch.no_grad()
def test_with_one_step_shared_context_is_clean_context() -> None:
    model = tiny_denoiser()
    text = make_rollout().text
    videos = []
    for context in ("shared", "finished"):
        grid = make_grid(context, blocks=6, steps=1, window=3)  # type: ignore[arg-type]
        rollout = Rollout(grid, step_sigmas(1, 5.0), SHAPE, "sde", 7, range(2), text)
        videos.append(generate(model, rollout, "block_first"))
    assert torch.equal(*videos)


@torch.no_grad()
@pytest.mark.parametrize(
    ("order", "context", "passes"), [("diagonal", "output", "batched"), ("block_first", "finished", "fused")]
)
def test_a_prompt_changes_at_a_block_border(order: Order, context: Context, passes: Passes) -> None:
    model = tiny_denoiser()
    plain = make_rollout(context)
    other = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5))
    changed = dataclasses.replace(plain, changes={3: other})
    before, after = (generate(model, rollout, order, passes=passes) for rollout in (plain, changed))
    assert relative_error(after[:, :, : 3 * BLOCK], before[:, :, : 3 * BLOCK]) < 1e-5
    assert not torch.allclose(after[:, :, 3 * BLOCK : 4 * BLOCK], before[:, :, 3 * BLOCK : 4 * BLOCK], atol=1e-2)
    if order == "diagonal":
        assert relative_error(after, generate(model, changed, "step_first")) < 1e-5
    whole = dataclasses.replace(plain, changes={0: other})
    assert (
        relative_error(generate(model, whole, order), generate(model, dataclasses.replace(plain, text=other), order))
        < 1e-5
    )


@torch.no_grad()
def test_a_prompt_is_embedded_once_and_forgotten_when_no_block_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while unfinished blocks still show the previous one."""
    embed, texts, held = cell.condition, [], []

    def recorded(model: Denoiser, text: torch.Tensor, sigmas: torch.Tensor) -> Conditioning:
        texts.append(text)
        return embed(model, text, sigmas)

    monkeypatch.setattr(cell, "condition", recorded)
    plain = make_rollout(blocks=30, batch=1)
    rollout = dataclasses.replace(plain, changes={block: block * plain.text for block in range(3, 30, 3)})
    memory = Memory(tiny_denoiser(), rollout)
    for step in walk_passes(rollout.grid, "diagonal", "batched"):
        carry_out(memory, step)
        held.append(len(memory._conditions))
    assert all(one is other for one, other in zip(texts, [plain.text, *rollout.changes.values()], strict=True))
    assert max(held) == 1 + -(-STEPS // 3)


@torch.no_grad()
def test_a_video_does_not_depend_on_its_batch() -> None:
    model = tiny_denoiser()
    together = generate(model, make_rollout(batch=4), "step_first")
    alone = generate(model, make_rollout(batch=1), "step_first")
    assert relative_error(together[:1], alone) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("context", ["clean", "output", "input"])
@pytest.mark.parametrize("window", [1, 3, 6])
def test_a_cached_rollout_is_the_masked_full_sequence(context: Context, window: int) -> None:
    """Compared with masked forwards on the sequence [contexts | noisy block], without caches."""
    model = tiny_denoiser()
    rollout = make_rollout(context=context, window=window)
    cached = generate(model, rollout, "step_first")
    assert relative_error(cached, masked_rollout(model, rollout)) < 1e-5


def test_gradients_of_a_cached_self_rollout_are_those_of_the_masked_form() -> None:
    for context, exit_step in itertools.product(("clean", "output"), range(STEPS)):
        gradients = []
        for form in ("cached", "masked"):
            model = tiny_denoiser()
            rollout = make_rollout(context=context, steps=exit_step + 1)
            if form == "cached":
                video = generate(model, rollout, "step_first", grad_step=exit_step)
            else:
                video = masked_rollout(model, rollout, grad_step=exit_step)
            (video**2).sum().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        assert gradients[0].abs().max() > 0
        assert relative_error(*gradients) < 1e-5


def test_only_the_exit_step_is_recorded() -> None:
    rollout = make_rollout()
    model = tiny_denoiser()
    assert not generate(model, rollout, "step_first").requires_grad
    blocks = [latent for _, latent in walk(model, rollout, "diagonal", grad_step=STEPS - 1)]
    assert all(latent.requires_grad for latent in blocks)
    # A block's gradient does not flow into the context that it saw; it stops at the block's own last pass.
    (grad,) = torch.autograd.grad(blocks[-1].sum(), blocks[0], allow_unused=True)
    assert grad is None


@torch.no_grad()
@pytest.mark.parametrize("context", ["clean", "output", "input"])
def test_a_given_clip_is_continued_alike_in_every_order(context: Context) -> None:
    model = tiny_denoiser()
    given = torch.randn(2, 3, 2 * BLOCK, 4, 4, generator=torch.Generator().manual_seed(3))
    rollout = make_rollout(context=context, given=2)
    videos = [generate(model, rollout, order, given) for order in ("step_first", "diagonal")]
    assert torch.equal(videos[0][:, :, : 2 * BLOCK], given)
    assert videos[0].shape[2] == 6 * BLOCK
    assert torch.equal(*videos)
    other = generate(model, rollout, "step_first", given + 1)
    assert not torch.allclose(videos[0][:, :, 2 * BLOCK : 3 * BLOCK], other[:, :, 2 * BLOCK : 3 * BLOCK])


@torch.no_grad()
def test_self_forcing_continues_a_clip() -> None:
    """Given its own first blocks, a clip continues as before, because finished blocks are the only context."""
    model = tiny_denoiser()
    whole = generate(model, make_rollout("finished"), "block_first")
    given = whole[:, :, : 2 * BLOCK]
    again = generate(model, make_rollout("finished", given=2), "block_first", given)
    assert relative_error(again, whole) < 1e-5


@pytest.mark.parametrize("renoise", ["sde", "euler"])
def test_a_given_block_is_shown_as_the_walk_would_show_it(renoise: Renoise) -> None:
    """Step by step from its initial noise, re-noised with the noise of each step's cell."""
    rollout = make_rollout(context="output", given=2, renoise=renoise)
    x0, before = torch.ones(2, *SHAPE), rollout.noise(Cell(1, 0))
    for step in range(STEPS):
        state = given_state(rollout, x0, Cell(1, step))
        torch.testing.assert_close(state.before, before)
        assert torch.equal(state.x0, x0)
        before = advance(rollout, Cell(1, step), state.before, x0)
        torch.testing.assert_close(state.after, before)


@torch.no_grad()
def test_five_hundred_blocks_in_constant_memory() -> None:
    """Nothing that a rollout keeps grows with its length, counted in live tensors, not in the process's memory."""
    model = tiny_denoiser()
    del model.transformer.blocks[1]
    rollout = make_rollout("output", blocks=500, batch=1, steps=2)
    alive = {}
    for n, _ in walk(model, rollout, "diagonal"):
        if n in (100, 499):
            alive[n] = live_tensor_bytes()
    assert alive[499] <= alive[100]


@torch.no_grad()
@pytest.mark.parametrize("sinks", [0, 1, 2])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_video_shorter_than_its_window_does_not_depend_on_it(blocks: int, sinks: int) -> None:
    model = tiny_denoiser()
    exact, wide = (
        generate(model, make_rollout("output", blocks=blocks, window=window, sinks=sinks), "diagonal")
        for window in (3, 8)
    )
    assert torch.equal(exact, wide)


@torch.no_grad()
def test_step_first_holds_one_cache_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the last step, when blocks are finished, the caches of earlier steps are gone."""
    memories = []

    def recorded_memory(model: Denoiser, rollout: Rollout, recorded: bool = False) -> Memory:
        memories.append(Memory(model, rollout, recorded))
        return memories[-1]

    monkeypatch.setattr(walking, "Memory", recorded_memory)
    rollout = make_rollout("output")
    for order, held in (("step_first", 1), ("block_first", rollout.grid.caches)):
        *_, full = [
            sum(map(bool, memories[-1].rings._rings)) for n, _ in walk(tiny_denoiser(), rollout, order) if n < 5
        ]
        assert full == held
    assert rollout.grid.caches > 1


@torch.no_grad()
def test_a_dropped_cache_frees_its_memory() -> None:
    rings, key = Rings(2, window=3, sinks=2), torch.zeros(1, 4, 2, 8)
    before = live_tensor_bytes()
    for block in range(5):
        rings.put(0, 0, block, key, key)
    assert live_tensor_bytes() > before
    rings.drop(0)
    assert live_tensor_bytes() == before


@torch.no_grad()
def test_positions_are_relative_to_the_window() -> None:
    """Far beyond the length of the position table, attention depends only on the distance between blocks."""
    places = Memory(tiny_denoiser(), make_rollout("finished", blocks=None)).places
    random = torch.Generator().manual_seed(5)
    query, *keys = (torch.randn(2, 8, 2, 12, generator=random) for _ in range(4))
    values = torch.randn(2, 24, 2, 12, generator=random)
    seen = []
    for first in (0, 600):  # 1,200 frames; Wan's table has 1,024
        turns = [places.of(first + i)[:, :8] for i in range(3)]
        context = torch.cat([rotate(key, turn) for key, turn in zip(keys, turns, strict=True)], dim=1)
        seen.append(attend(rotate(query, turns[-1]), context, values))
    assert relative_error(seen[1], seen[0]) < 1e-5


def listed_shared_rollout(model: Denoiser, rollout: Rollout, clip: torch.Tensor | None) -> torch.Tensor:
    """Shared passes without rings: unrotated keys and values in lists, at positions relative to the window."""
    grid, layers = rollout.grid, range(len(model.transformer.blocks))
    shown: list[list[list[tuple[torch.Tensor, torch.Tensor]]]] = [[] for _ in range(grid.steps)]
    assert grid.blocks is not None

    def block(x: torch.Tensor, level: torch.Tensor, context: list[list[tuple[torch.Tensor, torch.Tensor]]]) -> tuple:
        own: list[tuple[torch.Tensor, torch.Tensor]] = []
        if len(context) >= grid.window:
            context = context[: grid.sinks] + context[len(context) - (grid.window - 1 - grid.sinks) :]
        turns = rotations(model.positions[0].table, 0, (len(context) + 1) * BLOCK, 2, 2)

        def processor(layer: int):
            def attention(attn, hidden, *_args, **_kwargs):
                q, k = (norm(to(hidden)) for norm, to in ((attn.norm_q, attn.to_q), (attn.norm_k, attn.to_k)))
                q, k, v = (t.unflatten(2, (attn.heads, -1)) for t in (q, k, attn.to_v(hidden)))
                own.append((k, v))
                k, v = (torch.cat([*(c[layer][i] for c in context), t], dim=1) for i, t in enumerate((k, v)))
                return attn.to_out[0](attend(rotate(q, turns[:, -q.shape[1] :]), rotate(k, turns), v).flatten(2))

            return attention

        saved = [model.transformer.blocks[layer].attn1.processor for layer in layers]
        for layer in layers:
            model.transformer.blocks[layer].attn1.processor = processor(layer)
        x0 = model(x, level.expand(len(x)), rollout.text, Bidirectional())
        for layer in layers:
            model.transformer.blocks[layer].attn1.processor = saved[layer]
        return x0, own

    videos = [] if clip is None else [clip]
    for n in range(grid.blocks):
        if n < grid.given:
            x0 = clip[:, :, n * BLOCK : (n + 1) * BLOCK]  # type: ignore[index]
            left = []
            for j in range(1, grid.steps):
                x = add_noise(x0, rollout.noise(Cell(n, j)), rollout.sigmas[j])
                left.append(block(x, rollout.sigmas[j], shown[j])[1])
        else:
            x, left = rollout.noise(Cell(n, 0)), []
            for j in range(grid.steps):
                x0, own = block(x, rollout.sigmas[j], shown[j])
                left += [own] if j else []
                x = add_noise(x0, rollout.noise(Cell(n, j + 1)), rollout.sigmas[j + 1]) if j < grid.steps - 1 else x0
            videos.append(x0)
        left.append(block(x0, torch.zeros(()), shown[-1])[1])
        for cache, own in zip(shown, left, strict=True):
            cache.append(own)
    return torch.cat(videos, dim=2)


def masked_rollout(model: Denoiser, rollout: Rollout, grad_step: int | None = None) -> torch.Tensor:
    """A step_first rollout without caches: each block by a masked forward on the sequence [contexts | noisy block]."""
    grid = rollout.grid
    assert grid.blocks is not None
    states: list[torch.Tensor] = [rollout.noise(Cell(n, 0)) for n in range(grid.blocks)]
    for j in range(grid.steps):
        sigma, next_sigma = rollout.sigmas[j], rollout.sigmas[j + 1]
        contexts: list[torch.Tensor] = []
        before, states = states, []
        for n in range(grid.blocks):
            with torch.set_grad_enabled(j == grad_step):
                level = _level(grid.rule.name, rollout, j)
                x0 = last_block(model, contexts, level, before[n], sigma, rollout.text, grid.window)
            after = add_noise(x0, rollout.noise(Cell(n, j + 1)), next_sigma) if next_sigma > 0 else x0
            contexts.append({"clean": x0, "output": after, "input": before[n]}[grid.rule.name].detach())
            states.append(x0 if j == grid.steps - 1 else after)
    return torch.cat(states, dim=2)


def _level(context: Context, rollout: Rollout, step: int) -> torch.Tensor:
    return {"clean": torch.zeros(()), "output": rollout.sigmas[step + 1], "input": rollout.sigmas[step]}[context]
