"""What all rules between keys of a config share."""

from typing import NoReturn

from iskd.config.schema import Study
from iskd.errors import UserError


class Rules:
    """Rules for one study; ``file`` names it in messages."""

    def __init__(self, study: Study, file: str) -> None:
        self.study = study
        self.file = file

    def fail(self, key: str, message: str) -> NoReturn:
        """Refuse the config.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.file}: {key}: {message}")
