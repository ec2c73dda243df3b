"""torchvision's networks: auxiliary heads that a file may lack, and tasks that are no classification."""

import logging
from pathlib import Path

import pytest
import torch
import torchvision

from engine.errors import UserError
from engine.models.loading import build_classifier, load_classifier
from tests.classifiers import classifier_config


@pytest.mark.parametrize("pretrained", [False, True])
def test_auxiliary_heads_may_be_missing_as_in_torchvisions_pretrained_networks(
    tmp_path: Path, pretrained: bool, caplog
) -> None:
    """torchvision removes them and turns on `transform_input` if it loads its own weights."""
    torch.manual_seed(0)
    network = torchvision.models.googlenet(
        num_classes=5, init_weights=False, aux_logits=not pretrained, transform_input=pretrained
    ).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    config = classifier_config(
        name="torchvision:googlenet", weights=str(tmp_path / "weights.pth"), num_classes=5, image_size=64
    )
    caplog.set_level(logging.INFO, "engine.models.fitting")
    classifier, images = load_classifier(config), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(classifier(images), network(classifier.adapted(images)))
    said = ["aux_logits=False" in text for text in caplog.messages if "converts its input" in text]
    assert said == [True] * pretrained


@pytest.mark.parametrize(
    ("name", "kind"), [("ssdlite320_mobilenet_v3_large", "detection"), ("r3d_18", "video")]
)
def test_torchvisions_other_networks_are_refused_by_their_task(name: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"^teacher\.name: '{name}' of torchvision is a network for {kind}"):
        build_classifier(classifier_config(name=f"torchvision:{name}"))
