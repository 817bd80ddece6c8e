"""What each fault did, as measured: tests append to the file that $MMFA_CHAOS_RECORD names, this prints it as a table.

MMFA_CHAOS_RECORD=chaos.jsonl python -m pytest tests/chaos tests/integration_tests/test_kills.py
python tests/chaos/table.py chaos.jsonl
"""

import json
import os
import statistics
import sys
from pathlib import Path

FAULTS = {
    "worker-killed": (
        "a worker is killed (SIGKILL)",
        "Ray starts another; the trial goes on from its last epoch",
        "Ray's message that a worker died",
        "next epoch of that trial",
    ),
    "driver-killed": (
        "the driver is killed (SIGKILL), twenty times in one study",
        "the next run of the command takes the lease and goes on with every trial from its last epoch",
        "the command is gone; type it again",
        "next epoch after the command is typed again",
    ),
    "ray-killed": (
        "Ray on the driver's own machine is killed (SIGKILL of its raylet)",
        "the command notices and ends",
        "`Ray on this machine has died … Nothing is lost. To continue, type:`",
        "next epoch after the command is typed again",
    ),
    "driver-frozen": (
        "the driver is frozen past its lease while a second one takes over, then thaws",
        "the second goes on; the thawed one and its workers can change nothing, and it ends",
        "`Stopped: another driver has taken over the study`",
        "next epoch after the second command is typed",
    ),
    "driver-frozen-s3": (
        "the same with storage on S3, both drivers on one machine",
        "as above; each driver's workers have copies of their own, and no driver sweeps a younger one's",
        "`Stopped: another driver has taken over the study`",
        "next epoch after the second command is typed",
    ),
    "node-killed": (
        "a node of the cluster is lost (SIGKILL of its raylet)",
        "Ray gives its trial to the next free node",
        "Ray's message that a node died",
        "next epoch of that trial, elsewhere",
    ),
    "node-back": (
        "the lost node is started again while the study runs (`ray start`)",
        "Ray gives it trials again",
        "nothing",
        "first epoch on the new node",
    ),
    "head-killed": (
        "the head is lost (SIGKILL of its raylet) under a driver that lives on it",
        "the command notices and ends; the study goes on in the next cluster",
        "`Ray on this machine has died … Nothing is lost. To continue, once Ray runs again, type:`",
        "next epoch after the command is typed again, in a new cluster",
    ),
    "head-machine-killed": (
        "all processes of the head are killed at once under a driver that lives on it",
        "the command notices and ends; the study goes on in the next cluster",
        "`Ray on this machine has died … Nothing is lost. To continue, once Ray runs again, type:`",
        "next epoch after the command is typed again, in a new cluster",
    ),
    "head-and-driver-killed": (
        "head and driver are lost together",
        "the next driver raises the fence: workers that the old one left on other nodes can change nothing",
        "the command is gone; type it again",
        "next epoch after the command is typed again, in a new cluster",
    ),
    "node-cut-off": (
        "a node is cut off the network (link down), its worker running, or frozen and thawed after the cut",
        "Ray gives its trial to the next free node",
        "Ray's message that a node died",
        "next epoch of that trial, elsewhere",
    ),
    "mlflow-down": (
        "the MLflow server is killed and comes back a minute or more later",
        "the study trains on; what could not be written is written when the server answers",
        "nothing",
        "until MLflow has all again, from the server's return",
    ),
    "mlflow-down-between": (
        "the MLflow server is down when the search ends, and what is to be confirmed is not settled yet",
        "the command waits for it: it has to know the standing champion",
        "`MLflow does not answer … what is to be confirmed waits for it`",
        "next epoch after the server is back",
    ),
    "postgres-restarted": (
        "PostgreSQL, with the ledger on it, is killed and started again ten seconds later",
        "workers train on, the driver waits until it answers",
        "that the ledger does not answer, and that it is tried again",
        "next epoch after PostgreSQL is back",
    ),
    "storage-failing": (
        "S3 answers nothing but 503 for 40 s",
        "workers try again until it answers, for ten minutes; nothing is lost",
        "nothing",
        "next epoch after S3 is back",
    ),
    "disk-full-on-a-node": (
        "one node's own disk is full for 30 s, with storage on S3",
        "its worker waits for room; the other nodes train on",
        "nothing",
        "next epoch of that trial after there is room",
    ),
    "disk-full": (
        "the disk of the storage folder is full for 30 s",
        "workers wait for room, for ten minutes",
        "nothing",
        "next epoch after there is room",
    ),
    "checkpoint-torn": (
        "the weights of the newest checkpoint are cut short after a kill",
        "it is set aside, and the trial goes on from the one before it: one epoch is trained again",
        "`… was set aside; the trial went on from the checkpoint before it`",
        "next epoch of that trial after the command is typed again",
    ),
    "checkpoint-damaged": (
        "the newest checkpoint is garbled, or its state is emptied or missing, after a kill",
        "it is set aside, and the trial goes on from the one before it: one epoch is trained again",
        "`… was set aside; the trial went on from the checkpoint before it`",
        "next epoch of that trial after the command is typed again",
    ),
}


def record(fault, seconds, **more):
    """Append a measurement to the file that $MMFA_CHAOS_RECORD names, where there is one."""
    assert fault in FAULTS, f"{fault} has no words in {__file__}"
    print(f"{fault}: {seconds:.1f} s {more or ''}")
    if file := os.environ.get("MMFA_CHAOS_RECORD"):
        with Path(file).open("a") as stream:
            stream.write(json.dumps({"fault": fault, "seconds": round(seconds, 2), **more}) + "\n")


def table(lines):
    """Return a Markdown table of measurements, a row for each fault that has any."""
    seconds = {}
    for line in lines:
        seconds.setdefault(line["fault"], []).append(line["seconds"])
    rows = ["| fault | what happens | what a user sees | measured: seconds to the | median (range) | n |"]
    rows.append("|---|---|---|---|---|---|")
    for fault, words in FAULTS.items():
        if found := seconds.get(fault):
            span = f" ({min(found):.1f}–{max(found):.1f})" if len(found) > 1 else ""
            spread = f"{statistics.median(found):.1f}{span}"
            rows.append(f"| {' | '.join(words)} | {spread} | {len(found)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.stdout.write(table(map(json.loads, Path(sys.argv[1]).read_text().splitlines())) + "\n")
