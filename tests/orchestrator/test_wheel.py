"""The wheel that nodes and controllers get: the running program, by its content, installable."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import orchestrator
from orchestrator.cloud.skypilot import wheel as wheel_module
from orchestrator.cloud.skypilot.wheel import build_wheel

PACKAGES = ("orchestrator", "train", "checkpoints")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A copy of the program that is packed instead of it, free to be changed."""
    folder = tmp_path / "checkout"
    for package in PACKAGES:
        source = Path(orchestrator.__file__).parents[1] / package
        shutil.copytree(source, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(orchestrator, "__file__", str(folder / "orchestrator" / "__init__.py"))
    return folder


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_same_content_gives_the_same_name_and_bytes(checkout, tmp_path):
    one = build_wheel(tmp_path / "one")
    for file in checkout.rglob("*.py"):
        file.touch()
    (checkout / "train" / "__pycache__").mkdir()
    (checkout / "train" / "__pycache__" / "loop.pyc").write_bytes(b"\0")
    other = build_wheel(tmp_path / "other")
    assert one.name == other.name
    assert one.read_bytes() == other.read_bytes()
    assert [path.name for path in one.parent.iterdir()] == [one.name]


def test_changed_content_is_a_new_version(checkout, tmp_path):
    before = build_wheel(tmp_path)
    with (checkout / "checkpoints" / "layout.py").open("a") as file:
        file.write("# changed\n")
    assert build_wheel(tmp_path).name != before.name


def test_tasks_are_packed_inside_our_package(checkout, tmp_path):
    (checkout / "sky").mkdir()
    (checkout / "sky" / "train.yaml").write_text("run: true\n")
    packed = names(build_wheel(tmp_path))
    assert "orchestrator/tasks/train.yaml" in packed
    assert {name.split("/")[0].split("-")[0] for name in packed} == {*PACKAGES, "spot_orchestrator"}


def test_skypilot_beside_an_installed_wheel_is_not_packed(checkout, tmp_path):
    (checkout / "sky").mkdir()
    (checkout / "sky" / "__init__.py").touch()
    (checkout / "sky" / "theirs.yaml").touch()
    assert "orchestrator/tasks/theirs.yaml" not in names(build_wheel(tmp_path))


def test_packing_what_was_installed_from_a_wheel_gives_that_wheel(tmp_path):
    wheel, installed = build_wheel(tmp_path), tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", installed, wheel], check=True)
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from orchestrator.cloud.skypilot.wheel import build_wheel;"
        "print(build_wheel(Path(sys.argv[2])))"
    )
    command = [sys.executable, "-I", "-c", program, installed, tmp_path / "again"]
    again = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    packed = Path(again.stdout.strip())
    assert packed.name == wheel.name
    assert packed.read_bytes() == wheel.read_bytes()


def python_310() -> str:
    """Return what SkyPilot's controllers run; uv fetches one where this machine has none."""
    found = sorted(Path.home().glob(".pyenv/versions/3.10.*/bin/python"))
    return str(found[-1]) if found else "3.10"


@pytest.mark.slow
@pytest.mark.parametrize("python", [python_310(), sys.executable], ids=["controller's", "this"])
def test_it_installs_into_an_environment_of_its_own(tmp_path, python):
    wheel = build_wheel(tmp_path)
    uv = str(Path(sys.executable).with_name("uv"))
    subprocess.run([uv, "venv", "--quiet", "--seed", "-p", python, tmp_path / "venv"], check=True)
    binaries = tmp_path / "venv" / "bin"
    pip = [binaries / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, check=True)
    assert (binaries / "orchestrate").exists()
    program = (
        "import compileall, orchestrator; from importlib.metadata import version;"
        "from pathlib import Path;"
        "assert compileall.compile_dir(Path(orchestrator.__file__).parents[1], quiet=1);"
        f"print(version({wheel_module.DISTRIBUTION!r}))"
    )
    command = [binaries / "python", "-I", "-c", program]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.strip() == wheel.name.split("-")[1]
