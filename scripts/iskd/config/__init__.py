"""A study's config: its schema and its checks."""

from iskd.config.corpus_rules import check_fetched_corpus
from iskd.config.given import complete
from iskd.config.load import check_data_files, data_folder, load_study, put_stand_ins
from iskd.config.model_notes import model_notes
from iskd.config.schema import Study, json_schema

__all__ = [
    "Study",
    "check_data_files",
    "check_fetched_corpus",
    "complete",
    "data_folder",
    "json_schema",
    "load_study",
    "model_notes",
    "put_stand_ins",
]
