"""The whole experiment, and the rules between its sections."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from hiar.config.generation import Codec, Conventions, Model, Schedule, Video, World
from hiar.config.inits import CausalOde, Init
from hiar.config.section import (
    SEEDS,
    SHARED,
    THREADS,
    Count,
    Digest,
    Distinct,
    DriftProfile,
    File,
    Name,
    Positive,
    Precision,
    Probability,
    Section,
    VBenchDimension,
)
from hiar.config.training import Distill, Pairs, Teacher, Variant
from hiar.errors import UserError, require, suggest


class Walked(Section):
    """A distilled student that is sampled as another variant walks, without retraining."""

    student: Name
    walk: Name


class Compare(Section):
    """What is compared: walks of the causal init, distilled variants, and students walked as another variant."""

    init: Annotated[list[Name], Distinct]
    distill: Annotated[list[Name], Distinct]
    walked: Annotated[list[Walked], Distinct]

    @property
    def students(self) -> list[str]:
        """The contenders that walk the grid, named as in files: STAGE/VARIANT, or walked/STUDENT/WALK."""
        distilled = [f"distill/{name}" for name in self.distill]
        walked = [f"walked/{one.student}/{one.walk}" for one in self.walked]
        return [*(f"init/{name}" for name in self.init), *distilled, *walked]


class Sample(Section):
    videos: Count
    frames: Count
    caption_dropout: Probability  # like the world's, for the prompts; 0: they omit nothing
    prompts: File | None = None  # in place of the world's; null: the world makes its own
    prompts_sha256: Digest | None = None  # like the world's
    batch: Count


class Score(Section):
    """Oracle thresholds, segments for drift, and the profiles to score with."""

    good_residual: Positive  # root mean square pixel error below which a frame is good, in units of [0, 1]
    good_color: Positive  # largest colour error of a good frame
    hop: Positive  # displacement between frames that counts as a hop, pixels
    segments: Count  # into which a video is cut for drift
    # Drift profiles: the paper's, whose networks run in VBench's environment, or the one without networks.
    profiles: Annotated[list[DriftProfile], Distinct]
    # VBench's dimensions, in the environment that `make vbench` builds; empty: VBench is not needed.
    vbench: Annotated[list[VBenchDimension], Distinct]
    # null: vbench-long from 5 s on, as VBench recommends; most published figures for 81 frames use vbench.
    vbench_protocol: Literal["vbench", "vbench-long"] | None


class Report(Section):
    videos: Count  # shown side by side
    reference: str | None  # baseline of the comparison, such as distill/hiar; null: the first distilled one, else init
    table: Name | None  # the table of experiments/paper/tables.yaml that this experiment fills


class Runtime(Section):
    device: Literal["auto", "cpu", "cuda"]
    precision: Precision  # of training, and of sampling from the checkpoint
    checkpointing: (
        bool  # in training, layers' activations are recomputed in backward: slower, but less memory, and the same bits
    )
    threads: Count  # CPU threads of a stage that runs alone
    variant_threads: Count  # CPU threads of a stage of one variant; several of these run side by side
    # Processes that share each teacher, pairs, init, distill and sample stage, each with that many threads; trained
    # networks are sharded. null: one, with whole networks. It changes no result, so dvc.yaml does not list it.
    processes: Count | None = None
    # What is kept in the host's memory until used: a distillation's real score, layer by layer, which requires
    # `processes`; optimiser states, between updates. Slower, same bits: changes no result either.
    offload: Annotated[list[Literal["real_score", "optimizers"]], Distinct] = Field(default=[])
    # Memory that a stage requests from its work pool; null: the pool's own setting.
    memory_gb: Positive | None = None
    stall_seconds: Positive = 600.0  # for which a process may be silent before the others give up
    checkpoint_minutes: Positive  # between two resumable checkpoints
    # While a stage trains: how many of the newest checkpoints stay, and every how many updates one is kept in addition,
    # until the artifact is complete.
    checkpoints_kept: Count = 1
    checkpoint_milestone: Count | None = None

    def processes_of(self, stage: str) -> int:
        """The number of processes of a stage of dvc.yaml, such as ``distill@0-hiar``."""
        return (self.processes or 1) if stage.partition("@")[0] in SHARED else 1


class Params(Section):
    """The whole experiment."""

    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=SEEDS)]], Field(min_length=1), Distinct]
    world: World
    video: Video
    conventions: Conventions
    schedule: Schedule
    codec: Codec | None  # null: the base model's
    model: Model | None  # null: the base model's
    teacher: Teacher
    pairs: Pairs
    init: Init
    distill: Distill
    variants: dict[Name, Variant]
    compare: Compare
    sample: Sample
    score: Score
    report: Report
    runtime: Runtime

    @model_validator(mode="after")
    def _check(self) -> Self:
        (self._check_trained if self.world.kind == "shapes" else self._check_adopted)()
        self._check_clips()
        self._check_runtime()
        self._check_lengths()
        self._check_pairs()
        self._check_compared()
        self._check_processes()
        self._check_variants()
        return self

    def _check_clips(self) -> None:
        """Videos are whole blocks, and training on whole clips supports no sinks."""
        k = self.video.block
        require(
            self.sample.frames % k == 0, "sample.frames", self.sample.frames, f"must be a multiple of video.block = {k}"
        )
        require(
            self.video.sink_blocks == 0 or self.video.frames <= self.video.window or not self._masks_clips(),
            "video.sink_blocks",
            self.video.sink_blocks,
            f"training clips must fit in the window of {self.video.window} frames when there are sinks; use 0",
        )

    def _check_runtime(self) -> None:
        """Thread counts are possible, and a real score on the host is sharded."""
        for field, threads in (
            ("runtime.threads", self.runtime.threads),
            ("runtime.variant_threads", self.runtime.variant_threads),
        ):
            require(threads <= THREADS, field, threads, f"should be at most {THREADS}; give the number of cores")
        whole = "real_score" in self.runtime.offload and self.runtime.processes is None
        require(
            not whole,
            "runtime.offload",
            self.runtime.offload,
            "an offloaded real score is sharded; set runtime.processes (1 will do), or leave it out",
        )

    def _check_lengths(self) -> None:
        """Scored videos are whole blocks and long enough, and the report shows no more than are sampled."""
        k, shortest = self.video.block, max(self.score.segments, 4)
        lengths = {"video.frames": self.video.frames, "sample.frames": self.sample.frames}
        for name, validation in (("init", self.init.validation), ("distill", self.distill.validation)):
            if validation is not None:
                field, frames = f"{name}.validation.frames", validation.frames
                require(frames % k == 0, field, frames, f"must be a multiple of video.block = {k}")
                lengths[field] = frames
        for field, frames in lengths.items():
            require(frames >= shortest, field, frames, f"scoring needs at least {shortest} frames")
        require(
            self.report.videos <= self.sample.videos,
            "report.videos",
            self.report.videos,
            f"cannot exceed sample.videos = {self.sample.videos}",
        )

    def _check_pairs(self) -> None:
        """The trajectories to learn from are made or given, and solvers visit the student's levels."""
        if isinstance(self.init, CausalOde):
            remedy = "is missing; give the settings of the causal teacher's pairs, or import pairs with pairs.source"
            require(self.init.pairs is not None or self.pairs.source is not None, "init.pairs", None, remedy)
        solvers = {"pairs.solver_steps": self.pairs.solver_steps}
        solvers |= {f"init.{field}": steps for field, steps in self.init.solvers.items()}
        for field, steps in solvers.items():
            remedy = f"must be a multiple of schedule.student_steps = {self.schedule.student_steps}"
            require(steps % self.schedule.student_steps == 0, field, steps, remedy)

    def _check_variants(self) -> None:
        """Settings of variants for single steps fit the student's number of steps."""
        steps = self.schedule.student_steps
        for name, variant in self.variants.items():
            kl = variant.forward_kl
            require(
                not isinstance(variant.level, tuple) or len(variant.level) == steps - 1,
                f"variants.{name}.level",
                variant.level,
                f"give one number, or {steps - 1}: one for each of schedule.student_steps = {steps} but the last",
            )
            require(
                kl is None or kl.steps <= steps,
                f"variants.{name}.forward_kl.steps",
                kl and kl.steps,
                f"cannot exceed schedule.student_steps = {steps}",
            )

    def _masks_clips(self) -> bool:
        """Whether anything trains on whole clips under a mask, which supports no sinks; self-rollouts do."""
        compared = [self.variants[name] for name in self.compare.distill if name in self.variants]
        causal = (one.forward_kl is not None and one.forward_kl.attention == "causal" for one in compared)
        return bool(self.init.trainings) or any(one.forcing for one in compared) or any(causal)

    def _check_compared(self) -> None:
        """The variants and students that the comparison names exist."""
        for field, names in (("compare.init", self.compare.init), ("compare.distill", self.compare.distill)):
            for name in names:
                require(name in self.variants, field, name, f"no such variant; {suggest(name, self.variants)}")
        for one in self.compare.walked:
            said, student, walk = f"{one.student}/{one.walk}", one.student, one.walk
            known = [name for name in self.compare.distill if name != walk]
            require(student in known, "compare.walked", said, f"no such distilled student; {suggest(student, known)}")
            require(walk in self.variants, "compare.walked", said, f"no such variant; {suggest(walk, self.variants)}")
        asked, students = self.report.reference, self.compare.students
        remedy = f"is not compared; {suggest(asked or '', students)}, or null"
        require(asked is None or asked in students, "report.reference", asked, remedy)

    @property
    def reference(self) -> str | None:
        """The baseline of the comparison; by default the first distilled student, else the first init, else None."""
        first = [name for name in self.compare.students if name.startswith("distill/")] or self.compare.students
        return self.report.reference or next(iter(first), None)

    def _check_processes(self) -> None:
        """All processes get the same number of micro-batches."""
        processes, spec = self.runtime.processes or 1, self.distill
        fresh = spec.windows if spec.replay is None else 1  # rollouts for the critic are not divided
        trained = {f"init.{field}": training for field, training in self.init.trainings.items()}
        trained |= {"teacher.training": self.teacher.training} if self.teacher.training else {}
        batches = [(name, training.batch, training.micro_batch or 1) for name, training in trained.items()]
        batches.append(("distill", spec.batch, spec.micro_batch or 1))
        batches.append(("distill, of its critic", spec.critic_batch, (spec.micro_batch or 0) * spec.windows or fresh))
        watched = (("init.validation", self.init.validation), ("distill.validation", spec.validation))
        batches += [(f"{name}, its prompts", one.prompts, 1) for name, one in watched if one]
        for name, batch, size in batches:
            remedy = f"cannot evenly split the batch of {name}: {batch}, in micro-batches of {size} or more; change one"
            require(batch % (size * processes) == 0, "runtime.processes", processes, remedy)

    def _check_trained(self) -> None:
        """Rules where codec, text encoder and teacher are trained here."""
        own = (("codec", self.codec), ("model", self.model), ("teacher.training", self.teacher.training))
        for field, section in own:
            require(section is not None, field, None, "is missing; the built-in world has no base, give its settings")
        assert self.world.kind == "shapes" and self.codec and self.model
        for field, (source, _) in self.init.sources.items():
            require(False, f"init.{field}", str(source), "the world trains its own; use another kind of init, like ode")
        require(self.sample.prompts is None, "sample.prompts", self.sample.prompts, "the world makes its own; use null")
        size, latent = self.world.size, self.world.size // self.codec.patch
        require(size % self.codec.patch == 0, "codec.patch", self.codec.patch, f"must divide world.size = {size}")
        require(
            latent % self.model.patch == 0,
            "model.patch",
            self.model.patch,
            f"must divide the {latent} latent pixels a side",
        )

    def _check_adopted(self) -> None:
        """Rules where they are a base model's."""
        assert self.world.kind == "wan"
        adopted = (("codec", self.codec), ("model", self.model), ("teacher.training", self.teacher.training))
        for field, section in adopted:
            require(section is None, field, "...", "comes from the base model; write null")
        dropout = self.sample.caption_dropout
        require(dropout == 0, "sample.caption_dropout", dropout, "prompts from a file are used unchanged; use 0")
        require(self.sample.prompts is not None, "sample.prompts", None, "name a text file with one prompt a line")

    def variant(self, name: str) -> Variant:
        """The variant of that name. Raises UserError when there is none."""
        if name not in self.variants:
            raise UserError(f"variant '{name}': no such variant; {suggest(name, self.variants)}")
        return self.variants[name]
