"""A tiny Wan2.1 with random weights, in the layout of the published one, so that the same code reads both.

It is for trying an installation, and for tests: whatever runs with the published weights runs with these in seconds.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

from hiar.io.artifacts import unfinished
from hiar.late import let_in
from hiar.noise import seeded
from hiar.worlds.wan.base import write_index
from hiar.worlds.wan.pretrained import quiet

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import UMT5EncoderModel

TEXT_DIM = 32
SPECIAL = ("<pad>", "</s>", "<unk>")  # tokens 0, 1 and 2, as in UMT5
PROMPT_GAIN, LATENT_GAIN = 200.0, 8.0
SPACE = "▁"  # SentencePiece's mark for the space before a word
# Where its vocabulary comes from; other words are spelt by letters, other letters by bytes.
SENTENCES = (
    "A red panda climbs a mossy tree while soft morning light falls through the leaves and a light mist drifts by.",
    "The camera follows a sailing boat over a stormy sea; dark waves break over the bow and white foam flies.",
    "In a crowded night market a cook tosses noodles in a wok, flames rise, and neon signs glow in the rain.",
    "A close-up of an old man with a grey beard who smiles slowly, with shallow depth of field, in warm light.",
    "An astronaut walks on the red sand of Mars, dust at his feet, as a small sun sets behind the distant hills.",
    "一只猫在雪地里慢慢走，镜头从远处推近，画面安静。",
)


def make_tiny_wan(folder: Path, seed: int) -> None:
    """Write a base model of about 5 MB into a new folder, in seconds; its weights depend on ``seed`` alone.

    The layout is that of the published Wan2.1-T2V folders for diffusers: model_index.json, transformer/, text_encoder/,
    tokenizer/, vae/, scheduler/. Raises UserError when the folder exists and is not empty, or cannot be written.
    """
    let_in("transformers")
    from transformers import T5Tokenizer

    tokenizer = _tokenizer()
    with unfinished(folder, {"tiny wan": seed}) as partial, quiet():
        _text_encoder(tokenizer.get_vocab_size(), seed).save_pretrained(partial / "text_encoder")
        T5Tokenizer(tokenizer_object=tokenizer, extra_ids=0).save_pretrained(partial / "tokenizer")
        _transformer(seed).save_pretrained(partial / "transformer")
        _autoencoder(seed).save_pretrained(partial / "vae")
        write_index(partial)
        # transformers' class rebuilds a tokenizer and loses its normalisation and its bytes.
        tokenizer.save(str(partial / "tokenizer" / "tokenizer.json"))


def _tokenizer() -> Tokenizer:
    """Whole words by their frequency, letters, and bytes for whatever else there is, so that no text is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = Counter(f"{SPACE}{word}" for sentence in SENTENCES for word in sentence.split())
    letters = sorted({SPACE, *"".join(SENTENCES)} - {" "} - words.keys())
    total = words.total()
    vocabulary = [(token, 0.0) for token in SPECIAL]
    vocabulary += [(f"<0x{byte:02X}>", 0.0) for byte in range(256)]
    vocabulary += [(word, math.log(count / total)) for word, count in sorted(words.items())]
    vocabulary += [(letter, math.log(0.1 / total)) for letter in letters]  # rarer than any word, so that words win
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index("<unk>"), byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _text_encoder(tokens: int, seed: int) -> UMT5EncoderModel:
    from transformers import UMT5Config, UMT5EncoderModel

    with seeded("text weights", seed):
        return UMT5EncoderModel(
            UMT5Config(
                vocab_size=tokens,
                d_model=TEXT_DIM,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                eos_token_id=1,
            )
        ).eval()


def _transformer(seed: int) -> WanTransformer3DModel:
    with seeded("denoiser weights", seed):
        transformer = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=24, text_dim=TEXT_DIM, ffn_dim=128, num_layers=2
        )
    # A prompt's few words share attention with 500 rows of padding, and random layers shrink what they read: without
    # this, two prompts' results differ by a thousandth. Padding gets values of zero, and those of words are amplified.
    embedder = transformer.condition_embedder.text_embedder
    with torch.no_grad():
        embedder.linear_1.bias.zero_()
        embedder.linear_2.bias.zero_()
        for block in transformer.blocks:
            block.attn2.to_v.bias.zero_()
            block.attn2.to_out[0].weight.mul_(PROMPT_GAIN)
    return transformer.eval()


def _autoencoder(seed: int) -> AutoencoderKLWan:
    with seeded("codec weights", seed):
        autoencoder = AutoencoderKLWan(base_dim=8, z_dim=16)
    # Random layers make latents that hardly differ; the codec expects the statistics of Wan's.
    mean, std = (torch.tensor(autoencoder.config[name]) for name in ("latents_mean", "latents_std"))
    with torch.no_grad():
        posterior_mean = slice(len(mean))  # the rest of quant_conv's output is the variance
        autoencoder.quant_conv.weight[posterior_mean] *= LATENT_GAIN * std.view(-1, 1, 1, 1, 1)
        autoencoder.quant_conv.bias[posterior_mean] = mean
    return autoencoder.eval()
