"""What evaluation costs beyond the network's own arithmetic: extraction and ranking against bare forwards.

    python benchmarks/embedding.py
    python benchmarks/embedding.py --device cuda

A test set of Market-1501's size (3,368 queries, 15,913 gallery images of 128 x 64 pixels) is made on the spot and
judged as every trial judges its official test: pixels read in a thread, batches, features, distances, ranks, once more
by cosine, and the attributes. The bare forward takes one batch that lies on the device already as often as it takes for
as many images, in the same precision and memory format: of the network as it is written, and, in a line of its own, of
the copy whose BatchNorm is folded into its convolutions, which is what evaluation runs. The ratio is of throughputs. On
a CPU the embedded pair's network sees the whole set, at 128 x 64; ResNet-50, at 256 x 128, a part of it, which the name
of its line tells: ranking is quadratic, and so takes a smaller share there. One core does all of it.
"""

import argparse
import functools

import lines
import numpy as np
import synthetic
import torch

from mmfa import evaluate
from mmfa.config import profile
from mmfa.data.attributes import encode
from mmfa.data.pixels import place
from mmfa.folding import folded
from mmfa.hardware import Hardware
from mmfa.model import build

BAR = 0.9
NETWORKS = {"small": ("embedded", 128, 64), "resnet50": ("paper", 256, 128)}
"""Profile, and the height and width of the input."""
PARTS = {("small", "cpu"): 1.0, ("resnet50", "cpu"): 0.02, ("small", "cuda"): 1.0, ("resnet50", "cuda"): 1.0}
"""Share of the test set."""


def measure(network, device, *, rounds, share):
    """Return the lines of one network."""
    name, height, width = NETWORKS[network]
    config = profile(name).with_overrides(
        {"model.weights": "none", "data.image_height": height, "data.image_width": width}
    )
    hardware = Hardware.choose(device, config.run)
    kind = hardware.device.type
    share = share or PARTS[network, kind]
    counts = {"query": round(share * synthetic.QUERY), "gallery": round(share * synthetic.GALLERY)}
    store = synthetic.store("target", seed=0, train=0, test_ids=max(2, round(share * synthetic.TEST_IDS)), **counts)
    names = encode(store.domain.attributes, age=config.data.age).names
    torch.manual_seed(0)
    model = build(config, num_ids=synthetic.TRAIN_IDS, num_attributes=len(names))
    model = model.to(memory_format=hardware.memory_format).to(hardware.device).eval()
    pixels = place({"target": store.images}, placement="auto", device=hardware.device)["target"]
    num = len(store.domain.rows("query", "gallery"))
    batch = evaluate.GPU_BATCH if kind == "cuda" else evaluate.BATCH
    images_BCHW = hardware.place(torch.randn(min(batch, num), 3, height, width))

    def whole():
        evaluate.evaluate_test(model, store, config=config, attribute_names=names, hardware=hardware, pixels=pixels)

    @torch.no_grad()
    def bare(forward):
        for size in np.diff([*range(0, num, len(images_BCHW)), num]):
            with hardware.autocast():
                forward(images_BCHW[:size])

    backbone = folded(model.backbone, domain="target")
    as_written, as_run = (functools.partial(bare, one) for one in (model.embed, lambda x: model.pooled(backbone(x))))
    name = f"official test of {share:.0%} of Market-1501's size with {network} on the {kind}, against bare forwards"
    about = {"unit": "img/s", "work": num, "device": kind, "images": num, "share_of_test_set": share}
    about |= {"precision": "bf16" if hardware.bf16 else "fp32", "resident": pixels.resident}
    return [
        lines.line(name, lines.pairs(whole, as_written, rounds), at_least=BAR, **about),
        lines.line(f"{name} of the folded network", lines.pairs(whole, as_run, rounds), at_least=BAR, **about),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--network", choices=NETWORKS, help="one of the networks (default: both)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--share", type=float, help="share of the test set (default: all, of ResNet-50 on a CPU 0.02)")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    if options.device == "cpu":
        lines.one_core()
    chosen = [options.network] if options.network else list(NETWORKS)
    each = [measure(name, options.device, rounds=options.rounds, share=options.share) for name in chosen]
    found = [line for both in each for line in both]
    lines.emit(found, f"embedding-{torch.device(options.device).type}", options.record)


if __name__ == "__main__":
    main()
