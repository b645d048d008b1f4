"""Unknown paths and methods are problems, too."""

from tests.service.api.submissions import REQUESTS, assert_problem


def test_unknown_paths_and_methods_are_problems(api):
    """404 and 405 in the same form."""
    assert_problem(api.get("/v1/nothing"), 404)
    assert_problem(api.put(REQUESTS), 405)
