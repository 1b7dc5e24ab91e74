"""A study's config: its schema and its checks."""

from iskd.config.given import complete
from iskd.config.load import check_data_files, data_folder, load_study, put_stand_ins
from iskd.config.schema import Study, json_schema

__all__ = [
    "Study",
    "check_data_files",
    "complete",
    "data_folder",
    "json_schema",
    "load_study",
    "put_stand_ins",
]
