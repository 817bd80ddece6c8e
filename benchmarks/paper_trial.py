"""One trial of the paper's size as one program: seconds, images per second, share of the device's peak, and its parts.

    python benchmarks/paper_trial.py                     # 25 epochs on the GPU
    python benchmarks/paper_trial.py --epochs 1
    python benchmarks/paper_trial.py --device cpu --epochs 1 --steps 4

Needs what `mmfa` itself needs (torch, torchvision, numpy, pyarrow, scipy, pillow, safetensors, filelock), no data, no
network and no installation: it runs from a checkout. Source and target are made in memory: 12,936 training images of
751 identities each, 27 annotated attributes, and a test set of 3,368 queries in 15,913 images, all of 128 x 64 pixels.
The network is the paper's ResNet-50 at 256 x 128, from random weights, in steps of 32 + 32 images; nothing is held out,
so that an epoch has the paper's 404 steps, and the trial ends with the official test. `--steps` cuts an epoch and
shrinks the test set alike: for a CPU.

The seconds are those from opening the data to the test's result, compilation included; the images per second are the
median of the epochs after the first, data included; what the first took beyond the median epoch, in seconds, is what
compiling and its check cost. The peak is that of a large bf16 product of matrices here and now; the operations of a
step are torch's own count. The parts are a second training's, of one epoch of few steps: each part is waited for, which
keeps a GPU from overlapping them, so that they add up to more than a step takes.
"""

import argparse
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lines
import synthetic
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmfa.config import TrialConfig
from mmfa.hardware import Hardware
from mmfa.trace import Trace
from mmfa.training import Training

SECONDS, SPEED = 120.0, 5000.0
"""Bars of 25 epochs on an H200."""
BATCH = 32
FULL = synthetic.TRAIN // BATCH
"""Steps of an epoch."""
TRACED_STEPS = 60
"""Of the training that tells the parts."""


def stores(num_steps):
    """Return source and target, cut to so many steps; the test set shrinks alike."""
    share = num_steps * BATCH / synthetic.TRAIN
    parts = {} if share > 1 - BATCH / synthetic.TRAIN else {
        "train": num_steps * BATCH,
        "train_ids": max(4, round(share * synthetic.TRAIN_IDS)),
        "query": max(8, round(share * synthetic.QUERY)),
        "gallery": max(32, round(share * synthetic.GALLERY)),
        "test_ids": max(2, round(share * synthetic.TEST_IDS)),
    }  # fmt: skip
    return {role: synthetic.store(role, seed=seed, **parts) for seed, role in enumerate(("source", "target"))}


def config_of(options, *, num_epochs):
    """Return the paper's trial."""
    return TrialConfig().with_overrides({
        "model.weights": "none", "data.num_val_ids": 0, "optim.num_epochs": num_epochs, "run.compile": options.compile,
        "data.placement": options.placement,
    })  # fmt: skip


def peak(device):
    """Return the operations per second of a large bf16 product of matrices, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    repeats = 20 if device.type == "cuda" else 1

    def products():
        for _ in range(repeats):
            one @ other

    products()
    return 2 * size**3 * repeats / min(lines.seconds(products) for _ in range(5))


def operations(config, device):
    """Return the floating-point operations of a step: both forwards and the backward."""
    hardware = Hardware.choose(str(device), config.run)
    training = Training(
        config.with_overrides({"run.compile": "off", "data.placement": "host"}), device=str(device), **stores(1)
    )
    images_BCHW = hardware.place(torch.randn(BATCH, 3, config.data.image_height, config.data.image_width))
    with FlopCounterMode(display=False) as counted:
        with hardware.autocast():
            source, target = training.model(images_BCHW), training.model(images_BCHW, domain="target")
        outputs = [source.pooled_BD, source.identity_BK, source.attributes_BM, target.pooled_BD, target.attributes_BM]
        sum(output.mean() for output in outputs).backward()
    return counted.get_total_flops()


def train(options):
    """Run the trial; return its seconds, images per second of each epoch, seconds of the test, and how it ran."""
    data = stores(options.steps)
    started = time.perf_counter()
    training = Training(config_of(options, num_epochs=options.epochs), device=options.device, **data)
    for report in training.epochs():
        sys.stderr.write(f"epoch {report.epoch}: {report.seconds:.1f} s, {report.images_per_second:,.0f} images/s\n")
    speeds = [report.images_per_second for report in training.history]
    sys.stderr.write(f"{len(speeds)} epochs: {time.perf_counter() - started:.1f} s; the test follows\n")
    before = time.perf_counter()
    training.test()
    ended = time.perf_counter()
    sys.stderr.write(f"all of it: {ended - started:.1f} s; the parts of a step follow\n")
    return ended - started, speeds, ended - before, training


def parts(options):
    """Return the seconds of each part of a step, and of the whole step outside the profiler."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Trace(Path(options.torch_trace or folder))
        few = stores(min(options.steps, TRACED_STEPS))
        training = Training(config_of(options, num_epochs=1), device=options.device, trace=trace, **few)
        next(training.epochs())
        return {name: lines.rounded(seconds) for name, seconds, share in trace.rows() if share == share}


