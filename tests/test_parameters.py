"""The rules of params.yaml: for each, the last valid value and the first invalid one, with its error line."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiar.config import CausalOde, Params, TeacherForcing
from hiar.errors import UserError
from hiar.parameters import load_params, merge, parse_params
from hiar.plain_yaml import parse
from hiar.workspace import experiment_tree

ROOT = Path(__file__).parents[1]
WATCHED = "every: 2, metric: good, bidirectional: false"
TRAINING = (
    "{steps: 1, batch: 4, optimizer: {adamw: {lr: 0.1, betas: [0.9, 0.9], weight_decay: 0.0}, muon: null, warmup: 0, "
    "decay: cosine, clip: 1.0, ema: null, ema_from: 0}}"
)
CODEC = f"{{patch: 8, channels: 4, width: 64, depth: 2, noise: 0.5, training: {TRAINING}}}"
MODEL = (
    "{layers: 4, heads: 6, head_dim: 32, ffn: 768, freq_dim: 64, patch: 8, prediction: x0, coordinates: false, "
    "text_dim: 64, text_length: 12}"
)
# By experiment ("" is the default): a change with a ?, the last valid and first invalid value for it, and the error.
LIMITS = {
    "": [
        ("seeds: [?]", "9223372036854775807", "", "seeds = []: list should have at least 1 item"),
        # numbers of one field
        ("runtime: {threads: ?}", "1024", "0", "runtime.threads = 0: input should be greater than or equal to 1"),
        ("runtime: {variant_threads: ?}", "1024", "1025", "runtime.variant_threads = 1025: should be at most 1024"),
        ("conventions: {context_noise: ?}", "0.99", "1.0", "conventions.context_noise = 1.0: input should be less"),
        ("sample: {caption_dropout: ?}", "1.0", "1.1", "sample.caption_dropout = 1.1: input should be less than or"),
        ("pairs: {guidance: ?}", "0.1", "0.0", "pairs.guidance = 0.0: input should be greater than 0"),
        ("world: {camera: ?}", "0.0", "-0.1", "world.camera = -0.1: input should be greater than or equal to 0"),
        ("distill: {generator: {ema: ?}}", "0.0", "1.0", "distill.generator.ema = 1.0: input should be less than 1"),
        ("distill: {generator: {ema: ?}}", "0.9", "-0.1", "distill.generator.ema = -0.1: input should be greater than"),
        ("distill: {generator: {ema_from: ?}}", "0", "-1", "distill.generator.ema_from = -1: input should be greater"),
        ("distill: {generator: {warmup: ?}}", "0", "-1", "distill.generator.warmup = -1: input should be greater"),
        ("distill: {generator: {adamw: {betas: [?, 0.9]}}}", "0.0", "1.0",
         "distill.generator.adamw.betas.0 = 1.0: input should be less than 1"),
        ("distill: {critic_floor: ?}", "0.0", "-0.1", "distill.critic_floor = -0.1: input should be greater than or"),
        ("distill: {critic_floor: ?}", "1.0e+9", "1.1e+9", "distill.critic_floor = 1100000000.0: input should be less"),
        ("pairs: {guidance: ?}", "1.0e+9", "1.1e+9", "pairs.guidance = 1100000000.0: input should be less than or"),
        ("sample: {videos: ?}", "1000000000", "1000000001", "sample.videos = 1000000001: input should be less than or"),
        ("model: {layers: ?}", "1", "0", "model.layers = 0: input should be greater than or equal to 1"),
        ("model: {layers: ?}", "16384", "16385", "model.layers = 16385: input should be less than or equal to 16384"),
        ("model: {freq_dim: ?}", "2", "3", "model.freq_dim = 3: input should be a multiple of 2"),
        ("codec: {noise: ?}", "0.0", "-0.1", "codec.noise = -0.1: input should be greater than or equal to 0"),
        ("conventions: {context_noise: ?}", "0.0", "-0.1", "conventions.context_noise = -0.1: input should be greater"),
        ("world: {frames_per_second: ?}", "1", "0", "world.frames_per_second = 0: input should be greater than or"),
        ("world: {frames_per_second: ?}", "1000", "1001", "world.frames_per_second = 1001: input should be less than"),
        ("distill: {generator: {decay: ?}}", "constant", "linear", "distill.generator.decay = 'linear': input should"),
        ("model: {head_dim: ?}", "6", "4", "model.head_dim = 4: input should be greater than or equal to 6"),
        ("model: {head_dim: ?}", "8", "7", "model.head_dim = 7: input should be a multiple of 2"),
        ("world: {size: ?, radius: 128}", "4096", "4098", "world.size = 4098: input should be less than or equal to"),
        ("world: {size: 4096, radius: 128, camera: ?}", "4096.0", "4.0e+9", "world.camera = 4000000000.0: input"),
        # types, none of which is converted to another
        ("world: {radius: ?}", "14", "true", "world.radius = True: input should be a valid number"),
        ("world: {radius: ?}", "14.0", ".inf", "world.radius = inf: input should be a finite number"),
        ("sample: {videos: ?}", "8", "8.0", "sample.videos = 8.0: input should be a valid integer"),
        ("runtime: {checkpointing: ?}", "true", "1", "runtime.checkpointing = 1: input should be a valid boolean"),
        ("runtime: {device: ?}", "cpu", "on", "runtime.device = True: YAML reads on, off, yes and no as true or false"),
        ("pairs: {guidance: ?}", "1.5e+3", "1.5e3", "pairs.guidance = '1.5e3': YAML reads it as text; write 1.5e+3"),
        ("pairs: {guidance: ?}", "1.0e+3", "1e3", "pairs.guidance = '1e3': YAML reads it as text; write 1.0e+3"),
        ("sample: {videos: ?}", "8", "'8.5'", "sample.videos = '8.5': input should be a valid integer"),
        ("sample: {videos: ?}", "8", "1e16", f"sample.videos = '1e16': YAML reads it as text; write 1{'0' * 16}"),
        ("pairs: {guidance: ?}", "1.0", "'inf'", "pairs.guidance = 'inf': input should be a valid number"),
        ("sample: {videos: ?}", "8", "x" * 200, f"sample.videos = '{'x' * 99}...: input should be a valid integer"),
        # a student's levels: by a shift, or listed
        ("schedule: {student_shift: ?}", "0.1", "null", "schedule.student_shift = None: give either the shift of even"),
        ("schedule: {student_levels: ?}", "null", "[1, 0.7, 0.5, 0.1]", "schedule.student_shift = 4.0: give either"),
        *(("schedule: {student_shift: null, student_levels: ?}", "[1.0, 0.7, 0.5, 0.1]", refused,
           f"schedule.student_levels = {line}")
          for refused, line in (
              ("[1.0, 0.7, 0.5]", "(1.0, 0.7, 0.5): must be student_steps = 4 decreasing numbers"),
              ("[0.9, 0.7, 0.5, 0.1]", "(0.9, 0.7, 0.5, 0.1): must be student_steps = 4 decreasing numbers"),
              ("[1.0, 0.7, 0.7, 0.1]", "(1.0, 0.7, 0.7, 0.1): must be student_steps = 4 decreasing numbers"),
              ("[1.0, 0.7, 0.5, 0.0]", "(1.0, 0.7, 0.5, 0.0): must be student_steps = 4 decreasing numbers"),
          )),
        # names and hashes
        ("sample: {prompts_sha256: ?}", "0a" * 32, "0a" * 32 + "a", "sample.prompts_sha256 = '0a"),
        ("sample: {prompts_sha256: ?}", "0a" * 32, "0A" * 32, "sample.prompts_sha256 = '0A"),
        ("report: {table: ?}", "a" * 64, "a" * 65, f"report.table = '{'a' * 65}': string should have at most 64"),
        ("report: {table: ?}", "a-1", "a.b", "report.table = 'a.b': string should match"),
        ("report: {table: ?}", "a1", "a/b", "report.table = 'a/b': string should match"),
        ("report: {table: ?}", "b2", "A", "report.table = 'A': string should match"),
        ("report: {table: ?}", "a-b-c", "a--b", "report.table = 'a--b': string should match"),
        ("report: {table: ?}", "a", "-a", "report.table = '-a': string should match"),
        # duplicates
        ("compare: {distill: [?]}", "hiar", "hiar, hiar", "compare.distill = ['hiar', 'hiar']: holds 'hiar' twice"),
        ("compare: {walked: [{student: hiar, walk: ?}, {student: hiar, walk: shared}]}", "causvid", "shared",
         "compare.walked = [Walked(student='hiar', walk='shared'), Walked("),
        ("score: {profiles: [?]}", "drift", "drift, drift", "score.profiles = ['drift', 'drift']: holds 'drift' twice"),
        ("score: {vbench: [?]}", "scene", "scene, scene", "score.vbench = ['scene', 'scene']: holds 'scene' twice"),
        ("world: {shapes: [?]}", "disc", "disc, disc", "world.shapes = ['disc', 'disc']: holds 'disc' twice"),
        ("world: {backgrounds: [?]}", "grey", "grey, grey", "world.backgrounds = ['grey', 'grey']: holds 'grey' twice"),
        # the built-in world
        ("world: {speed: [?, 2.0]}", "2.0", "2.1", "world.speed = (2.1, 2.0): give the slowest first"),
        ("world: {radius: ?}", "28.0", "28.1", "world.radius = 28.1: the shape must fit in 64 pixels"),
        ("world: {radius: ?}", "2.0", "1.9", "world.radius = 1.9: is too small to be found in 64 pixels; give at"),
        ("world: {radius: 128.0, size: ?}", "4096", "4104", "world.size = 4104: input should be less than or equal to"),
        ("world: {camera: ?}", "64.0", "64.1", "world.camera = 64.1: cannot exceed size = 64 pixels a frame"),
        # videos and what shows them
        ("video: {frames: ?}", "30", "14", "video.frames = 14: must be a multiple of block = 3; try 15"),
        ("video: {frames: ?}", "6", "1", "video.frames = 1: must be a multiple of block = 3; try 3"),
        ("video: {window: ?}", "3", "4", "video.window = 4: must be a multiple of block = 3 and no smaller than one"),
        ("video: {sink_blocks: ?}", "4", "5", "video.sink_blocks = 5: the window of 15 frames must hold the sinks and"),
        ("video: {frames: ?, sink_blocks: 1}", "15", "18", "video.sink_blocks = 1: training clips must fit in the"),
        ("video: {sink_blocks: ?}", "0", "-1", "video.sink_blocks = -1: input should be greater than or equal to 0"),
        ("sample: {frames: ?}", "243", "242", "sample.frames = 242: must be a multiple of video.block = 3"),
        ("sample: {frames: ?}", "6", "3", "sample.frames = 3: scoring needs at least 5 frames"),
        ("{video: {frames: 6}, score: {segments: ?}}", "6", "7", "video.frames = 6: scoring needs at least 7 frames"),
        ("{video: {frames: ?}, score: {segments: 1}}", "6", "3", "video.frames = 3: scoring needs at least 4 frames"),
        *((f"{stage}: {{validation: {{{WATCHED}, prompts: 2, frames: ?}}}}", "6", frames,
           f"{stage}.validation.frames = {frames}: {remedy}")
          for stage in ("init", "distill")
          for frames, remedy in (("7", "must be a multiple of video.block = 3"), ("3", "scoring needs at least 5"))),
        ("report: {videos: ?}", "64", "65", "report.videos = 65: cannot exceed sample.videos = 64"),
        # networks
        ("codec: {channels: ?}", "192", "193", "codec.channels = 193: cannot exceed 3 patch^2"),
        ("codec: {patch: ?}", "8", "12", "codec.patch = 12: must divide world.size = 64"),
        ("model: {patch: ?}", "4", "3", "model.patch = 3: must divide the 8 latent pixels a side"),
        ("codec: ?", "{noise: 0.5}", "null", "codec = None: is missing; the built-in world has no base"),
        ("model: ?", "{layers: 1}", "null", "model = None: is missing; the built-in world has no base"),
        ("teacher: {training: ?}", "{steps: 1}", "null", "teacher.training = None: is missing; the built-in world"),
        ("init: {training: ?}", "{steps: 1}", "null", "init.training = None: is missing; give it, or for an imported"),
        ("init: ?", "{kind: ode}", "{kind: adopted, source: x}", "init.source = 'x': the world trains its own; use"),
        ("sample: {prompts: ?}", "null", "x.txt", "sample.prompts = PosixPath('x.txt'): the world makes its own"),
        # methods
        *((f"variants: {{x: {{order: ?, context: {context}, level: null, forward_kl: null}}}}", taken, refused,
           f"variants.x.{line}")
          for context, taken, refused, line in (
              ("shared", "diagonal", "step_first", "order = 'step_first': shared context is written by a later"),
              ("finished", "block_first", "step_first", "order = 'step_first': finished context needs finished"),
              ("finished", "block_first", "diagonal", "order = 'diagonal': finished context needs finished blocks"),
              ("clean", "diagonal", "block_first", "context = 'clean': is a step's x0 prediction, for"),
          )),
        *((f"variants: {{x: {{order: diagonal, context: {context}, level: ?, forward_kl: null}}}}", taken, refused,
           f"variants.x.level = {line}")
          for context, taken, refused, line in (
              ("input", "null", "0.0", "0.0: the level of input context is fixed; write null"),
              ("output", "0.0", "null", "None: 0 is clean, 1.0 the step's output level"),
              ("output", "2.0", "2.1", "2.1: should be a number from 0 to 2"),
              ("output", "0", "-0.1", "-0.1: should be a number from 0 to 2"),
              ("output", "1", "true", "True: should be a number from 0 to 2"),
              ("output", "[0, 1, 0.5]", "[0, 1]", "(0.0, 1.0): give one number, or 3: one for each of"),
              ("output", "[1, 1, 1]", "[1, 1, 1, 1]", "(1.0, 1.0, 1.0, 1.0): give one number, or 3"),
          )),
        *((f"variants: {{x: {{{more}, level: {level}, forward_kl: null, drawn: ?}}}}", taken, refused,
           f"variants.x.drawn = {line}")
          for more, level, taken, refused, line in (
              ("order: diagonal, context: output", 1, "[0.5, 1.5]", "[1.0, 1.0]", "[1.0, 1.0]: should be bounds"),
              ("order: diagonal, context: clean", "null", "null", "[0.5, 1.5]", "[0.5, 1.5]: should be bounds"),
              ("forcing: diffusion, order: diagonal, context: output", 1, "null", "[0.5, 1.5]", "[0.5, 1.5]: should"),
          )),
        ("variants: {hiar: {forward_kl: {steps: ?}}}", "4", "5",
         "variants.hiar.forward_kl.steps = 5: cannot exceed schedule.student_steps = 4"),
        ("compare: {init: [?]}", "shared", "shard", "compare.init = 'shard': no such variant; did you mean 'shared'"),
        ("compare: {distill: [?]}", "shared", "shard", "compare.distill = 'shard': no such variant; did you mean"),
        ("compare: {walked: [{student: ?, walk: causvid}]}", "hiar", "shared",
         "compare.walked = 'shared/causvid': no such distilled student"),
        ("compare: {walked: [{student: hiar, walk: ?}]}", "shared", "hiar",
         "compare.walked = 'hiar/hiar': no such distilled student"),
        ("compare: {walked: [{student: hiar, walk: ?}]}", "shared", "x", "compare.walked = 'hiar/x': no such variant"),
        ("report: {reference: ?}", "init/hiar", "distill/shared", "report.reference = 'distill/shared': is not"),
        *((f"variants: {{hiar: {{{change}}}}}", taken, refused, f"variants.hiar.drawn = {line}: should be bounds of")
          for change, taken, refused, line in (
              ("drawn: [0.5, ?]", "0.6", "0.5", "[0.5, 0.5]"),
              ("forcing: ?, drawn: [0.0, 1.0]", "null", "diffusion", "[0.0, 1.0]"),
          )),
        # training
        ("pairs: {solver_steps: ?}", "28", "26", "pairs.solver_steps = 26: must be a multiple of"),
        ("pairs: {stored: ?, source: x}", "true", "false", "pairs.stored = False: imported pairs are stored; write"),
        ("pairs: {kept_in: ?, source: x}", "null", "bf16", "pairs.kept_in = 'bf16': imported pairs keep their type"),
        ("distill: {levels: {lowest: ?, highest: 0.5}}", "0.4", "0.5",
         "distill.levels.lowest = 0.5: should be below highest = 0.5"),
        ("teacher: {training: {micro_batch: ?}}", "16", "15", "teacher.training.micro_batch = 15: must divide batch ="),
        ("distill: {micro_batch: ?}", "4", "3", "distill.micro_batch = 3: must divide batch = 16"),
        ("distill: {micro_batch: ?}", "8", "16", "distill.micro_batch = 16: must divide critic_batch = 32, of which"),
        ("distill: {critic_batch: 30, replay: ?}", "4", "null", "distill.critic_batch = 30: without a replay, must be"),
        # processes, which get equal shares of every batch
        *((f"{{runtime: {{processes: ?}}, {more}}}", taken, refused,
           f"runtime.processes = {refused}: cannot evenly split the batch of {line}")
          for more, taken, refused, line in (
              ("distill: {replay: 4}", "16", "32", "distill: 16, in micro-batches of 1 or more"),
              ("distill: {replay: null}", "8", "16", "distill, of its critic: 32, in micro-batches of 4 or more"),
              ("distill: {micro_batch: 4}", "2", "4", "distill, of its critic: 32, in micro-batches of 16 or more"),
              ("teacher: {training: {micro_batch: 16}}", "2", "4", "teacher.training: 32, in micro-batches of 16"),
              ("init: {training: {batch: 6}}", "2", "4", "init.training: 6, in micro-batches of 1 or more"),
              *((f"{stage}: {{validation: {{{WATCHED}, prompts: 2, frames: 6}}}}", "2", "4",
                 f"{stage}.validation, its prompts: 2, in micro-batches of 1") for stage in ("init", "distill")),
          )),
    ],
    "init-causal-ode": [
        ("{init: {pairs: null}, pairs: {source: ?}}", "x", "null", "init.pairs = None: is missing; give the settings"),
        ("init: {pairs: {solver_steps: ?}}", "28", "26", "init.pairs.solver_steps = 26: must be a multiple of"),
    ],
    "init-consistency": [
        ("init: {solver_steps: ?}", "28", "26", "init.solver_steps = 26: must be a multiple of schedule.student_steps"),
        ("init: {training: {optimizer: {ema: ?}}}", "0.9", "null",
         "init.training.optimizer.ema = None: its target is the student's average; give a decay"),
        ("init: {training: {optimizer: {ema_from: ?}}}", "0", "1",
         "init.training.optimizer.ema_from = 1: its target is the student's average from the first update on"),
        ("init: {teacher: {source: ?}}", "null", "x", "init.teacher.source = PosixPath('x'): give training, or a"),
        ("init: {teacher: {training: ?}}", "{steps: 1}", "null", "init.teacher.source = None: give training, or a"),
    ],
    "wan-tiny": [
        ("world: {frames_per_second: ?}", "1", "0", "world.frames_per_second = 0: input should be greater than or"),
        ("world: {frames_per_second: ?}", "1000", "1001", "world.frames_per_second = 1001: input should be less than"),
        ("world: {height: ?}", "8192", "8208", "world.height = 8208: input should be less than or equal to 8192"),
        ("world: {width: ?}", "8192", "8208", "world.width = 8208: input should be less than or equal to 8192"),
        ("world: {height: ?}", "48", "24", "world.height = 24: input should be a multiple of 16"),
        ("world: {width: ?}", "48", "24", "world.width = 24: input should be a multiple of 16"),
        *(("world: {" + side + ": ?}", "16", "0", f"world.{side} = 0: input should be greater than or equal to 16")
          for side in ("height", "width")),
        ("codec: ?", "null", CODEC, "codec = '...': comes from the base model; write null"),
        ("model: ?", "null", MODEL, "model = '...': comes from the base model; write null"),
        ("teacher: {training: ?}", "null", TRAINING, "teacher.training = '...': comes from the base model; write null"),
        ("sample: {prompts: ?}", "x.txt", "null", "sample.prompts = None: name a text file with one prompt a line"),
        ("sample: {caption_dropout: ?}", "0.0", "0.1", "sample.caption_dropout = 0.1: prompts from a file are used"),
        # Nothing but a distillation trains on clips, which are longer than the window beside the sinks.
        *((f"{{init: {{kind: adopted, source: x}}, video: {{frames: 12, sink_blocks: 1}}, {more}}}", taken, refused,
           "video.sink_blocks = 1: training clips must fit in the window of 9 frames when there are sinks; use 0")
          for more, taken, refused in (
              ("compare: {distill: [?]}", "self-forcing", "causvid"),
              ("variants: {hiar: {forward_kl: {attention: ?}}}", "bidirectional", "causal"),
          )),
        ("init: {kind: adopted, source: x, validation: ?}", "null", f"{{{WATCHED}, prompts: 2, frames: 9}}",
         "init.validation = '{...}': an adopted student is not trained; use null"),
    ],
}  # fmt: skip


def params_of(text: str, name: str = "") -> Params:
    """An experiment with a YAML text merged over it."""
    return parse_params(merge(experiment_tree(ROOT, name or None), parse(text or "{}")), Path("params.yaml"))


def test_settings_that_may_be_left_out_have_the_values_that_users_rely_on() -> None:
    """Runs that were begun without them go on as they were; checkpoints of two states fill a disk of Wan's."""
    runtime = params_of("").runtime
    assert not {"processes", "offload", "stall_seconds", "checkpoints_kept"} & runtime.model_fields_set
    assert (runtime.processes, runtime.offload, runtime.memory_gb) == (None, [], None)
    assert (runtime.stall_seconds, runtime.checkpoints_kept, runtime.checkpoint_milestone) == (600.0, 1, None)
    forced, causal = (params_of("", f"init-{kind}").init for kind in ("teacher-forcing", "causal-ode"))
    assert isinstance(forced, TeacherForcing) and isinstance(causal, CausalOde)
    assert [one.weighting for one in (forced, causal.teacher)] == ["even", "even"]
    assert not [one for one in (forced, causal.teacher) if "weighting" in one.model_fields_set]


