import pytest
from page_helpers import require, save_random_head


@pytest.fixture(scope="session")
def head(tmp_path_factory):
    return save_random_head(tmp_path_factory.mktemp("head"))


@pytest.fixture(scope="module")
def page(head):
    """A page with two models, the examples and a head."""
    require("gradio")
    from evals.page import example_photos, load_segmentation
    from sail_encoder.page.actions import Page
    from sail_encoder.page.encodings import Encoder
    from sail_encoder.page.photos import Photos

    photos = Photos(example_photos(), 2**24)
    return Page(Encoder(["sail-tiny", "raw/14"], 2**28), photos, load_segmentation(str(head)))