def where(device):
    """Return the name of a GPU, or ``a CPU``: results of one are not those of another."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def measure(options):
    """Return the lines."""
    device = Hardware.choose(options.device).device
    best = peak(device)
    flops = operations(config_of(options, num_epochs=1), device)
    seconds, speeds, tested, training = train(options)
    steady = speeds[1:] or speeds
    speed = statistics.median(steady)
    details = {
        "device": str(device), "epochs": options.epochs, "steps_per_epoch": options.steps,
        "precision": "bf16" if training.hardware.bf16 else "fp32", "backbone": training.backbone_runs,
        "pixels_on_device": training._batches.pixels["source"].resident,
    }  # fmt: skip
    try:
        shares = parts(options)
    except Exception as error:  # the profiler's: what was measured before is not lost with it
        shares = f"not measured ({type(error).__name__}: {error})"
    first = training.history[0].seconds - statistics.median(report.seconds for report in training.history)
    told = {
        "evaluation": lines.rounded(tested), "parts_of_a_step": shares,
        "first_epoch_beyond_the_median": lines.rounded(first) if len(speeds) > 1 else None,
    }  # fmt: skip
    judged = options.steps == FULL and options.epochs == 25 and "H200" in lines.hardware()
    whole_bar = {"peer": SECONDS, "ratio": seconds / SECONDS, "at_most": 1.0}
    speed_bar = {"peer": SPEED, "ratio": speed / SPEED, "at_least": 1.0}
    none = {"peer": None, "ratio": None}
    size = "" if (options.epochs, options.steps) == (25, FULL) else f", {options.epochs} x {options.steps} steps of it"
    name, rate = f"paper-scale trial on {where(device)}{size}", flops * speed / (2 * BATCH)
    return [
        lines.figure(name, ours=seconds, n=1, **(whole_bar if judged else none), **told, **details),
        lines.figure(
            f"{name}, images per second", ours=speed, unit="img/s", n=len(steady), spread=(min(steady), max(steady)),
            **(speed_bar if judged else none), **details,
        ),
        lines.figure(
            f"{name}, share of the device's measured bf16 peak", ours=rate / 1e12, peer=best / 1e12, ratio=rate / best,
            unit="TFLOP/s", n=len(steady), **details,
        ),
    ]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto (default: a GPU if there is one), cpu, cuda or cuda:N")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--steps", type=int, default=FULL, help=f"of an epoch (default: {FULL})")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="sets run.compile")
    parser.add_argument("--placement", choices=("auto", "host", "device"), default="auto", help="sets data.placement")
    parser.add_argument("--torch-trace", metavar="DIR", help="keep the profiler's files of the parts' training")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    kind = re.sub(r"\W+", "-", where(Hardware.choose(options.device).device)).strip("-").lower()
    lines.emit(measure(options), f"paper-trial-{kind}", options.record)


if __name__ == "__main__":
    main()
