"""Reader of W&B's files in a run's folder."""

import json

from fed_a2v.runs.wandb_file import records


def rows_at_wandb(folder):
    """Every row, by the names of its figures, in the order in which they were written."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        for content in records(path.read_bytes()):
            items = Record.FromString(content).history.item
            rows.append(
                {"/".join([*filter(None, [item.key]), *item.nested_key]): json.loads(item.value_json) for item in items}
            )
    return [row for row in rows if row]
