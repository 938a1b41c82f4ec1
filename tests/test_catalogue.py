"""The catalogues are found in a checkout and in an installed wheel, and nowhere else."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from optimizer import catalogue
from optimizer.errors import InputError
from optimizer.traces import instance, list_instances


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


READMES = sorted(catalogue.catalogue_path("instances").rglob("README.md"))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_a_family_says_where_it_comes_from_and_its_links_lead_somewhere(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    assert "Licence" in text or "licence" in text
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_the_code_in_the_readme_of_the_instances_runs() -> None:
    ran = doctest.testfile(str(catalogue.catalogue_path("instances") / "README.md"), module_relative=False)
    assert ran.attempted
    assert ran.failed == 0


def test_instances_of_a_wheel_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = catalogue.catalogue_path("instances")
    wanted = list_instances()
    inside = tmp_path / "optimizer" / "_catalogue"
    inside.mkdir(parents=True)
    (inside / "instances").symlink_to(here)
    monkeypatch.setattr(catalogue, "_PACKAGE", tmp_path / "optimizer")
    assert list_instances() == wanted
    assert len(instance("gsm8k/paper-200").requests) == 1319
