"""Wan's text encoder: prompts are cleaned, tokenized and encoded by UMT5, exactly as in diffusers' pipeline."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiar.errors import UserError
from hiar.io.free import free_bytes, gigabytes, require_memory
from hiar.io.progress import tell
from hiar.late import let_in
from hiar.worlds.wan.formats.stored import read_json, read_sharded
from hiar.worlds.wan.pretrained import load_pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import UMT5EncoderModel

MAX_TOKENS = 512  # rows of text that Wan's transformers attend to, zeros where a prompt has fewer
# The default negative prompt of Wan's public configuration.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，"
    "JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，"
    "手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
_SHOWN = 40  # characters of a prompt in a message


class TextEncoder(nn.Module):
    """UMT5 with its tokenizer; see `load_text_encoder`."""

    def __init__(self, tokenizer: Tokenizer, model: UMT5EncoderModel) -> None:
        super().__init__()
        self.tokenizer, self.model = tokenizer, model

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return int(self.model.config.d_model)

    @torch.no_grad()
    def rows(self, prompts: Sequence[str]) -> list[Tensor]:
        """Embeddings of prompts, each (tokens, dim), at most 512 tokens, in the encoder's type and on its device.

        They are computed in one batch, padded to its longest prompt; but for rounding they do not depend on the other
        prompts. A prompt that is too long is cut, with a message. Raises UserError for a prompt that is no valid text
        and for embeddings that are not finite.
        """
        ids = [token_ids(self.tokenizer, prompt) for prompt in prompts]
        lengths = [len(row) for row in ids]
        tokens = torch.zeros(len(ids), max(lengths), dtype=torch.long)  # 0 is padding, which the mask hides
        for row, numbers in zip(tokens, ids, strict=True):
            row[: len(numbers)] = torch.tensor(numbers)
        mask = torch.arange(tokens.shape[1]) < torch.tensor(lengths)[:, None]
        device = self.model.device
        hidden = self.model(tokens.to(device), mask.long().to(device)).last_hidden_state
        embeddings = [rows[:length] for rows, length in zip(hidden, lengths, strict=True)]
        for prompt, rows in zip(prompts, embeddings, strict=True):
            if not rows.isfinite().all():
                raise UserError(
                    f"prompt '{_short(prompt)}': its embedding is not finite, so the text encoder's weights are broken "
                    f"or overflow in {self.model.dtype}; copy them again, or encode in bfloat16 or float32"
                )
        return embeddings


def load_text_encoder(base: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> TextEncoder:
    """The text encoder of a base model's folder, its weights of type ``dtype``, or as stored.

    Where the GPU has too little free memory, it computes on the CPU, with a message. Raises UserError when ftfy is
    missing, memory is too small, or text_encoder/ or tokenizer/ is missing, broken or not of the same model.
    """
    _require_ftfy()
    let_in("transformers")
    from transformers import UMT5EncoderModel

    tokenizer = load_tokenizer(base)
    folder = base / "text_encoder"
    stored = read_sharded(folder, "model").values()
    require_memory(str(folder), needed := sum(math.prod(one.shape) * (dtype or one.dtype).itemsize for one in stored))
    model = load_pretrained(UMT5EncoderModel, folder, dtype=dtype or "auto", ignore_mismatched_sizes=True)
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise UserError(
            f"{folder / 'config.json'}: vocab_size = {model.config.vocab_size}: the tokenizer beside it has "
            f"{tokenizer.get_vocab_size()} tokens; they are not of one model; copy both again"
        )
    device = torch.device(device)
    if device.type != "cpu" and (free := free_bytes(device)) < needed:
        tell(
            f"embed: the text encoder takes {gigabytes(needed)}, {gigabytes(free)} of the GPU's memory are free: it "
            "computes on the CPU"
        )
        device = torch.device("cpu")
    return TextEncoder(tokenizer, model).to(device)


def encoder_width(base: Path) -> int:
    """Width of an embedding, from the text encoder's config.json. Raises UserError when that is missing or has none."""
    path = base / "text_encoder" / "config.json"
    width = read_json(path).get("d_model")
    if not isinstance(width, int):
        raise UserError(f"{path}: d_model = {width!r}: should be a number; copy it again")
    return width


def encoding_type(base: Path, device: torch.device) -> torch.dtype:
    """The type that a base model's text encoder computes in: bf16 on a GPU, as the original does, else fp32.

    Without a GPU, weights stored in bf16 (the published one's 11 GB) are computed in bf16 too: it is slower, but fp32
    takes twice the memory. Raises UserError when text_encoder/ is missing or broken.
    """
    if device.type != "cpu":
        return torch.bfloat16
    stored = {one.dtype for one in read_sharded(base / "text_encoder", "model").values()}
    return torch.bfloat16 if stored == {torch.bfloat16} else torch.float32


def load_tokenizer(base: Path) -> Tokenizer:
    """The tokenizer of a base model's folder, which truncates to 512 tokens, the last one being </s>.

    It is read by tokenizers, the library that made it: transformers' class would lose normalisation and byte fallback.
    Raises UserError when tokenizer/tokenizer.json is missing or broken.
    """
    from tokenizers import Tokenizer

    path = base / "tokenizer" / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_buffer(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a Wan2.1 base model's folder") from None
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: is not a tokenizer ({' '.join(str(error).split())}); copy it again") from None
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def token_ids(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The tokens of a prompt, at most 512; a message says what is cut. Raises UserError when it is no valid text."""
    text = clean(prompt)
    encoding = tokenizer.encode(text)
    if encoding.overflowing:
        cut = max(end for _, end in encoding.offsets)
        read, left = text[:cut], text[cut:]
        tell(
            f"prompt '{_short(text)}': is longer than the {MAX_TOKENS} tokens that Wan reads, up to word "
            f"{len(read.split())} of {len(text.split())}, '... {read[-_SHOWN:]}'; '{_short(left.lstrip())}' is left out"
        )
    return list(encoding.ids)


def clean(prompt: str) -> str:
    """A prompt as Wan was trained on it: broken encodings repaired, HTML entities resolved, white space collapsed.

    Raises UserError when ftfy, which repairs, is missing, and when the prompt is no valid text.
    """
    ftfy = _require_ftfy()
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"prompt {_short(prompt)!a}: character {error.start} is a lone surrogate; give it in UTF-8"
        ) from None
    # Twice: prompts from the web are sometimes escaped twice.
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


def pad(embeddings: Sequence[Tensor]) -> Tensor:
    """Embeddings (tokens, dim) as the transformer takes them: (B, 512, dim), zero where a prompt has no token."""
    return torch.stack([F.pad(rows, (0, 0, 0, MAX_TOKENS - len(rows))) for rows in embeddings])


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= _SHOWN else f"{prompt[:_SHOWN]}..."


def _require_ftfy() -> ModuleType:
    """The library that repairs prompts: without it diffusers silently encodes another text."""
    try:
        import ftfy
    except ImportError:
        raise UserError(
            "ftfy: is not installed, and without it some prompts are encoded differently from Wan's training; "
            "in the project, pip install '.[wan]'"
        ) from None
    module: ModuleType = ftfy
    return module
