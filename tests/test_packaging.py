"""What an installed contextmill holds: all that lies in its packages, without building a wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

PACKAGES = ("pipeline", "workers", "schemas", "migrations")


@pytest.fixture(scope="module")
def shipped() -> set[Path]:
    """The files that setuptools would put into a wheel, as ``pyproject.toml`` stands."""
    from setuptools import Distribution
    from setuptools.config.pyprojecttoml import apply_configuration

    build = apply_configuration(Distribution({"script_name": "setup.py"}), "pyproject.toml").get_command_obj("build_py")
    build.ensure_finalized()
    modules = {Path(path) for _, _, path in build.find_all_modules()}
    data = build.get_data_files_without_manifest()
    return modules | {Path(folder) / name for _, folder, _, names in data for name in names}


def test_every_file_of_a_package_is_shipped_and_nothing_else(shipped: set[Path]) -> None:
    """A template, a head or a py.typed that ``package-data`` forgets is missing only where the wheel is installed."""
    there = {path for package in PACKAGES for path in Path(package).rglob("*") if path.is_file()}
    assert shipped == {path for path in there if "__pycache__" not in path.parts}


def test_what_only_runs_with_its_data_is_among_them(shipped: set[Path]) -> None:
    """That the list above is no empty one."""
    endings = {path.suffix for path in shipped}
    assert {".py", ".html", ".css", ".mako", ".safetensors"} <= endings
    assert {path.parent.name for path in shipped if path.name == "py.typed"} == set(PACKAGES)
