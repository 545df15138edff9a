"""CITATION.cff can be read, and says what pyproject.toml says."""

import re
import tomllib

import yaml

from tests.docs.blocks import REPOSITORY


def test_the_citation_has_the_required_fields_and_the_projects_own_values():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert re.fullmatch(r"1\.[0-2]\.0", citation["cff-version"])
    assert all("name" in author or {"family-names", "given-names"} <= author.keys() for author in citation["authors"])
    assert citation["type"] in ("software", "dataset")
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]


def test_the_badges_of_the_readme_say_what_pyproject_says():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    badges = re.findall(r"<text[^>]*>([^<]*)</text>", (REPOSITORY / "docs/badges.svg").read_text(encoding="utf-8"))
    said = dict(zip(badges[::2], badges[1::2], strict=True))
    versions = [kind.rpartition(" ")[2] for kind in project["classifiers"] if "Python :: 3." in kind]
    flower = next(need for need in project["dependencies"] if need.startswith("flwr"))
    assert said["Python"].split(" | ") == versions
    assert said["Flower"].removeprefix("≥ ") == re.search(r">=([\d.]+)", flower)[1]
    assert said["licence"] == project["license"]


def test_the_bibtex_of_the_documentation_says_the_same():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    page = (REPOSITORY / "docs" / "faq.md").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^  (\w+) += \{(.*)\},$", page, re.MULTILINE))
    assert fields["title"].replace("\\", "") == citation["title"]
    assert fields["author"] == f"{{{citation['authors'][0]['name']}}}"
    assert (fields["version"], fields["license"]) == (citation["version"], citation["license"])
