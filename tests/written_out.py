"""Distillation written out in plain torch, as explicitly as possible: the reference for its steps.

It shares only the networks, the keys of random draws and the block-causal mask with the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from masked import last_block
from torch import Tensor

from hiar.config import Conventions, Distill, Optimizer, Schedule, Variant, Video
from hiar.models.attention import BlockCausal
from hiar.models.denoiser import Denoiser
from hiar.noise import Purpose, normals, stream

Metrics = dict[str, float]


def at(sigma: Tensor) -> Tensor:
    """(B,) reshaped to broadcast against (B, C, F, H, W)."""
    return sigma.view(-1, 1, 1, 1, 1)


def velocity(network: Denoiser, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    """Flow of diffusers' own forward, which is bidirectional."""
    return network.transformer(x, 1000 * sigma, text, return_dict=False)[0]


def clean(network: Denoiser, x: Tensor, sigma: Tensor, text: Tensor) -> Tensor:
    return x - at(sigma) * velocity(network, x, sigma, text)


class Learner:
    """A network under AdamW with its averaged weights."""

    def __init__(self, network: Denoiser, settings: Optimizer, steps: int) -> None:
        self.network, self.settings, self.steps = network, settings, steps
        self.parameters = list(network.parameters())
        self.first = [torch.zeros_like(p) for p in self.parameters]
        self.second = [torch.zeros_like(p) for p in self.parameters]
        self.average: list[Tensor] = []
        self.updates, self.averaged = 0, 0

    def rate(self) -> float:
        number, warmup = self.updates, self.settings.warmup
        if number < warmup:
            return self.settings.adamw.lr * (number + 1) / (warmup + 1)
        if self.settings.decay == "constant":
            return self.settings.adamw.lr
        return self.settings.adamw.lr * (1 + math.cos(math.pi * (number - warmup) / (self.steps - warmup))) / 2

    def learn(self, loss: Tensor) -> float:
        """One update; returns the norm of the gradient."""
        gradients = torch.autograd.grad(loss, self.parameters)
        norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
        rate, (beta1, beta2), decay = self.rate(), self.settings.adamw.betas, self.settings.adamw.weight_decay
        self.updates += 1
        with torch.no_grad():
            for p, g, m, v in zip(self.parameters, gradients, self.first, self.second, strict=True):
                clipped = g * min(1, self.settings.clip / norm)
                m.mul_(beta1).add_((1 - beta1) * clipped)
                v.mul_(beta2).add_((1 - beta2) * clipped**2)
                p.mul_(1 - rate * decay)
                p.sub_(rate * m / (1 - beta1**self.updates) / ((v / (1 - beta2**self.updates)).sqrt() + 1e-8))
            self.follow()
        return norm

    def follow(self) -> None:
        ema, number = self.settings.ema, self.updates - 1
        if ema is None or (number < self.settings.ema_from and number != self.steps - 1):
            return
        if not self.averaged:
            self.average = [p.clone() for p in self.parameters]
        growing = min(ema, (1 + self.averaged) / (10 + self.averaged))
        decay = ema if self.settings.ema_from else growing
        self.average = [decay * a + (1 - decay) * p for a, p in zip(self.average, self.parameters, strict=True)]
        self.averaged += 1


