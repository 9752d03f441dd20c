"""The check of how a model is fed: each item with its verdict and evidence.

Example:
    console.print(render(describe_model_check(check(model, images, labels).summary())))
"""

from toughen.report.blocks import Block, JsonObject, Paragraph, Table, TableCell

VERDICT_TONES = {"fine": "good", "wrong": "bad", "not checked": "dim"}


def describe_model_check(checked: JsonObject) -> list[Block]:
    """What was looked at, what came of it and what to write; then how much of it is wrong, and what that cost.

    Args:
        checked: the `summary()` of a check.
    """
    table = Table("check", f"{checked['examples']} images", ("what", "verdict", "evidence"))
    ruled = any(item["remedy"] for item in checked["items"])
    for item in checked["items"]:
        evidence = " ".join(filter(None, (item["code"], item["evidence"])))
        table.add(
            item["what"],
            TableCell(item["verdict"], tone=VERDICT_TONES[item["verdict"]]),
            TableCell(evidence, below=f"-> {item['remedy']}" if item["remedy"] else ""),
            rule=ruled,
        )
    verdicts = [item["verdict"] for item in checked["items"]]
    wrong, unknown = (verdicts.count(verdict) for verdict in ("wrong", "not checked"))
    text = f"{wrong} wrong" if wrong else "nothing is wrong"
    text += f", {unknown} not checked" if unknown else ""
    examples = checked["examples"]
    passes = (f"{checked[kind] / examples:.1f} {kind.removesuffix('s')}" for kind in ("forwards", "backwards"))
    text += f" ({' and '.join(passes)} passes of {examples} images)"
    return [table, Paragraph(text, "bad" if wrong else "good")]
