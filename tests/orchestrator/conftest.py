"""The command line, run in this process with a home of its own."""

from __future__ import annotations

import pytest

from orchestrator import cli as cli_module


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Neither this machine's runs nor its catalog, credentials and SkyPilot's settings are ours."""
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SKY_RUNTIME_DIR", str(tmp_path / "sky"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    for name in ("AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def orchestrate(monkeypatch, capsys):
    """Run the command line in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["orchestrate", *map(str, arguments)])
        try:
            cli_module.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        out, err = capsys.readouterr()
        return code, out, err

    return run
