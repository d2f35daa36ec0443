"""Embeddings of prompts, computed once: cached on disk by encoder and prompt, read row by row.

A cache has a folder for each encoder. Each shard in it holds a few prompts' embeddings, only the rows of their tokens,
under the prompts' hashes; the shards' headers are the index. A shard never changes once it has its name.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hiar.errors import UserError
from hiar.io.files import remove, writing
from hiar.io.fingerprints import cache_locked, fingerprint
from hiar.io.locks import LOCK
from hiar.io.progress import Progress
from hiar.io.shards import write_shard
from hiar.worlds.wan.outline import UMT5_XXL
from hiar.worlds.wan.text import MAX_TOKENS, TextEncoder, clean, encoder_width, load_text_encoder, load_tokenizer, pad

FOLDER = "embeddings"  # in the cache, beside the remembered hashes of base models' files
SHARD = 64  # prompts in a shard: as many are in memory at a time, and lost by a kill
SAMPLE = 256  # prompts whose mean length is taken for that of all


class Embeddings:
    """The embeddings in a folder of the cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[Path] = []
        self._index: dict[bytes, int] = {}  # the shard that holds the prompt of a key
        self.refresh()

    def refresh(self) -> None:
        """Index the shards that were written meanwhile. Raises UserError when one is broken."""
        for path in sorted(set(self.folder.glob("*.safetensors")).difference(self._shards)):
            with _opened(path) as (_, digests):
                self._index |= dict.fromkeys(map(bytes.fromhex, digests), len(self._shards))
            self._shards.append(path)

    def __contains__(self, prompt: str) -> bool:
        return self.holds(_key(prompt))

    def holds(self, key: bytes) -> bool:
        """Whether the prompt with this key is in the cache."""
        return key in self._index

    def read(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings (B, 512, dim) of prompts in the type they were computed in, zero where a prompt has no token.

        Only the shards' headers and these prompts' rows are read. Raises UserError for a prompt that is not in the
        cache, and for rows whose checksum differs.
        """
        shards: defaultdict[int, list[bytes]] = defaultdict(list)
        for prompt in dict.fromkeys(prompts):
            if prompt not in self:
                raise UserError(f"{self.folder}: has no embedding of prompt '{prompt[:40]}'; embed it first")
            key = _key(prompt)
            shards[self._index[key]].append(key)
        rows: dict[bytes, Tensor] = {}
        for number, keys in shards.items():
            path = self._shards[number]
            with _opened(path) as (file, digests):
                for key in keys:
                    rows[key] = file.get_tensor(key.hex())
                    if _digest(rows[key]) != digests[key.hex()]:
                        raise UserError(f"{path}: is corrupt (a checksum differs); {_REMEDY}")
        return pad([rows[_key(prompt)] for prompt in prompts])


def embed(
    prompts: Collection[str],
    base: Path,
    cache: Path,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    batch: int = 8,
) -> Embeddings:
    """The embeddings of prompts by the text encoder of a base model, computed where ``cache``/embeddings lacks them.

    ``prompts``, which may be a file's (`hiar.worlds.wan.prompts.PromptFile`), are iterated twice: to find what is
    missing, and to encode that, ``batch`` at a time. The encoder, of type ``dtype``, is loaded only for that and freed
    afterwards. A kill loses at most one shard. Several processes may do this at once: they share the work, shard by
    shard. Those that ask for the same prompts, as all processes of a stage do, wait for the first of them, which alone
    loads an encoder. The last bits of an embedding depend on its batch, unless ``batch`` is 1; resumed work has the
    same batches. Raises UserError for a broken encoder, a broken cache, and when the cache cannot be written.
    """
    folder = cache / FOLDER / encoder_identity(base, cache, dtype)
    embeddings = Embeddings(folder)
    missing, asked = set(), hashlib.sha256()
    for prompt in prompts:
        asked.update(key := _key(prompt))
        if prompt not in embeddings:
            missing.add(key)
    if missing:
        with cache_locked(folder, f"{LOCK}-{asked.hexdigest()[0]}"):
            embeddings.refresh()
            if left := {key for key in missing if not embeddings.holds(key)}:
                _encode_missing(prompts, left, embeddings, base, dtype, device, batch)
    return embeddings


def embedding_bytes(base: Path, prompts: Sequence[str]) -> int:
    """Bytes on disk of an embedding by a base's encoder, in bf16, the type on GPUs.

    For a prompt of mean length among ``prompts``, where there are any and the base has its tokenizer; else for 512
    tokens.
    """
    there = (base / "text_encoder" / "config.json").exists()
    width = encoder_width(base) if there else int(UMT5_XXL["d_model"])
    tokens = MAX_TOKENS
    if prompts and (base / "tokenizer" / "tokenizer.json").exists():
        tokenizer = load_tokenizer(base)
        some = prompts[:: -(-len(prompts) // SAMPLE)]
        tokens = -(-sum(len(tokenizer.encode(clean(prompt)).ids) for prompt in some) // len(some))
    return tokens * width * torch.bfloat16.itemsize


def encoder_identity(base: Path, cache: Path, dtype: torch.dtype) -> str:
    """A hash of all that decides an embedding but its prompt: the files of text encoder and tokenizer, and the type."""
    files = fingerprint([base / "text_encoder", base / "tokenizer"], cache)
    return hashlib.sha256(f"{files} {dtype}".encode()).hexdigest()[:32]


def _encode_missing(
    prompts: Iterable[str],
    missing: set[bytes],
    embeddings: Embeddings,
    base: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    batch: int,
) -> None:
    """Write shards of the prompts whose keys are ``missing``, which is emptied."""
    encoder: TextEncoder | None = None
    with Progress("embed", len(missing), unit="prompts") as progress:
        for group in _groups(_taken(prompts, missing), SHARD):
            with cache_locked(embeddings.folder):
                for debris in embeddings.folder.glob(".*tmp*"):  # left by killed writers: under the lock none is active
                    with writing(debris):
                        remove(debris)
                embeddings.refresh()
                left = [prompt for prompt in group if prompt not in embeddings]
                progress.advance(len(group) - len(left))  # other processes were faster
                if left:
                    encoder = encoder or load_text_encoder(base, device, dtype)
                    _write(embeddings.folder, encoder, left, batch, progress)
                    embeddings.refresh()
    del encoder
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


def _write(folder: Path, encoder: TextEncoder, prompts: list[str], batch: int, progress: Progress) -> None:
    """Write one shard, named by its keys: two writers that do not see each other's lock write the same file."""
    rows: dict[str, Tensor] = {}
    for some in _groups(sorted(prompts, key=len), batch):  # prompts of similar length need little padding
        rows |= {_key(prompt).hex(): row.cpu() for prompt, row in zip(some, encoder.rows(some), strict=True)}
        progress.advance(len(some))
    name = hashlib.sha256("".join(sorted(rows)).encode()).hexdigest()[:32]
    write_shard(folder / f"{name}.safetensors", rows, {key: _digest(row) for key, row in rows.items()})


def _taken(prompts: Iterable[str], missing: set[bytes]) -> Iterator[str]:
    """Each of the prompts whose key is missing, once."""
    for prompt in prompts:
        key = _key(prompt)
        if key in missing:
            missing.remove(key)
            yield prompt


def _groups(prompts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The prompts, ``size`` at a time."""
    rest = iter(prompts)
    while group := list(islice(rest, size)):
        yield group


def _key(prompt: str) -> bytes:
    # Invalid Unicode gets a key too: the encoder refuses it with a clear message.
    return hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()[:16]


def _digest(rows: Tensor) -> str:
    return hashlib.sha256(rows.contiguous().view(torch.uint8).numpy().data).hexdigest()


_REMEDY = "delete it, its prompts are then embedded again"


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, str]]]:
    """A shard's open file, and the checksums of its embeddings by their keys, in hex."""
    try:
        with safe_open(path, framework="pt") as file:
            digests = json.loads(file.metadata()["hiar"])["metadata"]
            if sorted(digests) != sorted(file.keys()):
                raise ValueError("its header belongs to another shard")
            yield file, digests
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); {_REMEDY}") from None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is truncated or not a shard ({error}); {_REMEDY}") from None