@dataclass
class WrittenOut:
    """Student, critic and teacher, and the reference for `distillation_step`."""

    student: Learner
    critic: Learner
    teacher: Denoiser
    settings: Distill
    variant: Variant
    video: Video
    schedule: Schedule
    conventions: Conventions
    prompts: Callable[[range], Tensor]
    no_text: Tensor
    student_samples: int
    critic_samples: int
    pairs: tuple[Tensor, Tensor, Tensor]
    seed: int
    shape: tuple[int, int, int, int]
    replay: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # one entry per window, oldest first

    def step(self, number: int) -> Metrics:
        s = self.settings
        warming = math.ceil(s.critic_warmup / s.critic_updates)
        metrics: Metrics = {}
        if number >= warming or s.replay is not None:
            first = self.student_samples + number * s.batch
            exit_step = self.draw_exit("exit step", number)
            windows, text = self.roll_out(range(first, first + s.batch), exit_step, number >= warming)
            if number >= warming:
                metrics = self.student_update(windows, text)
            if s.replay is not None:
                self.replay += zip(windows.detach(), text, strict=True)
                self.replay = self.replay[-s.replay * s.batch * s.windows :]
        turns = [self.critic_update(number * s.critic_updates + turn) for turn in range(s.critic_updates)]
        return metrics | {name: sum(turn[name] for turn in turns) / len(turns) for name in turns[0]}

    def student_update(self, windows: Tensor, text: Tensor) -> Metrics:
        number, count, g = self.student.updates, len(windows), self.settings.guidance
        sigma = self.levels("dmd levels", number, count)
        noise = normals("dmd noise", self.seed, range(count), windows.shape[1:], step=number)
        with torch.no_grad():
            x = (1 - at(sigma)) * windows + at(sigma) * noise
            conditional = clean(self.teacher, x, sigma, text)
            unconditional = clean(self.teacher, x, sigma, self.no_text.repeat(count, 1, 1))
            real = unconditional + g * (conditional - unconditional)
            fake = clean(self.critic.network, x, sigma, text)
            direction = torch.stack(
                [(f - r) / (w - r).abs().mean() for w, f, r in zip(windows, fake, real, strict=True)]
            )
        loss = (windows * direction).sum() / windows.numel()
        metrics = {"dmd": direction.square().mean().item()}
        if self.variant.forward_kl is not None:
            distance = self.forward_kl(number)
            loss = loss + self.variant.forward_kl.weight * distance
            metrics["forward_kl"] = distance.item()
        return metrics | {"student_grad_norm": self.student.learn(loss)}

    def forward_kl(self, number: int) -> Tensor:
        spec, (states, sigmas, text) = self.variant.forward_kl, self.pairs
        assert spec is not None
        chosen = stream("forward-KL pairs", self.seed, step=number).integers(len(states), size=self.settings.batch)
        total = torch.zeros(())
        for i in range(spec.steps):
            x, after = states[chosen, i], states[chosen, i + 1]
            sigma = sigmas[i].repeat(len(x))
            if spec.attention == "bidirectional":
                seen = velocity(self.student.network, x, sigma, text[chosen])
            else:
                causal = BlockCausal(self.video.block, self.video.window // self.video.block)
                seen = (x - self.student.network(x, sigma, text[chosen], causal)) / sigmas[i]
            total = total + (seen - (after - x) / (sigmas[i + 1] - sigmas[i])).square().mean()
        return total / spec.steps

    def critic_update(self, number: int) -> Metrics:
        s = self.settings
        if s.replay is None:
            rollouts = s.critic_batch // s.windows
            first = self.critic_samples + number * rollouts
            exit_step = self.draw_exit("critic exit step", number)
            windows, text = self.roll_out(range(first, first + rollouts), exit_step, learn=False)
        else:
            chosen = stream("critic replay", self.seed, step=number).integers(len(self.replay), size=s.critic_batch)
            windows, text = (torch.stack(part) for part in zip(*(self.replay[i] for i in chosen), strict=True))
        sigma = self.levels("critic levels", number, s.critic_batch)
        noise = normals("critic noise", self.seed, range(s.critic_batch), windows.shape[1:], step=number)
        x = (1 - at(sigma)) * windows + at(sigma) * noise
        error = velocity(self.critic.network, x, sigma, text) - (noise - windows)
        weight = at((sigma / sigma.clamp(min=s.critic_floor)) ** 2)  # 1 unless the level is below the floor
        loss = (weight * error.square()).mean()
        return {"critic": loss.item(), "critic_grad_norm": self.critic.learn(loss)}

    def levels(self, purpose: Purpose, number: int, count: int) -> Tensor:
        random, bounds = stream(purpose, self.seed, step=number), self.settings.levels
        strata = random.permutation(count)
        t = torch.tensor([(strata[i] + u) / count for i, u in enumerate(random.random(count))]).float()
        return (bounds.shift * t / (1 + (bounds.shift - 1) * t)).clamp(bounds.lowest, bounds.highest)

    def draw_exit(self, purpose: Purpose, number: int) -> int:
        return int(stream(purpose, self.seed, step=number).integers(self.schedule.student_steps))

    def roll_out(self, samples: range, exit_step: int, learn: bool) -> tuple[Tensor, Tensor]:
        """Training windows (B * windows, C, F, h, w) of rollouts that end with step ``exit_step``'s x0; their text."""
        text = self.prompts(samples)
        s, shift = self.schedule.student_steps, self.schedule.student_shift
        sigmas = torch.tensor([shift * t / (1 + (shift - 1) * t) for t in (1 - j / s for j in range(s + 1))])
        blocks = range(self.settings.windows * self.video.frames // self.video.block)

        def noise(block: int, step: int) -> Tensor:
            return normals("rollout", self.seed, samples, self.shape, step=step, block=block)

        def denoise(contexts: list[Tensor], level: Tensor, x: Tensor, j: int) -> Tensor:
            window = self.video.window // self.video.block
            with torch.set_grad_enabled(learn and j == exit_step):
                return last_block(self.student.network, contexts, level, x, sigmas[j], text, window)

        def renoise(x0: Tensor, block: int, j: int) -> Tensor:
            x0 = x0.detach()
            return (1 - sigmas[j + 1]) * x0 + sigmas[j + 1] * noise(block, j + 1) if j + 1 < s else x0

        shown: list[Tensor] = []
        if (self.variant.order, self.variant.context) == ("step_first", "output"):
            shares = self.variant.level if isinstance(self.variant.level, tuple) else (self.variant.level,) * (s - 1)
            latents = [noise(n, 0) for n in blocks]
            for j in range(exit_step + 1):
                level = sigmas[j + 1] * ([*shares, 1.0][j] or 0.0)
                seen, shown, after = [], [], []
                for n in blocks:
                    seen.append(denoise(shown, level, latents[n], j))
                    after.append(renoise(seen[n], n, j))
                    x0 = seen[n].detach()
                    shown.append((1 - level) * x0 + level * noise(n, j + 1) if j + 1 < s else x0)
                latents = after
        else:
            assert (self.variant.order, self.variant.context) == ("block_first", "finished")
            level, seen = torch.tensor(self.conventions.context_noise), []
            for n in blocks:
                x = noise(n, 0)
                for j in range(exit_step + 1):
                    x0 = denoise(shown, level, x, j)
                    x = renoise(x0, n, j)
                seen.append(x0)
                shown.append((1 - level) * x0.detach() + level * noise(n, s))
        video, frames = torch.cat(seen, dim=2), self.video.frames
        cuts = [(b, w) for b in range(len(samples)) for w in range(self.settings.windows)]
        windows = torch.stack([video[b, :, w * frames : (w + 1) * frames] for b, w in cuts])
        return windows, torch.stack([text[b] for b, _ in cuts])
