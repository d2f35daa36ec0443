"""The built-in world's text encoder: each word has a number of its own, and 0 is none."""

from __future__ import annotations

from hiar.worlds.shapes.text import build_word_encoder


def test_words_are_numbered_from_1_and_padding_is_0() -> None:
    encoder = build_word_encoder(("a", "red", "disc"), length=4, dim=8, seed=0)
    captions = ["a red disc", "Disc, a.", ""]
    assert encoder.tokenize(captions).tolist() == [[1, 2, 3, 0], [3, 1, 0, 0], [0, 0, 0, 0]]
    assert encoder.encode(captions).shape == (3, 4, encoder.dim)
