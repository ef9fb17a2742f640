"""Secrets out of what others said: errors of trainers, details of clouds, lines of logs.

Such texts are shown on pages and sent to services. What looks like a key is cut out wherever it
comes from; a secret that looks like any other word cannot be told from one.
"""

from __future__ import annotations

import re

_HIDDEN = "[hidden]"
_PATTERNS = (
    # user:password@ in an address, and signatures of signed ones.
    (re.compile(r"(?<=://)[^\s/@:]*:[^\s/@]+(?=@)"), _HIDDEN),
    (
        re.compile(r"(?i)((?:x-amz-|x-goog-)?(?:signature|security-token|credential)=)[^\s&\"']+"),
        r"\1" + _HIDDEN,
    ),
    (re.compile(r"(?i)(\bsig=)[^\s&\"']+"), r"\1" + _HIDDEN),
    # Named as one: HF_TOKEN=..., "api_key": "..."; no count, as in tokens=1024.
    (
        re.compile(
            r"(?i)((?:token|secret|password|passwd|api[_-]?key|access[_-]?key|private[_-]?key)"
            r"[\"']?\s*[=:]\s*[\"']?)(?![\d.,]+(?:\W|$))[^\s\"',;]{4,}"
        ),
        r"\1" + _HIDDEN,
    ),
    (re.compile(r"(?i)(\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"), r"\1" + _HIDDEN),
    # By their own looks: AWS, Hugging Face, GitHub, Slack, OpenAI and alike, private keys.
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), _HIDDEN),
    (re.compile(r"\b(?:hf_|gh[pousr]_|github_pat_|xox[abprs]-|sk-|wandb_v1_)[\w-]{10,}"), _HIDDEN),
    (re.compile(r"hooks\.slack\.com/services/[\w/]+"), f"hooks.slack.com/services/{_HIDDEN}"),
    (
        re.compile(
            r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
        ),
        _HIDDEN,
    ),
)


_SIGNED = re.compile(r"(?i)[?&](?:x-amz-|x-goog-)?(?:signature|sig)=")


def unsigned(address: str) -> str:
    """Return an address without what opens it for a while, which is all that follows its path."""
    return address.partition("?")[0] if _SIGNED.search(address) else address


def redact(text: str) -> str:
    """Return the text without what looks like a key, a password or a signed address."""
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text
