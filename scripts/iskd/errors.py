"""The one exception that stands for a user's mistake rather than a bug."""


class UserError(Exception):
    """A mistake that its author can correct.

    The message is a single line that says what is wrong, where (file and key), and what would be
    right. Whoever catches it prints the line without a traceback and exits with a code other
    than 0.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
