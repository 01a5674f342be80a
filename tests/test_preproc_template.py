"""Templates: the embedded one, those of TemplateFlow without network, and the message if one is missing."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from moesr_bids.config import OutputSpace
from moesr_bids.preproc.template import EMBEDDED, TemplateNotFoundError, load_template, template_grid


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_embedded_template_is_a_brain(no_network: None) -> None:
    template = load_template(resolution=2.0)
    assert (template.name, template.content) == (EMBEDDED, "brain")
    assert template.mask is not None
    np.testing.assert_allclose(template.image.header.get_zooms(), 2.0)
    assert 1700 < np.asarray(template.mask.dataobj).sum() * 8 / 1000 < 2000


def test_missing_template_names_folder_and_command(tmp_path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    with pytest.raises(TemplateNotFoundError) as caught:
        load_template("MNIPediatricAsym")
    message = str(caught.value)
    assert "MNIPediatricAsym" in message
    assert str(tmp_path) in message
    assert "api.get('MNIPediatricAsym'" in message
    assert not list(tmp_path.iterdir())


def test_promised_but_empty_template_is_missing(tmp_path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    folder = tmp_path / "tpl-MNI152Lin"
    folder.mkdir()
    (folder / "template_description.json").write_text('{"Identifier": "MNI152Lin", "Name": "x"}')
    (folder / "tpl-MNI152Lin_res-01_T1w.nii.gz").touch()
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(tmp_path))
    with pytest.raises(TemplateNotFoundError, match="no T1w image"):
        load_template("MNI152Lin")


def test_templateflow_folder_works_offline(shared_data, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(shared_data / "templateflow"))
    template = load_template("MNI152NLin2009cAsym")
    assert template.content == "head"
    assert template.image.shape == (193, 229, 193)
    assert template.mask is None


def test_grids_of_output_spaces(shared_data, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    monkeypatch.setenv("TEMPLATEFLOW_HOME", str(shared_data / "templateflow"))
    embedded = load_template()
    fine = template_grid(OutputSpace(EMBEDDED), 0.7)
    np.testing.assert_allclose(fine.zooms, 0.7)
    np.testing.assert_allclose(fine.fov_mm, embedded.image.shape, atol=0.7)
    assert template_grid(OutputSpace.parse(f"{EMBEDDED}:res-1"), 0.7).shape == embedded.image.shape
    assert template_grid(OutputSpace.parse("MNI152NLin2009cAsym:res-01"), 0.7).shape == (193, 229, 193)
    with pytest.raises(TemplateNotFoundError, match="resolution=2"):
        template_grid(OutputSpace.parse("MNI152NLin2009cAsym:res-2"), 0.7)
    with pytest.raises(TemplateNotFoundError, match="at 1 mm only"):
        template_grid(OutputSpace.parse(f"{EMBEDDED}:res-2"), 0.7)


@pytest.mark.parametrize("text", ["MNI152:res-0", "MNI152:cohort-1", "a/b", "", "MNI152:res-1:res-2"])
def test_what_is_no_output_space(text: str) -> None:
    with pytest.raises(ValueError, match="TEMPLATE:res-N"):
        OutputSpace.parse(text)
