"""`.ci/secrets`: a key that is committed is found, and those that tests made up are known."""

import os
import secrets
import string
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CAPITALS = string.ascii_uppercase + string.digits


def scan(*files):
    command = [str(ROOT / ".ci" / "secrets"), *map(str, files)]
    # pytest may run from an environment that nobody has activated
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    "line",
    [
        "key = 'AKIA{key}'",
        'password: "{secret}"',
        "url = 'https://me:{secret}@example.com'",
        "TOKEN = 'ghp_{secret}{key}'",
    ],
)
def test_a_key_is_found_and_not_repeated(tmp_path, line):
    key = "".join(secrets.choice(CAPITALS) for _ in range(16))
    secret = secrets.token_hex(10)
    found = tmp_path / "settings.yaml"
    found.write_text(line.format(key=key, secret=secret) + "\n")
    done = scan(found)
    assert done.returncode == 1, done.stdout + done.stderr
    assert str(found) in done.stdout
    assert not any(one in done.stdout + done.stderr for one in (key, secret))


def test_keys_that_tests_made_up_are_known():
    done = scan(
        "tests/orchestrator/test_redact.py", "tests/end_to_end/test_canaries.py", "README.md"
    )
    assert done.returncode == 0, done.stdout
