"""What `toughen label` did, from the manifest in the folder of an extra set.

Example:
    console.print(render(describe_labelling(read_json(folder / "manifest.json"))))
"""

from toughen.report.blocks import Block, JsonObject, Paragraph, Table, TableCell
from toughen.report.formatting import percent
from toughen.settings import format_number


def labelling_table(manifest: JsonObject) -> Table:
    """Each class's candidates, and of every set its images and their least score."""
    pool, sets = manifest["pool"], manifest["sets"]
    columns = [name for found in sets for name in (f"of {found['count']}", "least score")]
    table = Table("labelling", f"extra set from {pool['images']} images", ("class", "candidates", *columns))
    for at, (name, row) in enumerate(manifest["classes"].items(), 1):
        cells: list[TableCell | int | None] = [row["candidates"]]
        for found in sets:
            chosen = found["classes"][name]
            text = f"{chosen['chosen']:,}" + (f" ({chosen['missing']} missing)" if "missing" in chosen else "")
            quantiles = chosen["score_quantiles"]
            least = quantiles and TableCell.number(quantiles[0], f"{quantiles[0]:.4f}")
            cells += [TableCell.number(chosen["chosen"], text), least]
        table.add(name, *cells, rule=at == len(manifest["classes"]))
    table.add("all", pool["candidates"], *(cell for found in sets for cell in (found["chosen"], "")))
    return table


def describe_labelling(manifest: JsonObject) -> list[Block]:
    """The classes of every set, then what was left out and what to look at."""
    asked, pool, alike = manifest["request"], manifest["pool"], manifest["perceptual"]
    copies = pool["removed_within_threshold"]
    lines = [
        f"{copies} images ({percent(copies / pool['images'])}) are within {format_number(asked['threshold'])} of a "
        f"test image and were left out, {pool['exact_copies']} of them exact copies",
        f"{alike['images']} look like a test image (correlation of {alike['bound']:g} or more), {alike['mirrored']} of "
        f"them mirrored; {alike['chosen']} of these were chosen: see perceptual.parquet",
    ]
    if asked["foreign"]:
        lines.append(f"{pool['foreign']} are foreign to the scorer and were left out")
    kind = "probabilities" if asked["labels"] == "probabilities" else "class indices"
    agrees = manifest["labeller_agrees"]
    second = "" if agrees is None else f", which agrees with the scorer on {percent(agrees)}"
    lines.append(f"labels: {kind} by the {manifest['labelled_by']}{second}")
    blocks: list[Block] = [labelling_table(manifest), *(Paragraph(line, "") for line in lines)]
    for found in manifest["sets"]:
        if found["missing"]:
            names = ", ".join(name for name, row in found["classes"].items() if "missing" in row)
            counts = f"The set of {found['count']} holds {found['chosen']} images"
            blocks.append(Paragraph(f"{counts}: too few candidates for {names}", "bad"))
    return blocks
