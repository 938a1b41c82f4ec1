"""The catalogues are found in a checkout and in an installed wheel, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer import catalogue
from optimizer.errors import InputError


def test_a_wheel_carries_its_catalogue_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "optimizer" / "_catalogue" / "instances"
    inside.mkdir(parents=True)
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "optimizer")
    assert catalogue.catalogue_path("instances") == inside


def test_a_folder_of_that_name_beside_an_installed_package_is_somebody_elses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "optimizer")
    with pytest.raises(InputError, match="'models' is not there; install the package again"):
        catalogue.catalogue_path("models")
    (tmp_path / "pyproject.toml").touch()
    assert catalogue.catalogue_path("models") == tmp_path / "models"