@pytest.mark.parametrize("name", LIMITS)
def test_the_first_invalid_value_is_refused_with_its_line(name: str) -> None:
    """All cases of an experiment in one test, because each takes milliseconds."""
    tree = experiment_tree(ROOT, name or None)
    answers, expected = [], []
    for change, taken, refused, line in LIMITS[name]:
        parse_params(merge(tree, parse(change.replace("?", taken))), Path("params.yaml"))
        error_line = "nothing"
        try:
            parse_params(merge(tree, parse(change.replace("?", refused))), Path("params.yaml"))
        except UserError as error:
            error_line = str(error).removeprefix("params.yaml: ")
        answers.append((change, refused, error_line[: len(line)]))
        expected.append((change, refused, line))
    assert answers == expected


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("seeds: [0_1]", "line 1: 0_1: YAML reads it as 1; write it without leading zeros or colons"),
        ("video:\n  frames: 15\n  block: 1:5", "line 3: 1:5: YAML reads it as 65"),
        ("world: {radius: 1:30.5}", "line 1: 1:30.5: YAML reads it as 90.5"),
        ("world: {radius: 1:30.}", "line 1: 1:30.: YAML reads it as 90.0"),
        ("world: {radius: -012}", "line 1: -012: YAML reads it as -10"),
    ],
)
def test_numbers_that_yaml_misreads_are_refused(tmp_path: Path, written: str, line: str) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "experiments" / "mine.yaml").write_text(written)
    with pytest.raises(UserError) as error:
        experiment_tree(tmp_path, "mine")
    assert str(error.value).startswith(f"{tmp_path}/experiments/mine.yaml: {line}")


