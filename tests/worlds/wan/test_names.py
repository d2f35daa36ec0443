"""Names of Wan's tensors: one to one with diffusers', at every size, whatever wraps them."""

from __future__ import annotations

import itertools

import pytest
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from hiar.errors import UserError
from hiar.worlds.wan.formats.checking import transformer_shapes
from hiar.worlds.wan.formats.configs import checked
from hiar.worlds.wan.formats.names import is_original, strip_prefixes, to_diffusers, to_original, unwrap

SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
PREFIXES = ("model", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


@pytest.mark.parametrize(("sizes", "count"), [(SMALL, 825), ({}, 1095)], ids=["1.3B", "14B"])
def test_the_table_is_diffusers_own_at_the_real_sizes(sizes: dict[str, int], count: int) -> None:
    names = list(transformer_shapes(checked(sizes, "test")))
    originals = [to_original(name) for name in names]
    assert len(names) == len(set(originals)) == count
    assert None not in originals
    assert [to_diffusers(str(name)) for name in originals] == names
    assert convert_wan_transformer_to_diffusers({name: name for name in originals}) == dict(
        zip(names, originals, strict=True)
    )


def test_original_and_diffusers_names_are_distinguished() -> None:
    assert to_original("blocks.0.norm2.weight") == "blocks.0.norm3.weight"
    strangers = (
        "blocks.0.norm2.weight",
        "blocks.x.norm3.weight",
        "head.modulation.weight",
        "head.head",
        "img_emb.proj.0",
    )
    assert [to_diffusers(name) for name in strangers] == [None] * len(strangers)
    assert is_original(["patch_embedding.weight", "head.modulation"])
    assert not is_original(["patch_embedding.weight", "scale_shift_table", "blocks.0.norm2.weight"])


def test_prefixes_in_every_order_and_place() -> None:
    for depth in range(4):
        for wrappers in itertools.product(PREFIXES, repeat=depth):
            before = ".".join((*wrappers, "blocks.3.ffn.0.weight"))
            within = ".".join(("model", "blocks", "3", *wrappers, "ffn.0.weight"))
            assert strip_prefixes(before) == strip_prefixes(within) == "blocks.3.ffn.0.weight"


def test_one_tensor_under_two_names_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.pt: holds head\.head\.bias twice, as model\.head\.head\.bias and as head"):
        unwrap(["model.head.head.bias", "head.head.bias"], "a.pt")
