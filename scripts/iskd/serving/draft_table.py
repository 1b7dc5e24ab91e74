"""What was measured of drafts, as a table for readers."""

from collections.abc import Sequence

from iskd.serving.speculation import Drafted


def as_table(found: Sequence[Drafted]) -> str:
    """Write results as a table in Markdown, and which draft is the fastest."""
    rows = [
        "| Draft | Parameters | Drafted at a time | Accepted | Tokens a pass "
        "| Tokens/s: draft alone | teacher alone | together | Ratio (lowest to highest) "
        "| Same text |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        ratio = f"{each.ratio.value:.2f} ({each.ratio.low:.2f} to {each.ratio.high:.2f})"
        same = f"{each.same} of {each.prompts}"
        if each.margin is not None:
            same += f", logits apart by {each.margin:.1g}"
        rows.append(
            f"| {each.model} | {each.parameters:,} | {each.draft_tokens} | {each.acceptance:.1%} "
            f"| {each.per_pass:.2f} | {each.alone.value:.1f} | {each.plain.value:.1f} "
            f"| {each.assisted.value:.1f} | {ratio} | {same} |"
        )
    best = max(found, key=lambda each: each.ratio.value)
    if best.ratio.value > 1:
        verdict = (
            f"fastest: {best.model} with {best.draft_tokens} tokens at a time, "
            f"{best.ratio.value:.2f} times the teacher alone"
        )
    else:
        verdict = (
            f"no draft makes the teacher faster; the best is {best.model} with "
            f"{best.draft_tokens} tokens at a time, {best.ratio.value:.2f} times the teacher alone"
        )
    return "\n".join([*rows, "", verdict]) + "\n"
