"""The tags that nodes carry, by which a cloud's bill can be asked for one run."""

from __future__ import annotations

RUN_TAG = "orchestrate-run"
"""Its value is the run's id, which no other run of that name has."""
LAUNCH_TAG = "orchestrate-launch"
"""Its value is (the end of) a launch's name, to tell the nodes of one attempt."""
SERVICE_TAG = "orchestrate-service"
"""Its value is the service's id. Such nodes bear no run's tag: what they cost is no training."""

# Google's limit, the strictest; it also takes nothing but a-z, 0-9, - and _, as our names do.
_LONGEST = 63


def tags_of(run_id: str, launch: str | None = None) -> dict[str, str]:
    """Return the tags of a run's nodes, valid on AWS, Google Cloud and Azure."""
    tags = {RUN_TAG: tag_of(run_id)}
    if launch:
        # Its end is what is random; the whole of a long run's would be refused by Google.
        tags[LAUNCH_TAG] = tag_of(launch)
    return tags


def tag_of(name: str) -> str:
    """Return the value by which something of that name is tagged."""
    return name[-_LONGEST:]
