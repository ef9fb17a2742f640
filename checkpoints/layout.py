"""Every key of a run folder. Names are for people and listings; only HEAD.json is the truth."""

from __future__ import annotations

import hashlib
import re

RUN_KEY = "run.json"
HEAD_KEY = "HEAD.json"
ATTEMPTS = "attempts/"
CHECKPOINTS = "checkpoints/"
EVENTS = "events/"
EXPORT = "export/"
HEARTBEATS = "heartbeats/"
INPUTS = "inputs/"
JOBS = "jobs/"
LOGS = "logs/"
NOTIFIED = "notified/"
PINS = "pins/"
REPLICAS = "replicas/"
REQUESTS = "requests/"
SERVICES = "services/"
STEPS = "steps/"

_LOG = re.compile(r"logs/([0-9]{6,})/(?:node-([0-9]{3,})-)?[0-9]{8,}\.log")
_EVENT = re.compile(r"events/[^/]+/[0-9]{8,}\.jsonl")
_STEPS = re.compile(r"steps/([0-9]{6,})/[0-9]{8,}\.jsonl")
_CHECKPOINT = re.compile(r"checkpoints/step-([0-9]{8,})\.a([0-9]{3,})(?:/|$)")


def attempt_key(attempt: int) -> str:
    """Return the key of an attempt's claim."""
    return f"{ATTEMPTS}{attempt:06d}.json"


def checkpoint_prefix(step: int, attempt: int) -> str:
    """Return the folder of a checkpoint, without a final slash; unique to the attempt."""
    return CHECKPOINTS + checkpoint_name(step, attempt)


def checkpoint_name(step: int, attempt: int) -> str:
    """Return what a checkpoint is called, wherever it or what was made of it lies."""
    return f"step-{step:08d}.a{attempt:03d}"


def shard_key(step: int, attempt: int, rank: int, world_size: int) -> str:
    """Return the key of the object that one rank writes."""
    return f"{checkpoint_prefix(step, attempt)}/rank-{rank:05d}-of-{world_size:05d}.safetensors"


def manifest_key(step: int, attempt: int) -> str:
    """Return the key of the record that makes a checkpoint exist."""
    return f"{checkpoint_prefix(step, attempt)}/manifest.json"


def parse_checkpoint_prefix(key: str) -> tuple[int, int] | None:
    """Return (step, attempt) of the checkpoint that `key` names or lies in."""
    match = _CHECKPOINT.match(key)
    return (int(match[1]), int(match[2])) if match else None


def pin_key(step: int, attempt: int) -> str:
    """Return the key of the object whose presence keeps a checkpoint."""
    return PINS + checkpoint_name(step, attempt)


def parse_pin(key: str) -> tuple[int, int] | None:
    """Return (step, attempt) of the checkpoint that the pin `key` keeps."""
    return parse_checkpoint_prefix(CHECKPOINTS + key.removeprefix(PINS))


def event_key(writer: str, seq: int) -> str:
    """Return the key of a writer's batch of facts."""
    return f"{EVENTS}{writer}/{seq:08d}.jsonl"


def steps_key(attempt: int, seq: int) -> str:
    """Return the key of a batch of per-step measurements."""
    return f"{STEPS}{attempt:06d}/{seq:08d}.jsonl"


def is_event_key(key: str) -> bool:
    """Say whether a batch of facts lies under `key`; others may have put anything there."""
    return _EVENT.fullmatch(key) is not None


def parse_steps_key(key: str) -> int | None:
    """Return the attempt whose measurements lie under `key`, None for what is none."""
    match = _STEPS.fullmatch(key)
    return int(match[1]) if match else None


def heartbeat_key(writer: str) -> str:
    """Return the key that one writer overwrites to show that it lives."""
    return f"{HEARTBEATS}{writer}.json"


def replica_key(replica: str) -> str:
    """Return the key that a replica overwrites to show that it lives.

    Not among the heartbeats: those say until when nodes of the training are billed.
    """
    return f"{REPLICAS}{replica}.json"


def service_key(service: str) -> str:
    """Return the key of what a service is made of, which its replicas read."""
    return f"{SERVICES}{service}.json"


def exported_key(checkpoint: str, name: str) -> str:
    """Return the key of a file of a checkpoint's Hugging Face folder."""
    return f"{EXPORT}{checkpoint}/{name}"


def job_key(launched: str) -> str:
    """Return the key of the claim on one launch of the run by the job that carries it out."""
    return f"{JOBS}{launched}.json"


def notified_key(news: str) -> str:
    """Return the key of the claim on telling one piece of news; whatever names it is allowed."""
    readable = re.sub(r"[^a-z0-9]+", "-", news.lower()).strip("-")[:60]
    return f"{NOTIFIED}{readable}-{hashlib.sha256(news.encode()).hexdigest()[:12]}.json"


def request_key(request_id: str) -> str:
    """Return the key of a request to the agents."""
    return f"{REQUESTS}{request_id}.json"


def input_key(sha256: str, name: str) -> str:
    """Return the key of a staged input, named by its content."""
    return f"{INPUTS}{sha256}/{name}"


def log_key(attempt: int, name: str) -> str:
    """Return the key of an attempt's log file."""
    return f"{LOGS}{attempt:06d}/{name}"


def node_log_prefix(node: int) -> str:
    """Return what the names of a node's log files begin with; node 0's are bare numbers."""
    return f"node-{node:03d}-" if node else ""


def parse_log_key(key: str) -> tuple[int, int] | None:
    """Return attempt and node of the piece of log under `key`, None for what is no log."""
    match = _LOG.fullmatch(key)
    return (int(match[1]), int(match[2] or 0)) if match else None
