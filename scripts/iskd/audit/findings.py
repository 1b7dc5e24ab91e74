"""What a verification can find: one code per kind, and what each of them means."""

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """A kind of finding. The text says what it means to somebody who meets it."""

    explanation: str

    def __new__(cls, value: str, explanation: str) -> "Code":
        """Keep the explanation beside the code."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.explanation = explanation
        return member

    # What must be there.
    MISSING_ARTIFACT = "MISSING_ARTIFACT", "the study has this artifact, and its folder is gone"
    MISSING_STATEMENT = "MISSING_STATEMENT", "files lie there, and no manifest.json says what of"
    ORPHAN = "ORPHAN", "the study has no such artifact or file: a leftover, or put there"
    # Statements by themselves.
    BAD_STATEMENT = "BAD_STATEMENT", "the manifest is damaged, or was not written by this workflow"
    WRONG_SUBJECT = "WRONG_SUBJECT", "the manifest is about another artifact than lies here"
    WRONG_RUN = "WRONG_RUN", "run.json is missing, damaged, or about another manifest"
    # Bytes.
    CONTENT_CHANGED = "CONTENT_CHANGED", "a file has other bytes than its manifest says"
    RESERIALISED = "RESERIALISED", "weights lie there in another form; the numbers are the same"
    MISSING_FILE = "MISSING_FILE", "a file of the manifest is gone"
    EXTRA_FILE = "EXTRA_FILE", "a file lies in the artifact that its manifest does not name"
    WRONG_FILES = "WRONG_FILES", "the manifest names other files than its rule makes"
    LINK = "LINK", "a link or a device stands where a file should be: its content lies elsewhere"
    # The chain.
    CHAIN_BROKEN = "CHAIN_BROKEN", "made from another input than lies here"
    CHAIN_STATEMENT = "CHAIN_STATEMENT", "the input's manifest was written anew since; same files"
    WRONG_INPUT_SET = "WRONG_INPUT_SET", "made from other inputs than the workflow gives it"
    CYCLE = "CYCLE", "made from itself, by way of others"
    TIME_ORDER = "TIME_ORDER", "made before its input was, or in the future"
    # Currency.
    STALE_CONFIG = "STALE_CONFIG", "made with other parameters or another seed than the config has"
    STALE_CODE = "STALE_CODE", "made by other code than this checkout's"
    STALE_ENVIRONMENT = "STALE_ENVIRONMENT", "made with another lock of packages"
    MIXED_CODE = "MIXED_CODE", "one rule's artifacts were made by different code"
    MIXED_ENVIRONMENT = "MIXED_ENVIRONMENT", "artifacts were made with different locks of packages"
    # Working out again.
    METRIC_NOT_FROM_ITEMS = "METRIC_NOT_FROM_ITEMS", "the per-item answers give other numbers"
    NOT_FROM_METRICS = "NOT_FROM_METRICS", "the study's numbers give another figure, table or text"
    WEIGHTS_NOT_AS_SAID = (
        "WEIGHTS_NOT_AS_SAID",
        "the weights have another size than is said",
    )
    BLOCKS_NOT_AS_PLANNED = "BLOCKS_NOT_AS_PLANNED", "other blocks are replaced than the plan says"
    EXPORT = "EXPORT", "the crate, the checklist or the code beside it say other than the study"
    # Trust.
    ROOT = "ROOT", "the study has another root digest than the one that was given"
    UNSIGNED = "UNSIGNED", "the study has no signature, and shall have one"
    SIGNATURE = "SIGNATURE", "not what the key's holder has signed"


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is not as it should be.

    Attributes:
        place: the artifact or file, below the study's folder.
        code: its kind.
        what: the particulars, in words.
    """

    place: str
    code: Code
    what: str

    def __str__(self) -> str:
        return f"{self.code} {self.place}: {self.what}"
