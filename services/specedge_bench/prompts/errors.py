"""What can be wrong with a data set.

PromptSetError (a SettingsError)
├── UnknownPromptSet      no loader has this name; names the known ones
├── UnreadablePromptFile  the file is missing, corrupt, or of a kind that cannot be read here
├── MalformedRow          a row is no JSON or lacks the field its format has; names file and row
├── EmptyPromptSet        nothing is left to send
├── InvalidSelection      a number of the selection is outside its range
└── HubUnavailable        the Hugging Face Hub did not give the file
"""

from specedge.errors import SettingsError


class PromptSetError(SettingsError):
    """A data set cannot be used as asked."""


class UnknownPromptSet(PromptSetError):
    """No loader has this name."""


class UnreadablePromptFile(PromptSetError):
    """The file cannot be read."""


class MalformedRow(PromptSetError):
    """A row is not what the data set's format says.

    Args:
        place: file and line or row, as a reader looks it up.
        reason: what is wrong with it.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")


class EmptyPromptSet(PromptSetError):
    """The data set, or what was selected of it, has no prompt."""


class InvalidSelection(PromptSetError):
    """A number of the selection is outside its range."""


class HubUnavailable(PromptSetError):
    """The Hugging Face Hub could not be reached or does not have the file."""