@pytest.mark.parametrize(
    ("written", "whole"),
    [
        ("pairs: {guidance: '.5'}", "pairs.guidance = '.5': YAML reads it as text; write .5"),
        ("pairs: {guidance: '2.5'}", "pairs.guidance = '2.5': YAML reads it as text; write 2.5"),
        ("pairs: {guidance: 1E-2}", "pairs.guidance = '1E-2': YAML reads it as text; write 1.0e-2"),
    ],
)
def test_the_suggested_spelling_is_a_number_to_yaml(written: str, whole: str) -> None:
    with pytest.raises(UserError) as error:
        params_of(written)
    assert str(error.value) == f"params.yaml: {whole}"
    assert isinstance(parse(whole.rpartition(" ")[2]), float)


@pytest.mark.parametrize(("text", "kind"), [("- a", "list"), ("7", "int"), ("", "NoneType")])
def test_a_file_without_sections_is_refused(tmp_path: Path, text: str, kind: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"params\.yaml: should hold a mapping of sections, not {kind}$"):
        load_params(tmp_path / "params.yaml")


def test_a_section_of_another_kind_is_replaced_not_merged() -> None:
    base = {"init": {"kind": "ode", "training": {"steps": 30}}}
    assert merge(base, {"init": {"kind": "adopted", "source": "x"}})["init"] == {"kind": "adopted", "source": "x"}
    assert merge(base, {"init": {"kind": "ode", "training": {"batch": 2}}})["init"] == {
        "kind": "ode", "training": {"steps": 30, "batch": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("", "runtime: {processes: null, offload: [], memory_gb: null, checkpoint_milestone: null}"),
        ("", "runtime: {stall_seconds: 600, checkpoints_kept: 1}"),
        ("", "pairs: {stored: true, kept_in: null, source: null, source_sha256: null}"),
        ("", "{schedule: {student_levels: null}, sample: {prompts: null, prompts_sha256: null}}"),
        ("", "variants: {hiar: {drawn: null, forcing: null}}"),
        ("", "distill: {micro_batch: null, real_score_sha256: null}"),
        ("init-teacher-forcing", "init: {weighting: even}"),
        ("init-consistency", "init: {teacher: {weighting: even, source: null, weights: null}}"),
        ("wan-tiny", "world: {prompts_sha256: null}"),
    ],
)
def test_what_is_left_out_has_its_default(name: str, written: str) -> None:
    assert params_of("", name) == params_of(written, name)


