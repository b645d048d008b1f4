"""Why nobody can be looked up in the corpora of a model."""


class Unsearchable(Exception):
    """Nobody can be looked up now. The message is a code, followed by a corpus' name where that helps."""

    @property
    def index_is_outdated(self) -> bool:
        """Whether earlier matches belong to an index that no longer exists."""
        return str(self).startswith(("corpus_changed", "corpus_removed"))


class TooManyMatches(Unsearchable):
    """A search matches or compares more records than one request may."""

    def __init__(self) -> None:
        super().__init__("too_many_matches")
