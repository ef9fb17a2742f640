"""How launches, attempts and runs end, and which retry budget each end draws on."""

from __future__ import annotations

import sys
from enum import Enum

if sys.version_info >= (3, 11):
    from typing import assert_never
else:
    from typing_extensions import assert_never


class EndReason(str, Enum):
    """Why a launch ended."""

    SUCCEEDED = "succeeded"  # the last step is committed
    PREEMPTED = "preempted"  # the cloud took the node back
    NODE_LOST = "node_lost"  # gone without a word; unknown causes count here
    DRAINED = "drained"  # we asked it to save and leave, to go elsewhere
    STOPPED = "stopped"  # the user or a limit ended the run
    FENCED = "fenced"  # a later attempt owns the run
    HANG = "hang"  # no step for too long
    TRAINING_FAILED = "training_failed"  # the training program failed
    SETUP_FAILED = "setup_failed"  # could not be launched or set up, though not for want of room
    NO_CAPACITY = "no_capacity"  # never came up
    NO_ACCESS = "no_access"  # never came up: the cloud refuses the account


class RetryBudget(str, Enum):
    """What limits how often an end of this kind may be followed by another launch."""

    PREEMPTIONS = "preemptions"
    FAILURES = "failures"
    NONE = "none"


def charged_to(reason: EndReason) -> RetryBudget:
    """Return the retry budget that an end draws on; a preemption never uses up the failures."""
    match reason:
        case EndReason.PREEMPTED | EndReason.NODE_LOST | EndReason.DRAINED:
            return RetryBudget.PREEMPTIONS
        case EndReason.TRAINING_FAILED | EndReason.HANG | EndReason.SETUP_FAILED:
            return RetryBudget.FAILURES
        case (
            EndReason.SUCCEEDED
            | EndReason.STOPPED
            | EndReason.FENCED
            | EndReason.NO_CAPACITY  # bounded by time
            | EndReason.NO_ACCESS  # counted for each cloud
        ):
            return RetryBudget.NONE
        case _:
            assert_never(reason)


class StopReason(str, Enum):
    """Why no further launch follows."""

    DONE = "done"
    REQUESTED = "requested"
    BUDGET = "budget"
    NO_CAPACITY = "no_capacity"
    TOO_MANY_PREEMPTIONS = "too_many_preemptions"
    TOO_MANY_FAILURES = "too_many_failures"


class AgentExit:
    """Exit statuses of the agent: torchrun cannot say why it ended, so the agent does."""

    DONE = 0
    FAILED = 1
    PREEMPTED = 75
    FENCED = 76
    STOPPED = 77
    HANG = 78


def exit_status(reason: EndReason) -> int:
    """Return the agent's exit status for an end; 75 asks SkyPilot for another node."""
    match reason:
        case EndReason.SUCCEEDED:
            return AgentExit.DONE
        case EndReason.TRAINING_FAILED | EndReason.SETUP_FAILED | EndReason.NO_ACCESS:
            return AgentExit.FAILED
        case EndReason.PREEMPTED | EndReason.NODE_LOST | EndReason.DRAINED | EndReason.NO_CAPACITY:
            return AgentExit.PREEMPTED
        case EndReason.FENCED:
            return AgentExit.FENCED
        case EndReason.STOPPED:
            return AgentExit.STOPPED
        case EndReason.HANG:
            return AgentExit.HANG
        case _:
            assert_never(reason)


def reason_for_exit(status: int) -> EndReason:
    """Translate the agent's exit status; one that it never chose means that the node was lost."""
    known = {
        AgentExit.DONE: EndReason.SUCCEEDED,
        AgentExit.FAILED: EndReason.TRAINING_FAILED,
        AgentExit.PREEMPTED: EndReason.PREEMPTED,
        AgentExit.FENCED: EndReason.FENCED,
        AgentExit.STOPPED: EndReason.STOPPED,
        AgentExit.HANG: EndReason.HANG,
    }
    return known.get(status, EndReason.NODE_LOST)
