from __future__ import annotations

import pickle

import pytest

from localdpo.core.errors import LocalDPOError, UserError, UserErrors


def test_a_user_error_is_one_line_whatever_it_quotes():
    error = UserError("dpo.yaml:3 model: expected\n  text,\tgot [1,\n2]")
    assert str(error) == "dpo.yaml:3 model: expected text, got [1, 2]"
    assert error.lines == (str(error),)


def test_several_errors_keep_their_order():
    errors = UserErrors([UserError("first"), UserError("second")])
    assert errors.lines == ("first", "second")
    assert str(errors) == "first\nsecond"
    assert isinstance(errors, LocalDPOError)


def test_no_error_is_not_an_error():
    with pytest.raises(ValueError, match="at least one"):
        UserErrors([])


@pytest.mark.parametrize("error", [UserError("a"), UserErrors([UserError("a"), UserError("b")])])
def test_errors_cross_processes(error: LocalDPOError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.lines == error.lines
