"""What a node lacks, judged without any package but the standard library's."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestrator.cloud.skypilot.requirements import admits, missing

OURS = "spot-orchestrator"


@pytest.mark.parametrize("versions", [">=2.13,<2.14", "==4.48", "<3,>=2.0.1", "==2.13.*", "!=1.5"])
@pytest.mark.parametrize(
    "version",
    [
        "2.13",
        "2.13.0",
        "2.13.1+cu130",
        "2.14.0",
        "4.48",
        "4.48.0",
        "1.5",
        "2.0.1.post1",
        "10.0",
        "3",
    ],
)
def test_ranges_admit_what_packaging_says(versions, version):
    assert admits(versions, version) == SpecifierSet(versions).contains(version)


def test_a_post_release_is_not_beyond_the_release_that_a_range_excludes():
    assert not admits(">2.8.3", "2.8.3.post1")
    assert not admits("<2.8.3", "2.8.3.post1")
    assert admits(">=2.8.3", "2.8.3.post1")


@pytest.mark.parametrize("version", ["2.13.0rc1", "2.14.0.dev20260101", "unknown"])
def test_what_cannot_be_judged_is_asked_for(version):
    assert not admits(">=2.13", version)


def site(folder, **installed: tuple[str, list[str]]):
    """Install distributions that are nothing but their metadata."""
    for name, (version, needs) in installed.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}"]
        extras = sorted({need.split("'")[1] for need in needs if "extra" in need})
        lines += [f"Provides-Extra: {extra}" for extra in extras]
        lines += [f"Requires-Dist: {need}" for need in needs]
        (info / "METADATA").write_text("\n".join(lines) + "\n\n")
    return folder


def test_missing_are_those_absent_too_old_or_of_an_extra_that_is_asked_for(tmp_path, monkeypatch):
    needs = [
        "present>=1",
        "absent<3,>=2",
        "old>=2",
        "future>=1; python_version < '3'",
        "trainer>=5; extra == 'train'",
        "server; extra == 'serve'",
        "widget[fast]>=1",
    ]
    folder = site(
        tmp_path,
        app=("1.0", needs),
        present=("1.4", []),
        old=("1.9", []),
        widget=("1.0", ["speed; extra == 'fast'"]),
    )
    monkeypatch.setattr(sys, "path", [str(folder)])
    base = ["absent<3,>=2", "old>=2", "widget[fast]>=1"]
    assert missing((), of="app") == base
    assert missing(("train",), of="app") == [*base[:2], "trainer>=5", base[2]]


@pytest.mark.parametrize("extra", ["train", "dashboard", "local-s3", "bench"])
def test_our_own_requirements_are_read_as_packaging_reads_them(extra, tmp_path, monkeypatch):
    ours = distribution(OURS).requires or []
    monkeypatch.setattr(sys, "path", [str(site(tmp_path, spot_orchestrator=("0.1.0", ours)))])
    found = {str(Requirement(line)) for line in missing((extra,))}
    expected = set()
    for line in ours:
        needed = Requirement(line)
        if needed.marker is None or needed.marker.evaluate({"extra": extra}):
            needed.marker = None
            expected.add(str(needed))
    assert found == expected


def test_it_runs_on_the_standard_library_alone_and_finds_nothing_missing_here():
    script = (
        "import sys; before = set(sys.modules)\n"
        "from orchestrator.cloud.skypilot.requirements import missing\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert new - sys.stdlib_module_names <= {'orchestrator'}, new\n"
        "assert missing(('train',)) == [], missing(('train',))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
