"""Iterative Structured Knowledge Distillation: a decoder made smaller, one block at a time.

``import iskd`` is enough for ``AutoModelForCausalLM.from_pretrained`` to read a compressed model:
the model types are registered as soon as transformers is there. Until then nothing heavy is
imported, so that the workflow can read a study's config without paying for torch.
"""

import importlib
from types import ModuleType

import wrapt

__version__ = "0.1.0"


@wrapt.when_imported("transformers")
def _register_model_types(_: ModuleType) -> None:
    # iskd.models registers on import; it may itself be what imports transformers just now.
    importlib.import_module("iskd.models")
