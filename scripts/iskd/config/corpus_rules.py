"""Rules about a corpus's stories, as far as they can be told before anything is tokenized."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from iskd.config.schema import FileCorpus, HeldoutTask, HubCorpus, Study
from iskd.data.language import TEXTS, not_english
from iskd.data.texts import split_texts, stream_texts
from iskd.errors import UserError

# Of so many stories no split is made here: they are enough.
_MANY = 10_000
# Beside a token for each byte at most: the one that ends a story, and a blank put before it.
_PER_STORY = 2


def check_stories(study: Study, stories: Sequence[str], file: str) -> None:
    """Check that all the stories of a local corpus are enough to train on and to hold out.

    Args:
        study: the checked config; its corpus consists of files.
        stories: what they hold.
        file: the config's name, for messages.

    Raises:
        UserError: they are too few, too short for a single sequence, or no English where a task
            needs that.
    """
    corpus = study.corpus
    assert isinstance(corpus, FileCorpus)  # noqa: S101 - only such a corpus is looked at here
    taken = list(stories[: corpus.rows])
    if len(set(taken)) < _MANY:
        try:
            train, heldout = split_texts(taken, corpus.heldout_share, corpus.seed)
        except UserError as error:
            raise UserError(f"{file}: corpus.files: {error}") from None
        length = corpus.block_length
        for part, texts in (("train on", train), ("hold out", heldout)):
            most = sum(len(text.encode()) + _PER_STORY for text in texts)
            if most < length:
                raise UserError(
                    f"{file}: corpus.files: {len(texts)} of {len(taken)} stories are there to "
                    f"{part}, which have at most {most} tokens, and one sequence has {length} "
                    "(corpus.block_length); give more text"
                )
    check_language(study, taken, file)


def check_language(study: Study, stories: Sequence[str], file: str) -> None:
    """Check that stories are English where a task's rows are made from them.

    Args:
        study: the checked config.
        stories: the first ones of its corpus.
        file: the config's name, for messages.

    Raises:
        UserError: they seem to be of another language.
    """
    made = [name for name, task in study.tasks.items() if isinstance(task, HeldoutTask)]
    reason = not_english(stories) if made else None
    if reason is not None:
        raise UserError(
            f"{file}: tasks.{made[0]}.source: heldout makes a cloze from English prose only, and "
            f"{reason}; give rows of your own (source: file), or a task of lm-eval in that language"
        )


def check_fetched_corpus(study: Study, results: Path, file: str) -> None:
    """Check the language of a corpus from the hub, once it has been fetched.

    Args:
        study: the checked config.
        results: the study's folder.
        file: the config's name, for messages.

    Raises:
        UserError: it seems to be of another language than a task needs.
    """
    texts = results / "download_corpus" / "texts.jsonl"
    if isinstance(study.corpus, HubCorpus) and texts.is_file():
        check_language(study, list(islice(stream_texts(texts), TEXTS)), file)
