"""What a training step costs beyond the network's own arithmetic.

    python benchmarks/step.py
    python benchmarks/step.py --device cuda

The bare step is two forwards of 32 images that lie on the device already, one backward and plain SGD, in the precision,
memory format and compile mode of the whole step. The whole step is the product's: batches drawn, cut out, flipped and
normalised, all losses with their attributes, clipping and averaging where the profile has them, losses kept; its images
are of the stored size that the profile has. Both take turns in blocks of steps on one model; a block of whole steps
begins with an empty queue of batches. On a CPU one core does all of it. Beside it, without a bar: the bare step against
one joint forward and backward of 64 images.
"""

import argparse
import contextlib
import statistics

import lines
import synthetic
import torch

from mmfa import compiled
from mmfa.config import profile
from mmfa.data.batches import Batches
from mmfa.diagnostics import LossLog
from mmfa.hardware import Hardware, deterministic
from mmfa.model import build
from mmfa.optim import build_sgd, set_rate
from mmfa.step import Step

NETWORKS = {"resnet50": "paper", "small": "embedded"}
BARS = {("resnet50", "cpu"): 1.02, ("resnet50", "cuda"): 1.05, ("small", "cpu"): 1.15, ("small", "cuda"): 1.15}
BLOCKS = {("resnet50", "cpu"): 1, ("resnet50", "cuda"): 50, ("small", "cpu"): 20, ("small", "cuda"): 200}
"""Steps in a block."""
RATE = 1e-6
"""Of all steps: the bare one's loss has no lowest value."""


class Steps:
    """Blocks of whole, bare and joint steps on one model.

    Args:
        network: key of :data:`NETWORKS`.
        device: name of a device.
        num_steps: of a block.
    """

    def __init__(self, network, device, num_steps):
        config = profile(NETWORKS[network]).with_overrides({"model.weights": "none", "data.num_val_ids": 0})
        self.hardware = Hardware.choose(device, config.run)
        data = config.data
        sizes = {"height": data.store_height, "width": data.store_width}
        source, target = (
            synthetic.store(name, seed=seed, train=32 * num_steps, train_ids=8, query=0, gallery=0, **sizes)
            for seed, name in enumerate(("source", "target"))
        )
        place = {"device": self.hardware.device, "channels_last": self.hardware.channels_last}
        self.batches = Batches(data, source=source, target=target, seed=0, **place)
        torch.manual_seed(0)
        model = build(config, num_ids=synthetic.TRAIN_IDS, num_attributes=len(self.batches.attribute_names))
        model = model.to(memory_format=self.hardware.memory_format).to(self.hardware.device).train()
        self.step = Step(model, config, self.hardware)
        self.bare_sgd = build_sgd(model, config.optim)
        set_rate(self.bare_sgd, RATE)
        self.batch = next(self.batches.epoch(0))
        self.num_steps, self.epochs = num_steps, 0
        self.step.prepare(self.batch)

    def whole(self):
        """Take an epoch's steps as a training does."""
        log = LossLog(self.epochs)
        with contextlib.closing(self.batches.epoch(self.epochs)) as batches:
            for batch in batches:
                terms = self.step.forward(batch).terms
                self.step.update(terms, rate=RATE)
                log.add(terms)
        log.means()
        self.epochs += 1

    def bare(self):
        """Take as many bare steps."""
        model, batch = self.step.model, self.batch
        for _ in range(self.num_steps):
            with self._forward():
                source, target = model(batch.source_BCHW), model(batch.target_BCHW, domain="target")
            self._descend(source.pooled_BD, source.identity_BK, source.attributes_BM, target.pooled_BD,
                          target.attributes_BM)  # fmt: skip

    def joint(self):
        """Take as many steps of one forward of all 64 images."""
        model = self.step.model
        for _ in range(self.num_steps):
            images_BCHW = torch.cat([self.batch.source_BCHW, self.batch.target_BCHW])
            with self._forward():
                features = model(images_BCHW)
            self._descend(features.pooled_BD, features.identity_BK, features.attributes_BM)

    @contextlib.contextmanager
    def _forward(self):
        if self.step.compiled is not None:
            torch.compiler.cudagraph_mark_step_begin()
        with compiled.in_place(self.step.model, self.step.compiled), self.hardware.autocast():
            yield

    def _descend(self, *outputs):
        sum(output.mean() for output in outputs).backward()
        self.bare_sgd.step()
        self.bare_sgd.zero_grad(set_to_none=True)


def measure(network, device, *, rounds, num_steps):
    """Return the lines of one network."""
    kind = torch.device(device).type
    with deterministic(Hardware.choose(device).device, seed=(0, 0)):  # as a training does, its check included
        steps = Steps(network, device, num_steps or BLOCKS[network, kind])
        whole = lines.pairs(steps.whole, steps.bare, rounds)
        joint = lines.pairs(steps.bare, steps.joint, rounds)
    where = {
        "device": kind,
        "steps": steps.num_steps,
        "precision": "bf16" if steps.hardware.bf16 else "fp32",
        "channels_last": steps.hardware.channels_last,
        "backbone": steps.step.backbone_runs,
    }
    images = 64 * steps.num_steps
    return [
        lines.line(
            f"training step of {network} on the {kind}, against the bare step",
            lines.Pairs(*([seconds / steps.num_steps for seconds in part] for part in whole)),
            at_most=BARS[network, kind],
            images_per_second=lines.rounded(images / statistics.median(whole.ours)),
            **where,
        ),
        lines.line(
            f"bare step of {network} on the {kind}, against one joint forward of 64 images",
            lines.Pairs(*([seconds / steps.num_steps for seconds in part] for part in joint)),
            **where,
        ),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--network", choices=NETWORKS, help="one of the networks (default: both)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps in a block (default: by network and device)")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.device == "cpu":
        lines.one_core()
    found = []
    for network in [options.network] if options.network else NETWORKS:
        found += measure(network, options.device, rounds=options.rounds, num_steps=options.steps)
    lines.emit(found, f"step-{torch.device(options.device).type}", options.record)


if __name__ == "__main__":
    main()