def test_the_reference_of_comparisons() -> None:
    """The one that is named, else the first distilled variant, else the first init."""
    assert params_of("").reference == "distill/self-forcing"
    assert params_of("report: {reference: init/hiar}").reference == "init/hiar"
    assert params_of("compare: {distill: []}").reference == "init/self-forcing"
    assert params_of("compare: {distill: [], init: []}").reference is None


def test_critic_warmup_is_rounded_up_to_whole_steps() -> None:
    """Each step has three updates of the critic."""
    for updates, steps in ((0, 0), (1, 1), (45, 15), (46, 16)):
        distill = params_of(f"distill: {{critic_warmup: {updates}}}").distill
        assert (distill.warmup_steps, distill.all_steps) == (steps, steps + 60)


def test_a_critic_without_a_replay_has_rollouts_of_its_own() -> None:
    """Each spans several of its windows; the batches are those of every update, of the warm-up's too."""
    distill = "distill: {critic_warmup: 9, critic_updates: 3, critic_batch: 8, windows: 2, batch: 4, replay: ?}"
    fresh, replayed = (params_of(distill.replace("?", replay)).distill for replay in ("null", "4"))
    assert (fresh.all_steps, fresh.critic_rollouts) == (63, 63 * 3 * 4)
    assert replayed.critic_rollouts == 0


def test_training_and_sampling_stages_have_several_processes() -> None:
    runtime = params_of("runtime: {processes: 2}").runtime
    shared = ("distill@0-hiar", "init@0", "sample@0-hiar", "sample-teacher@0", "sample-walked@0-hiar-c85")
    assert {runtime.processes_of(stage) for stage in shared} == {2}
    assert {runtime.processes_of(stage) for stage in ("codec@0", "score", "vbench@0-imaging_quality", "report")} == {1}
