"""A configuration over its base: what counts, and which file an error names."""

from pathlib import Path

import pytest

from appliance.config import layers
from appliance.config.load import load
from appliance.errors import ConfigError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """What an image says."""
    path = tmp_path / "usr" / "image.toml"
    path.parent.mkdir()
    path.write_text("[broker]\ntls_port = 8883\nmax_payload_kb = 64\n\n[connectors.host]\n")
    return path


def box(image: Path, text: str) -> Path:
    path = image.parent.parent / "etc.toml"
    path.write_text('base = "usr/image.toml"\n' + text)
    return path


def test_the_image_says_what_the_box_does_not(image: Path) -> None:
    config, document = load(box(image, "[broker]\ntls_port = 0\n"))
    assert (config.broker.tls_port, config.broker.max_payload_kb) == (0, 64)
    assert config.connectors == {"host": {}}
    assert document.origin == f"{document.source} over {image}"


def test_what_a_later_image_says_counts(image: Path) -> None:
    path = box(image, "[broker]\ntls_port = 0\n")
    image.write_text("[broker]\ntls_port = 8884\nmax_payload_kb = 128\n")
    broker = load(path)[0].broker
    assert (broker.tls_port, broker.max_payload_kb) == (0, 128)


@pytest.mark.parametrize(
    ("of_image", "of_box", "place"),
    [
        ("[broker]\ntls_pot = 1\n", "[broker]\ntls_port = 0\n", "image.toml:2: broker.tls_pot"),
        ("[broker]\ntls_port = 1\n", "[broker]\n\ntls_port = 'x'\n", "etc.toml:4: broker.tls_port"),
        ("[broker]\ntls_port = 'x'\n", "[bus]\nurl = ''\n", "image.toml:2: broker.tls_port"),
        ("[broker]\ntls_port = 1\n", "[broken]\n", "etc.toml:2: broken"),
        ("base = 'more.toml'\n", "", "image.toml:1: base: a base has no base"),
        ("base = 3\n[broker\n", "", "image.toml: "),
    ],
)
def test_an_error_names_the_file_it_is_in(image: Path, of_image: str, of_box: str, place: str) -> None:
    image.write_text(of_image)
    with pytest.raises(ConfigError) as caught:
        load(box(image, of_box))
    assert place in str(caught.value)


def test_a_base_that_is_missing_is_named(image: Path) -> None:
    path = box(image, "")
    image.unlink()
    with pytest.raises(ConfigError, match=r"etc\.toml:1: base: .*image\.toml cannot be read"):
        load(path)


def test_the_images_own_configuration_is_in_order(repository: Path) -> None:
    extra = repository / "image" / "mkosi.extra"
    config, document = load(extra / "etc/millwright/millwright.toml")
    assert (config.base, config.broker.tls_port) == ("../../usr/lib/millwright/image.toml", 8883)
    assert document.origin.endswith("/usr/lib/millwright/image.toml")


def test_tables_are_laid_over_those_of_the_image() -> None:
    image = {"vault": {"backend": "tpm"}, "update": {"fleet": "a", "budget_mb": 7}, "connectors": {"replay": {}}}
    over = {"update": {"fleet": "b"}, "connectors": {"host": {}}}
    merged = layers.merged(image, over)
    assert merged == {
        "vault": {"backend": "tpm"},
        "update": {"fleet": "b", "budget_mb": 7},
        "connectors": {"host": {}},
    }
    assert layers.merged(merged, over) == merged
