"""Keys are cut out of what others said, and nothing else is."""

from __future__ import annotations

import pytest

from orchestrator.redact import redact, unsigned


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("cannot open https://me:hunter2@example.com/x", "hunter2"),
        ("HF_TOKEN=hf_abcdefghijklmnop is not valid", "hf_abcdefghijklmnop"),
        ("the key hf_abcdefghijklmnop is not valid", "hf_abcdefghijklmnop"),
        ('{"api_key": "0123456789abcdef0123456789abcdef01234567"}', "0123456789abcdef"),
        ("AWS_SECRET_ACCESS_KEY: wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
        ("for AKIAABCDEFGHIJKLMNOP", "AKIAABCDEFGHIJKLMNOP"),
        ("Authorization: Bearer abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=0a1b2c3d&X-Amz-Date=1", "0a1b2c3d"),
        ("https://x.blob.core.windows.net/c?sv=1&sig=abc%2Bdef%3D", "abc%2Bdef"),
        ("posted to https://hooks.slack.com/services/T0/B0/xyzzy", "xyzzy"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
        ("password='correct-horse'", "correct-horse"),
    ],
)
def test_what_looks_like_a_key_is_cut_out(text, secret):
    assert secret not in redact(text)
    assert "[hidden]" in redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "step 120/3000 loss 1.234 lr 1.9e-05 41,200 tok/s mfu 38.1% eta 2h10m",
        "num_tokens=103741 tokens: 2048, token=12",
        "tokenizer: /models/llama, special_tokens: {bos}",
        "max_length 2048; sigma=0.1; the secret is that there is none",
        "https://example.com:8443/path?x=1 s3://bucket/runs/demo",
        "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:317",
        "RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB",
    ],
)
def test_what_is_no_key_stays(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://b.s3.amazonaws.com/a.json?X-Amz-Date=1&X-Amz-Signature=0a", "a.json"),
        ("https://storage.googleapis.com/b/a.json?X-Goog-Signature=0a", "a.json"),
        ("https://x.blob.core.windows.net/c/a.json?sv=1&sig=abc%3D", "a.json"),
        ("https://example.com/a.json?version=2", "a.json?version=2"),
        ("/data/what?sign.json", "what?sign.json"),
    ],
)
def test_an_address_is_kept_without_its_signature(address, kept):
    assert unsigned(address).rpartition("/")[2] == kept
