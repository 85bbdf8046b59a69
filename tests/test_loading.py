"""Modules are loaded without the garbage collector, which then works as before."""

import gc

import pytest

from p2pcloop.loading import loading


def test_the_collector_rests_meanwhile_and_leaves_out_what_was_loaded() -> None:
    before = gc.get_freeze_count()
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_it_works_again_after_an_error() -> None:
    with pytest.raises(ImportError), loading():
        raise ImportError
    assert gc.isenabled()
