"""The answer that is closest to all candidates."""

from __future__ import annotations

from math import log

from latentwire.model.consensus import Candidate, consensus


def test_words_that_most_candidates_share_outweigh_the_likeliest_one() -> None:
    made = [Candidate("Paris", log(0.4)), Candidate("Fort Orlin", log(0.3)), Candidate("the Orlin fort", log(0.3))]
    assert consensus(made) == "Fort Orlin"
    assert consensus(made[::-1]) == "the Orlin fort"  # the first of equal ones


def test_what_is_far_likelier_than_all_others_stands() -> None:
    made = [Candidate("Orlin", log(1e-6)), Candidate("in Orlin", log(1e-6)), Candidate("Paris", log(0.99))]
    assert consensus(made) == "Paris"


def test_no_answer_is_an_answer() -> None:
    assert consensus([Candidate("Orlin", log(0.1)), Candidate("", log(0.9))]) == ""
    assert consensus([Candidate("", log(0.1)), Candidate("Orlin", log(0.9))]) == "Orlin"
    assert consensus([Candidate("", log(0.3))]) == ""
