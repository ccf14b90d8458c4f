"""A node is started for an actor that only it can host, and for `request_resources`; idleness ends it.

What works, with autoscaler v2 over Ray's provider of pretended machines (each a real raylet): an actor pinned by
`label_selector={"site": "b"}` brings up the node type that has the label; `request_resources` brings up nodes of the
type that has the CPUs, with nobody to use them yet; both kinds go three seconds after they fall idle and nothing is
requested. What does not: an actor pinned to a label that no node type has waits for ever, without a word.
"""

from __future__ import annotations

import pytest
from autoscaling import autoscaling, measured


@pytest.mark.long
def test_nodes_come_when_they_are_asked_for_and_go_when_they_are_idle() -> None:
    with autoscaling() as environment:
        seen = measured(environment)
    assert seen["nodes at first"] == 1
    assert seen["labels of the pinned actor's node"]["site"] == "b"
    # each step that did not come within two minutes has raised
    assert {"idle node gone after", "two requested nodes after", "both gone after"} <= set(seen)
