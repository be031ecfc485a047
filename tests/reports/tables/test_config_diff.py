"""Settings that evaluations have to have in common, and how it is said where they have not."""

from sftmix.reports.tables.config_diff import mixed_settings


def test_all_that_names_the_weights_may_differ_at_any_depth():
    one = {"model": "a", "identity": "1", "generation": {"model": "1"}, "answers": {"outputs": "a.json", "sha256": "1"}}
    other = {"model": "b", "identity": "2", "generation": {"model": "2"}, "answers": {"outputs": "b", "sha256": "2"}}
    assert mixed_settings([one, other, one]) is None


def test_a_hash_of_the_questions_or_of_a_template_is_no_name_of_weights():
    one = {"files_sha256": {"question.jsonl": "0123456789abcdef01"}, "requested_model": "m"}
    other = {"files_sha256": {"question.jsonl": "fedcba9876543210ff"}, "requested_model": "n"}
    assert mixed_settings([one, other]) == (
        "evaluated under other settings: files_sha256.question.jsonl (01234567.., fedcba98..), requested_model (m, n)"
    )


def test_a_key_that_one_of_them_lacks_is_a_difference():
    assert mixed_settings([{"seed": 0}, {}]) == "evaluated under other settings: seed (0, absent)"
    assert mixed_settings([{"seed": 0}, {"seed": 0}]) is None
    assert mixed_settings([{}, {}]) is mixed_settings([]) is None


def test_none_and_lists_are_values():
    assert mixed_settings([{"template": None, "stop_ids": [1, 2]}, {"template": "x", "stop_ids": [1]}]) == (
        "evaluated under other settings: template (x, null), stop_ids ([1, 2], [1])"
    )
