"""Profiles: where a client finds its fabric and its key, and what comes before what."""

import pytest

from fabric.client.profile import Profile, load_profile, profile_file, save_profile
from fabric.errors import InvalidConfig


@pytest.fixture
def home(tmp_path):
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def test_an_argument_comes_before_the_environment_and_that_before_the_file(home):
    save_profile(Profile(address="file:1", api_key="file-key", ca="/file/ca"), environ=home)
    environ = {**home, "FABRIC_ADDRESS": "env:1"}
    found = load_profile(Profile(account="acme"), environ=environ)
    assert (found.address, found.api_key, found.ca, found.account) == ("env:1", "file-key", "/file/ca", "acme")
    assert load_profile(Profile(address="arg:1"), environ=environ).address == "arg:1"


def test_profiles_are_kept_apart_and_readable_by_their_owner_alone(home):
    save_profile(Profile(address="a:1", api_key="k1"), environ=home)
    file = save_profile(Profile(address='b"\\:2', api_key="k2"), name="lab", environ=home)
    assert file.stat().st_mode & 0o777 == 0o600
    assert load_profile(environ=home).address == "a:1"
    assert load_profile(environ={**home, "FABRIC_PROFILE": "lab"}).address == 'b"\\:2'


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        ("[default\n", 0o600, "not TOML"),
        ("[default]\nadress = 'x'\n", 0o600, "allowed are address"),
        ("[default]\naddress = 3\n", 0o600, "as strings"),
        ("[default]\naddress = 'x'\n", 0o644, "chmod 600"),
    ],
)
def test_a_profile_file_that_is_wrong_is_refused_with_the_remedy(home, text, mode, says):
    file = profile_file(home)
    file.parent.mkdir()
    file.write_text(text)
    file.chmod(mode)
    with pytest.raises(InvalidConfig, match=says):
        load_profile(environ=home)


def test_a_profile_that_is_not_there_is_named(home):
    with pytest.raises(InvalidConfig, match="no profile 'lab'"):
        load_profile(environ={**home, "FABRIC_PROFILE": "lab"})


def test_a_missing_key_is_asked_for_from_where_the_address_is(home):
    with pytest.raises(InvalidConfig, match=r"no address given: set FABRIC_ADDRESS.* or run `fabric up --local`"):
        load_profile(environ=home)
    with pytest.raises(InvalidConfig) as away:
        load_profile(environ={**home, "FABRIC_ADDRESS": "lab:7433"})
    assert away.value.code == "no_api_key"
    assert "set FABRIC_API_KEY to a key of your account at lab:7433" in away.value.message
    assert "fabric up" not in away.value.message


def test_a_profile_never_shows_its_key():
    assert "secret" not in repr(Profile(address="a:1", api_key="secret"))
