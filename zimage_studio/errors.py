"""The errors a person may see, in either language; everything else is a bug and keeps its traceback."""

from zimage_studio.messages import Lang, say


class UserError(Exception):
    """Something the person at the door can put right.

    Holds a message key and its values, not a sentence: the door that shows it knows the language.
    `str(error)` is the English sentence.
    """

    def __init__(self, key: str, **values: object) -> None:
        self.key = key
        self.values = values
        super().__init__(say(key, "en", **values))

    def text(self, lang: Lang) -> str:
        """The sentence in `lang`."""
        return say(self.key, lang, **self.values)


class InvalidInputError(UserError):
    """A value was refused: the sentence names the field, the value, the bound and the remedy."""

    def __init__(self, key: str, *, field: str, **values: object) -> None:
        self.field = field
        super().__init__(key, field=field, **values)


class BusyError(UserError):
    """The queue is full, or the device is lent to something else."""


class ModelError(UserError):
    """A model is missing, damaged, or not one that Studio loads."""


class NonFiniteError(UserError):
    """The model produced NaN or infinity; no image is saved."""


class OutOfMemoryError(UserError):
    """The device ran out of memory; everything the job held has been freed."""


class StorageError(UserError):
    """The disk is full or cannot be written."""


class Cancelled(Exception):  # noqa: N818 - it is a request obeyed, not an error
    """Raised from a progress callback to stop the work at the next step."""


def bare(error: UserError) -> UserError:
    """The same refusal to be kept: without its traceback, which would pin a model and tensors as long as it lives."""
    return type(error)(error.key, **error.values)
