"""What transformers reports while it loads a model."""

from contextlib import suppress

import pytest
from transformers.utils import logging

from sail_encoder.models.reports import without_reports


@pytest.mark.parametrize("shows_progress", [True, False])
def test_what_a_user_has_chosen_comes_back(shows_progress):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    change = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        logging.set_verbosity(logging.INFO)
        change[shows_progress]()
        with suppress(KeyError), without_reports():
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
            raise KeyError
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, shows_progress)
    finally:
        logging.set_verbosity(before[0])
        change[before[1]]()
