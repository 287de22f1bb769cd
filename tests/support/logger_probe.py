"""Read what a logger has of the runs in a folder, with its own reader: numbers by name and step, and facts."""

import json
import sys
from pathlib import Path
from typing import Any

Facts = dict[str, Any]
Rows = list[tuple[str, int, float]]


def read_tensorboard(where: str) -> tuple[Rows, Facts]:
    """Read the event files; the accumulator drops what a restart replaces."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows: Rows = []
    facts: Facts = {"config": {}, "images": []}
    for path in sorted({path.parent for path in Path(where).glob("runs/**/events.*")}):
        events = EventAccumulator(str(path), {"scalars": 0, "images": 0, "tensors": 0})
        events.Reload()
        tags = events.Tags()
        rows += [(tag, one.step, one.value) for tag in tags["scalars"] for one in events.Scalars(tag)]
        facts["images"] += tags["images"]
        text = events.Tensors(f"{path.name}/config/text_summary")[-1].tensor_proto.string_val[0].decode()
        facts["config"] |= json.loads(text.removeprefix("```json").removesuffix("```"))
    return rows, facts


def read_trackio(where: str) -> tuple[Rows, Facts]:
    """Read the database of the environment's TRACKIO_DIR."""
    from trackio import Api
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = Api().runs("niels_gpt")
    logs = SQLiteStorage.get_logs("niels_gpt", run.name, run_id=run.id)
    rows = [(name, log["step"], number) for log in logs for name, number in log.items() if "/" in name]
    return rows, {"name": run.name, "group": run.config["_Group"], "config": run.config}


def read_mlflow(where: str) -> tuple[Rows, Facts]:
    """Read the database of the folder."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{where}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("niels_gpt").experiment_id])
    number, data = run.info.run_id, run.data
    rows = [
        (name, one.step, one.value) for name in data.metrics for one in client.get_metric_history(number, name)
    ]
    images = [
        one.path for folder in client.list_artifacts(number) for one in client.list_artifacts(number, folder.path)
    ]
    facts = {
        "name": run.info.run_name,
        "group": data.tags.get("group"),
        "status": run.info.status,
        "images": images,
    }
    return rows, facts | {"config": data.params | {"commit": data.tags.get("mlflow.source.git.commit")}}


def read_wandb(where: str) -> tuple[Rows, Facts]:
    """Read the offline folders, with the reader that versions before 0.20 have."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    rows: Rows = []
    facts: Facts = {"config": {}, "images": [], "steps": []}
    for path in sorted(Path(where).glob("wandb/offline-run-*/*.wandb")):
        store = DataStore()
        store.open_for_scan(str(path))
        while data := store.scan_data():
            record = Record()
            record.ParseFromString(data)
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in (*record.run.config.update, *record.history.item, *record.summary.update)
            }
            if record.HasField("run"):
                facts |= {"name": record.run.display_name, "group": record.run.run_group, "id": record.run.run_id}
                facts["config"] |= values
            elif record.HasField("history"):
                (phase,) = {name.split("/")[0] for name in values if name.count("/") == 2}
                facts["steps"].append(values["_step"])
                rows += [(name, values[f"{phase}/step"], n) for name, n in values.items() if name.count("/") == 2]
            facts["images"] += [name for name in values if name.endswith("/curves")]
    return rows, facts


question = json.loads(sys.stdin.read())
print(json.dumps(globals()[f"read_{question['logger']}"](question["where"])))
