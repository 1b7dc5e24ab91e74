"""A model as its teacher's draft, as one record beside those of its speed and memory."""

import logging
from typing import TYPE_CHECKING, Any

from iskd.errors import UserError
from iskd.evaluation.efficiency import DRAFT, MODEL, Load
from iskd.serving.speculation import PROMPTS, Drafting, check_rollback, encode, measure_drafts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("iskd.evaluation")


def drafting_records(
    model: "PreTrainedModel",
    teacher: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    load: Load,
    draft_tokens: int,
) -> list[dict[str, Any]]:
    """Measure how fast a teacher writes with a model as its draft, one text at a time.

    Args:
        model: the draft; of the teacher's tokens, on its device.
        teacher: whose text it is.
        tokenizer: the teacher's.
        load: of it ``new_tokens`` are written after each of the built-in prompts.
        draft_tokens: that the draft writes before the teacher reads them.

    Returns:
        one record, with ``who`` ("model"), ``batch_size`` (1), ``phase`` ("draft") and the fields
        of :class:`iskd.serving.speculation.Drafted`; none for a model that cannot draft, or that
        has no room for the prompts, which the log says
    """
    room = min(one.config.max_position_embeddings for one in (model, teacher)) - load.new_tokens
    try:
        for one, name in ((model, "the model"), (teacher, "the teacher")):
            check_rollback(one.config, name)
        prompts = encode(PROMPTS, tokenizer, room=room, where="the built-in prompts")
    except UserError as error:
        log.warning("not measured as a draft: %s", error)
        return []
    drafting = Drafting(load.new_tokens, (draft_tokens,))
    (found,) = measure_drafts(teacher, model, prompts, drafting, name=MODEL)
    return [{"who": MODEL, "batch_size": 1, "phase": DRAFT, **found.as_record()}]
