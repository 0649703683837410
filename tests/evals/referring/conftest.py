import pytest
from referring_data import small_sail, write_refcoco


@pytest.fixture(scope="session")
def sail(tmp_path_factory):
    return small_sail(tmp_path_factory.mktemp("sail"))


@pytest.fixture(scope="session")
def refcoco(tmp_path_factory):
    """Folder of the data set, and its masks by annotation."""
    return write_refcoco(tmp_path_factory.mktemp("data") / "refcoco")


@pytest.fixture(scope="session")
def grefcoco(tmp_path_factory):
    return write_refcoco(tmp_path_factory.mktemp("data") / "grefcoco", generalised=True)
