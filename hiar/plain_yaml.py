"""YAML that means what it says: values that YAML would silently misread or drop are refused with their line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hiar.errors import BrokenRule

# YAML 1.1 reads 010 as eight and 1:30 as ninety.
ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")


def parse(text: str) -> Any:
    """The data of a YAML text of plain values.

    Raises BrokenRule, whose field says where, for duplicate keys, numbers that YAML misreads, values that cannot be
    represented and sections nested too deeply; yaml.YAMLError for invalid YAML.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except RecursionError:
        raise BrokenRule("a section", "...", "is nested too deeply; write plain sections") from None


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """A mapping without duplicate keys, as written: merged keys (<<) come later and may be overridden."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
            line = key.start_mark.line + 1
            if key.value in lines:
                remedy = f"appears twice, in line {lines[key.value]} and in line {line}; remove one"
                raise BrokenRule(f"'{key.value}'", key.value, remedy)
            lines[key.value] = line
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        place = f"line {node.start_mark.line + 1}: {node.value[:40]}"
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and ODD_NUMBER.fullmatch(node.value):
            meant = super().construct_object(node, deep)
            raise BrokenRule(place, node.value, f"YAML reads it as {meant}; write it without leading zeros or colons")
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # a number of thousands of digits, a date that does not exist
            raise BrokenRule(place, node.value, f"cannot be read ({error}); write another value") from None
